# The installed files and those who use them: sourced by scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

setup_packaging() {
  need cc gcc libc6-dev
  need c++ g++
  need cmake cmake
  need pkg-config pkg-config
}

# run_cmake BUILD SOURCE ARGUMENT...: configures and builds a project.
run_cmake() {
  rm -rf "$1"
  cmake -S "$2" -B "$1" -DCMAKE_BUILD_TYPE=Release "${@:3}" >"$work/cmake.log" 2>&1 &&
    cmake --build "$1" >>"$work/cmake.log" 2>&1 && return
  cat "$work/cmake.log"
  return 1
}

# How a project that contains this one gets the library: by cargo, unless there is one already.
cmake_source() {
  if [ -n "${INFLIGHT_PREBUILT:-}" ]; then
    echo "-DINFLIGHT_PREBUILT=$INFLIGHT_PREBUILT"
  else
    echo "-DINFLIGHT_CARGO_TARGET_DIR=$target"
  fi
}

# check_cmake_install ARGUMENT: both ways to install give the same files. The argument says where CMake has the library
# from. The prefix is moved afterwards: $moved is where all consumers find it.
check_cmake_install() {
  rm -rf "$work/cmake-prefix" "$moved"
  run_cmake "$work/cmake-build" "$root" "$1" -DCMAKE_INSTALL_LIBDIR=lib &&
    cmake --install "$work/cmake-build" --prefix "$work/cmake-prefix" >/dev/null &&
    diff -r "$prefix" "$work/cmake-prefix" &&
    diff <(cd "$prefix" && find . -printf '%P %M %l\n' | sort) \
      <(cd "$work/cmake-prefix" && find . -printf '%P %M %l\n' | sort) || return 1
  readelf -d "$work/cmake-prefix/lib/libinflight.so" | grep -qF 'soname: [libinflight.so.0]' || return 1
  cmp "$root/LICENSE-MIT" "$work/cmake-prefix/share/licenses/inflight/LICENSE-MIT" || return 1
  mv "$work/cmake-prefix" "$moved"
  ! grep -rIl "$work" "$moved"/lib/cmake "$moved"/lib/pkgconfig
}

# Debug information is left out, unless it is asked for; also from one prefix to another, where the library is a link.
check_debug_info() {
  local built=${INFLIGHT_PREBUILT:-$target/release} kept=$work/debug-info
  ! readelf -SW "$prefix/lib/libinflight.so" | grep -F .debug_ || return 1
  rm -rf "$kept"
  "$root/scripts/install.sh" "$kept" --from "$built" --debug-info &&
    cmp "$built/libinflight.so" "$kept/lib/libinflight.so" &&
    run_cmake "$work/cmake-build" "$root" "-DINFLIGHT_PREBUILT=$kept/lib" -DINFLIGHT_DEBUG_INFO=ON \
      -DCMAKE_INSTALL_LIBDIR=lib &&
    cmake --install "$work/cmake-build" --prefix "$kept/again" >/dev/null &&
    cmp "$built/libinflight.so" "$kept/again/lib/libinflight.so"
  local status=$?
  rm -rf "$kept"
  return $status
}

# Without the static library, which a distribution may have in a package of its own, the shared one is found.
check_shared_alone() {
  mv "$moved/lib/libinflight.a" "$work/libinflight.a"
  run_cmake "$work/consumer" "$root/tests/packaging/shared_alone" "-DCMAKE_PREFIX_PATH=$moved" &&
    "$work/consumer/consumer"
  local status=$?
  mv "$work/libinflight.a" "$moved/lib/libinflight.a"
  return $status
}

# A folder of libraries of another depth, as Debian has it.
check_deep_libdir() {
  run_cmake "$work/cmake-build" "$root" "$(cmake_source)" -DCMAKE_INSTALL_LIBDIR=lib/x86_64-linux-gnu &&
    DESTDIR=$work/deep cmake --install "$work/cmake-build" --prefix /usr >/dev/null || return 1
  run_cmake "$work/consumer" "$root/tests/packaging/find_package" "-DCMAKE_PREFIX_PATH=$work/deep/usr" \
    -DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu && run_consumers
  local status=$?
  rm -rf "$work/deep"
  return $status
}

# Programs of the project that was built last run, and depend on what they say that they do.
run_consumers() {
  local program
  for program in "$work"/consumer/{c,cpp}_{inflight,static}; do
    case "$program$(readelf -d "$program" | grep -c 'NEEDED.*libinflight')" in
      *_inflight1 | *_static0) ;;
      *)
        echo "$program is linked with the wrong library"
        return 1
        ;;
    esac
  done
  (cd "$work/consumer" && ctest --output-on-failure)
}

# check_consumer PROJECT ARGUMENT...: builds and runs one of the projects in tests/packaging.
check_consumer() {
  run_cmake "$work/consumer" "$root/tests/packaging/$1" "${@:2}" && run_consumers
}

# with_pkg_config OPTION...: C and C++ programs that are built with what pkg-config says.
with_pkg_config() {
  local flags options rpath=(-Xlinker -rpath -Xlinker "$moved/lib")
  flags=$(PKG_CONFIG_PATH=$moved/lib/pkgconfig pkg-config --cflags --libs "$@" inflight) || return 1
  # To link statically is to name the archive: -l alone prefers the shared library beside it.
  if [ "${1:-}" = --static ]; then
    flags=${flags/-linflight/-l:libinflight.a}
    rpath=()
  fi
  # pkg-config escapes what the shell would split.
  eval "options=($flags)"
  cc -std=c99 "$root/tests/packaging/consumer.c" -o "$work/consumer-c" "${options[@]}" "${rpath[@]}" &&
    c++ -std=c++17 "$root/tests/packaging/consumer.cpp" -o "$work/consumer-cpp" "${options[@]}" "${rpath[@]}" &&
    "$work/consumer-c" && "$work/consumer-cpp"
}

# The static library offers the header's functions alone, and gets on with another one that is written in Rust.
check_static_library() {
  local names
  names=$(nm --defined-only --extern-only --format=posix "$moved/lib/libinflight.a" | sed -n 's/ [A-Z] .*//p' | sort)
  diff <(echo "$names") \
    <(nm -D --defined-only --format=posix "$moved/lib/libinflight.so" | cut -d' ' -f1 | sort) || return 1
  rustc --edition 2024 -O --crate-type staticlib -o "$work/libother.a" "$root/tests/packaging/other.rs" &&
    cc -std=c99 -I "$moved/include" "$root/tests/packaging/beside_rust.c" -o "$work/beside-rust" \
      "$moved/lib/libinflight.a" "$work/libother.a" -pthread -ldl -lm -lgcc_s && "$work/beside-rust"
}

# The C tests of the ABI with the static library.
check_static_behaviour() {
  local parts=("$root"/tests/c/{abi_test,abi_arguments,abi_requests,abi_lifetime,abi_shutdown,check}.c)
  cc -std=c99 -O1 -I "$moved/include" "${parts[@]}" \
    -o "$work/abi-static" "$moved/lib/libinflight.a" -pthread -ldl -lm -lgcc_s && "$work/abi-static" | tail -n 1
}

test_packaging() {
  moved=$work/moved
  check "CMake install from an installed library" check_cmake_install "-DINFLIGHT_PREBUILT=$prefix/lib"
  check "CMake install" check_cmake_install "$(cmake_source)"
  check "Debug information" check_debug_info
  check "CMake find_package" check_consumer find_package "-DCMAKE_PREFIX_PATH=$moved"
  check "CMake find_package without the static library" check_shared_alone
  check "CMake find_package below lib/x86_64-linux-gnu" check_deep_libdir
  check "CMake add_subdirectory" check_consumer add_subdirectory "-DINFLIGHT_SOURCE=$root" "$(cmake_source)"
  check "CMake FetchContent" check_consumer fetch_content "-DINFLIGHT_SOURCE=$root" "$(cmake_source)"
  check "Static library" check_static_library
  check "Static library in use" check_static_behaviour
  check "pkg-config" with_pkg_config
  check "pkg-config --static" with_pkg_config --static
}
