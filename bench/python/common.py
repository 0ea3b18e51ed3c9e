"""What the benchmarks of a model share."""

import pathlib
import subprocess
import sys
import time

import torch
import transformers

import bsfa

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from source_tree import add_dirty, record

__all__ = ["LLAMA_8B", "add_dirty", "setting", "source", "synchronize"]

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


def source(script, dirty):
    """What a results file says of its source; ends the program if it may not be written."""
    return record(script, dirty, package=bsfa._core.source_tree())


def setting(device, source):
    """What a results file says of where, when and with which `source` it was made."""
    found = {
        **source,
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
