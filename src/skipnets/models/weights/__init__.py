"""Load weights from torchvision, timm, the Hugging Face hub and files, strictly."""

from skipnets.models.weights.checkpoint import PublishedInput, PublishedLabels
from skipnets.models.weights.loading import load_weights
from skipnets.models.weights.report import LoadReport
from skipnets.models.weights.sources import is_cached, weights_fields

__all__ = ["LoadReport", "PublishedInput", "PublishedLabels", "is_cached", "load_weights", "weights_fields"]
