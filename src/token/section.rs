//! What the steps of a `tokenizer.json` may ask of the `tokenizers` crate, checked before it builds them: it would
//! allocate what they say, or panic.

use serde_json::Value;

use crate::error::Result;
use crate::token::limits::invalid;

/// Longest regular expression; those of published models have a tenth of it.
const REGEX_BYTES_MAX: usize = 8 << 10;
/// Longest text that a step puts into another.
const INSERTED_BYTES_MAX: usize = 256;
/// Most steps of a section; each may hold a regular expression to compile.
const NUM_STEPS_MAX: usize = 256;
/// How many times as long all replacements of a section together may make a text.
const GROWTH_MAX: usize = 16;
/// Longest replacement in a `Precompiled` table; Unicode's longest have 33 bytes.
const PRECOMPILED_BYTES_MAX: usize = 64;

/// Checks the section `json` and everything within it; `place` names file and section in errors.
pub(crate) fn check(place: &str, json: &str) -> Result<()> {
    let section: Value = serde_json::from_str(json).map_err(|error| invalid(place, error))?;
    let (mut growth, mut num_steps) = (1, 0);
    // A list instead of recursion: sections come from the file.
    let mut waiting = vec![&section];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(fields) => {
                num_steps += usize::from(fields.contains_key("type"));
                if num_steps > NUM_STEPS_MAX {
                    return Err(invalid(place, format!("more than {NUM_STEPS_MAX} steps")));
                }
                check_step(place, value, &mut growth)?;
                waiting.extend(fields.values());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks the fields of one step, without the steps within it.
fn check_step(place: &str, step: &Value, growth: &mut usize) -> Result<()> {
    let text = |field: &str| step[field].as_str();
    if let Some(regex) = text("Regex").filter(|regex| regex.len() > REGEX_BYTES_MAX) {
        let problem = format!("Regex has {} bytes; at most {REGEX_BYTES_MAX} are allowed", regex.len());
        return Err(invalid(place, problem));
    }
    for field in ["content", "prepend", "replacement"] {
        if let Some(inserted) = text(field).filter(|inserted| inserted.len() > INSERTED_BYTES_MAX) {
            let num_bytes = inserted.len();
            let problem = format!("{field} has {num_bytes} bytes; at most {INSERTED_BYTES_MAX} are allowed");
            return Err(invalid(place, problem));
        }
    }
    // The crate knows some steps by their fields, without a type.
    if let (Some(content), pattern @ Value::Object(_)) = (text("content"), &step["pattern"]) {
        let num_replaced = pattern["String"].as_str().map_or(1, str::len).max(1);
        *growth = growth.saturating_mul(content.len().div_ceil(num_replaced).max(1));
        if *growth > GROWTH_MAX {
            let problem = format!("Replace: a text could become more than {GROWTH_MAX} times as long");
            return Err(invalid(place, problem));
        }
    }
    if step["length"].as_u64() == Some(0) {
        return Err(invalid(place, "length is 0"));
    }
    text("precompiled_charsmap").map_or(Ok(()), |table| check_precompiled(place, table))
}

/// A table is a length, a tree of that many bytes, and the replacements, each ended by a zero byte.
fn check_precompiled(place: &str, base64: &str) -> Result<()> {
    let damaged = |problem: &str| Err(invalid(place, format!("precompiled_charsmap: {problem}")));
    let Ok(table) = base64::decode(base64) else { return damaged("is not base64") };
    let Some((length, rest)) = table.split_first_chunk() else { return damaged("has no length") };
    let tree_bytes = u32::from_le_bytes(*length) as usize;
    if tree_bytes > rest.len() || !tree_bytes.is_multiple_of(4) {
        return damaged("its tree lies outside it");
    }
    if rest[tree_bytes..].split(|&byte| byte == 0).any(|text| text.len() > PRECOMPILED_BYTES_MAX) {
        return damaged("a replacement is too long");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn precompiled(tree_bytes: u32, rest: &[u8]) -> Value {
        let table = [&tree_bytes.to_le_bytes(), rest].concat();
        json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(table)})
    }

    #[test]
    fn steps_of_published_models_pass() {
        for section in [
            json!(null),
            json!({"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
                {"type": "NFKC"},
            ]}),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
            json!({"type": "Split", "pattern": {"Regex": "x".repeat(2000)}, "behavior": "Isolated"}),
            precompiled(8, b"\0\0\0\0\0\0\0\0 \0a\0"),
        ] {
            check("f", &section.to_string()).unwrap();
        }
    }

    #[test]
    fn steps_that_take_memory_or_panic_are_refused_by_name() {
        let doubling = json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "aa"});
        for (section, word) in [
            (json!({"type": "Split", "pattern": {"Regex": "a".repeat(9000)}}), "Regex has 9000 bytes"),
            (json!({"type": "Prepend", "prepend": "a".repeat(300)}), "prepend has 300 bytes"),
            (json!({"type": "Sequence", "normalizers": vec![doubling; 5]}), "16 times"),
            (json!({"normalizers": vec![json!({"type": "NFC"}); 300]}), "more than 256 steps"),
            (json!({"pretokenizers": [{"type": "FixedLength", "length": 0}]}), "length is 0"),
            (precompiled(1 << 31, b"\0\0\0\0"), "its tree lies outside it"),
            (precompiled(6, b"\0\0\0\0\0\0\0\0"), "its tree lies outside it"),
            (precompiled(4, &[&[0; 4][..], &[b'a'; 65]].concat()), "a replacement is too long"),
            (json!({"precompiled_charsmap": "////"}), "has no length"),
            (json!({"precompiled_charsmap": "!"}), "is not base64"),
        ] {
            let error = check("f", &section.to_string()).unwrap_err();
            assert!(error.message().starts_with("f: ") && error.message().contains(word), "{error}");
        }
    }
}
