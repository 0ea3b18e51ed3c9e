"""bsfa under the names of the flash-attention packages, for programs that import those.

`bsfa.compat.flash_attn` stands in for FlashAttention-2's package `flash_attn`,
`bsfa.compat.flash_attn_interface` for FlashAttention-3's module `flash_attn_interface`. A program
imports them instead, or is left as it is and gets them from `install()`.
"""

from __future__ import annotations

import importlib
import sys

from bsfa.compat import distributions
from bsfa.errors import InvalidArgumentError, UnsupportedError

__all__ = ["install", "uninstall"]

_MODULES = {
    "flash_attn": ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn.bert_padding"),
    "flash_attn_interface": ("flash_attn_interface",),
}


def install(*packages: str) -> None:
    """Makes `import flash_attn` and `import flash_attn_interface` give bsfa in this process.

    Their distributions are found by `importlib.metadata` then, too, with versions that end in
    `+bsfa`. To be called before anything imports, or looks for, the packages. Imports torch.

    Args:
        *packages: which of the two; default both.

    Raises:
        InvalidArgumentError: a package of another name.
        UnsupportedError: one of the real packages is imported already; nothing is changed then.
    """
    for package in packages:
        if package not in _MODULES:
            raise InvalidArgumentError(
                f"package {package!r} is not known; accepted: {', '.join(_MODULES)}"
            )
    wanted = packages or tuple(_MODULES)
    for package in wanted:
        for name, module in sys.modules.items():
            inside = name == package or name.startswith(package + ".")
            if inside and not _is_ours(module):
                where = getattr(module, "__file__", None) or "memory"
                raise UnsupportedError(
                    f"{name} is imported already, from {where}; call bsfa.compat.install() before, "
                    "or leave that package out"
                )
    for package in wanted:
        for name in _MODULES[package]:
            sys.modules[name] = importlib.import_module(f"bsfa.compat.{name}")
        distributions.add(package)


def uninstall() -> None:
    """Takes back what `install` did. What was imported from the packages until then stays valid."""
    for package, names in _MODULES.items():
        for name in names:
            if _is_ours(sys.modules.get(name)):
                del sys.modules[name]
        distributions.remove(package)


def _is_ours(module: object) -> bool:
    return getattr(module, "__name__", "").startswith("bsfa.compat.")
