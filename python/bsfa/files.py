"""Files of the commands: read, written as a whole, and looked at before long work."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType

from bsfa._core import check_writable, same_file, write_file
from bsfa.errors import FileError, InvalidArgumentError
from bsfa.text import decode_text, path_text, printable, quote_path, said

__all__ = [
    "Lock",
    "beside",
    "check_apart",
    "check_folder",
    "check_writable",
    "read_bytes",
    "read_text",
    "write_text",
]

LONGEST_NAME = 255
"""Bytes of a file's name, of all common file systems."""

Named = tuple[str, str]
"""The option that names a file, and the file."""


@contextlib.contextmanager
def _failing(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Says of which file the operating system, or Python, says something."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError(f"{path_text(os.fspath(path))}: cannot be {what}: {said(error)}") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The whole of a file."""
    with _failing(path, "read"), open(path, "rb") as file:
        return file.read()


def read_text(argument: str, path: str) -> str:
    """A UTF-8 text file without NUL; the argument is what messages name."""
    try:
        content = read_bytes(path)
    except FileError as error:
        raise FileError(f"{argument}: {error}") from error.__cause__
    return decode_text(argument, path, content)


def write_text(path: str, text: str) -> None:
    """A text file, whole or not at all."""
    write_file(path, text.encode("utf-8", "backslashreplace"))


def beside(path: str, suffix: str) -> str:
    """A file beside `path`, named like it where that is not too long."""
    folder, name = os.path.split(path)
    if len(os.fsencode(name + suffix)) > LONGEST_NAME:
        name = ".bsfa-" + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return os.path.join(folder, name + suffix)


def check_apart(written: Sequence[Named], read: Sequence[Named]) -> None:
    """No file that is written is one that is read, or another that is written."""
    known = list(read)
    for argument, path in written:
        for other, other_path in known:
            if same_file(path, other_path):
                raise InvalidArgumentError(
                    f"{argument} is {quote_path(path)}, the same file as {other}: one would be lost"
                )
        known.append((argument, path))


def check_folder(argument: str, path: str) -> None:
    """Refuses a folder that could not be made, or written into, at the end of long work."""
    there = os.path.abspath(path)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise FileError(
            f"{argument}: {quote_path(path)} cannot be a folder: {quote_path(there)} is none"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise FileError(
            f"{argument}: {quote_path(path)} cannot be written: folder {quote_path(there)} may not "
            "be written to"
        )


class Lock:
    """The right to write a file, held by one process at a time and released by its end.

    It is a lock (flock) on a file beside it, so that it outlives the file's replacement by another
    of its name. Only the holder removes that file; what a process that was killed left behind is
    taken over. A second process is refused at once.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Takes the lock of a file, which need not be there yet, whatever links lead to it."""
        self.path = os.fspath(path)
        self._name = beside(os.path.realpath(self.path), ".lock")
        self._file = -1
        while self._file < 0:
            file = self._open()
            if self._is_current(file):
                self._file = file
            else:  # removed by its holder between our opening and our locking it
                os.close(file)
        os.truncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _open(self) -> int:
        """The file of the lock, locked."""
        with _failing(self._name, "opened"):
            file = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.closing(os.fdopen(file, "rb")) as other:
                holder = printable(other.read(200)) or "another process"
            raise FileError(
                f"{path_text(self.path)} is being written by {holder}: wait for its end, or write "
                "to another file"
            ) from None
        except OSError as error:
            os.close(file)
            raise FileError(
                f"{path_text(self._name)}: cannot be locked: {said(error)}; without a lock a "
                "second process could destroy the results"
            ) from error
        return file

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._name))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Lets the next process write."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._name)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Lock:
        """The lock itself, which is held already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Releases it."""
        self.release()
