"""What can go wrong between a model file and an engine; runs fail with the executor's errors."""


class EngineError(Exception):
    """Base of everything that importing and compiling raise."""


class InvalidModelError(EngineError, ValueError):
    """The model file is broken or unsafe; the message names the place and the fix."""


class UnsupportedModelError(EngineError):
    """A backend cannot compile this model; another one may."""


class ParityError(EngineError):
    """An engine's outputs differ from the reference; it must not serve."""
