"""Annotations of other tools, and masks drawn as images, on their way to COCO's format."""

from isda.data.formats.annotated import AnnotatedImage, Embedded, Instance, Report
from isda.data.formats.detection import detect_format, read_annotations
from isda.data.formats.registry import Format, Options, formats
from isda.data.formats.writing import split_images, write_coco

__all__ = [
    "AnnotatedImage",
    "Embedded",
    "Format",
    "Instance",
    "Options",
    "Report",
    "detect_format",
    "formats",
    "read_annotations",
    "split_images",
    "write_coco",
]
