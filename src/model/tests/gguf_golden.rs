//! A tiny GGUF file of every architecture that is read: its logits are those of the model it was made of.

use super::families_golden::{BF16_TOLERANCE, Case, F32_TOLERANCE, check_logits, report};
use super::golden::golden;
use crate::backend::DType;

/// Directories of `tests/golden/gguf`.
pub(super) const CASES: [&str; 18] = [
    "bloom",
    "falcon_40b",
    "falcon_7b",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "mistral",
    "mixtral",
    "phi2",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "starcoder",
    "starcoder2",
];

#[test]
fn logits_are_those_of_transformers() {
    report(&CASES, |name| {
        let directory = golden("gguf").join(name);
        let case = Case::open_file(&directory, &directory.join("model.gguf"))?;
        check_logits(&case, DType::F32, F32_TOLERANCE)?;
        check_logits(&case, DType::Bf16, BF16_TOLERANCE)
    });
}
