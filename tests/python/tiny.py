"""Tiny models with random weights, one of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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


def table_for(
    model: Any, values: torch.Tensor, budgets: list[int], head_dim: int = 16
) -> bsfa.ThresholdTable:
    """A threshold table for a tiny model: values [budgets, 2 layers, 4 heads, q blocks]."""
    return bsfa.ThresholdTable(
        values,
        budgets=budgets,
        softmax_scale=head_dim**-0.5,
        max_seqlen=128 * values.shape[3],
        model="tiny",
        num_samples=1,
        producer="the tests",
    )


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """float32 [batch, length, vocabulary]."""
    return model(ids, use_cache=False, **arguments).logits.float()


def save_model(folder: Path, model: Any) -> Path:
    """Writes the model with a tokenizer whose words are w0, w1, ..."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {f"w{i}": i for i in range(SHAPE["vocab_size"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w3"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="w2", pad_token="w0", unk_token="w3"
    ).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def words(count: int, seed: int = 5) -> str:
    """A text of so many words, for that tokenizer."""
    return " ".join(f"w{i}" for i in tokens(1, count, seed)[0].tolist())
