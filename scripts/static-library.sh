#!/usr/bin/env bash
# Makes the static library that is installed from the one that cargo builds: one object, with what the ifl_* functions
# need and no more, in which every other name is local. Cargo's also offers thousands of names of Rust's own, and
# those that all Rust libraries share, such as rust_eh_personality, keep two of different compilers out of one program.
#
# usage: scripts/static-library.sh INPUT OUTPUT
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -eq 2 ] || die "usage: scripts/static-library.sh INPUT OUTPUT"
for tool in nm ld objcopy ar; do
  command -v $tool >/dev/null || die "$tool is missing; install binutils"
done
scratch=$(mktemp -d "$2.XXXXXX")
# shellcheck disable=SC2064
trap "rm -rf '${scratch//\'/\'\\\'\'}'" EXIT

roots=()
num_others=0
# Archive members without symbols make nm complain.
while read -r name type _; do
  case "$name $type" in
    ifl_*" T") roots+=(-u "$name") ;;
    *" "[A-Z]) num_others=$((num_others + 1)) ;;
  esac
done < <(nm --defined-only --extern-only --format=posix "$1" 2>/dev/null)
[ ${#roots[@]} -gt 0 ] || die "$1 defines no ifl_ function"
# One that was installed is what it should be.
if [ "$num_others" = 0 ]; then
  cp "$1" "$scratch/libinflight.a"
  mv -f "$scratch/libinflight.a" "$2"
  exit
fi

# Without groups: the linker would take those of another Rust library for copies of these, whose names are local.
ld -r --gc-sections --force-group-allocation "${roots[@]}" -o "$scratch/inflight.o" "$1"
# Rust's precompiled parts carry their bitcode along.
objcopy --wildcard --keep-global-symbol='ifl_*' --strip-unneeded --remove-section=.llvmbc --remove-section=.llvmcmd \
  "$scratch/inflight.o"
ar rcsD "$scratch/libinflight.a" "$scratch/inflight.o"
mv -f "$scratch/libinflight.a" "$2"
