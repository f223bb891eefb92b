#!/usr/bin/env bash
# Runs every check and test, lists what was not run and why, and ends with a line "N passed, N failed" that
# counts test functions (and a failed format or lint check as one failure).
#
# usage: scripts/test.sh [--quick] [--sim-steps N]
#   --quick         unit tests and repository checks alone: no model, no C programs, no setup
#   --sim-steps N   random steps of each simulation instead of the default
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

quick=
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=1 ;;
    --sim-steps)
      [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "--sim-steps needs a number above 0"
      export INFLIGHT_SIM_STEPS=$2
      shift
      ;;
    -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    *) die "unknown argument $1; usage: scripts/test.sh [--quick] [--sim-steps N]" ;;
  esac
  shift
done

failed_checks=()
# check NAME COMMAND...: a step that passes or fails as a whole.
check() {
  heading "$1"
  "${@:2}" || failed_checks+=("$1: ${*:2}")
}

cd "$root" || die "cannot enter $root"
log=$(mktemp)
trap 'rm -f "$log" "$log.bindings"' EXIT

if [ -z "$quick" ]; then
  heading "Setting up"
  "$root/scripts/setup.sh" --test || die "setting up failed; nothing was tested"
  say "ready"
fi

check "Format" cargo fmt --check
check "Lints" cargo clippy --quiet --locked --all-targets -- -D warnings

heading "Tests"
selection=()
if [ -n "$quick" ]; then selection=(--lib --bins --test tidy); fi
status=0
# tests ARGUMENT...: runs test programs and keeps what they print.
tests() {
  cargo test --locked --no-fail-fast "$@" 2>&1 | tee -a "$log"
  [ "${PIPESTATUS[0]}" -eq 0 ] || status=1
}
tests "${selection[@]}"
if [ -z "$quick" ]; then
  heading "Queues and shutdown under a model checker"
  tests --features shuttle --test shuttle
fi

bindings=(0 passed, 0 failed)
if [ -z "$quick" ]; then
  heading "Bindings and packaging"
  "$root/scripts/test-bindings.sh" 2>&1 | tee "$log.bindings"
  # One that dies says nothing: then it is one failure.
  read -ra bindings < <(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log.bindings" | tail -n 1) || bindings=(0 passed, 1 failed)
fi

# sum WORD: over the "test result:" lines of all test programs.
sum() { awk -v word="$1;" '/^test result:/ { for (i = 2; i <= NF; i++) if ($i == word) n += $(i - 1) } END { print n + 0 }' "$log"; }
num_passed=$(($(sum passed) + bindings[0]))
num_failed_tests=$(sum failed)
# A program that does not compile or dies has no result line.
if [ "$status" -ne 0 ] && [ "$num_failed_tests" -eq 0 ]; then num_failed_tests=1; fi
num_failed=$((num_failed_tests + ${#failed_checks[@]} + bindings[2]))

heading "Not run"
grep -E '^test .* \.\.\. ignored' "$log" | sed 's/^test /  /'
echo "  $(grep -rh '#\[test\]' tests/gpu | wc -l) GPU tests (tests/gpu): they need a CUDA card; scripts/gpu-check.sh runs them"
if [ -n "$quick" ]; then echo "  all other test programs, the model checker and the documentation's examples: --quick"; fi
if [ -z "${INFLIGHT_SIM_STEPS:-}" ]; then echo "  millions of simulated steps: --sim-steps 5000000 runs them"; fi

if [ "$num_failed" -gt 0 ]; then
  heading "Failed"
  for name in "${failed_checks[@]}"; do echo "  $name"; done
  if [ "${bindings[2]}" -gt 0 ]; then echo "  ${bindings[2]} of the bindings' tests: see above"; fi
  grep -E '^test .* \.\.\. FAILED|^error(\[|:)' "$log" | sort -u | sed 's/^/  /'
fi

echo
echo "$num_passed passed, $num_failed failed"
[ "$num_failed" -eq 0 ] && [ "$num_passed" -gt 0 ]
