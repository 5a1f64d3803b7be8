"""The native CPU engine of skipnets: runs DenseNet and ResNet classifiers without PyTorch.

    engine = Engine(architecture, tensors, threads=2)
    logits = engine.logits(batch)                      # (N, C, H, W) float32 → (N, classes)

N is the images of a batch; C, H and W their channels, height and width.
"""

from skipnets_engine._engine import __version__, isas, peak_macs
from skipnets_engine.engine import INTERFACE, Engine
from skipnets_engine.errors import EngineError, TensorsDoNotFitError, UnknownArchitectureError

__all__ = [
    "INTERFACE",
    "Engine",
    "EngineError",
    "TensorsDoNotFitError",
    "UnknownArchitectureError",
    "__version__",
    "isas",
    "peak_macs",
]
