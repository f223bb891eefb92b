#!/usr/bin/env bash
# Builds the fuzz targets and runs them one after the other: fuzz.sh [SECONDS [TARGET]...]
#   SECONDS   how long each runs; default 60
#   TARGET    names of files in fuzz/fuzz_targets; default: all
# Corpora grow in fuzz/corpus, what a fuzzer finds lies in fuzz/artifacts. Needs a C++ compiler and neither cargo-fuzz
# nor a nightly compiler.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

seconds=${1:-60}
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "SECONDS is a number above 0; usage: scripts/fuzz.sh [SECONDS [TARGET]...]"
shift $(($# > 0))
cd "$root/fuzz" || die "cannot enter $root/fuzz"
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for file in fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# The instrumentation that cargo-fuzz asks for. Of the compiler's unstable options only the sanitizer is needed.
flags=(--cfg fuzzing -Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
flags+=(-Zsanitizer=address -Cdebug-assertions -Coverflow-checks -Ccodegen-units=4)
host=$(rustc -vV | sed -n 's/^host: //p')
heading "Building"
RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" cargo build --locked --release --target "$host" --target-dir target || die "the build failed"

# seed TARGET FILE...: starts a corpus with those of the files that are there.
seed() {
  local file folder=corpus/$1
  mkdir -p "$folder"
  for file in "${@:2}"; do
    [ -s "$file" ] && cp "$file" "$folder/$(cksum <"$file" | cut -d ' ' -f 1)"
  done
}
golden=$root/tests/golden
seed gguf "$golden"/*/model.gguf "$golden"/gguf/*/model.gguf
seed safetensors "$golden"/*/model.safetensors
seed config_json "$golden"/*/config.json "$golden"/families/*/config.json
seed tokenizer_json src/tokenizer.json
mkdir -p artifacts

failed=0
for target in "${targets[@]}"; do
  heading "$target"
  mkdir -p "corpus/$target"
  log=artifacts/$target.log
  "target/$host/release/$target" "corpus/$target" -max_total_time="$seconds" -rss_limit_mb=1024 -timeout=10 \
    -max_len=200000 -artifact_prefix="artifacts/$target-" >"$log" 2>&1 || failed=1
  grep -E '^(#[0-9]+\s+DONE|==[0-9]+==|SUMMARY|artifact)' "$log" || tail -n 3 "$log"
done
exit $failed
