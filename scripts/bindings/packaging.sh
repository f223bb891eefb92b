# The installed files: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

setup_packaging() {
  need cc gcc libc6-dev
  need pkg-config pkg-config
}

# A C program that is built with what pkg-config says, against a prefix that was moved.
run_with_pkg_config() {
  local moved=$work/moved flags
  rm -rf "$moved"
  cp -a "$prefix" "$moved"
  flags=$(PKG_CONFIG_PATH=$moved/lib/pkgconfig pkg-config --cflags --libs inflight) || return 1
  # shellcheck disable=SC2086
  cc -std=c99 "$root/examples/c/generate.c" -o "$moved/generate" $flags || return 1
  [[ $(LD_LIBRARY_PATH=$moved/lib "$moved/generate" --device echo --prompt "moved") == *moved* ]]
}

test_packaging() {
  check "pkg-config" run_with_pkg_config
}
