"""Load weights from torchvision, timm, the Hugging Face hub and files, strictly."""

from skipnets.models.weights.loading import load_weights
from skipnets.models.weights.report import LoadReport
from skipnets.models.weights.sources import PublishedInput, is_cached

__all__ = ["LoadReport", "PublishedInput", "is_cached", "load_weights"]
