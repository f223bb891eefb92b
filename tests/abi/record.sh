#!/usr/bin/env bash
# Records the header of the version that is being released in a folder of its own, where tests/abi/check.sh finds it.
# The program of that folder is written by hand, or copied from the version before.
#
# usage: tests/abi/record.sh VERSION
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ "${1:-}" =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || { echo "usage: tests/abi/record.sh VERSION" >&2; exit 2; }
mkdir -p "$here/$1"
cp "$here/../../include/inflight.h" "$here/$1/inflight.h"
python3 "$here/record.py" "$here/$1" table >"$here/$1/table.h"
"$here/types.sh" "$here/$1" "$here/$1/types.abi"
