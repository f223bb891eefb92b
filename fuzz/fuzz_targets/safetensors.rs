//! safetensors files; an input that starts with `{` is a shard index instead.
#![no_main]

use inflight_fuzz::{CONFIG, TOKENIZER, read, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let name = if file.starts_with(b"{") { "model.safetensors.index.json" } else { "model.safetensors" };
    let model = [("config.json", CONFIG.as_bytes()), ("tokenizer.json", TOKENIZER.as_bytes())];
    with_files(&[model[0], model[1], (name, file)], read);
});
