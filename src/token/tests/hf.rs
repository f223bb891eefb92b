//! Hand-made tokenizer files of each kind, against ids worked out by hand and against the `tokenizers` crate
//! run as a whole.

use std::sync::OnceLock;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::token::pieces::tests::byte_level_char;

/// Byte-level BPE in the manner of GPT-2: ids 0 to 255 are the bytes, then the merges' results.
fn byte_level() -> Value {
    let merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or")];
    let alphabet = (0..=255u8).map(|byte| byte_level_char(byte).to_string());
    let tokens = alphabet.chain(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let mut vocab: serde_json::Map<String, Value> =
        tokens.zip(0u32..).map(|(t, id)| (t, id.into())).collect();
    vocab.insert("<|a|>".to_owned(), 263.into());
    json!({
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": [
            {"id": 263, "content": "<|a|>", "special": true, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
            {"id": 264, "content": "<|b|>", "special": true, "normalized": false,
             "single_word": false, "lstrip": true, "rstrip": true},
            {"id": 265, "content": "<think>", "special": false, "normalized": false,
             "single_word": false, "lstrip": false, "rstrip": false},
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|a|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|a|>": {"id": "<|a|>", "ids": [263], "tokens": ["<|a|>"]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges.map(|(left, right)| format!("{left} {right}")),
        },
    })
}

/// SentencePiece's BPE in the manner of Llama 2: ids 0 to 2 special, 3 to 258 the bytes.
fn sentencepiece() -> Value {
    let merges = [("▁", "h"), ("▁h", "i"), ("▁", "▁"), ("o", "k"), ("▁", "ok")];
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let chars = "▁hiok<>s/".chars().map(String::from);
    let specials = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
    let tokens =
        specials.chain(bytes).chain(chars).chain(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: serde_json::Map<String, Value> = tokens.zip(0u32..).map(|(t, id)| (t, id.into())).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    json!({
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges.map(|(left, right)| [left, right]),
        },
    })
}

/// A unigram model in the manner of T5.
fn unigram() -> Value {
    let pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        ("▁the", -3.0),
        ("▁th", -4.0),
        ("e", -3.5),
        ("t", -4.0),
        ("h", -4.0),
        ("<", -5.0),
        ("/", -5.0),
        ("s", -5.0),
        (">", -5.0),
        ("es", -3.5),
    ];
    let vocab: Vec<Value> = pieces.iter().map(|(piece, score)| json!([piece, score])).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "normalized": false,
               "single_word": false, "lstrip": false, "rstrip": false})
    };
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json!({
        "added_tokens": [special(0, "<unk>"), special(1, "</s>")],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false},
    })
}

fn parse(file: &Value) -> Tokenizer {
    let files = [("tokenizer.json", file.to_string())];
    load(directory(&[(files[0].0, &files[0].1)]).path()).unwrap()
}

#[test]
fn byte_level_ids() {
    let tokenizer = parse(&byte_level());
    assert_eq!(tokenizer.vocab_size(), 266);
    assert_eq!(tokenizer.encode("hello world", PLAIN).unwrap(), [259, 262, 108, 100]);
    assert_eq!(tokenizer.encode("<|a|>é<think>", COMPLETE).unwrap(), [263, 0xc3, 0xa9, 265]);
    assert_eq!(tokenizer.encode("é", COMPLETE).unwrap(), [263, 0xc3, 0xa9]);
    assert_eq!(tokenizer.encode("x  <|b|>\n y", SPECIAL).unwrap(), [120, 264, 121]);
    assert!(tokenizer.encode("<|a|>", PLAIN).unwrap().iter().all(|&id| id < 256));
    assert_eq!(tokenizer.decode(&[263, 259, 0xc3, 265], true).unwrap(), "hello\u{fffd}<think>");
    assert_eq!(tokenizer.decode(&[263, 259], false).unwrap(), "<|a|>hello");
    assert_eq!(tokenizer.token_bytes(262, false), b" wor");
}

#[test]
fn sentencepiece_ids() {
    let tokenizer = parse(&sentencepiece());
    let id = |text: &str| tokenizer.encode(text, PLAIN).unwrap();
    // ▁=259 h i o k < > s / =260.., then ▁h=268 ▁hi=269 ▁▁=270 ok=271 ▁ok=272.
    assert_eq!(id("hi ok"), [269, 272]);
    assert_eq!(id("hi\n"), [269, 3 + 10]);
    assert_eq!(id("é"), [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.encode("hi", COMPLETE).unwrap(), [1, 269]);
    assert_eq!(tokenizer.encode("<s>hi", COMPLETE).unwrap(), [1, 269]);
    assert_eq!(id("</s>"), [259, 264, 267, 266, 265]);
    assert_eq!(
        tokenizer.decode(&[1, 269, 272, 3 + 0xc3, 3 + 0xa9, 3 + 0xc3], true).unwrap(),
        "hi oké\u{fffd}"
    );
    assert_eq!(tokenizer.decode(&[1, 269], false).unwrap(), "<s> hi");
    assert_eq!(tokenizer.token_bytes(269, false), b" hi");
    assert_eq!(tokenizer.token_bytes(3 + 10, false), b"\n");
}

#[test]
fn the_first_space_goes_only_at_the_start_of_a_text() {
    let tokenizer = parse(&sentencepiece());
    let stream = |continues: bool| {
        let mut decoder = StreamDecoder::new(&tokenizer, DecodeOptions { skip_special: true, continues });
        [1, 269, 272].map(|id| decoder.push(id))
    };
    assert_eq!(stream(false), ["", "hi", " ok"]);
    assert_eq!(stream(true), ["", " hi", " ok"]);
}

#[test]
fn unigram_ids() {
    let tokenizer = parse(&unigram());
    let id = |text: &str| tokenizer.encode(text, PLAIN).unwrap();
    assert_eq!(id("the thes"), [3, 4, 12]);
    // The ligature is normalised; what is unknown is one token.
    assert_eq!(id("ﬆ日本"), [2, 10, 6, 0]);
    assert_eq!(id("</s>"), [2, 8, 9, 10, 11]);
    assert_eq!(tokenizer.encode("the</s>", SPECIAL).unwrap(), [3, 1]);
    assert_eq!(tokenizer.encode("the", COMPLETE).unwrap(), [3, 1]);
    assert_eq!(tokenizer.decode(&[3, 4, 12, 1], true).unwrap(), "the thes");
}

#[test]
fn configuration_files_are_honoured() {
    let generation =
        r#"{"eos_token_id": [264, 263], "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9}"#;
    let config = r#"{"bos_token": {"content": "<|a|>"}, "eos_token": "<|b|>", "chat_template": [
        {"name": "tool_use", "template": "no"},
        {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}]}"#;
    let tokenizer_json = byte_level().to_string();
    let mut files = vec![
        ("tokenizer.json", tokenizer_json.as_str()),
        ("tokenizer_config.json", config),
        ("generation_config.json", generation),
        ("config.json", r#"{"eos_token_id": 5}"#),
    ];
    let tokenizer = load(directory(&files).path()).unwrap();
    assert_eq!(tokenizer.eos_tokens(), [264, 263]);
    let defaults = tokenizer.generation_defaults();
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (0.6, 20, Some(0.9)));
    let messages = r#"[{"role": "user", "content": [{"type": "text", "text": "he"}, {"type": "text", "text": "<|b|>"}]}]"#;
    assert_eq!(tokenizer.apply_chat_template(messages, true).unwrap(), "<|a|>he\n<|b|><|b|>");
    let ids = tokenizer.encode_chat(messages).unwrap();
    assert_eq!((ids[0], ids[ids.len() - 1]), (263, 264));
    assert_eq!(ids.iter().filter(|&&id| id > 262).count(), 2);

    files.push(("chat_template.jinja", "J{{ messages | length }}"));
    files[2] = ("generation_config.json", r#"{"temperature": 0.6}"#);
    let tokenizer = load(directory(&files).path()).unwrap();
    assert_eq!(tokenizer.apply_chat_template(messages, true).unwrap(), "J1");
    assert_eq!(tokenizer.eos_tokens(), [5, 264]);
    assert_eq!(tokenizer.generation_defaults().temperature, 0.0);
}

#[test]
fn a_broken_template_fails_only_chats() {
    let tokenizer_json = byte_level().to_string();
    let files = [("tokenizer.json", tokenizer_json.as_str()), ("chat_template.jinja", "{% if %}")];
    let tokenizer = load(directory(&files).path()).unwrap();
    assert!(!tokenizer.has_chat_template());
    let error = tokenizer.encode_chat(r#"[{"role": "user", "content": "x"}]"#).unwrap_err();
    assert_eq!(error.status(), Status::ModelInvalid);
    assert!(error.message().contains("chat_template.jinja"), "{error}");
    let files = [("tokenizer.json", tokenizer_json.as_str())];
    let error = load(directory(&files).path()).unwrap().encode_chat("[]").unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
}

#[test]
fn a_missing_file_is_named() {
    let error = load(directory(&[]).path()).unwrap_err();
    assert_eq!(error.status(), Status::ModelNotFound);
    assert!(error.message().contains("tokenizer.json"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    /// With special tokens found everywhere, or nowhere, the whole crate must agree.
    #[test]
    fn the_crate_agrees_on_any_text(
        parts in prop::collection::vec(prop::sample::select(vec![
            "hello", " world", "h", "e", "l", "o", "w", " ", "  ", "\n", "é", "日", "the", "ﬆ", "hi", "ok", "▁",
            "<|a|>", "<|b|>", "<s>", "</s>", "<unk>", "<think>", "<|", "|>", "1", "🙂",
        ]), 0..12),
    ) {
        static BOTH: OnceLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> = OnceLock::new();
        let both = BOTH.get_or_init(|| {
            [byte_level(), sentencepiece(), unigram()].map(|mut file| {
                let ours = parse(&file);
                file["truncation"] = Value::Null;
                (ours, file.to_string().parse().unwrap())
            }).into()
        });
        let text = parts.concat();
        for (ours, whole) in both {
            let mut whole = whole.clone();
            for parse_special in [true, false] {
                whole.set_encode_special_tokens(!parse_special);
                let expected = whole.encode(text.as_str(), false).unwrap();
                let options = EncodeOptions { add_special_tokens: false, parse_special };
                // The crate's own unigram model makes special tokens of plain text.
                let is_flawed = !parse_special && (text.contains("</s>") || text.contains("<unk>"));
                if !is_flawed {
                    prop_assert_eq!(ours.encode(&text, options).unwrap(), expected.get_ids(), "{:?}", text);
                }
            }
            let plain = ours.encode(&text, PLAIN).unwrap();
            let is_unknown = |id: u32| id == 0 && ours.vocab_size() < 20;
            prop_assert!(plain.iter().all(|&id| !ours.is_special(id) || is_unknown(id)));
        }
    }
}
