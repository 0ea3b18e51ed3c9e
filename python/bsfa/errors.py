"""Exceptions and warnings. Messages name the argument, what came, and what is accepted."""


class Error(Exception):
    """Base of everything that bsfa raises by itself."""


class InvalidArgumentError(Error, ValueError):
    """An argument contradicts the contract, or another argument."""


class UnsupportedError(Error, NotImplementedError):
    """A valid request that nothing in this build, or on this machine, serves."""


class FormatError(Error, ValueError):
    """A file that is not what it should be."""


class FileError(Error, OSError):
    """A file that cannot be read or written."""


class DeviceError(Error, RuntimeError):
    """A failure of a device or its driver."""


class OtherModelWarning(UserWarning):
    """Thresholds name other weights, or another model, than the one that is to use them."""


class FallbackWarning(UserWarning):
    """Somewhere the method does not apply, and the model's own attention ran instead."""
