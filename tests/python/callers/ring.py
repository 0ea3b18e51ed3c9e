"""Two processes that share a sequence: ring-flash-attn and yunchang, as published, over the shim.

    python ring.py PACKAGE RANK FILE

PACKAGE: ring_flash_attn or yunchang. FILE: where the processes meet. Prints what was compared.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import bsfa.compat

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference import gated_attention

PACKAGE, RANK, MEETING = sys.argv[1], int(sys.argv[2]), sys.argv[3]
RANKS, SEQLEN = 2, 128
CANNOT_RUN = 77
bsfa.compat.install("flash_attn")


def rows(tensor: torch.Tensor, order: str) -> torch.Tensor:
    """The part of [batch, seqlen, ...] that is this process's."""
    if order == "ring":
        return tensor.chunk(RANKS, dim=1)[RANK].contiguous()
    if order == "stripe":
        return tensor[:, RANK::RANKS].contiguous()
    parts = tensor.chunk(2 * RANKS, dim=1)  # zigzag
    return torch.cat([parts[RANK], parts[2 * RANKS - 1 - RANK]], dim=1)


def compare(name: str, function: Any, order: str, causal: bool, heads_kv: int = 2) -> None:
    """A function of the package on parts of a sequence against the reference on the whole."""
    torch.manual_seed(1)
    q = torch.randn(2, SEQLEN, 4, 16)
    k, v = torch.randn(2, 2, SEQLEN, heads_kv, 16)
    expected = gated_attention(q, k, v, causal=causal)[0].float()
    out = function(*(rows(t, order) for t in (q, k, v)), causal=causal)
    out = out[0] if isinstance(out, tuple) else out
    torch.testing.assert_close(out, rows(expected, order), atol=2e-5, rtol=0)
    print(f"{name}, causal={causal}: agrees")


def rings(package: Any) -> None:
    """What both packages have: rings of all kinds, and the backward pass that is refused."""
    for causal in (False, True):
        compare("ring", package.ring_flash_attn_func, "ring", causal)
    compare("zigzag", package.zigzag_ring_flash_attn_func, "zigzag", True)
    compare("stripe", package.stripe_flash_attn_func, "stripe", True)

    q = rows(torch.randn(1, SEQLEN, 4, 16), "ring").requires_grad_(True)
    # A ring of one: what a refused pass has sent to another process would be left there.
    alone = [dist.new_group([rank]) for rank in range(RANKS)][RANK]
    out = package.ring_flash_attn_func(q, q, q, causal=True, group=alone)
    with pytest.raises(bsfa.UnsupportedError, match="no backward pass"):
        out.sum().backward()
    print("backward: refused")


def packed_ring(package: Any) -> None:
    """Two sequences in one tensor, each of which is divided between the processes."""
    torch.manual_seed(2)
    q = torch.randn(SEQLEN, 4, 16)
    k, v = torch.randn(2, SEQLEN, 2, 16)
    lengths = (48, 80)
    local = torch.tensor([0, 24, 64], dtype=torch.int32)
    parts = [torch.cat([piece.chunk(RANKS)[RANK] for piece in t.split(lengths)]) for t in (q, k, v)]
    out = package.ring_flash_attn_varlen_func(*parts, local, 40, causal=True)
    expected = [
        gated_attention(*(t[None] for t in operands), causal=True)[0][0].float()
        for operands in zip(*(t.split(lengths) for t in (q, k, v)), strict=True)
    ]
    whole = torch.cat([piece.chunk(RANKS)[RANK] for piece in expected])
    torch.testing.assert_close(out, whole, atol=2e-5, rtol=0)
    print("packed ring: agrees")


def ring_flash_attn() -> None:
    try:
        import ring_flash_attn as package
    except ImportError as error:  # of a name that is gone from Transformers 5
        if "transformers" not in str(error):
            raise
        print(f"cannot be imported: {error}")
        sys.exit(CANNOT_RUN)
    rings(package)
    packed_ring(package)


def yunchang() -> None:
    import yunchang.ring
    from yunchang import LongContextAttention, UlyssesAttention, set_seq_parallel_pg
    from yunchang.kernels import AttnType

    rings(yunchang.ring)  # its packed ring is for flash_attn before 2.6.3
    set_seq_parallel_pg(1, RANKS, RANK, RANKS)
    with torch.no_grad():
        for causal in (False, True):
            layer = UlyssesAttention(dist.group.WORLD, attn_type=AttnType.FA)
            compare("ulysses", layer, "ring", causal)
        layer = LongContextAttention(ring_impl_type="zigzag", attn_type=AttnType.FA)
        compare("hybrid", layer, "zigzag", True, heads_kv=4)


if __name__ == "__main__":
    assert importlib.util.find_spec("flash_attn").name == "bsfa.compat.flash_attn"
    dist.init_process_group("gloo", init_method=f"file://{MEETING}", rank=RANK, world_size=RANKS)
    torch.set_num_threads(1)
    {"ring_flash_attn": ring_flash_attn, "yunchang": yunchang}[PACKAGE]()
    dist.destroy_process_group()
