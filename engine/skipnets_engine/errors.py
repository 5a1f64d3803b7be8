"""What can be wrong with what the engine is given."""


class EngineError(ValueError):
    """The engine cannot do what it was asked; the message says why in one line."""


class UnknownArchitectureError(EngineError):
    """The graph has an operation that the engine does not know; another runtime may."""


class InvalidGraphError(EngineError):
    """The graph contradicts itself: no runtime could run it."""


class TensorsDoNotFitError(EngineError):
    """Tensors and graph do not belong together."""
