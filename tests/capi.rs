//! The C ABI as a C program meets it: header, exported symbols, layout, behaviour, examples.
//!
//! Needs a C and a C++ compiler, binutils, valgrind and cbindgen; what is missing fails the test that needs
//! it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// A folder with the library under the names that linker and loader look for.
fn library_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        // Beside this program lies the library of the same build; the one a folder above may be older.
        let built = std::env::current_exe().unwrap().with_file_name("libinflight.so");
        assert!(built.is_file(), "{} is missing; cargo builds it with the tests", built.display());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        fs::create_dir_all(&dir).unwrap();
        for name in ["libinflight.so", "libinflight.so.0"] {
            let link = dir.join(name);
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&built, &link).unwrap();
        }
        dir
    })
}

/// Runs a program to its end; fails with `hint` where there is no such program.
fn run(program: impl AsRef<Path>, arguments: &[&str], hint: &str) -> Output {
    let program = program.as_ref();
    Command::new(program)
        .args(arguments)
        .current_dir(ROOT)
        // Cargo sets it to folders where an older build of the library may lie.
        .env("LD_LIBRARY_PATH", library_dir())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; {hint}", program.display()))
}

/// Runs a program that must succeed; returns what it printed.
fn run_ok(program: impl AsRef<Path>, arguments: &[&str], hint: &str) -> String {
    let output = run(program.as_ref(), arguments, hint);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}\n{printed}{}",
        program.as_ref().display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// Compiles C99, or C++17 where the first source says so, against the library; returns the program.
fn compile(name: &str, sources: &[&str]) -> PathBuf {
    let is_cpp = sources[0].ends_with(".cpp");
    let (compiler, standard) = if is_cpp { ("c++", "-std=c++17") } else { ("cc", "-std=c99") };
    let library_dir = library_dir();
    let program = library_dir.join(name);
    let include = format!("-I{ROOT}/include");
    let search = format!("-L{}", library_dir.display());
    // Not -Wl, which would split a path with a comma in it.
    let rpath = ["-Xlinker", "-rpath", "-Xlinker", library_dir.to_str().expect("a path in UTF-8")];
    let output = ["-o", program.to_str().expect("a path in UTF-8")];
    let arguments: Vec<&str> = [standard, "-g", "-O1", &include, &search]
        .into_iter()
        .chain(STRICT)
        .chain(sources.iter().copied())
        .chain(rpath)
        .chain(output)
        .chain(["-linflight", "-pthread"])
        .collect();
    run_ok(compiler, &arguments, "install a C and C++ compiler: apt-get install gcc g++");
    program
}

/// Names of the functions that the header declares.
fn declared_functions(header: &str) -> BTreeSet<String> {
    let code = header.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.filter_map(|line| {
        let (head, _) = line.split_once('(')?;
        let name = head.rsplit([' ', '*']).next()?;
        (line.starts_with(|c: char| c.is_ascii_lowercase()) && name.starts_with("ifl_"))
            .then(|| name.to_owned())
    })
    .collect()
}

fn header() -> String {
    fs::read_to_string(Path::new(ROOT).join("include/inflight.h")).unwrap()
}

#[test]
fn header_is_what_cbindgen_makes() {
    let cbindgen = std::env::var_os("CBINDGEN")
        .map_or_else(|| Path::new(ROOT).join(".cache/cbindgen/bin/cbindgen"), PathBuf::from);
    let hint = "run scripts/setup.sh --test, or set CBINDGEN to a cbindgen 0.29.4";
    let version = run_ok(&cbindgen, &["--version"], hint);
    assert_eq!(version.trim(), "cbindgen 0.29.4", "{hint}");
    let made = library_dir().join("inflight.h");
    let made_text = made.to_str().expect("a path in UTF-8");
    run_ok(
        &cbindgen,
        &["--quiet", "--config", "cbindgen.toml", "--output", made_text, "src/capi/mod.rs"],
        hint,
    );
    let made = fs::read_to_string(made).unwrap();
    if std::env::var_os("INFLIGHT_REGENERATE").is_some() {
        fs::write(Path::new(ROOT).join("include/inflight.h"), &made).unwrap();
    }
    assert!(
        made == header(),
        "include/inflight.h is not what the sources give; INFLIGHT_REGENERATE=1 cargo test --test capi header"
    );
}

#[test]
fn header_compiles_alone_in_every_dialect() {
    let hint = "install a C and C++ compiler: apt-get install gcc g++";
    for (compiler, language, standards) in
        [("cc", "c-header", ["c99", "c11", "c17"]), ("c++", "c++-header", ["c++11", "c++17", "c++20"])]
    {
        for standard in standards {
            let standard = format!("-std={standard}");
            let mut arguments = vec!["-x", language, &standard, "-fsyntax-only", "-Wconversion"];
            arguments.extend(STRICT);
            arguments.push("include/inflight.h");
            run_ok(compiler, &arguments, hint);
        }
    }
}

#[test]
fn header_is_documented_and_includes_little() {
    let header = header();
    let includes: Vec<&str> = header.lines().filter(|line| line.starts_with("#include")).collect();
    assert_eq!(includes, ["#include <stddef.h>", "#include <stdint.h>"]);
    let lines: Vec<&str> = header.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let is_declaration = declared_functions(line).len() == 1 || line.starts_with("typedef ");
        if is_declaration && !lines[index - 1].starts_with("///") {
            panic!("not documented: {line}");
        }
        if declared_functions(line).len() == 1 {
            let start =
                lines[..index].iter().rposition(|line| !line.starts_with("///")).map_or(0, |at| at + 1);
            let text = lines[start..index].join(" ");
            for word in ["Threads: ", "Errors: ", "Since "] {
                assert!(text.contains(word), "no {word}in the description of {line}");
            }
        }
    }
    assert!(lines.iter().all(|line| line.len() <= 120), "a line of the header is too long");
}

#[test]
fn the_library_exports_the_header_and_nothing_else() {
    let library = library_dir().join("libinflight.so");
    let library = library.to_str().expect("a path in UTF-8");
    let hint = "install binutils: apt-get install binutils";
    let symbols = run_ok("nm", &["-D", "--defined-only", "--format=posix", library], hint);
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert_eq!(exported, declared_functions(&header()));
    assert!(exported.len() > 25, "{exported:?}");

    let dynamic = run_ok("readelf", &["--dynamic", "--wide", library], hint);
    assert!(dynamic.contains("soname: [libinflight.so.0]"), "{dynamic}");
    for flag in ["BIND_NOW", "NODELETE"] {
        assert!(dynamic.contains(flag), "{flag} is not set:\n{dynamic}");
    }
}

#[test]
fn layout_is_fixed_in_c_and_cpp() {
    run_ok(compile("abi_layout_c", &["tests/c/abi_layout.c"]), &[], "");
    let sources = ["tests/c/abi_layout.cpp", "tests/c/abi_second.cpp"];
    run_ok(compile("abi_layout_cpp", &sources), &[], "");
}

const BEHAVIOUR: [&str; 6] = [
    "tests/c/abi_test.c",
    "tests/c/abi_arguments.c",
    "tests/c/abi_requests.c",
    "tests/c/abi_lifetime.c",
    "tests/c/abi_shutdown.c",
    "tests/c/check.c",
];

#[test]
fn behaviour_is_right() {
    run_ok(compile("abi_test", &BEHAVIOUR), &[], "");
}

#[test]
fn a_child_with_its_parents_process_id_is_refused() {
    run_ok(compile("abi_fork", &["tests/c/abi_fork.c"]), &[], "");
}

#[test]
fn behaviour_is_right_under_valgrind() {
    let program = compile("abi_test_valgrind", &BEHAVIOUR);
    let program = program.to_str().expect("a path in UTF-8");
    let arguments = [
        "--quiet",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        "--errors-for-leak-kinds=definite",
        "--error-exitcode=99",
        "--fair-sched=yes",
        program,
    ];
    run_ok("valgrind", &arguments, "install valgrind: apt-get install valgrind");
}

#[test]
fn a_shortage_of_memory_is_a_status() {
    // Alone, because it limits its address space, which would be valgrind's too.
    let sources = ["tests/c/memory_test.c", "tests/c/check.c"];
    run_ok(compile("memory_test", &sources), &[], "");
}

#[test]
fn the_smallest_program_is_small_and_quoted_as_it_is() {
    let source = fs::read_to_string(Path::new(ROOT).join("examples/c/hello.c")).unwrap();
    assert!(source.lines().count() <= 40);
    let calls =
        declared_functions(&header()).iter().filter(|name| source.contains(&format!("{name}("))).count();
    assert!(calls <= 6, "{calls} different calls");
    let quoted: String =
        source.lines().map(|line| format!(" *     {line}").trim_end().to_owned() + "\n").collect();
    assert!(header().contains(&quoted), "the header's introduction differs from examples/c/hello.c");
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    assert!(readme.contains(&source), "README.md does not quote examples/c/hello.c as it is");

    let program = compile("hello", &["examples/c/hello.c"]);
    let output = run(&program, &["/nonexistent", "hi"], "");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ifl_status 100"), "{output:?}");
    assert_eq!(run(&program, &[], "").status.code(), Some(2));
}

#[test]
fn the_generate_example_streams_and_runs_many() {
    let program = compile("generate", &["examples/c/generate.c"]);
    let one = run_ok(&program, &["--device", "echo", "--prompt", "Guten Tag"], "");
    assert!(one.contains("Guten Tag") && one.contains("tokens/s"), "{one}");

    let prompts = library_dir().join("prompts.txt");
    fs::write(&prompts, "a prompt that takes a good deal longer than the others to come back\n\nshort\n")
        .unwrap();
    let prompts = prompts.to_str().expect("a path in UTF-8");
    let arguments = ["--device", "echo:500", "--prompts-file", prompts, "--prompt", "x", "--many", "16"];
    let many = run_ok(&program, &arguments, "");
    let ended: Vec<usize> = many
        .lines()
        .filter_map(|line| line.strip_prefix("--- prompt ")?.split(',').next()?.parse().ok())
        .collect();
    assert_eq!(ended.iter().copied().collect::<BTreeSet<_>>(), (1..=16).collect());
    assert!(!ended.is_sorted(), "longer prompts end later: {ended:?}");
    assert!(many.contains("16 answers") && many.contains("tokens/s"), "{many}");

    assert!(run_ok(&program, &["--help"], "").contains("usage: generate MODEL"));
    for (arguments, code, expected) in [
        (vec!["--prompt", "x"], 2, "which MODEL?"),
        (vec!["model"], 2, "nothing to ask"),
        (vec!["model", "--prompt"], 2, "a value is missing after --prompt"),
        (vec!["model", "--many", "0"], 2, "not a number"),
        (vec!["model", "--prompts-file", "/nonexistent"], 1, "/nonexistent: No such file"),
        (vec!["/nonexistent", "--prompt", "x"], 1, "model not found: "),
        (vec!["m", "--prompt", "x", "--device", "toaster"], 1, "toaster"),
    ] {
        let output = run(&program, &arguments, "");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}
