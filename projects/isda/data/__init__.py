"""Data sets: what is embedded, how it is registered, checked and mapped to the model's input."""

from isda.data import builtin  # noqa: F401  (registers the embedded data sets)
from isda.data.checks import check_coco_json, check_datasets
from isda.data.classes import check_num_classes, num_classes_of
from isda.data.errors import DatasetError
from isda.data.registration import load_coco_json_checked, register_coco_json

__all__ = [
    "DatasetError",
    "check_coco_json",
    "check_datasets",
    "check_num_classes",
    "load_coco_json_checked",
    "num_classes_of",
    "register_coco_json",
]
