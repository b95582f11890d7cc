"""C kernels for CPUs: sources go in, a library compiled for this processor comes out."""
