#!/usr/bin/env bash
# Holds a header and a library against every version that was recorded, and first shows that each check can fail.
# Ends with a line "N passed, N failed".
#
# usage: tests/abi/check.sh PREFIX
#   PREFIX   an installed library
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -eq 1 ] || { echo "usage: tests/abi/check.sh PREFIX" >&2; exit 2; }
prefix=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
num_passed=0
num_failed=0

# holds_table VERSION HEADER_FOLDER: sizes, offsets, numbers and signatures of that version in this header.
holds_table() {
  cc -std=c11 -Wall -Werror -fsyntax-only -I "$2" -iquote "$here/$1" "$here/table_test.c" 2>"$scratch/said"
}

# holds_types VERSION HEADER_FOLDER: the same by comparing debug information. abidiff reports fields that were added
# at the end of a struct as well, which is what later versions may do; what moves or changes is told apart by its text.
holds_types() {
  "$here/types.sh" "$2" "$scratch/types.abi" 2>"$scratch/said" || return 1
  abidiff --harmless --no-added-syms "$here/$1/types.abi" "$scratch/types.abi" >"$scratch/said" 2>&1
  # Bit 0 is an error of the tool, bit 1 one of its arguments, bit 3 an incompatible change.
  [ $(($? & 11)) -eq 0 ] && ! grep -qE 'member (change|deletion)|(return type|parameter .*) changed' "$scratch/said"
}

# holds_program VERSION: a program that was compiled with the header of that version runs with this library.
holds_program() {
  cc -std=c99 -Wall -Wextra -Werror -I "$here/$1" "$here/$1/program.c" -o "$scratch/program" \
    -L "$prefix/lib" -linflight -Xlinker -rpath -Xlinker "$prefix/lib" >"$scratch/said" 2>&1 &&
    "$scratch/program" 2>"$scratch/said"
}

# holds_symbols VERSION: the library exports every function of that version.
holds_symbols() {
  comm -23 <(sed -n 's/^FUNCTION(.*\(ifl_[a-z_]*\)(.*/\1/p' "$here/$1/table.h" | sort) \
    <(nm -D --defined-only --format=posix "$prefix/lib/libinflight.so" | cut -d' ' -f1 | sort) >"$scratch/said"
  [ ! -s "$scratch/said" ]
}

# expect yes|no NAME COMMAND...: the command must succeed, or must fail.
expect() {
  local got=no
  if "${@:3}"; then got=yes; fi
  if [ "$got" = "$1" ]; then
    num_passed=$((num_passed + 1))
    echo "ok     $2"
  else
    num_failed=$((num_failed + 1))
    echo "FAILED $2"
    cat "$scratch/said"
  fi
}

# altered EDIT: a folder with a header that a sed script has made of the newest.
altered() {
  mkdir -p "$scratch/altered"
  sed -e "$1" "$prefix/include/inflight.h" >"$scratch/altered/inflight.h"
  ! cmp -s "$scratch/altered/inflight.h" "$prefix/include/inflight.h" || { echo "nothing altered: $1" >&2; exit 1; }
}

for folder in "$here"/[0-9]*/; do
  version=$(basename "$folder")
  altered 's/^    uint32_t has_chat_template;/&\n    uint32_t added;/'
  expect yes "$version: a field at the end is seen as compatible by the table" holds_table "$version" "$scratch/altered"
  expect yes "$version: a field at the end is seen as compatible by the types" holds_types "$version" "$scratch/altered"
  altered 's/^    uint32_t vocab_size;/    uint32_t added;\n&/'
  expect no "$version: a field in the middle is caught by the table" holds_table "$version" "$scratch/altered"
  expect no "$version: a field in the middle is caught by the types" holds_types "$version" "$scratch/altered"
  altered 's/^    uint32_t max_tokens;/    int32_t max_tokens;/'
  expect no "$version: a field of another type is caught by the types" holds_types "$version" "$scratch/altered"
  altered 's/IFL_BUSY = 200/IFL_BUSY = 204/'
  expect no "$version: another number is caught by the table" holds_table "$version" "$scratch/altered"
  altered 's/^uint32_t ifl_version(void);/uint64_t ifl_version(void);/'
  expect no "$version: another signature is caught by the table" holds_table "$version" "$scratch/altered"
  expect no "$version: another signature is caught by the types" holds_types "$version" "$scratch/altered"
  altered '/^uint32_t ifl_version(void);/d'
  expect no "$version: a missing function is caught by the types" holds_types "$version" "$scratch/altered"

  expect yes "$version: the table holds" holds_table "$version" "$prefix/include"
  expect yes "$version: the types hold" holds_types "$version" "$prefix/include"
  expect yes "$version: its program runs" holds_program "$version"
  expect yes "$version: its functions are there" holds_symbols "$version"
done
echo "$num_passed passed, $num_failed failed"
[ $num_failed -eq 0 ] && [ $num_passed -gt 0 ]
