use super::*;
use crate::backend::{Activation, ExpertWeighting, Gating, QkvProjection, RopePairing, RouterScoring};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

const VOCAB_SIZE: usize = 3;

/// Keeps f32 tensors, samples the first column, and writes down which methods ran.
#[derive(Default)]
struct Recorder {
    ran: Vec<&'static str>,
    num_sampled: usize,
    results: VecDeque<Vec<Sampled>>,
}

type Matrix = Vec<f32>;

impl Recorder {
    fn note(&mut self, method: &'static str) -> BackendResult<()> {
        self.ran.push(method);
        Ok(())
    }
}

impl Backend for Recorder {
    type Tensor = Matrix;
    type KvCache = ();

    fn activation_dtype(&self, weights: DType) -> DType {
        weights
    }

    fn workspace_sizes(&self, limits: &BackendLimits, num_kv_blocks: usize) -> Vec<u64> {
        vec![limits.max_tokens as u64, num_kv_blocks as u64]
    }

    fn reserve(&mut self, _: &BackendLimits) -> BackendResult<()> {
        self.note("reserve")
    }

    fn alloc(&mut self, _: DType, rows: usize, columns: usize) -> BackendResult<Matrix> {
        self.note("alloc")?;
        Ok(vec![0.0; rows * columns])
    }

    fn write_rows(&mut self, tensor: &mut Matrix, first_row: usize, bytes: &[u8]) -> BackendResult<()> {
        self.note("write_rows")?;
        for (value, bytes) in tensor[first_row * VOCAB_SIZE..].iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes(bytes.try_into().unwrap());
        }
        Ok(())
    }

    fn read_rows(&mut self, tensor: &Matrix, rows: usize) -> BackendResult<Vec<f32>> {
        self.note("read_rows")?;
        Ok(tensor[..rows * VOCAB_SIZE].to_vec())
    }

    fn alloc_kv_cache(&mut self, _: &KvLayout) -> BackendResult<()> {
        self.note("alloc_kv_cache")
    }

    fn reset_slot(&mut self, _: u32, _: &SlotState) -> BackendResult<()> {
        self.note("reset_slot")
    }

    fn load_batch(&mut self, batch: &Batch) -> BackendResult<()> {
        self.num_sampled = batch.num_sampled();
        self.note("load_batch")
    }

    fn embed(&mut self, _: &Embedding<'_, Matrix>, _: &mut Matrix) -> BackendResult<()> {
        self.note("embed")
    }

    fn add_norm(
        &mut self,
        _: &mut Matrix,
        _: [Option<Delta<'_, Matrix>>; 2],
        _: &Norm<'_, Matrix>,
        _: &mut Matrix,
        _: usize,
    ) -> BackendResult<()> {
        self.note("add_norm")
    }

    fn norm_add(
        &mut self,
        _: Delta<'_, Matrix>,
        _: &Norm<'_, Matrix>,
        _: &mut Matrix,
        _: usize,
    ) -> BackendResult<()> {
        self.note("norm_add")
    }

    fn linear(&mut self, _: &Matrix, _: &Matrix, _: &mut Matrix, _: usize) -> BackendResult<()> {
        self.note("linear")
    }

    fn rope_and_write_kv(
        &mut self,
        _: &mut Matrix,
        _: &QkvTransform<'_, Matrix>,
        _: &AttentionShape,
        _: &mut (),
        _: usize,
    ) -> BackendResult<()> {
        self.note("rope_and_write_kv")
    }

    fn attention(
        &mut self,
        _: &Matrix,
        _: &AttentionShape,
        _: &Scoring,
        _: &(),
        _: usize,
        _: &mut Matrix,
    ) -> BackendResult<()> {
        self.note("attention")
    }

    fn keep_sampled(&mut self, _: &mut [&mut Matrix], rows: usize) -> BackendResult<usize> {
        self.note("keep_sampled")?;
        Ok(rows - 1)
    }

    fn activate(
        &mut self,
        _: &Matrix,
        _: &Activate<'_, Matrix>,
        _: &mut Matrix,
        _: usize,
    ) -> BackendResult<()> {
        self.note("activate")
    }

    fn mix_experts(
        &mut self,
        _: &Matrix,
        _: &Matrix,
        _: &Mixture<'_, Matrix>,
        _: &mut Matrix,
        _: usize,
    ) -> BackendResult<()> {
        self.note("mix_experts")
    }

    fn logits(&mut self, _: &Matrix, _: &Head<'_, Matrix>, out: &mut Matrix) -> BackendResult<()> {
        out.iter_mut().enumerate().for_each(|(index, value)| *value = index as f32 + 1.0);
        self.note("logits")
    }

    fn sample(&mut self, logits: &Matrix) -> BackendResult<()> {
        let rows = logits.chunks(VOCAB_SIZE).take(self.num_sampled).enumerate();
        let sampled = rows.map(|(row, logits)| Sampled {
            slot: row as u32,
            token: (!logits[0].is_nan()).then_some(logits[0] as u32),
            logprobs: vec![],
        });
        self.results.push_back(sampled.collect());
        self.note("sample")
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        self.note("collect")?;
        Ok(self.results.pop_front().unwrap())
    }
}

/// Calls each operation once, in the order of [`Operation::ALL`]; returns the tokens of its two rows.
fn run_all(backend: &mut Faulty<Recorder>) -> BackendResult<Vec<Option<u32>>> {
    backend.reserve(&BackendLimits { max_tokens: 2, max_slots: 2, vocab_size: VOCAB_SIZE })?;
    let mut a = backend.alloc(DType::F32, 2, VOCAB_SIZE)?;
    let mut out = a.clone();
    backend.write_rows(&mut a, 1, &2.5f32.to_le_bytes())?;
    assert_eq!(backend.read_rows(&a, 2)?, [0.0, 0.0, 0.0, 2.5, 0.0, 0.0]);
    let layout = KvLayout {
        num_layers: 1,
        num_blocks: 1,
        block_size: 16,
        num_kv_heads: 1,
        head_dim: 2,
        dtype: DType::F32,
    };
    backend.alloc_kv_cache(&layout)?;
    backend.reset_slot(0, &SlotState::GREEDY)?;
    backend.load_batch(&Batch { slots: vec![0, 1], sampled_rows: vec![0, 1], ..Batch::new() })?;
    step(backend, &a, &mut out)
}

fn step(backend: &mut Faulty<Recorder>, a: &Matrix, out: &mut Matrix) -> BackendResult<Vec<Option<u32>>> {
    let shape = AttentionShape { num_heads: 1, num_kv_heads: 1, head_dim: 2, scale: 1.0 };
    let norm = Norm::rms(a, 1e-5);
    backend.embed(&Embedding::plain(a), out)?;
    backend.add_norm(&mut a.clone(), [None; 2], &norm, out, 2)?;
    backend.norm_add(Delta::plain(a), &norm, out, 2)?;
    backend.linear(a, a, out, 2)?;
    let transform = QkvTransform::rotate(a, RopePairing::Half);
    backend.rope_and_write_kv(out, &transform, &shape, &mut (), 0)?;
    backend.attention(a, &shape, &Scoring::default(), &(), 0, out)?;
    assert_eq!(backend.keep_sampled(&mut [out], 2)?, 1);
    backend.activate(a, &Activate::gated(Activation::Silu), out, 2)?;
    let mixture = Mixture {
        up: a,
        down: a,
        num_experts: 2,
        num_chosen: 1,
        scoring: RouterScoring::Softmax,
        weighting: ExpertWeighting::Normalized,
        scale: 1.0,
        function: Activation::Silu,
        gating: Gating::Plain,
        shared: None,
    };
    backend.mix_experts(a, a, &mixture, out, 2)?;
    backend.logits(a, &Head::plain(a), out)?;
    backend.sample(out)?;
    Ok(backend.collect()?.into_iter().map(|sampled| sampled.token).collect())
}

fn faulty(at_call: u64, kind: FaultKind) -> Faulty<Recorder> {
    Faulty::new(Recorder::default(), FaultPlan::new(at_call, kind))
}

fn num_calls(backend: &Faulty<Recorder>) -> u64 {
    backend.num_calls().load(Ordering::Relaxed)
}

#[test]
fn without_a_fault_every_call_goes_through_and_counts() {
    let mut backend = Faulty::new(Recorder::default(), FaultPlan::none());
    assert_eq!(run_all(&mut backend).unwrap(), [Some(1), Some(4)]);
    assert_eq!(backend.inner.ran, Operation::ALL.map(Operation::name));
    assert_eq!(num_calls(&backend), 19);
    assert_eq!(backend.activation_dtype(DType::Bf16), DType::Bf16);
    let limits = BackendLimits { max_tokens: 7, max_slots: 1, vocab_size: 1 };
    assert_eq!(backend.workspace_sizes(&limits, 2), [7, 2]);
    assert_eq!(num_calls(&backend), 19);
}

#[test]
fn fused_operations_count_as_their_parts() {
    let mut backend = Faulty::new(Recorder::default(), FaultPlan::none());
    let (a, mut b, mut c) = (vec![], vec![], vec![]);
    let shape = AttentionShape { num_heads: 1, num_kv_heads: 1, head_dim: 2, scale: 1.0 };
    let transform = QkvTransform::rotate(&a, RopePairing::Half);
    let projection = QkvProjection { weight: &a, transform, shape: &shape };
    backend.linear_qkv(&a, &projection, &mut b, &mut (), 0, 2).unwrap();
    backend.linear_activate(&a, &a, &Activate::gated(Activation::Silu), (&mut b, &mut c), 2).unwrap();
    assert_eq!(backend.inner.ran, ["linear", "rope_and_write_kv", "linear", "activate"]);
    assert_eq!(num_calls(&backend), 4);
}

#[test]
fn a_lost_device_stays_lost() {
    for (index, operation) in Operation::ALL.into_iter().enumerate() {
        let mut backend = faulty(index as u64 + 1, FaultKind::DeviceLost);
        let error = run_all(&mut backend).unwrap_err();
        let name = operation.name();
        assert!(matches!(error, BackendError::DeviceLost { operation, .. } if operation == name), "{error}");
        assert_eq!(backend.inner.ran.len(), index, "nothing reaches the device from {name} on");
        for _ in 0..3 {
            assert!(matches!(
                run_all(&mut backend),
                Err(BackendError::DeviceLost { operation: "reserve", .. })
            ));
            assert!(matches!(backend.collect(), Err(BackendError::DeviceLost { operation: "collect", .. })));
        }
        assert_eq!(backend.inner.ran.len(), index);
    }
}

#[test]
fn a_shortage_passes() {
    for (index, operation) in Operation::ALL.into_iter().enumerate() {
        let mut backend = faulty(index as u64 + 1, FaultKind::OutOfMemory);
        match run_all(&mut backend) {
            Err(BackendError::OutOfMemory { what, .. }) => {
                assert_eq!(what, format!("injected fault in {}", operation.name()));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(backend.inner.ran.len(), index);
        backend.inner.results.clear();
        assert_eq!(run_all(&mut backend).unwrap(), [Some(1), Some(4)]);
    }
}

#[test]
fn a_delay_holds_one_call_up() {
    let duration = Duration::from_millis(30);
    let mut backend = faulty(9, FaultKind::Delay(duration));
    let start = Instant::now();
    assert_eq!(run_all(&mut backend).unwrap(), [Some(1), Some(4)]);
    assert!(start.elapsed() >= duration);
}

#[test]
fn a_panic_names_the_operation() {
    let mut backend = faulty(11, FaultKind::Panic);
    let panic = catch_unwind(AssertUnwindSafe(|| run_all(&mut backend))).unwrap_err();
    assert_eq!(panic.downcast_ref::<String>().unwrap(), "injected panic in linear");
}

#[test]
fn corrupt_logits_hit_one_row_once() {
    for (row, expected) in [(0, [None, Some(4)]), (1, [Some(1), None]), (9, [Some(1), None])] {
        for at_call in [1, 8, 17] {
            let mut backend = faulty(at_call, FaultKind::CorruptLogits { row });
            assert_eq!(run_all(&mut backend).unwrap(), expected);
            assert_eq!(run_all(&mut backend).unwrap(), [Some(1), Some(4)]);
        }
        // Planned after the logits of the first run, so that it hits those of the second.
        let mut backend = faulty(18, FaultKind::CorruptLogits { row });
        assert_eq!(run_all(&mut backend).unwrap(), [Some(1), Some(4)]);
        assert_eq!(run_all(&mut backend).unwrap(), expected);
    }
}

#[test]
fn corruption_waits_for_a_step_that_samples() {
    let mut backend = faulty(1, FaultKind::CorruptLogits { row: 0 });
    let a = vec![0.5; 2 * VOCAB_SIZE];
    let mut out = a.clone();
    backend.reserve(&BackendLimits { max_tokens: 2, max_slots: 2, vocab_size: VOCAB_SIZE }).unwrap();
    backend.load_batch(&Batch { slots: vec![0], ..Batch::new() }).unwrap();
    assert_eq!(step(&mut backend, &a, &mut out).unwrap(), []);
    backend.load_batch(&Batch { slots: vec![0], sampled_rows: vec![0], ..Batch::new() }).unwrap();
    assert_eq!(step(&mut backend, &a, &mut out).unwrap(), [None]);
}

#[test]
fn a_plan_can_count_one_operation_alone() {
    let plan = FaultPlan { operation: Some(Operation::Linear), ..FaultPlan::new(2, FaultKind::DeviceLost) };
    let mut backend = Faulty::new(Recorder::default(), plan);
    assert!(run_all(&mut backend).is_ok());
    assert_eq!(num_calls(&backend), 1);
    assert!(matches!(run_all(&mut backend), Err(BackendError::DeviceLost { operation: "linear", .. })));
    assert_eq!(num_calls(&backend), 2);
    assert!(matches!(backend.collect(), Err(BackendError::DeviceLost { operation: "collect", .. })));
}
