#!/usr/bin/env bash
# Writes the code blocks of a language in a README to files of their own, with the model of the tests in them.
#
# usage: tests/readme.sh README LANGUAGE FOLDER     gives FOLDER/1.LANGUAGE, FOLDER/2.LANGUAGE and so on
set -euo pipefail

rm -rf "$3"
mkdir -p "$3"
awk -v language="$2" -v folder="$3" '
  $0 == "```" language { writing = 1; number++; next }
  $0 == "```" { writing = 0 }
  writing { print > (folder "/" number "." language) }' "$1"
sed -i "s|model\.gguf|${INFLIGHT_TEST_MODEL//|/\\|}|" "$3"/*
