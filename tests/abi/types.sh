#!/usr/bin/env bash
# Writes what abidw says of a header's functions and their types. Since the library has no debug information about
# types, a library of empty functions stands for it.
#
# usage: tests/abi/types.sh HEADER_FOLDER OUTPUT
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 "$here/record.py" "$1" stubs >"$scratch/stubs.c"
cc -std=c99 -g -Og -shared -fPIC -I "$1" "$scratch/stubs.c" -o "$scratch/stubs.so"
abidw --no-corpus-path --no-comp-dir-path --no-show-locs --short-locs "$scratch/stubs.so" --out-file "$scratch/types.abi"
# Where the header lay is of no interest.
sed -e "s|$scratch/||g" "$scratch/types.abi" >"$2"
