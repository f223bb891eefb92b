//! What the fuzz targets share: a model on disk, as the loaders take paths.

use std::path::Path;
use std::sync::Once;

use inflight::format::Checkpoint;
use inflight::model::load_spec;
use inflight::token::{EncodeOptions, Tokenizer};

/// A tokenizer whose tokens are single letters.
pub const TOKENIZER: &str = include_str!("tokenizer.json");
/// A model of two layers.
pub const CONFIG: &str = include_str!("../../tests/golden/llama_tiny_gqa_tied/config.json");

/// Writes the files of a model and calls `work` with its directory. A panic that the library contains is no finding;
/// one that gets out of `work` ends the fuzzer.
pub fn with_files(files: &[(&str, &[u8])], work: impl FnOnce(&Path)) {
    static DEFAULT_HOOK: Once = Once::new();
    // libFuzzer's own hook would abort at either.
    DEFAULT_HOOK.call_once(|| drop(std::panic::take_hook()));
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).expect("a temporary file");
    }
    work(directory.path());
}

/// Reads everything of a model but its weights. Errors are what a fuzzer is meant to cause.
pub fn read(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    let _ = load_spec(&checkpoint);
    let Ok(tokenizer) = Tokenizer::load(&checkpoint) else { return };
    for parse_special in [false, true] {
        let options = EncodeOptions { add_special_tokens: true, parse_special };
        if let Ok(ids) = tokenizer.encode("ab </s> \u{e9}\u{0} 12", options) {
            tokenizer.decode(&ids, false).expect("ids that the tokenizer made");
        }
    }
}
