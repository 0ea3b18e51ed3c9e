"""Files that the safetensors package writes are read here, and the other way round.

usage: safetensors_interop.py PROGRAM    (the command line `bsfa`)
"""

import ctypes
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import safetensors

COMMON = {
    "version": "1",
    "budgets": json.dumps([2, 4]),
    "q_block": "128",
    "kv_block": "64",
    "softmax_scale": str(1 / 80**0.5),  # more digits than a float has
    "max_seqlen": "200",
    "model": "tiny é",
    "num_samples": "2",
    "producer": "the safetensors package",
}


def write(path, format_name, tensors):
    buffers = {
        name: ctypes.create_string_buffer(data, len(data)) for name, (_, _, data) in tensors.items()
    }
    specs = {
        name: safetensors.TensorSpec(
            dtype=dtype,
            shape=shape,
            data_ptr=ctypes.addressof(buffers[name]),
            data_len=len(data),
        )
        for name, (dtype, shape, data) in tensors.items()
    }
    safetensors.serialize_file(specs, str(path), {"format": format_name, **COMMON})


def run(program, *arguments):
    result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{arguments}: exit code {result.returncode}: {result.stderr}")
    return json.loads(result.stdout)


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)

        theirs = directory / "theirs.safetensors"
        values = struct.pack("<8f", *range(8))
        write(theirs, "bsfa-thresholds", {"thresholds": ("float32", [2, 1, 2, 2], values)})
        shown = run(program, "thresholds", "show", "--json", theirs)
        assert shown["model"] == "tiny é", shown
        assert (shown["num_layers"], shown["num_heads_q"], shown["num_q_blocks"]) == (1, 2, 2)
        assert shown["budgets"][1]["lowest"] == 4 and shown["budgets"][1]["highest"] == 7, shown

        part = directory / "part.safetensors"
        write(
            part,
            "bsfa-calibration",
            {
                "sums": ("float64", [2, 1, 1, 2], struct.pack("<4d", 3, 2, 0, 4)),
                "finite": ("int64", [2, 1, 1, 2], struct.pack("<4q", 2, 1, 0, 1)),
                "reached": ("int64", [2], struct.pack("<2q", 2, 1)),
            },
        )
        ours = directory / "ours.safetensors"
        run(program, "thresholds", "merge", "--json", "--out", ours, part)
        tensors = dict(safetensors.deserialize(ours.read_bytes()))
        assert list(tensors) == ["thresholds"], tensors
        thresholds = tensors["thresholds"]
        assert (thresholds["dtype"], thresholds["shape"]) == ("F32", [2, 1, 1, 2]), thresholds
        found = struct.unpack("<4f", bytes(thresholds["data"]))
        assert found == (1.5, 2.0, float("-inf"), 4.0), found
    print("ok")


if __name__ == "__main__":
    main()
