#!/usr/bin/env bash
# Installs the Python package, by way of its source distribution and wheel, and what its tests need
# into the virtual environment of the tree, and runs them. Arguments go to pytest.
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

step "the Python package: source distribution, wheel, clean environment" 1
python_log="$BSFA_ROOT/build/python.log"
rm -rf build/dist build/sdist build/clean
"$BSFA_VENV/bin/python" -c 'from scikit_build_core.build import build_sdist; build_sdist("build/dist")' \
  >>"$python_log" 2>&1 || { tail -n 30 "$python_log" >&2; die "the source distribution failed"; }
mkdir -p build/sdist && tar -xzf build/dist/bsfa-*.tar.gz -C build/sdist --strip-components=1
# It has all that a build without a library at hand asks for ...
cmake -S build/sdist/python -B build/sdist/configured -DBSFA_CUDA=off \
  -DPython_EXECUTABLE="$BSFA_VENV/bin/python" >>"$python_log" 2>&1 ||
  { tail -n 30 "$python_log" >&2; die "the source distribution is not complete"; }
# ... and the wheel made from it works where there is nothing else.
"$BSFA_VENV/bin/pip" wheel --quiet --no-build-isolation --no-deps ./build/sdist -w build/dist \
  -C build-dir="$BSFA_ROOT/build/python" \
  -C cmake.define.BSFA_PYTHON_LIBRARY="$BSFA_ROOT/build/cpu/src/libbsfa.so"
python3 -m venv build/clean
build/clean/bin/pip install --quiet --no-index --no-deps build/dist/bsfa-*.whl
(cd build/clean && bin/python -m bsfa info && bin/bsfa-py --version)
"$BSFA_VENV/bin/pip" install --quiet --no-index --no-deps --force-reinstall build/dist/bsfa-*.whl

step "Python tests" 5
"$BSFA_VENV/bin/ruff" check python tests/python bench/python examples
"$BSFA_VENV/bin/ruff" format --check python tests/python bench/python examples
# Outside the source folder, so that the installed package is what is checked and tested.
(cd tests/python && MYPYPATH= "$BSFA_VENV/bin/mypy" --config-file "$BSFA_ROOT/pyproject.toml" -p bsfa)
# One thread for torch: its threads cost the tiny models of the tests more than they bring.
OMP_NUM_THREADS=1 "$BSFA_VENV/bin/pytest" tests/python "$@"
