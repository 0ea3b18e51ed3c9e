#!/usr/bin/env python3
"""Two slots of llama-server read two long prompts at the same time, with and without the module.

The server runs once as it is and once with the module in GGML_BACKEND_PATH, for each way of keeping
the two sequences (a cache for each, or one for both). Answers must be the same, token by token, and
the module's statistics must say that it computed attention.

    python3 scripts/check_llama_server.py --server llama-server --model model.gguf \\
        --module build/cpu/integrations/ggml/libggml-bsfa.so --text tales.txt

`BSFA_*` variables reach the module: BSFA_COMPUTE=exact for arithmetic as near to stock as it goes.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib

import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

QUESTIONS = ("What happens first in this tale?", "Who are the people in this tale?")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def post(port: int, path: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def wait_until_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit(f"the server ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit("the server was not ready after a minute")


def serve(
    args: argparse.Namespace, prompts: list[str], extra: list[str], module: pathlib.Path | None
) -> tuple[list[dict[str, object]], str]:
    """The answers to `prompts`, asked at the same time, and what the server wrote to stderr."""
    port = free_port()
    environment = dict(os.environ, BSFA_STATS="1")
    environment.pop("GGML_BACKEND_PATH", None)
    if module is not None:
        environment["GGML_BACKEND_PATH"] = str(module.resolve())
    command = [str(args.server), "-m", str(args.model), "--host", "127.0.0.1", "--port", str(port)]
    # A llama.cpp with its backends linked in looks at GGML_BACKEND_PATH only when an option names a
    # device; this one does, and matches no tensor.
    command += ["--override-tensor", "^$=CPU"]
    command += ["-np", "2", "-c", str(2 * args.context), "-t", str(args.threads), "-fa", "on"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command + extra, env=environment, stdout=log, stderr=log)
        try:
            wait_until_ready(port, server)
            body = {"temperature": 0, "n_predict": args.answer_tokens, "cache_prompt": False}
            with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
                asked = [
                    pool.submit(post, port, "/completion", dict(body, prompt=prompt, id_slot=slot))
                    for slot, prompt in enumerate(prompts)
                ]
                answers = [future.result() for future in asked]
        finally:
            server.terminate()
            server.wait(60)
        log.seek(0)
        return answers, log.read().decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--server", type=pathlib.Path, required=True, help="llama-server")
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--module", type=pathlib.Path, required=True, help="libggml-bsfa.so")
    parser.add_argument("--text", type=pathlib.Path, required=True, help="what the prompts quote")
    parser.add_argument("--characters", type=int, default=6000, help="of text in each prompt")
    parser.add_argument("--context", type=int, default=4096, help="tokens for each slot")
    parser.add_argument("--answer-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()

    text = args.text.read_text()
    prompts = []
    for slot, question in enumerate(QUESTIONS):
        quoted = text[slot * args.characters : (slot + 1) * args.characters]
        prompts.append(
            f"<|im_start|>user\n{quoted}\n\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
    failed = False
    for name, extra in (
        ("a cache for each slot", ["--no-kv-unified"]),
        ("one cache", ["--kv-unified"]),
    ):
        stock, _ = serve(args, prompts, extra, None)
        ours, log = serve(args, prompts, extra, args.module)
        print(f"two slots, {name}")
        for before, after in zip(stock, ours, strict=True):
            same = before["content"] == after["content"]
            failed = failed or not same
            print(f"  {after['tokens_evaluated']} tokens: {'same' if same else 'DIFFERENT'}")
            print(f"    stock: {before['content']!r}")
            if not same:
                print(f"    here:  {after['content']!r}")
        statistics = [line for line in log.splitlines() if "bsfa:" in line]
        print("\n".join("  " + line for line in statistics))
        if not statistics:
            print("  the module computed nothing")
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
