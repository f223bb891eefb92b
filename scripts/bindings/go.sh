# The Go module and the generate example: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

go_least=1.25
go_module=github.com/inflight-engine/inflight/bindings/go

setup_go() {
  need cc gcc libc6-dev
  local version
  version=$(command -v go >/dev/null && go env GOVERSION)
  printf '%s\n' "go$go_least" "$version" | sort --version-sort --check=quiet ||
    die "Go $go_least or later is missing (there is ${version:-none}); install it from https://go.dev/dl"
}

# with_library COMMAND...: go commands that link with the installed library.
with_library() { CGO_LDFLAGS="'-L$prefix/lib' '-Wl,-rpath,$prefix/lib'" "$@"; }

# go_tests FOLDER ARGUMENT...: go test, with a last line that counts test functions and examples.
go_tests() {
  local log=$work/go.log status num_failed
  (cd "$root/$1" && with_library go test -v -count=1 "${@:2}") >"$log" 2>&1
  status=$?
  grep -vE '^=== |^ *--- PASS|^PASS' "$log"
  num_failed=$(grep -c '^--- FAIL' "$log")
  if [ $status -ne 0 ] && [ "$num_failed" -eq 0 ]; then num_failed=1; fi
  echo "$(grep -c '^--- PASS' "$log") passed, $num_failed failed"
}

go_lints() {
  local files
  files=$(cd "$root" && gofmt -l bindings/go examples/go) || return 1
  [ -z "$files" ] || { say "gofmt would change: $files" && return 1; }
  (cd "$root/bindings/go" && with_library go vet ./...) || return 1
  (cd "$root/examples/go" && with_library go vet -tags browser ./...)
}

check_go_readme() {
  local folder=$work/readme-go
  "$root/tests/readme.sh" "$root/bindings/go/README.md" go "$folder" || return 1
  printf 'module readme\n\ngo %s\n\nrequire %s v0.0.0\n\nreplace %s => "%s"\n' "$go_least" \
    "$go_module" "$go_module" "$root/bindings/go" >"$folder/go.mod"
  [[ $(cd "$folder" && with_library go run 1.go) == *sky* ]]
}

test_go() {
  check "Go: format and lints" go_lints
  suite "Go: the binding, with the race detector" go_tests bindings/go -race ./...
  suite "Go: the binding with the library inside" \
    go_tests bindings/go -tags inflight_static -run 'Example|Streamed|Closed' .
  suite "Go: the generate example" go_tests examples/go ./generate
  check "Go: README" check_go_readme
}
