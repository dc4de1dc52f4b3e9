"""What a data set holds and what is wrong with it, before anybody trains on it."""

from isda.data.survey.advice import (
    annotated_images,
    form_of_settings,
    recommended_settings,
)
from isda.data.survey.ceiling import MaskForm
from isda.data.survey.examine import ImageRecord, SplitSurvey, Survey, examine
from isda.data.survey.findings import ERROR, NOTE, WARNING, Finding
from isda.data.survey.outlook import Outlook, look_ahead
from isda.data.survey.summary import Summary, summarise

__all__ = [
    "ERROR",
    "NOTE",
    "WARNING",
    "Finding",
    "ImageRecord",
    "MaskForm",
    "Outlook",
    "SplitSurvey",
    "Summary",
    "Survey",
    "annotated_images",
    "examine",
    "form_of_settings",
    "look_ahead",
    "recommended_settings",
    "summarise",
]
