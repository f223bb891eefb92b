//! `tokenizer.json`, and what it makes of a text.
#![no_main]

use inflight_fuzz::{CONFIG, read, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    with_files(&[("config.json", CONFIG.as_bytes()), ("tokenizer.json", file)], read);
});
