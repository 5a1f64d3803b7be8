"""Weights from elsewhere: found, matched with a model's tensors, adapted, and loaded whole or not at all."""

from skipnets.models.weights.loading import load_weights
from skipnets.models.weights.report import LoadReport
from skipnets.models.weights.sources import PublishedInput

__all__ = ["LoadReport", "PublishedInput", "load_weights"]
