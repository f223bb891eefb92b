# Older versions of the ABI: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

setup_abi() {
  need cc gcc libc6-dev
  need python3 python3
  need abidiff abigail-tools
}

test_abi() {
  suite "ABI of older versions" "$root/tests/abi/check.sh" "$prefix"
}
