"""Load weights from torchvision, timm, the Hugging Face hub, torchxrayvision, Keras and files, strictly."""

from skipnets.models.weights.checkpoint import PublishedInput, PublishedLabels
from skipnets.models.weights.loading import load_weights
from skipnets.models.weights.report import LoadReport
from skipnets.models.weights.sources import is_cached, network_of

__all__ = ["LoadReport", "PublishedInput", "PublishedLabels", "is_cached", "load_weights", "network_of"]
