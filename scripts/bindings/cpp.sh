# The C++ headers and examples: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

setup_cpp() {
  need c++ g++
  need valgrind valgrind
}

# compile_cpp COMPILER PROGRAM ARGUMENT...: compiles strictly against the installed library.
compile_cpp() {
  "$1" -std=c++17 -g -O1 -Wall -Wextra -Wconversion -Wshadow -Werror -pedantic -o "$work/$2" "${@:3}" \
    -I "$prefix/include" -L "$prefix/lib" -linflight -Xlinker -rpath -Xlinker "$prefix/lib" -pthread
}

# The headers alone, in every dialect and without exceptions.
check_cpp_headers() {
  local compiler header standard
  for compiler in "${cpp_compilers[@]}"; do
    for header in inflight.hpp inflight_request.hpp; do
      for standard in c++17 c++20; do
        "$compiler" -std=$standard -x c++ -fsyntax-only -fno-exceptions -fno-rtti -Wall -Wextra -Wconversion \
          -Wshadow -Werror -pedantic -I "$prefix/include" - <<<"#include <$header>" || return 1
      done
    done
  done
}

# The example answers as the C program of the same name does.
check_cpp_generate() {
  compile_cpp c++ generate-cpp "$root/examples/cpp/generate.cpp" &&
    cc -std=c99 -o "$work/generate-c" "$root/examples/c/generate.c" -I "$prefix/include" -L "$prefix/lib" \
      -linflight -Xlinker -rpath -Xlinker "$prefix/lib" || return 1
  "$root/tests/examples.sh" "$work/generate-c" "$work/generate-cpp"
}

# The commands at the top of the examples give programs that start, with the library where cargo would leave it.
check_example_commands() {
  local folder=$work/example-commands example name commands
  rm -rf "$folder" && mkdir -p "$folder/target" && ln -s "$prefix/lib" "$folder/target/release" &&
    ln -s "$root/include" "$root/bindings" "$root/examples" "$folder" || return 1
  for example in c/generate.c cpp/generate.cpp cpp/frame_loop.cpp; do
    name=${example##*/}
    commands=$(sed -nE 's,^( \*|//)     (cc|c\+\+) ,\2 ,p' "$root/examples/$example")
    [ -n "$commands" ] && (cd "$folder" && eval "set -e; $commands; env -u LD_LIBRARY_PATH ./${name%.*} --help") |
      grep -q '^usage:' || return 1
    rm -f "$folder/${name%.*}"
  done
}

# The programs in the README are what they say.
check_cpp_readme() {
  local program
  "$root/tests/readme.sh" "$root/bindings/README.md" cpp "$work/readme-cpp" || return 1
  for program in 1 2; do
    compile_cpp c++ readme-cpp/$program "$work/readme-cpp/$program.cpp" && "$work/readme-cpp/$program" || return 1
    echo
  done
}

# The frame loop shows its three distributions, and somebody has talked.
check_cpp_frame_loop() {
  local shown
  compile_cpp c++ frame-loop -O2 "$root/examples/cpp/frame_loop.cpp" &&
    shown=$("$work/frame-loop" "$INFLIGHT_TEST_MODEL" --device cpu --seconds 2) && echo "$shown" || return 1
  [ "$(grep -cE '^(without the engine|with the engine|  of which the engine) +120( +[0-9.]+){3} +[0-9]+$' \
    <<<"$shown")" = 3 ] && grep -q '^4 characters said' <<<"$shown"
}

test_cpp() {
  local compiler mode cpp_compilers=(c++) memcheck
  if command -v clang++ >/dev/null; then cpp_compilers+=(clang++); fi
  memcheck=(valgrind --quiet --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
    --error-exitcode=99 --fair-sched=yes)
  check "C++ headers" check_cpp_headers
  for compiler in "${cpp_compilers[@]}"; do
    check "C++ tests with $compiler" compile_cpp "$compiler" "test-$compiler" -fno-exceptions -fno-rtti \
      "$root"/tests/cpp/{main,echo,model}.cpp
    for mode in echo model; do suite "C++ with $compiler, $mode" "$work/test-$compiler" $mode; done
  done
  check "C++ tests with exceptions" compile_cpp c++ test-throwing "$root/tests/cpp/throwing.cpp"
  suite "C++ with exceptions" "$work/test-throwing"
  suite "C++ under valgrind" "${memcheck[@]}" "$work/test-c++" echo
  check "C++ example" check_cpp_generate
  check "Commands of the C and C++ examples" check_example_commands
  check "C++ README" check_cpp_readme
  check "C++ frame loop" check_cpp_frame_loop
}
