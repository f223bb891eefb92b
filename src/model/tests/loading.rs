//! Loading of weights: what it allocates, reports and refuses.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};

use super::golden::{config, golden};
use super::naive::Naive;
use crate::backend::{Backend, DType, cpu::Cpu};
use crate::config::{Progress, ProgressCallback};
use crate::error::{Error, Result, Status};
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec;
use crate::model::load::{LoadOptions, load as load_weights};
use crate::model::memory::memory_plan;
use crate::model::spec::ModelSpec;
use crate::model::weights::Weights;
use crate::quant::decode_bf16;

/// A named tensor of a checkpoint that is about to be written.
pub(super) type Named = (String, Dtype, Vec<usize>, Vec<u8>);

/// A copy of a golden directory whose tensors `edit` may change.
pub(super) fn edited(name: &str, edit: impl FnOnce(&mut Vec<Named>)) -> tempfile::TempDir {
    let source = golden(name);
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let mut tensors: Vec<Named> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    edit(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    std::fs::copy(source.join("config.json"), directory.path().join("config.json")).unwrap();
    directory
}

fn open(directory: &Path) -> (Checkpoint, ModelSpec, DecoderConfig) {
    let checkpoint = Checkpoint::open(directory).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let config = config(&spec, DType::Bf16, 9);
    (checkpoint, spec, config)
}

fn load(directory: &Path, progress: Option<&ProgressCallback>) -> Result<Decoder<Naive>> {
    let (checkpoint, spec, config) = open(directory);
    let options = LoadOptions { progress, ..LoadOptions::default() };
    Decoder::load(Naive::default(), &spec, &checkpoint, &config, &options)
}

fn load_error(directory: &tempfile::TempDir) -> Error {
    load(directory.path(), None).err().expect("the load must fail")
}

#[test]
fn the_plan_is_what_loading_allocates() {
    for name in
        ["llama_tiny_mha_untied", "llama_tiny_gqa_tied", "llama_tiny_mqa_wide_heads", "llama_tiny_gguf"]
    {
        for dtype in [DType::F32, DType::Bf16] {
            let (checkpoint, spec, mut config) = open(&golden(name));
            config.weight_dtype = dtype;
            let plan = memory_plan(&Naive::default(), &spec, &config).unwrap();
            let decoder =
                Decoder::load(Naive::default(), &spec, &checkpoint, &config, &LoadOptions::default())
                    .unwrap();
            assert_eq!(decoder.backend().allocated_bytes, plan.total_bytes(), "{name}");
        }
    }
}

#[test]
fn the_plan_refuses_sizes_that_overflow() {
    let (_, spec, config) = open(&golden("llama_tiny_gqa_tied"));
    let changes: [fn(&mut DecoderConfig); 5] = [
        |config| config.num_kv_blocks = usize::MAX,
        |config| config.max_model_len = usize::MAX,
        |config| config.limits.max_tokens = usize::MAX / 2,
        |config| config.kv_block_size = 0,
        |config| config.limits.max_slots = 0,
    ];
    for change in changes {
        let mut config = config;
        change(&mut config);
        let error = memory_plan(&Naive::default(), &spec, &config).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
    }
}

#[test]
fn every_allocation_may_fail() {
    let (checkpoint, spec, config) = open(&golden("llama_tiny_mha_untied"));
    let total = memory_plan(&Naive::default(), &spec, &config).unwrap().total_bytes();
    for limit in (0..total).step_by(997) {
        let backend = Naive::with_limit(limit);
        let error =
            Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default()).err().unwrap();
        assert_eq!(error.status(), Status::DeviceOutOfMemory);
    }
    let backend = Naive::with_limit(total);
    assert!(Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default()).is_ok());
}

#[test]
fn progress_rises_to_the_total_and_can_abort() {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&reports);
    let progress: ProgressCallback = Arc::new(move |report| {
        seen.lock().unwrap().push(report);
        ControlFlow::Continue(())
    });
    load(&golden("llama_tiny_mha_untied"), Some(&progress)).unwrap();
    let reports: Vec<Progress> = reports.lock().unwrap().clone();
    assert_eq!(reports[0].bytes_done, 0);
    assert!(reports.is_sorted_by_key(|report| report.bytes_done));
    let last = reports.last().unwrap();
    assert!(last.bytes_done == last.bytes_total && last.bytes_total > 0);

    for stop_at in [0, 1, reports.len() - 1] {
        let calls = Mutex::new(0);
        let progress: ProgressCallback = Arc::new(move |_| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            if *calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let error = load(&golden("llama_tiny_mha_untied"), Some(&progress)).err().unwrap();
        assert_eq!(error.status(), Status::Aborted);
    }
}

#[test]
fn missing_tensors_are_named() {
    let directory =
        edited("llama_tiny_mha_untied", |tensors| tensors.retain(|(name, ..)| name != "lm_head.weight"));
    let error = load_error(&directory);
    assert_eq!(error.status(), Status::ModelInvalid);
    assert!(error.message().contains("lm_head.weight") && error.message().contains("missing"), "{error}");
}

#[test]
fn leftover_tensors_are_named_unless_harmless() {
    let bias = "model.layers.1.self_attn.q_proj.bias";
    let add = |name: &str| {
        let tensor = (name.to_owned(), Dtype::F32, vec![5], vec![7; 20]);
        edited("llama_tiny_gqa_tied", |tensors| tensors.push(tensor))
    };
    let error = load_error(&add(bias));
    assert_eq!(error.status(), Status::ModelUnsupported);
    assert!(error.message().contains(bias), "{error}");
    load(add("model.layers.1.self_attn.rotary_emb.inv_freq").path(), None).unwrap();
}

#[test]
fn a_tied_head_may_be_there_if_it_is_the_embedding() {
    let head = |change: fn(&mut Named)| {
        edited("llama_tiny_gqa_tied", |tensors| {
            let embedding = tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight");
            let mut head = embedding.unwrap().clone();
            head.0 = "lm_head.weight".to_owned();
            change(&mut head);
            tensors.push(head);
        })
    };
    load(head(|_| ()).path(), None).unwrap();
    let changes: [fn(&mut Named); 3] = [
        |(_, _, _, data)| *data.last_mut().unwrap() ^= 1,
        |(_, _, shape, _)| shape.reverse(),
        |(_, dtype, shape, data)| {
            *dtype = Dtype::F16;
            data.truncate(2 * shape.iter().product::<usize>());
        },
    ];
    for change in changes {
        let error = load_error(&head(change));
        assert_eq!(error.status(), Status::ModelInvalid);
        assert!(error.message().contains("lm_head.weight"), "{error}");
        assert!(error.message().contains("tie_word_embeddings"), "{error}");
    }
}

#[test]
fn wrong_shapes_and_types_are_named() {
    let name = "model.layers.0.mlp.down_proj.weight";
    let set = |dtype: Dtype, shape: &[usize]| {
        let data = vec![7; dtype.bitsize() / 8 * shape.iter().product::<usize>()];
        let tensor = (name.to_owned(), dtype, shape.to_vec(), data);
        edited("llama_tiny_gqa_tied", |tensors| {
            tensors.retain(|(other, ..)| other != name);
            tensors.push(tensor);
        })
    };
    load(set(Dtype::F16, &[36, 53]).path(), None).unwrap();
    for shape in [&[53, 36][..], &[36, 54], &[36 * 53], &[36, 53, 1], &[]] {
        let error = load_error(&set(Dtype::F16, shape));
        assert_eq!(error.status(), Status::ModelInvalid);
        assert!(error.message().contains(name) && error.message().contains("[36, 53]"), "{error}");
    }
    for dtype in [Dtype::I8, Dtype::F64, Dtype::F8_E4M3, Dtype::BOOL] {
        let error = load_error(&set(dtype, &[36, 53]));
        assert_eq!(error.status(), Status::ModelUnsupported);
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error() {
    let directory = edited("llama_tiny_mha_untied", |_| ());
    let (checkpoint, spec, config) = open(directory.path());
    let file = directory.path().join("model.safetensors");
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    let error =
        Decoder::load(Naive::default(), &spec, &checkpoint, &config, &LoadOptions::default()).err().unwrap();
    assert_eq!(error.status(), Status::ModelInvalid);
    assert!(error.message().contains("cut short"), "{error}");
}

/// A checkpoint whose embedding table is larger than what is handed on at a time, with rows that no power of two
/// divides.
fn with_large_embedding(directory: &Path) -> ModelSpec {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 66, "intermediate_size": 34,
        "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 150001, "max_position_embeddings": 8,
        "tie_word_embeddings": true}"#;
    std::fs::write(directory.join("config.json"), config).unwrap();
    let spec = load_spec(&Checkpoint::open(directory).unwrap()).unwrap();
    let plan = Weights::plan(&spec, DType::F32);
    let mut tensors: Vec<Named> = Vec::new();
    let Ok(_) = plan.try_map(&mut |source| {
        for part in source.parts.into_iter().map(|part| part.tensor) {
            let seed = tensors.len() as u32;
            let bytes = (0..part.shape.iter().product::<usize>() as u32)
                // Any bits of a finite number.
                .map(|index| (index ^ seed << 20).wrapping_mul(0x9e37_79b1) as u16 & 0xbfff)
                .flat_map(u16::to_le_bytes);
            tensors.push((part.name, Dtype::BF16, part.shape, bytes.collect()));
        }
        Ok::<_, Infallible>(())
    });
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &directory.join("model.safetensors")).unwrap();
    spec
}

#[test]
fn large_tensors_arrive_whole_whatever_the_number_of_threads() {
    let directory = tempfile::tempdir().unwrap();
    let spec = with_large_embedding(directory.path());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let info = checkpoint.tensor(&spec.weights.embedding).unwrap();
    let mut bytes = vec![0; info.num_bytes as usize];
    checkpoint.read(info, 0, &mut bytes).unwrap();
    let mut expected = vec![f32::NAN; bytes.len() / 2];
    decode_bf16(&bytes, &mut expected);
    for (num_threads, dtype) in [(1, DType::Bf16), (3, DType::Bf16), (2, DType::F32), (0, DType::F32)] {
        let mut backend = Cpu::new(1).unwrap();
        let options = LoadOptions { num_threads, progress: None };
        let loaded = load_weights(&mut backend, &spec, &checkpoint, dtype, &options).unwrap();
        let rows = backend.read_rows(&loaded.embedding, spec.vocab_size).unwrap();
        let first_wrong = rows.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!((rows.len(), first_wrong), (expected.len(), None), "{num_threads} threads, {dtype:?}");
    }
}
