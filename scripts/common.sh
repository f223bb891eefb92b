# Sourced by the other scripts: where the project is, and how they speak.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
models=$root/.cache/models
model=$models/SmolLM2-135M-Instruct.Q4_1.gguf
cbindgen_version=0.29.4
cbindgen=$root/.cache/cbindgen/bin/cbindgen

# A cargo that rustup installed is found even where the shell's profile was not read.
command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin

heading() { printf '\n== %s\n' "$*"; }
say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 1
}
