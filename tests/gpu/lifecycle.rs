//! Creation, destruction, and batches that do not fit.

use std::io::Write;

use inflight::backend::{Backend, BackendLimits, DType, KvLayout};
use inflight::format::Checkpoint;
use inflight::model::{Decoder, DecoderConfig, LoadOptions, load_spec, memory_plan};
use inflight::{Error, Status};

use crate::rig::*;

const LIMITS: BackendLimits = BackendLimits { max_tokens: 64, max_slots: 4, vocab_size: 100 };

fn layout() -> KvLayout {
    KvLayout {
        num_layers: 2,
        num_blocks: 10,
        block_size: 16,
        num_kv_heads: 2,
        head_dim: 64,
        dtype: DType::Bf16,
    }
}

#[test]
fn destroying_returns_all_memory() {
    let observer = gpu();
    // The driver keeps some memory of its own from the first use on.
    drop(filled());
    let (before, _) = observer.memory_info().unwrap();
    for _ in 0..20 {
        drop(filled());
    }
    let (after, _) = observer.memory_info().unwrap();
    assert_eq!(before, after);
}

fn filled() -> inflight::backend::cuda::Cuda {
    let mut gpu = gpu();
    gpu.alloc_kv_cache(&layout()).unwrap();
    gpu.alloc(DType::Bf16, 4096, 4096).unwrap();
    gpu.alloc(DType::F32, 3, 5).unwrap();
    gpu.reserve(&LIMITS).unwrap();
    gpu
}

#[test]
fn the_workspace_is_as_large_as_it_says() {
    let mut gpu = gpu();
    gpu.alloc_kv_cache(&layout()).unwrap();
    let limits = BackendLimits { max_tokens: 8192, max_slots: 512, vocab_size: 128_256 };
    let before = gpu.taken_bytes();
    gpu.reserve(&limits).unwrap();
    let taken = gpu.taken_bytes() - before;
    let said = gpu.allocated_bytes(&gpu.workspace_sizes(&limits, layout().num_blocks)).unwrap();
    // The small cache may have left room in a chunk.
    assert!(taken <= said && said - taken <= 16 << 20, "{taken} bytes, said {said}");
}

/// Matrices of a megabyte or two, which would fill granules of the driver's memory badly one by one.
#[test]
fn the_plan_counts_how_small_matrices_are_packed() {
    let vocab_size = 8192;
    let mut file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    let description = serde_json::json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": vocab_size,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    file.write_all(description.to_string().as_bytes()).unwrap();
    let checkpoint = Checkpoint::random(file.path(), 1);
    let spec = load_spec(&checkpoint).unwrap();
    let config = DecoderConfig {
        weight_dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        num_kv_blocks: 10,
        kv_block_size: 64,
        max_model_len: 256,
        limits: BackendLimits { max_tokens: 128, max_slots: 4, vocab_size },
    };
    let plan = memory_plan(&gpu(), &spec, &config).unwrap();
    let decoder = Decoder::load(gpu(), &spec, &checkpoint, &config, &LoadOptions::default()).unwrap();
    let taken = decoder.backend().taken_bytes();
    assert_eq!(taken, plan.total_bytes());
}

#[test]
fn more_memory_than_there_is_is_a_value() {
    let mut gpu = gpu();
    let error = gpu.alloc(DType::Bf16, 1 << 24, 1 << 16).map(|_| ()).unwrap_err();
    assert!(matches!(error, inflight::backend::BackendError::OutOfMemory { .. }), "{error}");
    assert!(gpu.alloc(DType::Bf16, usize::MAX, 8).is_err());
    assert!(gpu.alloc(DType::Bf16, 8, 8).is_ok(), "the backend lives on");
}

#[test]
fn there_is_no_device_of_that_number() {
    let error = inflight::backend::cuda::Cuda::new(1000).map(|_| ()).unwrap_err();
    assert_eq!(error.status(), inflight::Status::DeviceUnavailable, "{error}");
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let mut gpu = gpu();
    assert!(gpu.load_batch(&inflight::backend::Batch::new()).is_err(), "nothing was reserved");
    gpu.alloc_kv_cache(&layout()).unwrap();
    gpu.reserve(&LIMITS).unwrap();
    let row = || BatchRow { slot: 1, tokens: vec![5; 3], context_len: 3, blocks: vec![4] };
    assert!(gpu.load_batch(&batch(&[row()], &[0])).is_ok());
    let bad = [
        BatchRow { slot: 4, ..row() },
        BatchRow { tokens: vec![100], ..row() },
        BatchRow { tokens: vec![1; 65], context_len: 65, blocks: vec![0, 1, 2, 3, 4], ..row() },
        BatchRow { context_len: 2, ..row() },
        BatchRow { context_len: 17, ..row() },
        BatchRow { blocks: vec![10], ..row() },
        BatchRow { tokens: vec![], ..row() },
    ];
    for (case, row) in bad.into_iter().enumerate() {
        assert!(gpu.load_batch(&batch(&[row], &[0])).is_err(), "case {case}");
    }
    assert!(gpu.load_batch(&batch(&[row(), row()], &[0])).is_err(), "a slot stands twice");
    assert!(gpu.load_batch(&batch(&[row()], &[1])).is_err(), "no such row");
    let mut broken = batch(&[row()], &[0]);
    broken.query_starts = vec![0, 9];
    assert!(gpu.load_batch(&broken).is_err(), "starts leave the tokens");
    assert!(gpu.load_batch(&batch(&[row()], &[0])).is_ok());
}

#[test]
fn rows_are_written_and_filled_through_buffers_in_turns() {
    const COLUMNS: usize = 1031;
    let row_bytes = 2 * COLUMNS;
    let mut gpu = gpu();
    let mut random = Random(21);
    // Rows of pieces, below and above what a buffer holds at first (4 MiB), growing and shrinking.
    let pieces = sizes(&[1, 2000, 3, 2100, 5000, 1, 4999, 2, 2, 2500], 2100);
    let num_rows = pieces.iter().sum();
    let mut tensor = gpu.alloc(DType::Bf16, num_rows, COLUMNS).unwrap();
    let expected = rounded(DType::Bf16, &random.values(num_rows * COLUMNS, 4.0));
    let all = bytes(DType::Bf16, &expected);
    let mut first_row = 0;
    for (index, rows) in pieces.into_iter().enumerate() {
        let piece = &all[first_row * row_bytes..(first_row + rows) * row_bytes];
        // A fill that fails leaves buffers and other rows as they are.
        let mut fail = |target: &mut [u8]| {
            target.fill(0xff);
            Err(Error::new(Status::Aborted, "no more"))
        };
        let error = gpu.fill_rows(&mut tensor, first_row, piece.len(), &mut fail).unwrap_err();
        assert_eq!(error.status(), Status::Aborted);
        match index % 3 {
            0 => gpu.write_rows(&mut tensor, first_row, piece).unwrap(),
            _ => {
                let mut fill = |target: &mut [u8]| {
                    target.copy_from_slice(piece);
                    Ok(())
                };
                gpu.fill_rows(&mut tensor, first_row, piece.len(), &mut fill).unwrap();
            }
        }
        first_row += rows;
    }
    assert!(gpu.read_rows(&tensor, num_rows).unwrap() == expected, "rows went astray");
    assert!(gpu.fill_rows(&mut tensor, 1, num_rows * row_bytes, &mut |_| panic!("filled")).is_err());
    assert!(gpu.fill_rows(&mut tensor, 0, row_bytes - 1, &mut |_| panic!("filled")).is_err());
}
