# The OpenAI-compatible server on the Go binding: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

# shellcheck source=/dev/null
. "$root/scripts/bindings/go.sh"

openai_version=3.54.0
openai_python=$root/.cache/openai/bin/python

setup_server() {
  setup_go
  need chromium chromium
  need chromedriver chromium-driver
  need python3 python3 python3-pip python3-venv
  local wanted="import importlib.metadata as m, sys; sys.exit(m.version('openai') != '$openai_version')"
  "$openai_python" -c "$wanted" 2>/dev/null && return
  say "installing the Python package openai $openai_version into .cache/"
  rm -rf "$root/.cache/openai"
  python3 -m venv "$root/.cache/openai" 2>/dev/null || {
    install "Python's module venv" python3-venv
    python3 -m venv "$root/.cache/openai"
  } || die "python3 -m venv failed"
  "$openai_python" -m pip install --quiet --disable-pip-version-check "openai==$openai_version" ||
    die "pip could not install openai $openai_version; check the network and run this again"
}

openai_client() {
  (cd "$root/examples/go" && with_library go build -race -o "$work/server" ./server) || return 1
  "$openai_python" "$root/examples/go/server/openai_test.py" "$work/server" "$INFLIGHT_TEST_MODEL"
}

test_server() {
  suite "Server: with the race detector" go_tests examples/go -race ./server
  suite "Server: OpenAI's own Python package" openai_client
  suite "Server: the chat page in Chromium" go_tests examples/go -tags browser -run 'Browser|ThePage' ./server
}
