#!/usr/bin/env bash
# Holds a generate program against the one in C: same answers, same messages, same exit codes.
#
# usage: tests/examples.sh REFERENCE COMMAND...
set -uo pipefail

reference=$1
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
printf 'a prompt that takes a good deal longer than the others to come back\n\nshort\n' >"$scratch/prompts"
status=0

# Times differ from run to run, and so does the order in which answers end.
normalise() { sed -E 's/[0-9]+\.[0-9]+|inf/N/g' "$1" | if [ -n "${2:-}" ]; then sort; else cat; fi; }

# same [--sorted] ARGUMENT...: both programs do the same with these arguments.
same() {
  local order='' expected got
  if [ "$1" = --sorted ]; then
    order=1
    shift
  fi
  "$reference" "$@" >"$scratch/out.c" 2>"$scratch/err.c"
  expected=$?
  "${command[@]}" "$@" >"$scratch/out" 2>"$scratch/err"
  got=$?
  if [ $expected -ne $got ] ||
    ! diff <(normalise "$scratch/out.c" "$order") <(normalise "$scratch/out" "$order") ||
    ! diff "$scratch/err.c" "$scratch/err"; then
    echo "differs: $*: exit code $got instead of $expected"
    status=1
  fi
}

command=("$@")
same --help
same --device echo --prompt 'Guten Tag, ü 🎉'
same --device echo:2000 --prompt Hello --max-tokens 7 --temperature 0
same --sorted --device echo:500 --prompts-file "$scratch/prompts" --prompt x --many 16
same --sorted --device echo --prompt one --prompt two
same --prompt x
same model
same model model
same model --prompt
same model --many 0
same model --many 12x
same model --temperature -1 --prompt x
same model --temperature warm --prompt x
same model --wrong x
same --device echo --prompts-file /nonexistent
same /nonexistent --prompt x
same --device warp --prompt x model
if [ -n "${INFLIGHT_TEST_MODEL:-}" ]; then
  same "$INFLIGHT_TEST_MODEL" --prompt 'Name a colour.' --max-tokens 12 --temperature 0
fi
exit $status
