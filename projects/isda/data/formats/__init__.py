"""Annotations of other tools, and masks drawn as images, on their way to COCO's format."""

from isda.data.formats.annotated import AnnotatedImage, Embedded, Instance, Report
from isda.data.formats.coco import split_images, write_coco
from isda.data.formats.detection import FORMATS, detect_format, read_annotations

__all__ = [
    "FORMATS",
    "AnnotatedImage",
    "Embedded",
    "Instance",
    "Report",
    "detect_format",
    "read_annotations",
    "split_images",
    "write_coco",
]
