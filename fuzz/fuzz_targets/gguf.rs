//! GGUF files: header, metadata, tensor table, tokenizer.
#![no_main]

use inflight_fuzz::{read, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| with_files(&[("model.gguf", file)], |path| read(&path.join("model.gguf"))));
