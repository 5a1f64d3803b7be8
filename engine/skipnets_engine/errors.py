"""What can be wrong with what the engine is given."""


class EngineError(ValueError):
    """The engine cannot do what it was asked; the message says why in one line."""


class UnknownArchitectureError(EngineError):
    """An architecture that the engine has no plan for; another runtime may know it."""


class TensorsDoNotFitError(EngineError):
    """Tensors and architecture do not belong together."""
