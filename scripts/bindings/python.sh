# The Python package: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

# Tools of the tests; the package itself needs none.
python_tools=$root/.cache/python

setup_python() {
  need python3 python3
  need cc gcc libc6-dev
  [ -x "$python_tools/bin/mypy" ] && return
  python3 -c 'import ensurepip, venv' 2>/dev/null || install venv python3-venv
  say "fetching mypy and setuptools with pip, to .cache/python"
  { python3 -m venv "$python_tools" &&
    "$python_tools/bin/pip" install --quiet --disable-pip-version-check mypy==1.18.2 typing_extensions \
      setuptools==80.9.0 wheel; } || die "pip could not install them; check the network and run this again"
}

check_python_types() {
  (cd "$root/bindings/python" && MYPYPATH=src "$python_tools/bin/mypy" --strict --cache-dir "$work/mypy")
}

# The example answers as the C program of the same name does.
check_python_generate() {
  cc -std=c99 -o "$work/generate-c" "$root/examples/c/generate.c" -I "$prefix/include" -L "$prefix/lib" \
    -linflight -Xlinker -rpath -Xlinker "$prefix/lib" &&
    "$root/tests/examples.sh" "$work/generate-c" python3 "$root/examples/python/generate.py"
}

# The programs in the README are what they say.
check_python_readme() {
  local program
  "$root/tests/readme.sh" "$root/bindings/README.md" python "$work/readme-python" || return 1
  for program in 1 2; do
    python3 "$work/readme-python/$program.python" || return 1
    echo
  done
}

# A wheel with the library inside, installed where nothing else is: no checkout, no variable, no library path.
install_python_wheel() {
  rm -rf "$work/wheel" "$work/python" "$root/bindings/python/build"
  INFLIGHT_PREBUILT=$prefix/lib "$python_tools/bin/pip" wheel --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation --wheel-dir "$work/wheel" "$root/bindings/python" &&
    python3 -m venv "$work/python" &&
    "$work/python/bin/pip" install --quiet --disable-pip-version-check --no-index "$work"/wheel/*.whl || return 1
  ls -lh "$work"/wheel/*.whl
  cmp "$root/LICENSE-MIT" "$work"/python/lib/python3*/site-packages/inflight_llm-*.dist-info/licenses/LICENSE-MIT ||
    return 1
  [ "$(find "$work/wheel" -name 'inflight_llm-*-py3-none-manylinux_2_*_x86_64.whl' | wc -l)" = 1 ]
}

test_python_wheel() {
  (cd / && env -u LD_LIBRARY_PATH "$work/python/bin/python" "$root/tests/python/run.py" test_echo test_asyncio)
}

test_python() {
  check "Python types" check_python_types
  export INFLIGHT_INCLUDE=$prefix/include PYTHONDONTWRITEBYTECODE=1
  export PYTHONPATH=$root/bindings/python/src INFLIGHT_LIBRARY=$prefix/lib/libinflight.so.0
  suite "Python" python3 "$root/tests/python/run.py"
  check "Python example" check_python_generate
  check "Python README" check_python_readme
  # From here on nothing but the wheel knows where anything is.
  unset PYTHONPATH INFLIGHT_LIBRARY
  check "Python wheel" install_python_wheel
  suite "Python from the wheel" test_python_wheel
}
