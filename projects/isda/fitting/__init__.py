"""Mask dictionaries: fitted to the masks of annotation files, and measured on others."""
