//! Descriptions of every family with one value changed: a typed error that names a field, or a model that runs.

use std::path::Path;

use serde_json::{Value, json};

use super::cases::{CASES, Case, GGUF_CASES, golden, report};
use super::golden::single;
use crate::backend::cpu::Cpu;
use crate::backend::{BackendLimits, DType};
use crate::error::{Category, Error};
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec;
use crate::model::load::LoadOptions;
use crate::model::memory::memory_plan;

/// Changed files of each kind and family.
const NUM_FILES: usize = 200;
/// More than any tiny model needs, changed or not.
const MAX_BYTES: u64 = 16 << 20;
/// Beginnings of the names that errors give to a spec's fields and to tensors.
const FIELDS: [&str; 19] = [
    "tensor ",
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_positions",
    "embedding.",
    "positions",
    "norm.",
    "block",
    "heads.",
    "attention.",
    "mlp",
    "experts",
    "output",
    "logits.",
    "weights",
    "JSON",
    "num_heads",
];

/// A reproducible sequence of numbers (Steele et al. 2014).
struct SplitMix(u64);

impl SplitMix {
    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) % end as u64) as usize
    }
}

/// Pointers to every value in `value`, the objects and arrays too.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (name, child) in children {
        let pointer = format!("{at}/{name}");
        pointers(child, &pointer, found);
        found.push(pointer);
    }
}

/// Changes one value of `document`; gives its pointer.
fn mutate(document: &mut Value, random: &mut SplitMix) -> String {
    let mut found = Vec::new();
    pointers(document, "", &mut found);
    let pointer = found[random.below(found.len())].clone();
    let other = document.pointer(&found[random.below(found.len())]).cloned();
    let replacements = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(0.5),
        json!(-0.5),
        json!(1e300),
        json!(u64::MAX),
        json!(1u64 << 40),
        json!(4097),
        json!(70_000_000),
        json!(""),
        json!("relu"),
        json!("{layer}"),
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!([null]),
        json!({"kind": "none"}),
    ];
    let target = document.pointer_mut(&pointer).unwrap();
    match random.below(replacements.len() + 4) {
        index if index < replacements.len() => *target = replacements[index].clone(),
        // A value of another field, and one beside the right one.
        index if index < replacements.len() + 2 => *target = other.unwrap(),
        _ => match target.as_u64() {
            Some(number) => *target = json!(number + 1),
            None => remove(document, &pointer),
        },
    }
    pointer
}

fn remove(document: &mut Value, pointer: &str) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.remove(name)),
        Value::Array(items) => drop(items.pop()),
        _ => unreachable!("only these have children"),
    }
}

/// Loads the model of `directory` if it is small, and runs three tokens.
fn run(directory: &Path) -> crate::error::Result<()> {
    let checkpoint = Checkpoint::open(directory)?;
    let spec = load_spec(&checkpoint)?;
    let config = DecoderConfig {
        weight_dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        num_kv_blocks: 2,
        kv_block_size: 5,
        max_model_len: spec.max_positions.min(10),
        limits: BackendLimits { max_tokens: 3, max_slots: 2, vocab_size: spec.vocab_size },
    };
    let backend = Cpu::new(1)?;
    if memory_plan(&backend, &spec, &config)?.total_bytes() > MAX_BYTES {
        // Such a model cannot have its tensors in the little file, which is looked at before memory is taken.
        let error = Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default()).err();
        return Err(error.expect("a model larger than its file loads"));
    }
    let mut decoder = Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default())?;
    let tokens = [0, spec.vocab_size as u32 - 1, 0];
    decoder.forward(&single(&tokens[..config.max_model_len.min(3)], 0, 2))?;
    decoder.collect()?;
    Ok(())
}

/// Whether the error says what is wrong: a field of the document, or what follows from it.
fn names_a_field(error: &Error, pointers: &[String]) -> bool {
    let fields = pointers.iter().flat_map(|pointer| pointer.rsplit('/').next());
    let mut fields = fields.filter(|field| field.len() > 3).chain(FIELDS);
    fields.any(|field| error.message().contains(field))
}

/// Writes `document` with changes as `file` beside the weights of a case, and runs each.
fn check_changes(case: &str, file: &str, document: &Value) -> Result<(), String> {
    let directory = golden("families").join(case);
    let seed =
        case.bytes().chain(file.bytes()).fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
    let mut random = SplitMix(seed);
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(directory.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let mut fields = Vec::new();
    pointers(document, "", &mut fields);
    let mut num_refused = 0;
    for _ in 0..NUM_FILES {
        let mut changed = document.clone();
        let pointer = mutate(&mut changed, &mut random);
        std::fs::write(copy.path().join(file), changed.to_string()).unwrap();
        if let Err(error) = run(copy.path()) {
            let category = error.status().category();
            let what = format!("{case}, {file}, {pointer} = {:?}: {error}", changed.pointer(&pointer));
            if !matches!(category, Category::Model | Category::Resource) || !names_a_field(&error, &fields) {
                return Err(what);
            }
            num_refused += 1;
        }
    }
    if num_refused < NUM_FILES / 10 {
        Err(format!("only {num_refused} changes were refused"))
    } else {
        Ok(())
    }
}

#[test]
fn changed_configs_are_refused_or_run() {
    report(&CASES, |name| {
        let config = std::fs::read(golden("families").join(name).join("config.json")).unwrap();
        check_changes(name, "config.json", &serde_json::from_slice(&config).unwrap())
    });
}

#[test]
fn changed_specs_are_refused_or_run() {
    report(&CASES, |name| {
        let spec = Case::open(name)?.spec;
        check_changes(name, "model_spec.json", &serde_json::to_value(spec).unwrap())
    });
}

#[test]
fn changed_gguf_headers_are_refused_or_run() {
    /// Within these are the metadata, and names and shapes of the first tensors.
    const HEADER_BYTES: usize = 1800;
    report(&GGUF_CASES, |name| {
        let original = std::fs::read(golden("gguf").join(name).join("model.gguf")).unwrap();
        let mut random = SplitMix(original.len() as u64);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        for _ in 0..NUM_FILES {
            let mut bytes = original.clone();
            let at = random.below(HEADER_BYTES);
            bytes[at] = random.below(256) as u8;
            std::fs::write(&path, &bytes).unwrap();
            if let Err(error) = run(&path)
                && !matches!(error.status().category(), Category::Model | Category::Resource)
            {
                return Err(format!("byte {at} = {}: {error}", bytes[at]));
            }
        }
        Ok(())
    });
}
