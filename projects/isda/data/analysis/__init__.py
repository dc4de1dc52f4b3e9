"""Analysis of a data set before training: contents, faults, advice."""

from isda.data.analysis.advice import (
    annotated_images,
    form_of_settings,
    recommended_settings,
)
from isda.data.analysis.ceiling import MaskForm
from isda.data.analysis.examine import Analysis, ImageRecord, SplitAnalysis, examine
from isda.data.analysis.findings import ERROR, NOTE, WARNING, Finding
from isda.data.analysis.outlook import Outlook, look_ahead
from isda.data.analysis.summary import Summary, summarise

__all__ = [
    "ERROR",
    "NOTE",
    "WARNING",
    "Finding",
    "ImageRecord",
    "MaskForm",
    "Outlook",
    "SplitAnalysis",
    "Summary",
    "Analysis",
    "annotated_images",
    "examine",
    "form_of_settings",
    "look_ahead",
    "recommended_settings",
    "summarise",
]
