"""FlashAttention-2's package `flash_attn`, computed by bsfa. Forward only.

The functions are those of `bsfa` itself, and take its own arguments by keyword. Modules of the
package that hold more than attention (`layers`, `ops`, `models`, ...) are not here.
"""

from bsfa.compat import distributions
from bsfa.ops import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__version__ = distributions.FLASH_ATTENTION_2

__all__ = [
    "__version__",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
