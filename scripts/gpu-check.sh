#!/usr/bin/env bash
# Tests the CUDA backend on this machine's first GPU: gpu-check.sh TEST_BINARY [tests|sanitize]...
# TEST_BINARY is what `cargo test --features cuda --test gpu --no-run` built, here or elsewhere.
set -uo pipefail

binary=$1
shift
if ! ldconfig -p | grep -q libcublasLt.so; then
  folder=$(python3 -c 'import importlib.util as u; print(next(iter(u.find_spec("nvidia").submodule_search_locations)))')
  LD_LIBRARY_PATH=$(dirname "$(find "$folder" -name 'libcublasLt.so.13' | head -n 1)"):${LD_LIBRARY_PATH:-}
  export LD_LIBRARY_PATH
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
export RUST_TEST_THREADS=1 RUST_BACKTRACE=0
failed=0
for part in "${@:-tests}"; do
  case $part in
  tests)
    "$binary" || failed=1
    ;;
  sanitize)
    export INFLIGHT_GPU_TEST_SIZE=small
    for tool in memcheck racecheck initcheck synccheck; do
      echo "== compute-sanitizer $tool"
      # Lifecycle tests ask for more than there is on purpose, and the engine's model is large. Watching shared
      # memory, racecheck would take minutes for cuBLASLt's kernels, which the decoder's tests run.
      tests=(--skip lifecycle --skip engine)
      if [ "$tool" = racecheck ]; then
        tests+=(--skip decoder)
      fi
      timeout 200 compute-sanitizer --tool "$tool" --error-exitcode 99 --report-api-errors no "$binary" \
        "${tests[@]}" >"/tmp/sanitize_$tool.log" 2>&1 || failed=1
      grep -E "SUMMARY|test result" "/tmp/sanitize_$tool.log"
    done
    ;;
  esac
done
exit $failed
