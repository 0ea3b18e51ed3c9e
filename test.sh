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
[ "$llama" -eq 0 ] || scripts/setup_llama.sh

failed=()

# build_and_test PRESET MINUTES [ctest option...]
build_and_test() {
  local preset="$1" minutes="$2"
  shift 2
  step "build and test: $preset" "$minutes"
  cmake --preset "$preset" >"build-$preset.log" 2>&1 ||
    { tail -n 30 "build-$preset.log" >&2; die "configuring preset $preset failed"; }
  cmake --build --preset "$preset" --parallel "$BSFA_JOBS" >>"build-$preset.log" 2>&1 ||
    { tail -n 60 "build-$preset.log" >&2; die "building preset $preset failed (build-$preset.log)"; }
  grep -E '^-- (bsfa|BSFA)' "build-$preset.log" || true  # what was left out, and why
  ctest --preset "$preset" --parallel "$BSFA_JOBS" --progress "$@" || failed+=("$preset")
}

if [ "$python" -eq 1 ]; then
  step "Python package and its tests (torch is 3 GB)" 12
  scripts/test_python.sh || failed+=(python)
fi
if [ "$cuda" -eq 1 ]; then
  step "CUDA toolkit headers for the kernels" 0.2
  build_and_test cuda 12 -L gpu --no-tests=ignore
fi
if [ "$sanitizers" -eq 1 ]; then
  build_and_test tsan 5 -LE 'llama|gpu'
  build_and_test asan 8 -LE gpu
fi
build_and_test cpu 5

if [ ${#failed[@]} -gt 0 ]; then
  die "failed: ${failed[*]}"
fi
