"""Set losses, matching and the optimiser."""
