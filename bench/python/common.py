"""What the benchmarks of a model share."""

import subprocess
import time

import torch
import transformers

import bsfa

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def synchronize(device):
    """Waits for the device, if it is a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def setting(device):
    """What a results file says of where and when it was made."""
    found = {
        "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "card": "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bsfa": bsfa.__version__,
    }
    if device.type == "cuda":
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found["card"] = torch.cuda.get_device_name(device)
        found["driver"] = lines.split()[0]
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    return found
