//! Which normalizers are accepted: a text may grow by a bounded factor, so that a small prompt cannot take all
//! memory.

use serde_json::Value;

use crate::error::Result;
use crate::token::limits::invalid;

/// Most bytes that one byte of text may become.
const GROWTH_MAX: usize = 64;
/// Most steps.
const NUM_STEPS_MAX: usize = 64;
/// Longest text that a step puts in front.
const PREFIX_BYTES_MAX: usize = 256;

/// Checks the section `normalizer`, whose JSON is known to be small.
pub(crate) fn check(place: &str, json: &str) -> Result<()> {
    let section = serde_json::from_str(json).map_err(|error| invalid(place, error))?;
    let mut steps = Vec::new();
    collect(&section, &mut steps);
    if steps.len() > NUM_STEPS_MAX {
        return Err(invalid(place, format!("{} steps; at most {NUM_STEPS_MAX} are allowed", steps.len())));
    }
    let mut growth = 1usize;
    for step in steps {
        let text = |field: &str| step.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("prepend").len() > PREFIX_BYTES_MAX {
            return Err(invalid(place, format!("Prepend of more than {PREFIX_BYTES_MAX} bytes")));
        }
        if step.get("type").and_then(Value::as_str) == Some("Replace") {
            // A regular expression may match a single byte, or nothing before every byte.
            let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
            let pattern_bytes = pattern.map_or(1, str::len).max(1);
            let empty_matches = usize::from(pattern.is_none());
            growth =
                growth.saturating_mul(text("content").len().div_ceil(pattern_bytes).max(1) + empty_matches);
        }
        if growth > GROWTH_MAX {
            return Err(invalid(place, format!("replacements let a text grow more than {GROWTH_MAX} times")));
        }
    }
    Ok(())
}

/// The steps in a section, with those of sequences one by one.
fn collect<'a>(section: &'a Value, steps: &mut Vec<&'a Value>) {
    match section.get("normalizers").and_then(Value::as_array) {
        Some(normalizers) => normalizers.iter().for_each(|inner| collect(inner, steps)),
        None => steps.push(section),
    }
}
