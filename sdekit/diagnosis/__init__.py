"""What is wrong with a model: how it is declared, fed, trained and left, told from its outputs."""

from sdekit.diagnosis.findings import Finding
from sdekit.diagnosis.report import Diagnosis, diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]
