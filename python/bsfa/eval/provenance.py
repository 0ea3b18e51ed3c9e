"""What a threshold file was calibrated on: a field of its metadata that readers may ignore."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from typing import Any

from bsfa._core import write_file
from bsfa.errors import FormatError
from bsfa.files import read_bytes
from bsfa.text import path_text, shown

__all__ = ["categories_of", "file_digest", "record_categories"]

_FIELD = "calibrated_on"
_LONGEST_HEADER = 1 << 20
"""Bytes. Threshold files have a header of some hundred."""


def _split(path: str) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and the bytes that follow it."""
    data, name = read_bytes(path), path_text(path)
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else _LONGEST_HEADER + 1
    if size > _LONGEST_HEADER or 8 + size > len(data):
        raise FormatError(f"{name}: not a threshold file: its header does not fit in it")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not a threshold file: its header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise FormatError(f"{name}: not a threshold file: it has no metadata")
    return header, data[8 + size :]


def categories_of(path: str | os.PathLike[str]) -> list[str] | None:
    """The categories of the calibration samples; None if the file does not say."""
    path = os.fspath(path)
    text = _split(path)[0]["__metadata__"].get(_FIELD)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise FormatError(
            f"{path_text(path)}: metadata field {_FIELD} is {shown(text)}; expected a JSON list"
        )
    return found


def record_categories(path: str | os.PathLike[str], categories: Sequence[str]) -> None:
    """Writes the categories into a threshold file; its tensors stay as they are."""
    path = os.fspath(path)
    header, tensors = _split(path)
    header["__metadata__"][_FIELD] = json.dumps(list(categories))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_file(path, struct.pack("<Q", len(text)) + text + tensors)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
