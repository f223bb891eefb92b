#!/usr/bin/env bash
# Installs the library without CMake: the same prefix as `cmake --install` makes.
#
# usage: scripts/install.sh PREFIX [--no-cuda] [--from FOLDER] [--debug-info]
#   --no-cuda       build without the CUDA backend, for which nvcc is needed (scripts/cuda-toolkit.sh)
#   --from FOLDER   install the libinflight.so and libinflight.a in FOLDER instead of building them
#   --debug-info    keep the shared library's debug information, most of its size
#
# PREFIX gets lib/libinflight.so.0 and its link libinflight.so, lib/libinflight.a, include/, the licences, and what
# pkg-config and CMake's find_package look for. It may be moved afterwards.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage="usage: scripts/install.sh PREFIX [--no-cuda] [--from FOLDER] [--debug-info]"
prefix=
from=
debug_info=
features=()
while [ $# -gt 0 ]; do
  case "$1" in
    --debug-info) debug_info=yes ;;
    --no-cuda) features=(--no-default-features) ;;
    --from)
      [ $# -gt 1 ] || die "a folder is missing after --from; $usage"
      from=$2
      shift
      ;;
    -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    -*) die "unknown argument $1; $usage" ;;
    *)
      [ -z "$prefix" ] || die "a second prefix: $1; $usage"
      prefix=$1
      ;;
  esac
  shift
done
[ -n "$prefix" ] || die "where to? $usage"
[ -n "$debug_info" ] || command -v strip >/dev/null || die "strip is missing; install binutils, or say --debug-info"

if [ -z "$from" ]; then
  (cd "$root" && cargo build --release --locked --lib "${features[@]}")
  from=$target/release
fi
for file in libinflight.so libinflight.a; do
  [ -f "$from/$file" ] || die "$from/$file is missing; leave --from out to build it"
done

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
major=${version%%.*}
mkdir -p "$prefix"/include "$prefix"/lib/pkgconfig "$prefix"/lib/cmake/inflight "$prefix"/share/licenses/inflight
install -m 644 "$root/include/inflight.h" "$root"/bindings/cpp/*.hpp "$prefix/include"
install -m 644 "$root"/LICENSE-{MIT,APACHE} "$prefix/share/licenses/inflight"
# A new file takes the old one's place at once: programs may run with that one, and FOLDER may be PREFIX/lib.
library=$prefix/lib/libinflight.so.$major
if [ -n "$debug_info" ]; then
  cp "$from/libinflight.so" "$library.new"
else
  strip --strip-debug -o "$library.new" "$from/libinflight.so"
fi
chmod 755 "$library.new"
mv -f "$library.new" "$library"
ln -sf "libinflight.so.$major" "$prefix/lib/libinflight.so"
"$root/scripts/static-library.sh" "$from/libinflight.a" "$prefix/lib/libinflight.a"

# fill TEMPLATE FILE: the templates stand for paths below a prefix, relative to the library's folder.
fill() {
  sed -e "s|@PROJECT_VERSION@|$version|g" -e "s|@PROJECT_VERSION_MAJOR@|$major|g" \
    -e "s|@PREFIX_FROM_LIB@|..|g" -e "s|@LIB_FROM_PREFIX@|lib|g" -e "s|@INCLUDE_FROM_PREFIX@|include|g" \
    "$root/packaging/$1" >"$prefix/lib/$2"
}
fill inflight.pc.in pkgconfig/inflight.pc
fill inflight-config.cmake.in cmake/inflight/inflight-config.cmake
fill inflight-config-version.cmake.in cmake/inflight/inflight-config-version.cmake
say "installed Inflight $version in $prefix"
