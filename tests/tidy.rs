//! Review comments as checks. Each check first proves itself on made-up snippets, bad ones that it must catch
//! and good ones that it must not, and then reads the whole repository.

#[path = "tidy/source.rs"]
mod source;

use source::{Source, block_len, is_word, repository, root};

const MAX_LINE_CHARS: usize = 120;
const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

/// A module of the library and the modules that it may name. What is not listed may name none.
const LAYERS: [(&str, &[&str]); 12] = [
    ("error", &[]),
    ("threads", &[]),
    ("config", &["error"]),
    ("format", &["error"]),
    ("backend", &["threads", "error"]),
    ("quant", &["format", "error"]),
    ("kv", &["error"]),
    ("sample", &["backend", "error"]),
    ("token", &["format", "sample", "threads", "error"]),
    ("model", &["quant", "backend", "format", "config", "threads", "error"]),
    (
        "engine",
        &["model", "sample", "token", "kv", "backend", "format", "quant", "config", "threads", "error"],
    ),
    (
        "capi",
        &[
            "engine", "model", "sample", "token", "kv", "backend", "format", "quant", "config", "threads",
            "error",
        ],
    ),
];

/// Names that `lib.rs` re-exports, and the modules they come from.
const REEXPORTS: [(&str, &str); 13] = [
    ("DTypeChoice", "config"),
    ("EngineOptions", "config"),
    ("Engine", "engine"),
    ("Event", "engine"),
    ("EventKind", "engine"),
    ("FinishReason", "engine"),
    ("Prompt", "engine"),
    ("Queue", "engine"),
    ("Request", "engine"),
    ("Error", "error"),
    ("Result", "error"),
    ("Status", "error"),
    ("SamplingParams", "sample"),
];

/// Where unsafe blocks may stand: the C boundary's casts, vector intrinsics, and a thread's signals.
const UNSAFE_PLACES: [&str; 4] =
    ["src/capi/ffi.rs", "src/backend/cpu/", "src/backend/cuda/", "src/threads.rs"];

/// Where threads are started: with their names and signals as the C ABI promises.
const THREAD_PLACES: [&str; 2] = ["src/threads.rs", "src/engine/threads.rs"];

/// Where the build's features are looked at: device choice, and the model checker's threads.
const FEATURE_PLACES: [&str; 3] = ["src/engine/create.rs", "src/engine/sync.rs", "src/backend/mod.rs"];

#[test]
fn dependencies_point_down() {
    let bad = [
        ("src/kv/pool.rs", "use crate::backend::Batch;\n"),
        ("src/backend/cpu/mod.rs", "fn f() -> crate::model::ModelSpec { g() }\n"),
        ("src/model/decoder.rs", "use crate::{\n    error::Result,\n    engine::Engine,\n};\n"),
        ("src/format/mod.rs", "use crate::SamplingParams;\n"),
        ("src/new/mod.rs", "use crate::error::Error;\n"),
        ("src/error.rs", "use super::super::config;\n"),
    ];
    let good = [
        ("src/engine/mod.rs", "use crate::{kv::Pool, error::{Error, Result}};\n"),
        (
            "src/kv/pool.rs",
            "/// See [`crate::engine`].\nfn f() {}\n#[cfg(test)]\nmod tests { use crate::engine; }\n",
        ),
        ("src/model/mod.rs", "use crate::model::spec::ModelSpec;\nuse crate::Result;\n"),
        ("src/bin/inflight/main.rs", "use crate::options::EngineArgs;\n"),
    ];
    enforce(dependency_direction, &bad, &good);
}

#[test]
fn unsafe_blocks_have_a_place_and_a_reason() {
    let bad = [
        ("src/engine/mod.rs", "fn f() {\n    // SAFETY: it is.\n    unsafe { g() }\n}\n"),
        ("src/capi/engine.rs", "unsafe impl Send for Engine {}\n"),
        ("src/capi/ffi.rs", "fn f() {\n    // It is fine.\n    unsafe { g() }\n}\n"),
        ("src/backend/cpu/simd.rs", "// SAFETY: of another block.\nlet a = 1;\nlet b = unsafe { g() };\n"),
        ("tests/abi.rs", "fn f() {\n    unsafe { g() }\n}\n"),
    ];
    let good = [
        (
            "src/capi/ffi.rs",
            "fn f() {\n    // SAFETY: checked above,\n    // by the caller.\n    unsafe { g() }\n}\n",
        ),
        ("src/backend/cpu/simd.rs", "// SAFETY: in bounds.\nlet a =\n    unsafe { g() };\n"),
        ("src/capi/engine.rs", "#[unsafe(no_mangle)]\npub extern \"C\" fn ifl_x() {} // unsafe { }\n"),
        ("src/lib.rs", "const TEXT: &str = \"unsafe { }\";\n"),
    ];
    enforce(unsafe_code, &bad, &good);
}

#[test]
fn only_the_token_module_names_its_crates() {
    let bad = [
        ("src/engine/mod.rs", "use tokenizers::Tokenizer;\n"),
        ("src/bin/inflight/chat.rs", "let x = minijinja::Environment::new();\n"),
    ];
    let good = [
        ("src/token/hf.rs", "use tokenizers::Tokenizer;\n"),
        ("src/engine/mod.rs", "// The tokenizers crate is not named here.\nlet my_tokenizers = 1;\n"),
    ];
    enforce(foreign_crates, &bad, &good);
}

#[test]
fn the_library_leaves_the_process_alone() {
    let bad = [
        ("src/engine/mod.rs", "fn f() { println!(\"x\"); }\n"),
        ("src/engine/mod.rs", "fn f() { eprint!(\"x\"); }\n"),
        ("src/lib.rs", "fn f() { std::process::exit(1) }\n"),
        ("src/lib.rs", "fn f() { libc::abort() }\n"),
        ("src/lib.rs", "fn f() { std::env::set_var(\"A\", \"b\") }\n"),
        ("src/lib.rs", "fn f() { libc::signal(2, h) }\n"),
        ("src/lib.rs", "fn f() { dbg!(1); }\n"),
        ("src/engine/mod.rs", "fn f() { std::panic::set_hook(h) }\n"),
    ];
    let good = [
        ("src/bin/inflight/main.rs", "fn f() { eprintln!(\"x\"); }\n"),
        ("src/lib.rs", "// println!(\"x\")\nfn f() { writeln!(out, \"abort(\"); reset_signal(2) }\n"),
        ("src/lib.rs", "#[cfg(test)]\nmod tests {\n    fn f() { println!(\"x\"); }\n}\n"),
        ("src/lib.rs", "fn abort() { task.abort(); }\n"),
    ];
    enforce(process_wide_effects, &bad, &good);
}

#[test]
fn threads_are_started_in_one_place() {
    let bad = [
        ("src/model/load.rs", "fn f() { std::thread::spawn(g); }\n"),
        ("src/model/load.rs", "use std::thread;\nfn f() { thread::Builder::new(); }\n"),
        ("src/token/guard.rs", "fn f() { thread::scope(|scope| g(scope)) }\n"),
        ("src/model/load.rs", "fn f() { rayon::ThreadPoolBuilder::new().build() }\n"),
    ];
    let good = [
        ("src/threads.rs", "fn f() { thread::Builder::new().spawn(g) }\n"),
        ("src/bin/inflight/main.rs", "fn f() { std::thread::spawn(g); }\n"),
        ("src/model/load.rs", "fn f() { threads::spawn(g); std::thread::sleep(h) }\n"),
        ("src/lib.rs", "#[cfg(test)]\nmod tests {\n    fn f() { std::thread::spawn(g); }\n}\n"),
    ];
    enforce(thread_starts, &bad, &good);
}

#[test]
fn features_are_looked_at_where_a_backend_is_chosen() {
    let bad = [
        ("src/model/decoder.rs", "#[cfg(feature = \"cuda\")]\nfn f() {}\n"),
        ("src/model/decoder.rs", "#[cfg(all(test, not(feature = \"cuda\")))]\nfn f() {}\n"),
    ];
    let good = [
        ("src/engine/create.rs", "#[cfg(feature = \"cuda\")]\nfn f() {}\n"),
        ("src/backend/cpu/simd.rs", "#[target_feature(enable = \"avx2\")]\nfn f() {}\n"),
        ("src/backend/cpu/simd.rs", "#[cfg(target_feature = \"avx2\")]\nfn f() {}\n"),
    ];
    enforce(feature_switches, &bad, &good);
}

#[test]
fn nothing_is_left_for_later() {
    let later = ["// TO", "DO: handle it\n"].concat();
    let bad = [
        ("src/lib.rs", later.as_str()),
        ("src/lib.rs", "fn f() { todo!() }\n"),
        ("tests/x.rs", "fn f() { unimplemented!(\"x\") }\n"),
    ];
    let good = [("src/lib.rs", "fn f() { unreachable!() } // a todo list\nlet s = \"todo!()\";\n")];
    enforce(unfinished_work, &bad, &good);
}

#[test]
fn files_and_functions_can_be_read() {
    let long_file = "//! Long.\n".to_owned() + &"fn f() {}\n".repeat(MAX_FILE_LINES);
    let long_function =
        format!("//! Long.\nfn f(a: [u8; 3]) {{\n{}}}\n", "    g();\n".repeat(MAX_FUNCTION_LINES));
    let longest_function = long_function.replacen("    g();\n", "", 2);
    let bad = [("src/a.rs", long_file.as_str()), ("src/a.rs", &long_function)];
    let good = [
        ("src/a.rs", longest_function.as_str()),
        ("src/a.rs", "//! Trait.\ntrait T {\n    fn f(&self) -> [u8; 3];\n}\n"),
    ];
    enforce(sizes, &bad, &good);
}

#[test]
fn text_is_clean() {
    let long_line = format!("//! A \"{}\".\n", "x".repeat(MAX_LINE_CHARS));
    let long_code = format!("//! A.\nfn f() {{ {} }}\n", "g(\"\"); ".repeat(MAX_LINE_CHARS / 7));
    let long_literal = format!("//! A.\nconst A: &str = r\"{}\";\n", "x".repeat(MAX_LINE_CHARS));
    let bad = [
        ("src/a.rs", "//! A.\nfn f() {} \n"),
        ("src/a.rs", "//! A.\n\tfn f() {}\n"),
        ("src/a.rs", "//! A.\nfn f() {}"),
        ("src/a.rs", "use crate::b;\n"),
        ("src/a.rs", long_line.as_str()),
        ("src/a.rs", long_code.as_str()),
    ];
    let good = [
        ("src/a.rs", "//! A.\nfn f() {}\n"),
        ("src/a/tests.rs", "use super::b;\n"),
        ("src/a.rs", long_literal.as_str()),
    ];
    enforce(plain_text, &bad, &good);
}

#[test]
fn the_readme_shows_the_smallest_program_as_it_is() {
    let program = read("examples/c/hello.c");
    assert!(read("README.md").contains(&format!("```c\n{program}```\n")), "README.md and hello.c differ");
    assert!(program.lines().count() <= 40, "hello.c has more than 40 lines");
}

#[test]
fn files_that_the_documents_link_to_exist() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = read(document);
        for link in links(&text) {
            assert!(root().join(link).exists(), "{document} links to {link}, which does not exist");
        }
    }
    assert_eq!(links("a [b](c.md) [d](https://e) [f](#g) [h](i.md#j)"), ["c.md", "i.md"]);
}

#[test]
fn the_changelog_knows_the_version() {
    let heading = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(read("CHANGELOG.md").contains(&heading), "CHANGELOG.md has no {heading}");
}

// What a check says about a file: line number from 1 and message.
type Finding = (usize, String);
type Check = fn(&Source) -> Vec<Finding>;

/// Proves `check` on the snippets, then runs it on every Rust file of the repository.
fn enforce(check: Check, bad: &[(&str, &str)], good: &[(&str, &str)]) {
    for (path, text) in bad {
        assert!(!check(&Source::new(path, text)).is_empty(), "not caught in {path}:\n{text}");
    }
    for (path, text) in good {
        let findings = check(&Source::new(path, text));
        assert!(findings.is_empty(), "{findings:?} found in {path}:\n{text}");
    }
    let sources = repository();
    assert!(sources.len() > 20, "the repository's files were not found");
    let mut report = String::new();
    for source in &sources {
        for (line, message) in check(source) {
            report += &format!("{}:{line}: {message}\n", source.path);
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Targets of Markdown links to files, without fragments.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let files = targets.map(|target| target.split('#').next().unwrap_or_default());
    files.filter(|target| !target.is_empty() && !target.contains("://")).collect()
}

fn dependency_direction(source: &Source) -> Vec<Finding> {
    if !source.is_library() || source.path == "src/lib.rs" {
        return Vec::new();
    }
    let name = source.path["src/".len()..].split(['/', '.']).next().unwrap();
    let allowed = LAYERS.iter().find(|(layer, _)| *layer == name).map(|(_, allowed)| *allowed);
    let mut findings = Vec::new();
    for (line, used) in crate_paths(&source.product) {
        let used = REEXPORTS.iter().find(|(item, _)| *item == used).map_or(used.as_str(), |(_, from)| from);
        match allowed {
            None => findings.push((line, format!("module {name} has no place in LAYERS of tests/tidy.rs"))),
            Some(allowed) if used != name && !allowed.contains(&used) => {
                findings.push((line, format!("{name} must not depend on {used}")));
            }
            Some(_) => {}
        }
    }
    for (line, text) in numbered(&source.product) {
        if text.contains("super::super::") {
            findings.push((line, "write crate:: paths instead of super::super::".to_owned()));
        }
    }
    findings
}

/// First names after `crate::` and the line of each; of `crate::{a, b::c}` all of them.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    for (position, _) in code.match_indices("crate::") {
        let line = code[..position].matches('\n').count() + 1;
        let rest = &code[position + "crate::".len()..];
        if !rest.starts_with('{') {
            paths.push((line, identifier(rest).to_owned()));
            continue;
        }
        let (mut depth, mut expects_name) = (0, false);
        for (offset, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                c if expects_name && !c.is_whitespace() => {
                    paths.push((line, identifier(&rest[offset..]).to_owned()));
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
            expects_name = depth == 1 && (matches!(c, '{' | ',') || (expects_name && c.is_whitespace()));
        }
    }
    paths
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !is_word(c)).next().unwrap_or_default()
}

fn unsafe_code(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_unsafe = |line: &str| has_word(line, "unsafe {") || has_word(line, "unsafe impl");
    for (line, text) in numbered(&source.product) {
        let is_declared = has_word(text, "unsafe fn") && !text.contains("extern");
        if (is_unsafe(text) || is_declared) && !source.is_in(&UNSAFE_PLACES) {
            findings.push((line, format!("unsafe code belongs in one of {UNSAFE_PLACES:?}")));
        }
    }
    for (line, text) in numbered(&source.code) {
        if is_unsafe(text) && !has_safety_comment(source, line) {
            findings.push((line, "an unsafe block needs a SAFETY comment before it".to_owned()));
        }
    }
    findings
}

/// Whether the statement that holds line `line` follows a comment with a SAFETY remark.
fn has_safety_comment(source: &Source, line: usize) -> bool {
    let texts: Vec<&str> = source.text.lines().take(line).collect();
    let codes: Vec<&str> = source.code.lines().take(line).collect();
    for index in (0..line).rev() {
        if texts[index].contains("SAFETY:") {
            return true;
        }
        let code = codes[index].trim();
        let is_comment = code.is_empty() && !texts[index].trim().is_empty();
        let ends_statement = code.is_empty() || code.ends_with([';', '{', '}']);
        if index + 1 < line && ends_statement && !is_comment {
            return false;
        }
    }
    false
}

fn foreign_crates(source: &Source) -> Vec<Finding> {
    if source.is_in(&["src/token/"]) {
        return Vec::new();
    }
    find_words(&source.product, &["tokenizers", "minijinja"], "belongs in src/token")
}

fn process_wide_effects(source: &Source) -> Vec<Finding> {
    if !source.is_library() {
        return Vec::new();
    }
    let macros = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
    let calls = ["process::exit", "process::abort", "libc::abort", "libc::exit", "set_var", "remove_var"];
    let signals = ["libc::signal", "sigaction", "atexit"];
    // The panic guard keeps the messages of contained panics off the host's standard error.
    let hooks: &[&str] = if source.is_in(&["src/capi/ffi.rs"]) { &[] } else { &["set_hook"] };
    let words = [&macros[..], &calls, &signals, hooks].concat();
    find_words(&source.product, &words, "has no place in a library")
}

fn thread_starts(source: &Source) -> Vec<Finding> {
    if !source.is_library() || source.is_in(&THREAD_PLACES) {
        return Vec::new();
    }
    let starts = ["thread::spawn", "thread::Builder", "thread::scope", "ThreadPoolBuilder"];
    find_words(&source.product, &starts, "belongs in src/threads.rs, which gives names and blocks signals")
}

fn feature_switches(source: &Source) -> Vec<Finding> {
    if source.is_in(&FEATURE_PLACES) {
        return Vec::new();
    }
    let is_switch = |line: &str| line.contains("cfg") && has_word(line, "feature =");
    let lines = numbered(&source.code).filter(|(_, line)| is_switch(line));
    lines.map(|(line, _)| (line, format!("features are looked at in {FEATURE_PLACES:?}"))).collect()
}

fn unfinished_work(source: &Source) -> Vec<Finding> {
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut findings = find_words(&source.text, &notes, "is a note; do it or leave it out");
    findings.extend(find_words(&source.code, &["todo!", "unimplemented!"], "is unfinished"));
    findings
}

fn sizes(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let num_lines = source.text.lines().count();
    if num_lines > MAX_FILE_LINES {
        findings.push((num_lines, format!("a file has at most {MAX_FILE_LINES} lines; split it by a seam")));
    }
    for (position, _) in source.code.match_indices("fn ") {
        if source.code[..position].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let Some(length) = function_len(&source.code[position..]) else { continue };
        let num_lines = source.code[position..][..length].matches('\n').count() + 1;
        if num_lines > MAX_FUNCTION_LINES {
            let line = source.code[..position].matches('\n').count() + 1;
            findings.push((line, format!("a function of {num_lines} lines; at most {MAX_FUNCTION_LINES}")));
        }
    }
    findings
}

/// Bytes of the function that `code` starts with; `None` for a declaration without a body.
fn function_len(code: &str) -> Option<usize> {
    let mut brackets = 0;
    for (position, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 => return None,
            '{' if brackets == 0 => return Some(position + block_len(&code[position..])),
            _ => {}
        }
    }
    None
}

fn plain_text(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line, message: &str| findings.push((line, message.to_owned()));
    if !source.text.starts_with("//!") && !source.is_unit_tests() {
        found(1, "a module starts with what it is for, after //!");
    }
    if !source.text.ends_with('\n') || source.text.ends_with("\n\n") {
        found(source.text.lines().count(), "a file ends with one newline");
    }
    for ((line, text), code) in numbered(&source.text).zip(source.code.lines()) {
        // A line that is mostly one literal, such as a regular expression, is better not broken.
        let is_literal =
            text.contains('"') && !text.trim_start().starts_with("//") && num_visible(code) <= 40;
        if text.chars().count() > MAX_LINE_CHARS && !is_literal {
            found(line, "the line is too long");
        }
        if text.ends_with([' ', '\r']) || text.contains('\t') {
            found(line, "a tab, or white space at the end of the line");
        }
    }
    findings
}

fn num_visible(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).count()
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn find_words(code: &str, words: &[&str], message: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, text) in numbered(code) {
        let found = words.iter().filter(|word| has_word(text, word));
        findings.extend(found.map(|word| (line, format!("{word} {message}"))));
    }
    findings
}

/// Whether `word` stands in `line` without a letter, digit or `_` right before or after it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(position, _)| {
        let before = line[..position].chars().next_back();
        let after = line[position + word.len()..].chars().next();
        let ends_in_word = word.chars().next_back().is_some_and(is_word);
        let is_longer = before.is_some_and(is_word) || (ends_in_word && after.is_some_and(is_word));
        !is_longer
    })
}
