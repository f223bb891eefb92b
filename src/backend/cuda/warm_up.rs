//! What is done once before the first step: choosing the algorithms of matrix products by running prompts of
//! every size, and recording decode steps.

use super::batch::LaunchSizes;
use super::graph::{self, Graph, Graphs};
use super::tensor::Checker;
use super::{Backend, Cuda};
use crate::backend::{BackendLimits, BackendResult, Batch, KvLayout};

/// Times that a step is recorded again which was interrupted, before it is left to run without a recording.
const NUM_RETRIES: usize = 8;

/// Operations of a step.
type Operations<'a> = &'a mut dyn FnMut(&mut Cuda, usize) -> BackendResult<()>;

/// See [`Backend::warm_up`].
pub(super) fn run(
    cuda: &mut Cuda,
    check: Checker,
    max_context_len: usize,
    operations: Operations<'_>,
) -> BackendResult<()> {
    let (_, _, reserved, _) = cuda.reserved(check.operation)?;
    let limits = *reserved.step.limits();
    let Some(layout) = reserved.step.kv_layout().copied() else {
        return check.fail("there is no KV cache".to_owned());
    };
    let mut num_tokens = most_tokens(&limits, max_context_len, &layout);
    while num_tokens > 1 {
        if let Some(batch) = prompts(num_tokens, &limits, max_context_len, &layout) {
            run_once(cuda, &batch, operations)?;
        }
        num_tokens = num_tokens.next_power_of_two() / 2;
    }
    // Attention has told how many shares it takes, unless no prompt fits.
    let (_, _, reserved, _) = cuda.reserved(check.operation)?;
    let mut graphs = Graphs::new(max_context_len, reserved.step.num_shares());
    let max_rows = limits.max_slots.min(layout.num_blocks).min(cuda.kernels.experts.recorded_rows_max());
    let row_sizes = graph::row_sizes(max_rows);
    for &rows in &row_sizes {
        run_once(cuda, &decodes(rows, limits.vocab_size), operations)?;
    }
    // Apart from the runs, so that what the host must not do while a library's work is captured is over soon.
    for rows in row_sizes {
        let (batch, sizes) = (decodes(rows, limits.vocab_size), graphs.launch_sizes(rows));
        let mut graph = None;
        for _ in 0..=NUM_RETRIES {
            graph = record(cuda, check, (&batch, sizes), operations)?;
            if graph.is_some() {
                break;
            }
        }
        match graph {
            Some(graph) => graphs.insert(rows, graph),
            None => graphs.num_missing += 1,
        }
    }
    cuda.gpu.end_capture();
    cuda.graphs = graphs;
    cuda.gpu.synchronize()
}

/// As many tokens as a step can have, so that no prompt falls into a bucket that is timed between others' steps.
fn most_tokens(limits: &BackendLimits, max_context_len: usize, layout: &KvLayout) -> usize {
    limits
        .max_tokens
        .min(limits.max_slots.saturating_mul(max_context_len))
        .min(layout.num_blocks.saturating_mul(layout.block_size))
}

fn run_once(cuda: &mut Cuda, batch: &Batch, operations: Operations<'_>) -> BackendResult<()> {
    cuda.run_step(batch, operations)?;
    cuda.collect().map(drop)
}

/// Records a step like `batch` of the given sizes, as which one has run. `None` where that was interrupted.
fn record(
    cuda: &mut Cuda,
    check: Checker,
    (batch, sizes): (&Batch, LaunchSizes),
    operations: Operations<'_>,
) -> BackendResult<Option<Graph>> {
    let (_, gpu, reserved, _) = cuda.reserved(check.operation)?;
    reserved.step.load(gpu, check, batch)?;
    reserved.step.batch.launch = sizes;
    reserved.step.is_recording = true;
    gpu.start_recording()?;
    let worked = reserved.step.prepare(gpu).and_then(|()| operations(cuda, sizes.rows));
    let recording = cuda.gpu.end_recording();
    let (_, gpu, reserved, _) = cuda.reserved(check.operation)?;
    reserved.step.is_recording = false;
    match worked {
        Ok(()) => recording.map(|recording| Graph::new(gpu, &recording)).transpose(),
        // A host that waits for the whole device has what libraries launch fail.
        Err(_) if !gpu.end_capture() => Ok(None),
        Err(error) => Err(error),
    }
}

/// `rows` decodes at position 0, all sampled.
fn decodes(rows: usize, vocab_size: usize) -> Batch {
    rows_of(rows, 1, 1, vocab_size)
}

/// A batch of `num_tokens` prompt tokens in rows of one size, of which the last may be shorter, all sampled, or `None`
/// where such a batch does not fit: in many short rows, or else in rows of whole blocks.
fn prompts(
    num_tokens: usize,
    limits: &BackendLimits,
    max_context_len: usize,
    layout: &KvLayout,
) -> Option<Batch> {
    let block_size = layout.block_size;
    let shortest = num_tokens.div_ceil(num_tokens.div_ceil(block_size).min(limits.max_slots));
    let fits = |&row_tokens: &usize| {
        let last_blocks = (num_tokens - 1) % row_tokens / block_size + 1;
        let num_blocks = (num_tokens - 1) / row_tokens * row_tokens.div_ceil(block_size) + last_blocks;
        row_tokens <= max_context_len && num_blocks <= layout.num_blocks
    };
    let row_tokens = [shortest, shortest.next_multiple_of(block_size)].into_iter().find(fits)?;
    Some(rows_of(num_tokens, row_tokens, block_size, limits.vocab_size))
}

/// `num_tokens` tokens in rows of `row_tokens`, the last of what is left, in blocks of `block_size`. Tokens differ:
/// products of equal rows would draw less power and so be timed at a clock that they do not keep.
fn rows_of(num_tokens: usize, row_tokens: usize, block_size: usize, vocab_size: usize) -> Batch {
    const STEP: u64 = 2_654_435_761;
    let token = |index: usize| (index as u64 * STEP % vocab_size as u64) as u32;
    let rows = num_tokens.div_ceil(row_tokens);
    let query_starts: Vec<_> = (0..=rows).map(|row| (row * row_tokens).min(num_tokens) as u32).collect();
    let context_lens: Vec<_> = query_starts.windows(2).map(|ends| ends[1] - ends[0]).collect();
    let mut block_starts = vec![0];
    for context_len in &context_lens {
        block_starts.push(block_starts[block_starts.len() - 1] + context_len.div_ceil(block_size as u32));
    }
    Batch {
        slots: (0..rows as u32).collect(),
        context_lens,
        query_starts,
        tokens: (0..num_tokens).map(token).collect(),
        block_tables: (0..block_starts[rows]).collect(),
        block_starts,
        sampled_rows: (0..rows as u32).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::DType;

    #[test]
    fn prompts_fill_the_batch_where_they_fit() {
        let limits = BackendLimits { max_tokens: 8192, max_slots: 64, vocab_size: 10 };
        let layout = |num_blocks| KvLayout {
            num_layers: 1,
            num_blocks,
            block_size: 64,
            num_kv_heads: 1,
            head_dim: 64,
            dtype: DType::Bf16,
        };
        let batch = prompts(8192, &limits, 2048, &layout(128)).unwrap();
        assert_eq!((batch.num_rows(), batch.num_tokens(), batch.block_tables.len()), (64, 8192, 128));
        assert_eq!((batch.query_range(63), batch.blocks(63)), (8064..8192, &[126, 127][..]));
        assert!(prompts(8192, &limits, 2048, &layout(127)).is_none());
        assert!(prompts(8192, &limits, 100, &layout(128)).is_none());
        assert_eq!(prompts(48, &limits, 2048, &layout(1)).unwrap().num_tokens(), 48);
        // Every token of the limit, so that its bucket is the one that is timed.
        let batch = prompts(4100, &limits, 2048, &layout(128)).unwrap();
        assert_eq!((batch.num_rows(), batch.num_tokens()), (64, 4100));
        assert_eq!((batch.query_range(63), batch.context_lens[63]), (4095..4100, 5));
        // One sequence of a context that is no power of two; a pool of fewer tokens than a step may have.
        let one = BackendLimits { max_slots: 1, ..limits };
        for (limits, layout, expected) in [(one, layout(128), 6000), (limits, layout(90), 5760)] {
            let num_tokens = most_tokens(&limits, 6000, &layout);
            assert_eq!(num_tokens, expected);
            assert_eq!(prompts(num_tokens, &limits, 6000, &layout).unwrap().num_tokens(), expected);
        }
        // Two rows of 96 tokens would take two blocks each; one of 128 and one of 64 take the three that there are.
        let two = BackendLimits { max_slots: 2, ..limits };
        let batch = prompts(192, &two, 2048, &layout(3)).unwrap();
        assert_eq!((batch.query_range(1), batch.blocks(1)), (128..192, &[2][..]));
        let tokens: std::collections::BTreeSet<_> = batch.tokens.iter().collect();
        assert_eq!(tokens.len(), limits.vocab_size);
    }
}
