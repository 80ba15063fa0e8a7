"""The one error of this package."""


class KernelError(ValueError, RuntimeError):
    """An argument no kernel takes, or a backend that is not there; the message names the value and what is allowed."""
