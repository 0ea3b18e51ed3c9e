"""Block Sparse Flash Attention (arXiv 2512.07011).

Importing the package needs neither torch nor transformers: the `flash_attn` functions import torch
when they are first used, `enable`, `set_budget`, `set_mode`, `disable`, `stats` and `calibrate`
also transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsfa._core import (
    AttentionPlan,
    BackendInfo,
    Calibration,
    ThresholdTable,
    attention_forward,
    backends,
    merge_files,
    plan_attention,
    predicted_density,
    select_thresholds,
    version,
)
from bsfa.errors import (
    DeviceError,
    Error,
    FallbackWarning,
    FileError,
    FormatError,
    InvalidArgumentError,
    OtherModelWarning,
    UnsupportedError,
)

__version__ = version()

if TYPE_CHECKING:
    from bsfa.calibration import calibrate
    from bsfa.hf import LayerStats, ModelStats, Sparge, disable, enable, set_budget, set_mode, stats
    from bsfa.ops import (
        BlockStats,
        flash_attn_func,
        flash_attn_kvpacked_func,
        flash_attn_qkvpacked_func,
        flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
        flash_attn_with_kvcache,
    )

_LAZY = {
    "BlockStats": "bsfa.ops",
    "LayerStats": "bsfa.hf",
    "ModelStats": "bsfa.hf",
    "Sparge": "bsfa.hf",
    "calibrate": "bsfa.calibration",
    "disable": "bsfa.hf",
    "enable": "bsfa.hf",
    "flash_attn_func": "bsfa.ops",
    "flash_attn_kvpacked_func": "bsfa.ops",
    "flash_attn_qkvpacked_func": "bsfa.ops",
    "flash_attn_varlen_func": "bsfa.ops",
    "flash_attn_varlen_kvpacked_func": "bsfa.ops",
    "flash_attn_varlen_qkvpacked_func": "bsfa.ops",
    "flash_attn_with_kvcache": "bsfa.ops",
    "set_budget": "bsfa.hf",
    "set_mode": "bsfa.hf",
    "stats": "bsfa.hf",
}

__all__ = [
    "AttentionPlan",
    "BackendInfo",
    "BlockStats",
    "Calibration",
    "DeviceError",
    "Error",
    "FallbackWarning",
    "FileError",
    "FormatError",
    "InvalidArgumentError",
    "LayerStats",
    "ModelStats",
    "OtherModelWarning",
    "Sparge",
    "ThresholdTable",
    "UnsupportedError",
    "__version__",
    "attention_forward",
    "backends",
    "calibrate",
    "disable",
    "enable",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "merge_files",
    "plan_attention",
    "predicted_density",
    "select_thresholds",
    "set_budget",
    "set_mode",
    "stats",
    "version",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'bsfa' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
