#!/usr/bin/env bash
# Sets the machine up, builds the library and examples/c/generate.c against it, and shows a streamed answer and
# 16 prompts in flight together.
#
# usage: scripts/demo.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

case "${1:-}" in
  "") ;;
  -h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
  *) die "unknown argument $1; usage: scripts/demo.sh" ;;
esac

heading "Setting up"
"$root/scripts/setup.sh"
say "ready"

heading "Building the library (the first time takes a few minutes)"
(cd "$root" && cargo build --release --locked)
say "$target/release/libinflight.so"

heading "Building examples/c/generate.c"
program=$target/demo/generate
mkdir -p "${program%/*}"
# -Xlinker, because -Wl would split a path with a comma in it.
compile=(cc -std=c99 -O2 -Wall -Wextra -I "$root/include" -o "$program" "$root/examples/c/generate.c"
  -L "$target/release" -linflight -Xlinker -rpath -Xlinker "$target/release")
printf '%q ' "${compile[@]}"
echo
"${compile[@]}"

heading "One answer, streamed"
"$program" "$model" --max-tokens 128 --prompt "Why is the sky blue? Answer in two sentences."

heading "16 prompts at once, each shown as it ends"
prompts=(
  "Write a short story about a lighthouse keeper."
  "What is the capital of France? Answer with one word."
  "List five fruits."
  "Explain photosynthesis in one sentence."
  "What is 2 + 2? Answer with a number."
  "Write a haiku about the sea."
  "Name the largest planet of the solar system."
  "Describe how to make a cup of tea, step by step."
  "Translate 'good morning' into French."
  "What colour is grass? Answer with one word."
  "Tell me a fact about elephants."
  "Write a letter to a friend about a holiday."
  "What is the opposite of hot? Answer with one word."
  "Explain what a compiler does."
  "Name three primary colours."
  "Why do leaves fall in autumn?"
)
arguments=()
for prompt in "${prompts[@]}"; do arguments+=(--prompt "$prompt"); done
"$program" "$model" --max-tokens 96 "${arguments[@]}"
