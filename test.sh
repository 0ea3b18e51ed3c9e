#!/usr/bin/env bash
# Sets up what the tests need, builds, and runs them all. See --help.
set -euo pipefail
BSFA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$BSFA_ROOT"

usage() {
  cat <<'TEXT'
usage: ./test.sh [--quick] [--no-llama] [--no-cuda] [--no-python]

Builds bsfa and runs its tests on a Debian 12 or Ubuntu machine; nothing else is needed beforehand.
  --quick      the release build alone: no sanitizers, CUDA or Python
  --no-llama   without llama.cpp and the default model (no downloads)
  --no-cuda    do not compile the CUDA kernels even if nvcc is there
  --no-python  without the Python package (whose tests need torch, 3 GB)
TEXT
}

llama=1 cuda=1 python=1 sanitizers=1
for argument in "$@"; do
  case "$argument" in
    --quick) sanitizers=0 cuda=0 python=0 ;;
    --no-llama) llama=0 ;;
    --no-cuda) cuda=0 ;;
    --no-python) python=0 ;;
    -h | --help) usage; exit 0 ;;
    *) printf "error: unknown argument '%s'\n" "$argument" >&2; usage >&2; exit 2 ;;
  esac
done

. "$BSFA_ROOT/scripts/setup_common.sh"

command -v nvcc >/dev/null || { [ -x /usr/local/cuda/bin/nvcc ] && PATH="$PATH:/usr/local/cuda/bin"; } || cuda=0
[ -d "$BSFA_ROOT/python" ] || python=0

need_debian build-essential cmake ninja-build pkg-config python3 python3-dev python3-venv \
  libgtest-dev nlohmann-json3-dev libcli11-dev
need_venv
# The threshold files are also read and written by their format's own package.
export VIRTUAL_ENV="$BSFA_VENV"  # CMake's Python is this one
"$BSFA_VENV/bin/python" -c 'import safetensors' 2>/dev/null ||
  "$BSFA_VENV/bin/pip" install --quiet --disable-pip-version-check 'safetensors>=0.8'
[ "$llama" -eq 0 ] || scripts/setup_llama.sh

failed=()

# build_and_test PRESET MINUTES [ctest option...]; configure and targets may be set beforehand
configure=() targets=(all)
build_and_test() {
  local preset="$1" minutes="$2"
  shift 2
  step "build and test: $preset" "$minutes"
  local log="build/$preset.log"
  mkdir -p build
  cmake --preset "$preset" "${configure[@]}" >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; die "configuring preset $preset failed ($log)"; }
  cmake --build --preset "$preset" --parallel "$BSFA_JOBS" \
    --target "${targets[@]}" >>"$log" 2>&1 ||
    { tail -n 60 "$log" >&2; die "building preset $preset failed ($log)"; }
  grep -E '^-- (bsfa|BSFA)' "$log" || true  # what was left out, and why
  ctest --preset "$preset" --parallel "$BSFA_JOBS" --progress "$@" || failed+=("$preset")
}

build_and_test cpu 6 -LE gpu
if [ "$sanitizers" -eq 1 ]; then
  build_and_test tsan 6 -LE 'llama|gpu' -E consumer
  build_and_test asan 9 -LE gpu -E 'consumer|cli_model'
fi
if [ "$cuda" -eq 1 ]; then
  # One architecture of each family; without a GPU its tests are skipped, and say so.
  configure=(-DBSFA_CUDA_SM80_ARCHITECTURES=80-real -DBSFA_BUILD_APPS=OFF -DBSFA_BUILD_BENCH=OFF)
  targets=(bsfa test_gpu)
  build_and_test cuda 12 -L gpu
  # Products that ptxas serialises are right but a third slower, which no test sees.
  if grep 'wgmma.mma_async instructions are serialized' build/cuda.log >&2; then
    failed+=("cuda (serialized products)")
  fi
fi
[ "$python" -eq 0 ] || scripts/test_python.sh || failed+=(python)

if [ ${#failed[@]} -gt 0 ]; then
  die "failed: ${failed[*]}"
fi
