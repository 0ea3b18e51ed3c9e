"""Transformers: any decoder with causal or sliding-window masks, by its attention interface.

Importing this module makes the attention implementation "bsfa" known to Transformers, so that
`AutoModelForCausalLM.from_pretrained(..., attn_implementation="bsfa")` works too, set up from the
environment (`BSFA_MODE`, `BSFA_THRESHOLDS`, `BSFA_BUDGET`).
"""

from bsfa.hf.api import disable, enable, set_budget, set_mode, stats
from bsfa.hf.attention import register
from bsfa.hf.sparge import Sparge
from bsfa.hf.statistics import LayerStats, ModelStats

__all__ = [
    "LayerStats",
    "ModelStats",
    "Sparge",
    "disable",
    "enable",
    "register",
    "set_budget",
    "set_mode",
    "stats",
]

register()
