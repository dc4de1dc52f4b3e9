"""Failures of single images among many, and how they are told."""

import cv2
from PIL import UnidentifiedImageError

from isda.data.errors import ImageError

__all__ = ["OF_ONE_IMAGE", "reason", "what_failed"]

# What one image may raise, for its content, its size or the file that it is drawn into. The others
# are gone through all the same.
OF_ONE_IMAGE = (ImageError, OSError, RuntimeError, MemoryError, ValueError, cv2.error)


def what_failed(error: Exception) -> str:
    return "cannot be read" if isinstance(error, ImageError) else "failed"


def reason(error: Exception) -> str:
    """Why an image cannot be used; an ImageError's own advice is for data sets."""
    if not isinstance(error, ImageError):
        return f"{error}" or type(error).__name__
    if isinstance(error.__cause__, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return str(error.__cause__ or error)
