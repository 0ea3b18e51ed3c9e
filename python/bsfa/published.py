"""The threshold files of the published implementation: a `.pt` dictionary, in and out.

Read with `weights_only=True` alone: no pickle is ever executed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bsfa._core import ThresholdTable, version, write_file
from bsfa.errors import FileError, FormatError, InvalidArgumentError
from bsfa.text import path_text, printable, said, shown

__all__ = ["load_pt", "save_pt"]


MOST = 2**31 - 1  # of the whole numbers in a file: budgets, extents, tokens


def _readable(value: Any) -> bool:
    """Whether it is a tensor with all of its values here."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _whole_number(name: str, field: str, value: Any) -> int:
    if _readable(value) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise FormatError(
            f"{name}: {field} is {shown(value)}; expected a whole number, 0 to {MOST}"
        )
    return value


def _read(path: str) -> Mapping[str, Any]:
    name = path_text(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(f"{name}: cannot be read: {said(error)}") from error
    except Exception as error:  # torch and zipfile raise whatever comes to their mind
        first = printable(str(error).split("\n", 1)[0], 100)
        raise FormatError(
            f"{name}: not a torch file that loads without executing anything ({first})"
        ) from error
    if not isinstance(content, Mapping):
        raise FormatError(f"{name}: holds a {type(content).__name__}; expected a dictionary")
    return content


def load_pt(
    path: str | os.PathLike[str],
    *,
    softmax_scale: float,
    model: str,
    max_seqlen: int | None = None,
) -> ThresholdTable:
    """Imports a published `.pt` file.

    It does not say which scores it was calibrated on, so softmax_scale (usually 1/sqrt(head_dim))
    and the model's name come from the caller. max_seqlen is in tokens; default all query blocks.
    """
    path = os.fspath(path)
    content, name = _read(path), path_text(path)
    missing = [
        field
        for field in ("thresholds", "k_values", "q_block_size", "k_block_size")
        if field not in content
    ]
    if missing:
        raise FormatError(f"{name}: has no field {missing[0]!r}; found {shown(list(content))}")
    values = content["thresholds"]
    if (
        not isinstance(values, Tensor)
        or values.dim() != 4
        or not values.is_floating_point()
        or not _readable(values)
    ):
        raise FormatError(
            f"{name}: thresholds is not a dense floating-point tensor of 4 axes "
            "[num_budgets, num_layers, num_heads, num_q_blocks]"
        )
    values = values.detach()
    listed = content["k_values"]
    if _readable(listed):
        listed = listed.tolist()
    if not isinstance(listed, (list, tuple)) or len(listed) != values.shape[0]:
        raise FormatError(
            f"{name}: k_values is {shown(listed)}; expected a list of the {values.shape[0]} "
            "budgets on the first axis of thresholds"
        )
    budgets = [_whole_number(name, "k_values", budget) for budget in listed]
    for field, axis in (("num_layers", 1), ("num_heads", 2), ("max_num_blocks", 3)):
        stated = content.get(field)
        if stated is not None and _whole_number(name, field, stated) != values.shape[axis]:
            raise FormatError(
                f"{name}: {field} is {shown(stated)}; thresholds has {values.shape[axis]} on axis "
                f"{axis}"
            )
    block = (
        _whole_number(name, "q_block_size", content["q_block_size"]),
        _whole_number(name, "k_block_size", content["k_block_size"]),
    )
    if max_seqlen is None and values.shape[3] * block[0] > MOST:
        raise FormatError(
            f"{name}: q_block_size is {block[0]}; with {values.shape[3]} query blocks these are "
            f"more than {MOST} tokens"
        )
    order = sorted(range(len(budgets)), key=budgets.__getitem__)
    try:
        return ThresholdTable(
            values[order].to(torch.float32).contiguous(),
            budgets=[budgets[i] for i in order],
            softmax_scale=softmax_scale,
            max_seqlen=values.shape[3] * block[0] if max_seqlen is None else max_seqlen,
            model=model,
            block=block,
            num_samples=0,  # the file does not say
            producer=printable(f"bsfa {version()} from {os.path.basename(path)}"),
        )
    except InvalidArgumentError as error:
        raise FormatError(f"{name}: {error}") from error


def save_pt(table: ThresholdTable, path: str | os.PathLike[str]) -> None:
    """Exports a table as the published implementation reads it. Never leaves half a file."""
    path = os.fspath(path)
    content = {
        "thresholds": torch.from_dlpack(table.values()).clone(),
        "k_values": list(table.budgets),
        "q_block_size": table.block[0],
        "k_block_size": table.block[1],
        "max_num_blocks": table.num_q_blocks,
        "num_layers": table.num_layers,
        "num_heads": table.num_heads_q,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())
