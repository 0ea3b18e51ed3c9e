"""Tiny models with random weights, one of each family."""

from __future__ import annotations

from typing import Any

import torch
import transformers

import bsfa

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-windowed": ("Mistral", {"sliding_window": 70}),
    "gemma2": (
        "Gemma2",
        {
            "attn_logit_softcapping": None,
            "query_pre_attn_scalar": 16,
            "sliding_window": 70,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "query_pre_attn_scalar": 16,
            "sliding_window": 70,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


# Transformers runs Gemma 2 with its eager attention alone, since most of them have a softcap.
DEFAULT_ATTENTION = {"gemma2": "eager"}


def tiny_model(family: str, attention: str | None = None, **changes: Any) -> Any:
    """A model of 2 layers, 4 query and 2 key/value heads, head_dim 16."""
    name, special = FAMILIES[family]
    config_class = getattr(transformers, name + "TextConfig", None) or getattr(
        transformers, name + "Config"
    )
    config = config_class(**{**SHAPE, **special, **changes})
    torch.manual_seed(1)
    model = getattr(transformers, name + "ForCausalLM")._from_config(
        config, attn_implementation=attention or DEFAULT_ATTENTION.get(family, "sdpa")
    )
    with torch.no_grad():  # sharper attention than fresh weights give
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(6)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SHAPE["vocab_size"], (batch, length), generator=generator)


def table_for(model: Any, values: torch.Tensor, budgets: list[int]) -> bsfa.ThresholdTable:
    """A threshold table for a tiny model: values [budgets, 2 layers, 4 heads, q blocks]."""
    return bsfa.ThresholdTable(
        values,
        budgets=budgets,
        softmax_scale=16**-0.5,
        max_seqlen=128 * values.shape[3],
        model="tiny",
        num_samples=1,
        producer="the tests",
    )


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """float32 [batch, length, vocabulary]."""
    return model(ids, use_cache=False, **arguments).logits.float()
