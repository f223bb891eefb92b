//! Files with random bytes changed: they load and run, or give a typed error; they never panic, and never
//! make the decoder allocate beyond its backend's limit.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};

use super::golden::{config, golden, single};
use super::naive::Naive;
use crate::backend::DType;
use crate::error::{Category, Result};
use crate::format::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::families::load_spec;
use crate::model::load::LoadOptions;

/// Loads the checkpoint at `path` into a small backend and runs a token.
fn run(path: &std::path::Path) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let spec = load_spec(&checkpoint)?;
    let config = config(&spec, DType::Bf16, 2);
    let mut decoder =
        Decoder::load(Naive::with_limit(1 << 20), &spec, &checkpoint, &config, &LoadOptions::default())?;
    decoder.forward(&single(&[0], 0, config.num_kv_blocks as u32))?;
    decoder.collect()?;
    Ok(())
}

fn assert_contained(path: &std::path::Path) {
    if let Err(error) = run(path) {
        let category = error.status().category();
        assert!(matches!(category, Category::Model | Category::Resource), "{error}");
    }
}

/// Puts `byte` at each position, counted within the first `range` bytes.
fn mutate(bytes: &mut [u8], range: usize, edits: &[(usize, u8)]) {
    for &(at, byte) in edits {
        bytes[at % range] = byte;
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn gguf_headers(edits in vec((any::<usize>(), any::<u8>()), 1..4)) {
        const HEADER_BYTES: usize = 1800;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let mut bytes = std::fs::read(golden("llama_tiny_gguf/model.gguf")).unwrap();
        mutate(&mut bytes, HEADER_BYTES, &edits);
        std::fs::write(&path, bytes).unwrap();
        assert_contained(&path);
    }

    #[test]
    fn configs(edits in vec((any::<usize>(), 0x20u8..0x7f), 1..3)) {
        let directory = tempfile::tempdir().unwrap();
        let source = golden("llama_tiny_yarn");
        std::fs::copy(source.join("model.safetensors"), directory.path().join("model.safetensors")).unwrap();
        let mut bytes = std::fs::read(source.join("config.json")).unwrap();
        let range = bytes.len();
        mutate(&mut bytes, range, &edits);
        std::fs::write(directory.path().join("config.json"), bytes).unwrap();
        assert_contained(directory.path());
    }

    #[test]
    fn safetensors_headers(edits in vec((any::<usize>(), any::<u8>()), 1..3)) {
        const HEADER_BYTES: usize = 2000;
        let directory = tempfile::tempdir().unwrap();
        let source = golden("llama_tiny_yarn");
        std::fs::copy(source.join("config.json"), directory.path().join("config.json")).unwrap();
        let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
        mutate(&mut bytes, HEADER_BYTES, &edits);
        std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
        assert_contained(directory.path());
    }
}
