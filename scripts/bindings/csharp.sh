# The C# package and its generate example, on Mono and, where there is one, with a .NET SDK: sourced by
# scripts/setup.sh and scripts/test-bindings.sh.
# shellcheck shell=bash

setup_csharp() {
  need cc gcc libc6-dev
  need mcs mono-mcs libmono-system-core4.0-cil
  need mono mono-runtime libmono-system-core4.0-cil
}

# What the C compiler makes of the header, to compare the binding with.
header_facts() {
  awk -f "$root/bindings/csharp/tests/header_facts.awk" "$prefix/include/inflight.h" >"$work/facts.c" &&
    cc -std=c99 -I"$prefix/include" "$work/facts.c" -o "$work/facts" &&
    "$work/facts" >"$work/facts.txt"
}

# imports FILE: the signatures in it, each in one line.
imports() {
  tr -s ' \n' ' ' <"$root/bindings/csharp/src/Native/$1" |
    grep -oE 'internal static (extern|partial) [^;]*;' | cut -d' ' -f4-
}

# Both lists of imports have the same functions with the same parameters: only one of them is compiled by mcs.
same_imports() { diff <(imports DllImports.cs) <(imports LibraryImports.cs); }

compile_csharp() {
  local out=$work/csharp
  rm -rf "$out" && mkdir -p "$out" &&
    mcs -nologo -warnaserror -target:library -unsafe -doc:"$out/Inflight.xml" -out:"$out/Inflight.dll" \
      "$root"/bindings/csharp/src/*.cs "$root"/bindings/csharp/src/Native/*.cs &&
    mcs -nologo -warnaserror -r:"$out/Inflight.dll" -out:"$out/Generate.exe" "$root/examples/csharp/Generate.cs" &&
    mcs -nologo -warnaserror -unsafe -r:"$out/Inflight.dll" -out:"$out/Inflight.Tests.exe" \
      "$root"/bindings/csharp/tests/*.cs
}

# A library of the next minor version, which before 1.0 may have changed everything.
other_library() {
  cc -shared -fPIC -Wl,-soname,libinflight.so.0 -x c - -o "$work/libinflight-other.so" \
    <<<"unsigned ifl_version(void) { return 200; }"
}

run_csharp_tests() {
  # A process that does not end has failed as well.
  INFLIGHT_LIBRARY=$prefix/lib/libinflight.so INFLIGHT_OTHER_LIBRARY=$work/libinflight-other.so \
    timeout 300 "$@" "$work/facts.txt"
}

csharp_example() {
  local generate=(mono "$work/csharp/Generate.exe") said
  export INFLIGHT_LIBRARY=$prefix/lib/libinflight.so
  said=$("${generate[@]}" "$INFLIGHT_TEST_MODEL" --prompt "What is the capital of France?" --temperature 0 \
    --max-tokens 20)
  [[ $said == *Paris*" tokens in "*"tokens/s" ]] || { echo "$said" && return 1; }
  said=$("${generate[@]}" --device echo --prompt one --prompt two --many 5)
  [ "$(grep -c ': one$' <<<"$said")" = 3 ] && [[ $said == *"5 answers, "* ]] || { echo "$said" && return 1; }
  said=$("${generate[@]}" --many 0 2>&1)
  [ $? = 2 ] && [[ $said == *"not a number from 1 to 1000000"* ]] || { echo "$said" && return 1; }
}

check_csharp_readme() {
  "$root/tests/readme.sh" "$root/bindings/csharp/README.md" csharp "$work/readme-csharp" &&
    mcs -nologo -r:"$work/csharp/Inflight.dll" -out:"$work/csharp/Readme.exe" "$work/readme-csharp/1.csharp" || return 1
  [[ $(INFLIGHT_LIBRARY=$prefix/lib/libinflight.so mono "$work/csharp/Readme.exe") == *sky* ]]
}

test_csharp() {
  check "C#: what the C compiler says of the header" header_facts
  check "C#: imports for old and new runtimes" same_imports
  check "C#: compile with mcs" compile_csharp
  check "C#: a library of another version, to be refused" other_library
  suite "C#: on Mono" run_csharp_tests mono "$work/csharp/Inflight.Tests.exe"
  check "C#: the generate example" csharp_example
  check "C#: README" check_csharp_readme
  if command -v dotnet >/dev/null && [ -n "$(dotnet --list-sdks)" ]; then
    suite "C#: with the .NET SDK" run_csharp_tests dotnet run --project "$root/bindings/csharp/tests" \
      -p:InflightLibraryDir="$prefix/lib" --
  else
    say "not run: the tests with the .NET SDK, which is not installed"
  fi
}
