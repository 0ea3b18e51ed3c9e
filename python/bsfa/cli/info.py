"""bsfa info: this build, and what the machine offers it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from typing import Any

from bsfa import _core
from bsfa.cli.common import add_json
from bsfa.cli.output import print_json, say
from bsfa.provenance import built_from


def add(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "info", help="this build: version, backends, and the packages beside it"
    )
    add_json(parser)
    parser.set_defaults(function=info)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def info(options: argparse.Namespace) -> None:
    """Prints what there is."""
    packages = {name: _version(name) for name in ("torch", "transformers", "gguf", "accelerate")}
    if options.json:
        print_json(
            {
                "version": _core.version(),
                "commit": built_from(),
                "backends": [
                    {
                        "name": backend.name,
                        "device": backend.device,
                        "available": backend.available,
                        "description": backend.description,
                    }
                    for backend in _core.backends()
                ],
                "threads": os.cpu_count(),
                "python": platform.python_version(),
                "packages": packages,
            }
        )
        return
    say(f"bsfa {_core.version()}\n\nBackends")
    for backend in _core.backends():
        note = "" if backend.available else "NOT AVAILABLE HERE: "
        say(f"  {backend.name:12s} {backend.device:5s} {note}{backend.description}")
    say(
        f"\nThis machine\n  threads       {os.cpu_count()}\n  python        "
        f"{platform.python_version()}"
    )
    for name, version in packages.items():
        say(f"  {name:13s} {version or 'not installed'}")
