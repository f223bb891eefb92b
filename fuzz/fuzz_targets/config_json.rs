//! `config.json`, and the same bytes as a `model_spec.json`.
#![no_main]

use inflight_fuzz::{read, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    with_files(&[("config.json", file)], read);
    with_files(&[("model_spec.json", file)], read);
});
