//! SmolLM2 from its GGUF file against ids and prompts that `tools/make_token_golden.py` wrote.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use super::*;

fn model_path() -> PathBuf {
    let default =
        || Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("INFLIGHT_TEST_MODEL").map_or_else(default, PathBuf::from);
    assert!(path.exists(), "{} is missing: run scripts/setup.sh, or set INFLIGHT_TEST_MODEL", path.display());
    path
}

pub(super) fn smollm2() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::load(&Checkpoint::open(&model_path()).unwrap()).unwrap())
}

fn golden(key: &str) -> Vec<Value> {
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/golden/token_smollm2.json")).unwrap();
    let cases = golden[key].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn ids(case: &Value, key: &str) -> Vec<u32> {
    case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn texts_have_the_reference_ids() {
    for case in golden("texts") {
        let text = case["text"].as_str().unwrap();
        assert_eq!(smollm2().encode(text, SPECIAL).unwrap(), ids(&case, "ids_special"), "{text:?}");
        assert_eq!(smollm2().encode(text, PLAIN).unwrap(), ids(&case, "ids_plain"), "{text:?}");
        assert_eq!(smollm2().decode(&ids(&case, "ids_plain"), false).unwrap(), text);
        assert_eq!(smollm2().decode(&ids(&case, "ids_special"), false).unwrap(), text);
    }
}

#[test]
fn chats_have_the_reference_prompts_and_ids() {
    for case in golden("chats") {
        let messages = case["messages"].to_string();
        let add_generation_prompt = case["add_generation_prompt"].as_bool().unwrap();
        let text = smollm2().apply_chat_template(&messages, add_generation_prompt).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        if add_generation_prompt {
            assert_eq!(smollm2().encode_chat(&messages).unwrap(), ids(&case, "ids"), "{messages}");
        }
    }
}

#[test]
fn the_vocabulary_is_described() {
    assert_eq!(smollm2().vocab_size(), 49152);
    assert_eq!(smollm2().eos_tokens(), [2]);
    assert!(smollm2().has_chat_template());
    assert!((0..17).all(|id| smollm2().is_special(id)) && !smollm2().is_special(17));
    assert_eq!(smollm2().token_bytes(2, false), b"");
    assert_eq!(smollm2().token_bytes(2, true), b"<|im_end|>");
    assert_eq!(smollm2().token_bytes(198, false), b"\n");
    assert_eq!(smollm2().encode("x", COMPLETE).unwrap(), smollm2().encode("x", PLAIN).unwrap());
}

#[test]
fn ids_outside_the_vocabulary_are_refused_by_place() {
    let error = smollm2().decode(&[17, 49152], true).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.message().contains("tokens[1] is 49152"), "{error}");
}

#[test]
fn streaming_any_text_equals_decoding_it() {
    for case in golden("texts") {
        for key in ["ids_special", "ids_plain"] {
            for skip_special in [false, true] {
                let mut decoder =
                    StreamDecoder::new(smollm2(), DecodeOptions { skip_special, continues: false });
                let mut text: String = ids(&case, key).iter().map(|&id| decoder.push(id)).collect();
                text.push_str(&decoder.finish());
                assert_eq!(text, smollm2().decode(&ids(&case, key), skip_special).unwrap());
            }
        }
    }
}

#[test]
fn threads_share_one_tokenizer() {
    let cases = golden("texts");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for case in &cases {
                    let text = case["text"].as_str().unwrap();
                    assert_eq!(smollm2().encode(text, PLAIN).unwrap(), ids(case, "ids_plain"));
                    let messages = serde_json::json!([{"role": "user", "content": text}]).to_string();
                    smollm2().encode_chat(&messages).unwrap();
                }
            });
        }
    });
}
