"""Mask dictionaries: fitted to the masks of annotation files, and measured on others."""

__all__ = ["SYMMETRIES"]

# What a set of masks is completed with: nothing, mirror images, or all eight turned and mirrored.
SYMMETRIES = ("none", "mirror", "all")
