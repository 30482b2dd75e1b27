"""What can go wrong between a model file and an answer."""


class EngineError(Exception):
    """Base of everything this library raises about models, engines and requests."""


class InvalidModelError(EngineError, ValueError):
    """The model file is broken or unsafe; the message names the place and the fix."""


class UnsupportedModelError(EngineError):
    """A backend cannot compile this model; another one may."""


class ParityError(EngineError):
    """An engine's outputs differ from the reference; it must not serve."""


class InvalidInputError(EngineError, ValueError):
    """A request or an option is wrong; the message names it."""


class QueueFullError(EngineError):
    """The executor's bounded queue has no place."""


class DeadlineExceededError(EngineError, TimeoutError):
    """The deadline passed while the request was queued."""


class RequestCancelledError(EngineError):
    """The request was cancelled while it was queued."""


class ShutdownError(EngineError):
    """The executor was closed before the request could run."""


class ModelLoadError(UnsupportedModelError):
    """The device cannot load the model."""


class DeviceError(EngineError):
    """The device failed while it ran a batch."""
