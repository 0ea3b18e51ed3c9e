"""From nothing to a model that prefills with Block Sparse Flash Attention, on the CPU.

    python examples/python_quickstart.py [MODEL_FOLDER_OR_NAME]

Without an argument it makes a small model with random weights, which shows every step in seconds;
with one it does the same with a real model of Transformers.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers

import bsfa

# 1. Attention by itself: the flash-attention package's function, with a block gate.
q, k, v = (torch.randn(1, 1024, heads, 64) for heads in (8, 2, 2))  # [batch, seqlen, heads, dim]
out, stats = bsfa.flash_attn_func(q, k, v, causal=True, return_stats=True)
print(f"dense: {tuple(out.shape)}, density {stats.density.mean():.2f}")

# 2. A model.
if len(sys.argv) > 1:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
else:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )
model.eval()
vocabulary = model.get_input_embeddings().weight.shape[0]
prompt = torch.randint(0, vocabulary, (1, 1024))

# 3. Thresholds for it: one dense pass over some samples, for any number of budgets.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "thresholds.safetensors"
    samples = [torch.randint(0, vocabulary, (1024,)) for _ in range(2)]
    bsfa.calibrate(model, samples, budgets=[2, 4, 8], recommend=4, out=path)

    # 4. The method, without reloading the model.
    bsfa.enable(model, path)

with torch.inference_mode():
    for budget in (8, 4, 2):
        bsfa.set_budget(model, budget)
        model(prompt)
        predicted = bsfa.predicted_density(budget, prompt.shape[1])
        measured = bsfa.stats(model).density
        print(f"budget {budget}: density predicted {predicted:.2f}, measured {measured:.2f}")
print(bsfa.stats(model))

# 5. Back to what it was.
bsfa.disable(model)
