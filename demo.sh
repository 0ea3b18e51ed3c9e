#!/usr/bin/env bash
# The main job, from nothing: sets up what is missing, builds, and lets a small language model read
# a long text with stock llama.cpp, with dense attention here and with Block Sparse Flash Attention.
# A second run builds nothing. Extra arguments go to `bsfa run`, for instance --budget 8 --json.
set -euo pipefail
BSFA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$BSFA_ROOT/scripts/setup_common.sh"
cd "$BSFA_ROOT"

say "Block Sparse Flash Attention: demo (at most 20 minutes on 2 cores the first time, then 5)"
need_debian build-essential cmake ninja-build python3 python3-venv libcli11-dev \
  nlohmann-json3-dev libgtest-dev
"$BSFA_ROOT/scripts/setup_llama.sh"

build="$BSFA_ROOT/build/cpu"
step "bsfa: build (nothing to do if it is built)" 3
cmake --preset cpu >"$BSFA_CACHE/configure.log" 2>&1 ||
  { tail -n 20 "$BSFA_CACHE/configure.log" >&2; die "configuring failed ($BSFA_CACHE/configure.log)"; }
cmake --build "$build" --parallel "$BSFA_JOBS" --target bsfa_cli ggml_bsfa \
  >"$BSFA_CACHE/build.log" 2>&1 ||
  { tail -n 40 "$BSFA_CACHE/build.log" >&2; die "the build failed ($BSFA_CACHE/build.log)"; }

step "the main job: a pass-key hidden in fairy tales, at two lengths" 5
exec "$build/apps/bsfa/bsfa" run \
  --model "$BSFA_CACHE/models/smollm2-135m-instruct-bf16.gguf" \
  --thresholds "$BSFA_ROOT/data/smollm2-135m-instruct.thresholds.safetensors" \
  --prompt-file "$BSFA_CACHE/texts/tales.txt" --prompt-tokens 3700,7300 --needle 0.5 \
  --compare stock,dense --runs 2 "$@"
