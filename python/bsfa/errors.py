"""Exceptions and warnings. Messages name the argument, what came, and what is accepted."""

from bsfa._core import printable


class Error(Exception):
    """Base of everything that bsfa raises by itself.

    A message is one line of at most 4096 bytes that is fit for a terminal, whatever was in the
    file, argument or model that it speaks of: as in C++, `printable` sees to it here. Words from
    elsewhere are bounded by themselves (`bsfa.text`), so that no word hides the rest.
    """

    def __init__(self, message: str = "") -> None:
        """message: whole sentences; a line break is written as such."""
        super().__init__(printable(message))


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
