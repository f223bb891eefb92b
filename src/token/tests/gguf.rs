use super::*;
use crate::token::EncodeOptions;

const PLAIN: EncodeOptions = EncodeOptions { add_special_tokens: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special_tokens: false, parse_special: true };
const COMPLETE: EncodeOptions = EncodeOptions { add_special_tokens: true, parse_special: true };

/// Token, type and score.
type Token = (&'static str, i64, f32);

/// The parts of a vocabulary as the metadata has them.
struct Lists {
    tokens: Vec<String>,
    types: Vec<i64>,
    scores: Vec<f32>,
}

/// SentencePiece tokens: `<unk>`, `<s>`, `</s>`, the 256 bytes, then `tokens`.
fn sentencepiece_lists(tokens: &[Token]) -> Lists {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let head = [("<unk>", 2, 0.0), ("<s>", 3, 0.0), ("</s>", 3, 0.0)];
    let all: Vec<(&str, i64, f32)> = head
        .into_iter()
        .chain(bytes.iter().map(|byte| (byte.as_str(), 6, 0.0)))
        .chain(tokens.iter().copied())
        .collect();
    Lists {
        tokens: all.iter().map(|token| token.0.to_owned()).collect(),
        types: all.iter().map(|token| token.1).collect(),
        scores: all.iter().map(|token| token.2).collect(),
    }
}

fn sentencepiece(lists: &Lists) -> Source<'_> {
    Source {
        model: "llama",
        tokens: &lists.tokens,
        token_types: Some(&lists.types),
        scores: Some(&lists.scores),
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        unknown_token_id: Some(0),
        ..Source::default()
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const WORDS: [Token; 8] = [
    ("▁", 1, -5.0),
    ("h", 1, -6.0),
    ("i", 1, -7.0),
    ("▁h", 1, -2.0),
    ("▁hi", 1, -3.0),
    ("hi", 1, -1.0),
    ("\n\n", 4, 0.0),
    ("▁▁", 1, -4.0),
];

#[test]
fn sentencepiece_files_encode_by_score() {
    let lists = sentencepiece_lists(&WORDS);
    let tokenizer = build(sentencepiece(&lists)).unwrap();
    let id = |text: &str| tokenizer.encode(text, PLAIN).unwrap();
    // ▁=259 h i ▁h=262 ▁hi=263 hi=264 \n\n=265 ▁▁=266. "hi" has the best score, then "▁" + "hi" are "▁hi".
    assert_eq!(id("hi"), [263]);
    assert_eq!(id("hi hi"), [263, 263]);
    assert_eq!(id("  hi"), [266, 263]);
    assert_eq!(id("é"), [259, 3 + 0xc3, 3 + 0xa9]);
    // A user-defined token is found in the text as it is; what follows it begins with a space again.
    assert_eq!(id("hi\n\nhi"), [263, 265, 263]);
    assert_eq!(id("</s>").len(), 5);
    assert_eq!(tokenizer.encode("hi</s>hi", SPECIAL).unwrap(), [263, 2, 263]);
    assert_eq!(tokenizer.encode("hi", COMPLETE).unwrap(), [1, 263]);
    assert_eq!(tokenizer.encode("<s>hi", COMPLETE).unwrap(), [1, 263]);
    assert_eq!(tokenizer.eos_tokens(), [2]);
    assert_eq!(tokenizer.decode(&[1, 263, 266, 263, 265, 3 + 10], true).unwrap(), "hi   hi\n\n\n");
}

#[test]
fn flags_of_the_file_count() {
    let lists = sentencepiece_lists(&WORDS);
    let source = Source {
        add_bos_token: Some(false),
        add_eos_token: Some(true),
        add_space_prefix: Some(false),
        ..sentencepiece(&lists)
    };
    let tokenizer = build(source).unwrap();
    assert_eq!(tokenizer.encode("hi", COMPLETE).unwrap(), [264, 2]);
    assert_eq!(tokenizer.decode(&[263], true).unwrap(), " hi");
}

/// Byte-level tokens: the alphabet, then `extra`.
fn byte_level_lists(extra: &[(&str, i64)]) -> Lists {
    let alphabet =
        (0..=255u8).map(|byte| (crate::token::pieces::tests::byte_level_char(byte).to_string(), 1));
    let extra = extra.iter().map(|(text, kind)| ((*text).to_owned(), *kind));
    let (tokens, types) = alphabet.chain(extra).unzip();
    Lists { tokens, types, scores: Vec::new() }
}

#[test]
fn byte_level_files_merge_by_rank() {
    let lists = byte_level_lists(&[("ab", 1), ("Ġab", 1), ("<|x|>", 3), ("<|eot_id|>", 3), ("<t>", 4)]);
    let merges = names(&["a b", "Ġ ab"]);
    let source = Source {
        model: "gpt2",
        pre: Some("llama-bpe"),
        tokens: &lists.tokens,
        token_types: Some(&lists.types),
        merges: Some(&merges),
        bos_token_id: Some(258),
        eos_token_id: Some(258),
        chat_template: Some("{{ bos_token }}{{ messages[0].content }}<|eot_id|>"),
        ..Source::default()
    };
    let tokenizer = build(source).unwrap();
    assert_eq!(tokenizer.encode("ab ab<t>", COMPLETE).unwrap(), [258, 256, 257, 260]);
    assert_eq!(tokenizer.eos_tokens(), [258, 259]);
    assert_eq!(tokenizer.encode_chat(r#"[{"role":"user","content":"ab"}]"#).unwrap(), [258, 256, 259]);
    assert!(tokenizer.encode("<|x|>", PLAIN).unwrap().iter().all(|&id| id < 256));
    assert_eq!(tokenizer.decode(&[257, 258, 260], true).unwrap(), " ab<t>");
}

#[test]
fn malformed_metadata_is_named() {
    let lists = sentencepiece_lists(&WORDS);
    let good = sentencepiece(&lists);
    let byte_level = byte_level_lists(&[("ab", 1)]);
    let (short_scores, bad_types, nan) =
        ([1.0], vec![9; lists.tokens.len()], vec![f32::NAN; lists.tokens.len()]);
    let (bad_merge, unknown_merge) = (names(&["ab"]), names(&["a c"]));
    let not_a_byte = sentencepiece_lists(&[("<0xGG>", 6, 0.0)]);
    let long = names(&["x", &"y".repeat(TOKEN_BYTES_MAX + 1)]);
    let gpt2 = Source { model: "gpt2", tokens: &byte_level.tokens, ..Source::default() };
    for (source, status, text) in [
        (Source { model: "bert", ..good }, Status::ModelUnsupported, "\"bert\""),
        (Source { tokens: &[], ..good }, Status::ModelInvalid, "0 entries"),
        (Source { scores: Some(&short_scores), ..good }, Status::ModelInvalid, "scores has 1 entries"),
        (Source { scores: None, ..good }, Status::ModelInvalid, "scores is missing"),
        (Source { scores: Some(&nan), ..good }, Status::ModelInvalid, "not a number"),
        (Source { token_types: Some(&bad_types), ..good }, Status::ModelInvalid, "token_type[0] is 9"),
        (
            Source { bos_token_id: Some(1 << 40), ..good },
            Status::ModelInvalid,
            "bos_token_id is 1099511627776",
        ),
        (Source { eot_token_id: Some(999), ..good }, Status::ModelInvalid, "eot_token_id is 999"),
        (sentencepiece(&not_a_byte), Status::ModelInvalid, "<0xGG>"),
        (Source { merges: None, ..gpt2 }, Status::ModelInvalid, "merges is missing"),
        (Source { merges: Some(&bad_merge), ..gpt2 }, Status::ModelInvalid, "merges[0]"),
        (Source { merges: Some(&unknown_merge), ..gpt2 }, Status::ModelInvalid, "merges[0]"),
        (Source { pre: Some("novel"), merges: Some(&[]), ..gpt2 }, Status::ModelUnsupported, "\"novel\""),
        (Source { tokens: &long, merges: Some(&[]), ..gpt2 }, Status::ModelInvalid, "tokens[1]"),
    ] {
        let error = build(source).unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(text), "{error}");
    }
}

#[test]
fn sentencepiece_ids_are_llama_cpps() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/golden/token_sentencepiece.json")).unwrap();
    let field = |key: &str| golden[key].clone();
    let lists = Lists {
        tokens: serde_json::from_value(field("tokens")).unwrap(),
        types: serde_json::from_value(field("types")).unwrap(),
        scores: serde_json::from_value(field("scores")).unwrap(),
    };
    let tokenizer = build(sentencepiece(&lists)).unwrap();
    let cases = golden["texts"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        for (key, options) in [("ids_plain", PLAIN), ("ids_special", SPECIAL)] {
            let expected: Vec<u32> = serde_json::from_value(case[key].clone()).unwrap();
            assert_eq!(tokenizer.encode(text, options).unwrap(), expected, "{key} {text:?}");
        }
    }
}
