"""`bsfa.attention_forward` on torch tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bsfa._core import attention_forward, plan_attention

# Newer torch hands its tensors over by itself (DLPack's C exchange API); older ones need a capsule.
_EXCHANGES = hasattr(Tensor, "__dlpack_c_exchange_api__")


def _borrowed(value: Any) -> Any:
    """An argument as the extension takes it, without any synchronisation between streams."""
    if _EXCHANGES or not isinstance(value, Tensor):
        return value
    return torch.utils.dlpack.to_dlpack(value.detach() if value.requires_grad else value)


def _stream_of(tensor: Tensor) -> int:
    """The current stream of torch on the tensor's device, as cudaStream_t."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # not public; saves 2 microseconds
    if raw is not None:
        return int(raw(tensor.get_device()))
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def run_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, **arguments: Any) -> None:
    """`bsfa.attention_forward` on torch tensors, on torch's current stream and thread count.

    On CUDA nothing waits for the device. The workspace comes from torch's allocator on the current
    stream and goes back to it before the call has run, which is right because whoever gets it next
    on that stream comes after. Tensors from another stream need the caller's `record_stream` and
    events, as for any torch operator. All of it can be captured in a CUDA graph.
    """
    operands = [q, k, v, out]
    if not _EXCHANGES:
        operands = [_borrowed(operand) for operand in operands]
        arguments = {name: _borrowed(value) for name, value in arguments.items()}
    if q.is_cuda:

        def workspace(num_bytes: int) -> Any:
            return _borrowed(torch.empty(num_bytes, dtype=torch.uint8, device=q.device))

        attention_forward(*operands, **arguments, stream=_stream_of(q), workspace=workspace)
    else:
        attention_forward(*operands, **arguments, num_threads=torch.get_num_threads())


def is_served(q: Tensor, k: Tensor, v: Tensor, out: Tensor, **arguments: Any) -> bool:
    """Whether `run_attention` would take the call; nothing is written, and no device is waited for.

    If not, `run_attention` raises and says why.
    """
    operands = [_borrowed(operand) for operand in (q, k, v, out)]
    arguments = {name: _borrowed(value) for name, value in arguments.items()}
    return plan_attention(*operands, **arguments).ok
