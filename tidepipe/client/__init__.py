"""The client SDK; its public names are those of `tidepipe`."""
