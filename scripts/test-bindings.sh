#!/usr/bin/env bash
# Tests the bindings and the packaging from an installed library, and ends with a line "N passed, N failed".
# scripts/bindings/ has a file for each language: what it needs and how it is tested.
#
# usage: scripts/test-bindings.sh [LANGUAGE...]
#   LANGUAGE   one of the files in scripts/bindings; without one, all
#
# INFLIGHT_PREBUILT names a folder with libinflight.so and libinflight.a to test instead of what cargo builds.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

languages=()
for file in "$root"/scripts/bindings/*.sh; do
  name=${file##*/}
  languages+=("${name%.sh}")
done
selection=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
  esac
  [[ " ${languages[*]} " == *" $1 "* ]] || die "unknown language $1; there are: ${languages[*]}"
  selection+=("$1")
  shift
done
[ ${#selection[@]} -gt 0 ] || selection=("${languages[@]}")

# What the parts in scripts/bindings use: a folder for what they build, and an installed library.
work=$target/bindings
prefix=$work/prefix
export INFLIGHT_TEST_MODEL=${INFLIGHT_TEST_MODEL:-$model}
num_passed=0
failures=()

# suite NAME COMMAND...: tests that end with a line "N passed, N failed".
suite() {
  local log=$work/suite.log counts num_failed
  heading "$1"
  "${@:2}" 2>&1 | tee "$log"
  local status=${PIPESTATUS[0]}
  # A suite that dies says nothing: then it is one failure.
  read -ra counts < <(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1) || counts=(0 "passed," 1 failed)
  num_failed=${counts[2]}
  if [ "$status" -ne 0 ] && [ "$num_failed" -eq 0 ]; then num_failed=1; fi
  num_passed=$((num_passed + counts[0]))
  for ((; num_failed > 0; num_failed--)); do failures+=("$1: ${*:2}"); done
}

# check NAME COMMAND...: one test, which passes or fails as a whole.
check() {
  heading "$1"
  if "${@:2}"; then
    say "passed"
    num_passed=$((num_passed + 1))
  else
    failures+=("$1: ${*:2}")
  fi
}

cd "$root" || die "cannot enter $root"
mkdir -p "$work"
heading "Setting up"
"$root/scripts/setup.sh" --bindings "${selection[@]}" || die "setting up failed; nothing was tested"
"$root/scripts/install.sh" "$prefix" ${INFLIGHT_PREBUILT:+--from "$INFLIGHT_PREBUILT"} ||
  die "there is no library to test"
[ -e "$INFLIGHT_TEST_MODEL" ] || die "$INFLIGHT_TEST_MODEL is missing; run scripts/setup.sh"

for language in "${selection[@]}"; do
  # shellcheck source=/dev/null
  . "$root/scripts/bindings/$language.sh"
  "test_$language"
done

if [ ${#failures[@]} -gt 0 ]; then
  heading "Failed"
  printf '%s\n' "${failures[@]}" | sort -u | sed 's/^/  /'
fi
echo
echo "$num_passed passed, ${#failures[@]} failed"
[ ${#failures[@]} -eq 0 ] && [ "$num_passed" -gt 0 ]
