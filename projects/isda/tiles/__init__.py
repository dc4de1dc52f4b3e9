"""Images that are larger than what a model should see: cut into windows, merged afterwards."""

from isda.tiles.grid import Grid, window_grid
from isda.tiles.merging import merge_windows

__all__ = ["Grid", "merge_windows", "window_grid"]
