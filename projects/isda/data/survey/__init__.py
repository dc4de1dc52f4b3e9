"""What a data set holds and what is wrong with it, before anybody trains on it."""

from isda.data.survey.advice import recommended_settings
from isda.data.survey.examine import ImageRecord, SplitSurvey, Survey, examine
from isda.data.survey.findings import ERROR, NOTE, WARNING, Finding
from isda.data.survey.summary import Summary, summarise

__all__ = [
    "ERROR",
    "NOTE",
    "WARNING",
    "Finding",
    "ImageRecord",
    "SplitSurvey",
    "Summary",
    "Survey",
    "examine",
    "recommended_settings",
    "summarise",
]
