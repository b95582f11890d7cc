"""Checkpoints: safetensors or GGUF go in, a model's description and a stage's weights come out."""
