//! Rules that every file of the C ABI keeps.

const SOURCES: [(&str, &str); 9] = [
    ("status.rs", include_str!("status.rs")),
    ("error.rs", include_str!("error.rs")),
    ("options.rs", include_str!("options.rs")),
    ("request.rs", include_str!("request.rs")),
    ("events.rs", include_str!("events.rs")),
    ("engine.rs", include_str!("engine.rs")),
    ("queue.rs", include_str!("queue.rs")),
    ("text.rs", include_str!("text.rs")),
    ("version.rs", include_str!("version.rs")),
];

const EXPORT: &str = "#[unsafe(no_mangle)]\n";

/// Name and body of each exported function in a file.
fn exports(source: &str) -> Vec<(&str, &str)> {
    source
        .split(EXPORT)
        .skip(1)
        .map(|rest| {
            let signature =
                rest.strip_prefix("pub extern \"C\" fn ").expect("an export is pub extern \"C\" fn");
            let (head, body) = signature.split_once("{\n").expect("a body");
            let (body, _) = body.split_once("\n}\n").expect("the body's end");
            (head.split('(').next().expect("a name"), body)
        })
        .collect()
}

#[test]
fn every_export_is_one_guarded_call() {
    let mut num_exports = 0;
    for (file, source) in SOURCES {
        for (name, body) in exports(source) {
            num_exports += 1;
            assert!(name.starts_with("ifl_"), "{file}: {name} lacks the prefix");
            let statements: Vec<&str> =
                body.lines().filter(|line| line.starts_with("    ") && !line.starts_with("     ")).collect();
            let guards = body.matches("guard(error, |").count() + body.matches("guard_value(").count();
            assert_eq!(guards, 1, "{file}: {name} must have exactly one guard");
            let first = statements.iter().find(|line| !line.starts_with("    const ")).expect("a statement");
            assert!(
                first.trim_start().starts_with("guard"),
                "{file}: {name} starts outside its guard: {first}"
            );
            let last = statements.last().expect("a statement");
            assert!(
                last == first || last.starts_with("    })"),
                "{file}: {name} goes on after its guard: {last}"
            );
        }
    }
    let num_guards: usize = SOURCES
        .iter()
        .map(|(_, source)| source.matches("guard(error").count() + source.matches("guard_value(").count())
        .sum();
    assert_eq!(num_exports, num_guards);
    assert!(num_exports >= 30, "{num_exports} exports: did the search break?");
}

#[test]
fn unsafe_code_is_in_ffi_alone() {
    let handle = ("handle.rs", include_str!("handle.rs"));
    for (file, source) in SOURCES.into_iter().chain([handle]) {
        let code = source.replace(EXPORT.trim_end(), "").replace("Option<unsafe extern \"C\" fn(", "");
        assert!(!code.contains("unsafe"), "{file} has unsafe code; it belongs in ffi.rs");
    }
}
