"""The report of a training: one HTML file that needs neither a server nor a network."""

from isda.report.page import write_report

__all__ = ["write_report"]
