"""Attention on torch tensors: the flash-attention package's functions, with a block gate.

Registered with `torch.library` as `bsfa::attention` and `bsfa::attention_varlen`, so that they run
under `torch.compile(fullgraph=True)`. Forward only.
"""

from bsfa.ops.attend import BlockStats
from bsfa.ops.flash import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from bsfa.ops.kvcache import flash_attn_with_kvcache
from bsfa.ops.launch import run_attention

__all__ = [
    "BlockStats",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "run_attention",
]
