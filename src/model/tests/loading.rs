//! Loading of weights: what it allocates, reports and refuses.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};

use super::golden::{config, golden};
use super::naive::Naive;
use crate::backend::DType;
use crate::config::{Progress, ProgressCallback};
use crate::error::{Error, Result, Status};
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec;
use crate::model::memory::memory_plan;
use crate::model::spec::ModelSpec;

/// A named tensor of a checkpoint that is about to be written.
type Named = (String, Dtype, Vec<usize>, Vec<u8>);

/// A copy of a golden directory whose tensors `edit` may change.
fn edited(name: &str, edit: impl FnOnce(&mut Vec<Named>)) -> tempfile::TempDir {
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
    Decoder::load(Naive::default(), &spec, &checkpoint, &config, progress)
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
            let decoder = Decoder::load(Naive::default(), &spec, &checkpoint, &config, None).unwrap();
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
        let error = Decoder::load(backend, &spec, &checkpoint, &config, None).err().unwrap();
        assert_eq!(error.status(), Status::DeviceOutOfMemory);
    }
    let backend = Naive::with_limit(total);
    assert!(Decoder::load(backend, &spec, &checkpoint, &config, None).is_ok());
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
fn a_tied_head_may_be_there_in_the_right_shape() {
    let head = |shape: &[usize]| {
        let data = vec![7; 4 * shape.iter().product::<usize>()];
        let tensor = ("lm_head.weight".to_owned(), Dtype::F32, shape.to_vec(), data);
        edited("llama_tiny_gqa_tied", |tensors| tensors.push(tensor))
    };
    load(head(&[89, 36]).path(), None).unwrap();
    assert!(load_error(&head(&[90, 36])).message().contains("lm_head.weight"));
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
    let error = Decoder::load(Naive::default(), &spec, &checkpoint, &config, None).err().unwrap();
    assert_eq!(error.status(), Status::ModelInvalid);
    assert!(error.message().contains("cut short"), "{error}");
}
