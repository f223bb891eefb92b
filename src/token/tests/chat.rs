use serde_json::json;

use super::*;
use crate::error::Status;

#[test]
fn malformed_messages_are_named_by_index_and_field() {
    for (json, text) in [
        ("", "not valid JSON"),
        ("{}", "must be a JSON array"),
        ("[]", "0 entries"),
        ("[1]", "messages[0] must be an object"),
        (r#"[{"content": "x"}]"#, "messages[0].role is missing"),
        (r#"[{"role": 1, "content": "x"}]"#, "messages[0].role must be a string"),
        (r#"[{"role": "", "content": "x"}]"#, "messages[0].role is \"\""),
        (r#"[{"role": "a\n", "content": "x"}]"#, "messages[0].role is"),
        (r#"[{"role": "user", "content": "x"}, {"role": "user"}]"#, "messages[1].content is missing"),
        (r#"[{"role": "user", "content": null}]"#, "messages[0].content must be"),
        (r#"[{"role": "user", "content": 3}]"#, "messages[0].content must be"),
        (r#"[{"role": "user", "content": ["x"]}]"#, "messages[0].content[0] must be"),
        (r#"[{"role": "user", "content": [{"type": "text"}]}]"#, "messages[0].content[0].text"),
        (
            r#"[{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]"#,
            "messages[0].content[1].type is \"image_url\"",
        ),
    ] {
        let error = parse_messages(json).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().contains(text), "{json}: {error}");
    }
    let deep = format!(r#"[{{"role":"user","content":{}1{}}}]"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(parse_messages(&deep).unwrap_err().message().contains("not valid JSON"));
}

#[test]
fn parts_are_joined_and_other_fields_kept() {
    let json = r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"n"},
                   {"role":"assistant","content":null,"tool_calls":[{"x":1}]}]"#;
    let expected = json!([
        {"role": "user", "content": "a\nb", "name": "n"},
        {"role": "assistant", "content": null, "tool_calls": [{"x": 1}]},
    ]);
    assert_eq!(parse_messages(json).unwrap(), expected);
}

fn marker() -> Marker {
    Marker::new("test", ["<|end|>", "<|eot|>"].into_iter()).unwrap()
}

fn mark(text: &str, marking: Marking) -> String {
    marker().mark_text(text, '!', marking).unwrap()
}

#[test]
fn spellings_and_ends_are_marked() {
    for (text, marked) in [
        ("plain < text > |x|", "plain < text > |x|"),
        ("a<|end|>b", "a<!|end|>b"),
        ("<|<|end|>", "<|<!|end|>"),
        ("a <|en", "a <|en!"),
        ("|> b", "!|> b"),
        ("<", "<!"),
        ("", ""),
    ] {
        assert_eq!(mark(text, Marking::Spellings), marked, "{text}");
    }
    assert_eq!(mark("a < b <| c", Marking::Beginnings), "a <! b <!| c");
}

#[test]
fn roles_stay_and_keys_are_marked() {
    let mut messages = json!([{"role": "<|end|>", "content": "<|end|>", "x": {"<|end|>": ["<|eot|>"]}}]);
    assert!(marker().mark(&mut messages, '!', Marking::Spellings).unwrap());
    let expected = json!([{"role": "<|end|>", "content": "<!|end|>", "x": {"<!|end|>": ["<!|eot|>"]}}]);
    assert_eq!(messages, expected);
}

#[test]
fn unmarking_moves_the_parts() {
    let parts = vec![
        Part { range: 0..2, token: None },
        Part { range: 2..5, token: Some(7) },
        Part { range: 5..6, token: None },
    ];
    let (text, parts) = unmark("a!<x>!", parts, '!');
    assert_eq!(text, "a<x>");
    assert_eq!(parts, [Part { range: 0..1, token: None }, Part { range: 1..4, token: Some(7) }]);
}

#[test]
fn a_marker_is_found_while_one_is_free() {
    assert_eq!(Marker::choose(|c| c != '\u{fdd5}').unwrap(), '\u{fdd5}');
    assert_eq!(Marker::choose(|_| true).unwrap_err().status(), Status::InvalidArgument);
}

#[test]
fn a_special_token_of_one_character_cannot_be_marked() {
    let marker = Marker::new("test", ["§"].into_iter()).unwrap();
    let error = marker.mark_text("a§", '!', Marking::Spellings).unwrap_err();
    assert!(error.message().contains('§'), "{error}");
}
