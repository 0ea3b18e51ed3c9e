"""Models on Transformers' own flash-attention path, as published, over the shim.

    python transformers_model.py

On a card the models ask for attn_implementation="flash_attention_2" and "flash_attention_3", and
Transformers' own checks decide. On the CPU these refuse the device, whatever is installed (which is
checked); the path behind them is run there under a name of its own, through Transformers' interface
for attention functions. Prints what was compared.
"""

# ruff: noqa: E402 (install comes before what looks for the package)
from typing import Any
from unittest import mock

import pytest
import torch

import bsfa.compat

bsfa.compat.install()

import transformers
from transformers import modeling_flash_attention_utils as flash_path
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_utils import AttentionInterface

from bsfa.ops import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TOLERANCE = 0.05 if DEVICE == "cuda" else 2e-5
HEAD_DIM = 64 if DEVICE == "cuda" else 16
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attn_implementation": "eager",
}


def path_behind_the_checks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that goes where Transformers' own goes for flash_attention_3."""
    out = flash_path._flash_attention_forward(
        *(t.transpose(1, 2) for t in (query, key, value)),
        attention_mask,
        query_length=query.shape[2],
        is_causal=module.is_causal,
        softmax_scale=scaling,
        attn_implementation="flash_attention_3",
        **others,
    )
    return out, None


def model_of(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).to(DEVICE, DTYPE).eval()


def compare(model: transformers.PreTrainedModel, name: str, implementation: str) -> None:
    """Logits and generated tokens with the attention of that name against eager attention."""
    torch.manual_seed(1)
    ids = torch.randint(2, 64, (2, 40), device=DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    padded = torch.where(mask.bool(), ids, 0)
    positions = torch.cat([torch.arange(25), torch.arange(15)])[None].to(DEVICE)
    calls: dict[str, dict[str, Any]] = {
        "whole sequences": {"input_ids": ids},
        "padded": {"input_ids": padded, "attention_mask": mask},
        "packed": {"input_ids": ids[:1], "position_ids": positions},
    }
    generate = {"max_new_tokens": 8, "do_sample": False}
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        expected = {what: model(**call).logits for what, call in calls.items()}
        parts = [model(input_ids=part).logits for part in ids[:1].split([25, 15], dim=1)]
        expected["packed"] = torch.cat(parts, dim=1)
        tokens = model.generate(padded, attention_mask=mask, **generate)
        model.set_attn_implementation(implementation)
        spy = mock.Mock(wraps=launch.attention_forward)
        with mock.patch.object(launch, "attention_forward", spy):
            for what, call in calls.items():
                spy.reset_mock()
                logits = model(**call).logits
                assert spy.call_count == model.config.num_hidden_layers
                real = mask.bool() if what == "padded" else ...
                torch.testing.assert_close(
                    logits[real], expected[what][real], atol=TOLERANCE, rtol=0
                )
                print(f"{name}, {implementation}, {what}: agrees")
            spy.reset_mock()
            generated = model.generate(padded, attention_mask=mask, **generate)
            assert spy.call_count == 8 * model.config.num_hidden_layers
    if DEVICE == "cpu":
        assert torch.equal(generated, tokens)
    print(f"{name}, {implementation}, generate: agrees")


def refuses_only_the_device() -> None:
    config = transformers.LlamaConfig(**SIZES)
    for version in (2, 3):
        matrix = flash_path.FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]
        assert matrix["pkg_availability_check"]()
        config._attn_implementation = f"flash_attention_{version}"
        with pytest.raises(ImportError, match="is not available on CPU"):
            transformers.AutoModelForCausalLM.from_config(config)
        print(f"flash_attention_{version}: the package is found, the device refused")


def main() -> None:
    if DEVICE == "cuda":
        implementations = ["flash_attention_2", "flash_attention_3"]
    else:
        refuses_only_the_device()
        implementations = ["behind_the_checks"]
        AttentionInterface.register("behind_the_checks", path_behind_the_checks)
        AttentionMaskInterface.register("behind_the_checks", flash_attention_mask)
    for implementation in implementations:
        compare(model_of(transformers.LlamaConfig(**SIZES)), "Llama", implementation)
        windowed = transformers.MistralConfig(**SIZES, sliding_window=9)
        compare(model_of(windowed), "Mistral with a window", implementation)
        if DEVICE == "cpu":
            capped = transformers.Gemma2Config(
                **SIZES, sliding_window=9, query_pre_attn_scalar=16, attn_logit_softcapping=0.5
            )
            compare(model_of(capped), "Gemma 2 with softcap and windows", implementation)


if __name__ == "__main__":
    main()
