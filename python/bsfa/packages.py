"""Packages beside this one that some of it needs."""

from __future__ import annotations

import importlib.util

from bsfa.errors import UnsupportedError

__all__ = ["need"]


def need(*packages: str) -> None:
    """Refuses, naming what is to be installed, if a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"this needs {', '.join(missing)}: install it with pip (for instance "
            f"'pip install {' '.join(missing)}')"
        )
