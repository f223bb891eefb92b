//! Tokenizer files that lie: each ends in a typed error within two seconds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// A small valid file, to be spoilt.
fn valid() -> Value {
    json!({
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    })
}

fn with(pointer: &str, value: Value) -> String {
    let mut file = valid();
    *file.pointer_mut(pointer).unwrap() = value;
    file.to_string()
}

/// Loads `content` as `tokenizer.json`; the error, if any.
fn error(content: &str) -> Option<Error> {
    let directory = directory(&[("tokenizer.json", content)]);
    let start = Instant::now();
    let result = load(directory.path());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}: {:.200}", start.elapsed(), content);
    result.err()
}

#[test]
fn the_valid_file_is_valid() {
    assert_eq!(error(&valid().to_string()), None);
}

#[test]
fn lies_are_named() {
    let added = |id: u64, content: &str| json!([{"id": id, "content": content, "special": true}]);
    let nested = "[".repeat(100_000) + &"]".repeat(100_000);
    for (content, text) in [
        (String::new(), "EOF"),
        ("{}".to_owned(), "missing field `model`"),
        ("[".repeat(1 << 20), "invalid type"),
        (
            with("/normalizer", json!(nested.clone())).replace(&format!("\"{nested}\""), &nested),
            "recursion limit",
        ),
        (with("/model/merges", json!(["aaaaaaaaaaaa b"])), "merges[0]"),
        (with("/model/merges", json!(["a b", "b a"])), "merges[1]"),
        (with("/model/merges", json!(["ab"])), "not two tokens"),
        (with("/model/merges", json!([["a", "b", "c"]])), "pair"),
        (with("/model/merges", json!([[1, 2]])), "expected a string"),
        (with("/model/vocab", json!({"a": -1})), "u32"),
        (with("/model/vocab", json!({"a": 4294967295u32, "b": 1, "ab": 2})), "below 1048576"),
        (with("/model/vocab", json!({"a": 1, "b": 1, "ab": 2})), "two tokens have the id 1"),
        (with("/model/vocab", json!([["a", 0.5]])), "object of token ids"),
        (with("/model/vocab", json!("a")), "object of token ids"),
        (with("/model/type", json!("WordPiece")), "WordPiece"),
        (with("/model/type", json!("Unigram")), "array of pairs"),
        (with("/added_tokens", added(7, "a")), "has id 7 in added_tokens and 0 in model.vocab"),
        (with("/added_tokens", added(1 << 40, "x")), "u32"),
        (with("/added_tokens", added(1, "x")), "two tokens have the id 1"),
        (with("/added_tokens", json!([{"id": 5}])), "content"),
        (with("/decoder", Value::Null), "decoder"),
        (with("/decoder", json!({"type": "CTC"})), "CTC"),
        (with("/normalizer", json!({"type": "Nonsense"})), "normalizer"),
        (with("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})), "normalizer"),
        (
            with(
                "/pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            ),
            "pre_tokenizer",
        ),
        (
            with(
                "/post_processor",
                json!({
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {},
                }),
            ),
            "exactly once",
        ),
        (
            with("/post_processor", json!({"type": "BertProcessing", "sep": ["x", 9], "cls": ["y", 8]})),
            "adds token 8",
        ),
        (
            valid().to_string().replace(r#""model":{"#, r#""model":{"continuing_subword_prefix":"é","#),
            "merges[0]",
        ),
        (valid().to_string().replace(r#""model":{"#, r#""model":{"unk_token":"u","#), "unk_token"),
        (valid().to_string().replacen('{', r#"{"model":{"vocab":{}},"#, 1), "duplicate field"),
        (valid().to_string().replace(r#""a":0,"#, r#""a":0,"a":3,"#), "twice"),
    ] {
        let error = error(&content).unwrap_or_else(|| panic!("{content:.300} was accepted"));
        assert!(matches!(error.status(), Status::ModelInvalid | Status::ModelUnsupported), "{error}");
        assert!(error.message().contains(text), "{text}: {error}");
        assert!(error.message().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn floods_are_refused() {
    let flood = |item: &str, num: usize| item.repeat(num).trim_end_matches(',').to_owned();
    let model = r#""model":{"type":"BPE","vocab":{"a":0},"merges":[]},"decoder":{"type":"ByteLevel"}"#;
    for (content, text) in [
        (format!(r#"{{"normalizer":[{}],{model}}}"#, flood("1,", 20 << 20)), "normalizer: the section has"),
        (format!(r#"{{"decoder":[{}],"model":{{"vocab":{{}}}}}}"#, flood("1,", 20 << 20)), "decoder"),
        (format!(r#"{{"model":[{}]}}"#, flood("0,", 30 << 20)), "invalid"),
        (
            format!(r#"{{"model":{{"vocab":{{}},"merges":[{}]}}}}"#, flood("\"a a\",", 3 << 20)),
            "more than 1048576",
        ),
        (format!(r#"{{"model":{{"vocab":[{}]}}}}"#, flood("[\"\",0],", 2 << 20)), "more than 1048576"),
        (
            format!(r#"{{"added_tokens":[{}],{model}}}"#, flood(r#"{"id":1,"content":""},"#, 100_000)),
            "more than 65536",
        ),
        (
            format!(r#"{{"x":[{}],"model":{{"vocab":{{"a":0}},"merges":["a a"]}}}}"#, flood("1,", 30 << 20)),
            "decoder",
        ),
    ] {
        let error = error(&content).unwrap_or_else(|| panic!("{content:.100} was accepted"));
        assert!(error.message().contains(text), "{text}: {error}");
    }
}

#[test]
fn long_tokens_are_refused() {
    for content in [
        with("/model/vocab", json!({"a": 0, "b": 1, "ab": 2, "x".repeat(9000): 3})),
        with("/added_tokens", json!([{"id": 9, "content": "x".repeat(300), "special": true}])),
    ] {
        assert_eq!(error(&content).unwrap().status(), Status::ModelInvalid);
    }
}

#[test]
fn texts_over_the_limit_are_refused() {
    let error = Tokenizer::bytes().encode(&"x".repeat(TEXT_BYTES_MAX + 1), PLAIN).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
}

#[test]
fn stages_that_fail_or_panic_on_a_text_are_errors() {
    for stage in [
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}),
        json!({"type": "Split", "pattern": {"Regex": "(?=(a+))*b"}, "behavior": "Removed", "invert": true}),
    ] {
        let directory = directory(&[("tokenizer.json", &with("/pre_tokenizer", stage))]);
        let Ok(tokenizer) = load(directory.path()) else { continue };
        let start = Instant::now();
        let _ = tokenizer.encode(&("a".repeat(200) + "!"), PLAIN);
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn a_normalizer_cannot_explode_a_text() {
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let content = with("/normalizer", json!({"type": "Sequence", "normalizers": vec![doubling; 40]}));
    assert!(error(&content).unwrap().message().contains("normalizer"));
    let content = with("/normalizer", json!({"type": "Prepend", "prepend": "a".repeat(1 << 20)}));
    assert!(error(&content).unwrap().message().contains("normalizer"));
}

#[test]
fn special_files_are_refused() {
    let directory = directory(&[]);
    std::fs::create_dir(directory.path().join("tokenizer.json")).unwrap();
    let error = load(directory.path()).unwrap_err();
    assert!(matches!(error.status(), Status::ModelInvalid | Status::ModelIo), "{error}");
    let size = std::fs::File::create(directory.path().join("config.json")).unwrap();
    size.set_len(1 << 40).unwrap();
    std::fs::remove_dir(directory.path().join("tokenizer.json")).unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), valid().to_string()).unwrap();
    let error = load(directory.path()).unwrap_err();
    assert!(error.message().contains("config.json") && error.message().contains("at most"), "{error}");
}
