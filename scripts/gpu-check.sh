#!/usr/bin/env bash
# Tests or measures the CUDA backend on this machine's first GPU: gpu-check.sh BINARY [tests|sanitize|bench]...
# For tests and sanitize, BINARY is what `cargo test --test gpu --no-run` built, here or elsewhere;
# for bench, the tool: `cargo build --release --bin inflight`. What bench prints goes to the folder
# $OUT too, if that is set, as a JSON file per row of benches/RESULTS.md. It takes:
#   TRACE     a JSON array of [input, output] lengths for the trace's rows, which are left out without it
#   REPEATS   runs of each row; default 3
#   ROWS      rows to run, by the beginning of their names; default: all
set -uo pipefail

binary=$1
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if ! ldconfig -p | grep -q libcublasLt.so; then
  folder=$(python3 -c 'import importlib.util as u; print(next(iter(u.find_spec("nvidia").submodule_search_locations)))')
  LD_LIBRARY_PATH=$(dirname "$(find "$folder" -name 'libcublasLt.so.13' | head -n 1)"):${LD_LIBRARY_PATH:-}
  export LD_LIBRARY_PATH
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
export RUST_TEST_THREADS=1 RUST_BACKTRACE=0
failed=0

# wants NAME: whether the row is to run.
wants() {
  local wanted
  for wanted in ${ROWS:-$1}; do
    case $1 in "$wanted"*) return ;; esac
  done
  return 1
}

# row NAME ARGUMENT...: a row of the table, as one JSON object.
row() {
  local name=$1
  shift
  wants "$name" || return 0
  echo "== $name"
  "$binary" bench --device "${DEVICE:-cuda}" --repeats "${REPEATS:-3}" --json "$@" >"$results/$name.json" || failed=1
  cat "$results/$name.json"
}

# Rows of one description: a single stream, the trace, a burst.
shape_rows() {
  local name=$1 options=(--random-weights "$root/benches/specs/$2" --max-model-len 2048)
  row "$name-single" "${options[@]}" --single-stream --input-len 128 --output-len 128
  # As many sequences and tokens in a step as the engine that the table compares with has.
  options+=(--max-sequences 512 --max-batched-tokens 8192)
  if [ -n "${TRACE:-}" ]; then
    row "$name-trace1000" "${options[@]}" --trace "$TRACE" --requests 1000
  else
    echo "== $name-trace1000: left out, TRACE names no file"
  fi
  row "$name-burst512" "${options[@]}" --requests 512 --input-len 128 --output-len 128
}

# Creation of an engine whose 16 GB of weights are in the page cache.
loading_row() {
  local name=llama-3-8b-creation model
  wants $name || return 0
  model=$(mktemp -d)
  python3 "$root/tools/make_random_llama.py" "$root/benches/specs/llama_3_8b.json" "$model" || failed=1
  cat "$model"/*.safetensors >/dev/null
  row $name "$model" --requests 1 --input-len 128 --output-len 2 --max-model-len 2048 --warmup 0
  rm -r "$model"
}

for part in "${@:-tests}"; do
  case $part in
  tests)
    "$binary" || failed=1
    ;;
  sanitize)
    export INFLIGHT_GPU_TEST_SIZE=small
    for tool in memcheck racecheck initcheck synccheck; do
      echo "== compute-sanitizer $tool"
      # Lifecycle tests ask for more than there is and one of serving loses the device, both on purpose, the engine's
      # model is large, and the families are many, whose kernels the other tests run too. Watching shared memory,
      # racecheck would take minutes for the many steps of the decoder's, the blocks' and serving's tests, and it
      # takes the barriers of cuBLASLt's kernels for races, so that products run in our own; kernels that are
      # excluded by name crash under it.
      # The tool takes memory of the device too, so that plans cannot be compared with what is free, and waits for the
      # whole device itself, which a host that records a graph must not meet.
      tests=(--skip lifecycle --skip engine --skip families --skip host:: --skip the_plan_is_what --skip a_lost_device)
      seconds=200
      if [ "$tool" = racecheck ]; then
        export INFLIGHT_GPU_TEST_TILES=1
        seconds=900
        tests+=(--skip decoder --skip blocks --skip serving --skip logits_of_a_mixture --skip the_plan_has)
      fi
      timeout "$seconds" compute-sanitizer --tool "$tool" --error-exitcode 99 --report-api-errors no \
        "$binary" "${tests[@]}" >"/tmp/sanitize_$tool.log" 2>&1 || failed=1
      grep -E "SUMMARY|test result" "/tmp/sanitize_$tool.log"
      unset INFLIGHT_GPU_TEST_TILES
    done
    ;;
  bench)
    results=${OUT:-$(mktemp -d)}
    mkdir -p "$results"
    shape_rows gpt-j-6b gpt_j_6b.json
    shape_rows llama-3-8b llama_3_8b.json
    loading_row
    ;;
  *)
    echo "${0##*/}: unknown part $part; parts are tests, sanitize and bench" >&2
    failed=1
    ;;
  esac
done
exit $failed
