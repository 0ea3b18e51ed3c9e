#!/usr/bin/env bash
# Installs the Python package and what its tests need into the virtual environment of the tree, and
# runs them. Arguments go to pytest.
set -euo pipefail
BSFA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$BSFA_ROOT"
. "$BSFA_ROOT/scripts/setup_common.sh"

export PIP_DISABLE_PIP_VERSION_CHECK=1
need_venv
step "Python packages for the tests (torch and its CUDA libraries are 3 GB)" 5
"$BSFA_VENV/bin/pip" install --quiet --requirement tests/python/requirements.txt

step "libbsfa, linked by the Python package and the C++ tests alike" 3
mkdir -p build
cmake --preset cpu >build/python.log 2>&1 ||
  { tail -n 30 build/python.log >&2; die "configuring preset cpu failed"; }
cmake --build --preset cpu --parallel "$BSFA_JOBS" --target bsfa >>build/python.log 2>&1 ||
  { tail -n 60 build/python.log >&2; die "building libbsfa failed (build/python.log)"; }

step "the Python package" 1
"$BSFA_VENV/bin/pip" install --quiet --no-build-isolation --no-deps --force-reinstall . \
  -C build-dir=build/python -C cmake.define.BSFA_PYTHON_LIBRARY="$BSFA_ROOT/build/cpu/src/libbsfa.so"

step "Python tests" 5
"$BSFA_VENV/bin/ruff" check python tests/python bench/python examples
"$BSFA_VENV/bin/ruff" format --check python tests/python bench/python examples
# Outside the source folder, so that the installed package is what is checked and tested.
(cd tests/python && MYPYPATH= "$BSFA_VENV/bin/mypy" --config-file "$BSFA_ROOT/pyproject.toml" -p bsfa)
# One thread for torch: its threads cost the tiny models of the tests more than they bring.
OMP_NUM_THREADS=1 "$BSFA_VENV/bin/pytest" tests/python "$@"
