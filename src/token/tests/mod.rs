//! Tests of the whole text layer: golden ids of a real model, small models of each kind, hostile input.

mod chat_encoding;
mod golden;
mod hf;
mod hostile;

use std::path::Path;

use super::*;

const PLAIN: EncodeOptions = EncodeOptions { add_special_tokens: false, parse_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { add_special_tokens: false, parse_special: true };
const COMPLETE: EncodeOptions = EncodeOptions { add_special_tokens: true, parse_special: true };

/// A model directory with the given files.
fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

fn load(directory: &Path) -> Result<Tokenizer> {
    super::hf::load(directory)
}
