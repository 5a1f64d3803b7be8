"""The native CPU engine of skipnets: runs convolutional classifiers without PyTorch.

    engine = Engine(graph, tensors, threads=2)
    logits = engine.logits(batch)               # (N, C, H, W) float32 → (N, classes)

Shapes: N batch, C channels, H height, W width.
"""

from skipnets_engine._engine import __version__, isas, peak_macs
from skipnets_engine.engine import INTERFACE, Engine
from skipnets_engine.errors import (
    EngineError,
    InvalidGraphError,
    TensorsDoNotFitError,
    UnknownArchitectureError,
)

__all__ = [
    "INTERFACE",
    "Engine",
    "EngineError",
    "InvalidGraphError",
    "TensorsDoNotFitError",
    "UnknownArchitectureError",
    "__version__",
    "isas",
    "peak_macs",
]
