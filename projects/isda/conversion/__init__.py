"""Checkpoints of other implementations under this project's names.

A table per source says what becomes of each of its tensors; :func:`convert` applies it and accounts
for every name of the file and of the model.
"""

from isda.conversion.conversion import Conversion, convert
from isda.conversion.resnet import detectron2_resnet
from isda.conversion.sources import SOURCES, detect

__all__ = ["SOURCES", "Conversion", "convert", "detect", "detectron2_resnet"]
