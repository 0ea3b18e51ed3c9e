"""What `importlib.metadata` finds for the packages that bsfa stands in for.

Programs ask it whether a package is there, under which name it was distributed, and which version.
The versions are those of the interfaces, marked as bsfa's by their local part.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bsfa._core import version

if TYPE_CHECKING:
    from collections.abc import Iterable

FLASH_ATTENTION_2 = "2.8.3+bsfa"
FLASH_ATTENTION_3 = "3.0.0+bsfa"

_FOUND = {  # by what is imported: the distribution's name and version
    "flash_attn": ("flash-attn", FLASH_ATTENTION_2),
    "flash_attn_interface": ("flash-attn-3", FLASH_ATTENTION_3),
}


class _Distribution(metadata.Distribution):
    """The metadata of a package that has no files of its own."""

    def __init__(self, package: str) -> None:
        name, number = _FOUND[package]
        self._texts = {
            "METADATA": (
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
                f"Summary: bsfa {version()} under the name of {name}\n"
            ),
            "top_level.txt": f"{package}\n",
        }

    def read_text(self, filename: str) -> str | None:
        return self._texts.get(filename)

    def locate_file(self, path: Any) -> Any:
        raise FileNotFoundError(f"{path}: the distribution has no files")


class _Finder(metadata.DistributionFinder):
    """Finds the distributions of the packages that are installed, and no modules."""

    def __init__(self) -> None:
        self.packages: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        return None

    def find_distributions(
        self, context: metadata.DistributionFinder.Context | None = None
    ) -> Iterable[metadata.Distribution]:
        asked = None if context is None else context.name
        return [
            _Distribution(package)
            for package in self.packages
            if asked is None or _normalized(asked) == _normalized(_FOUND[package][0])
        ]


_finder = _Finder()


def add(package: str) -> None:
    """Makes the distribution of a package be found, before one of its name that is really there."""
    if package not in _finder.packages:
        _finder.packages.append(package)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def remove(package: str) -> None:
    """The reverse of `add`."""
    if package in _finder.packages:
        _finder.packages.remove(package)
    if not _finder.packages and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
