//! What is done once before the first step: choosing the algorithms of matrix products by running prompts of
//! every size, and recording decode steps.

use super::batch::LaunchSizes;
use super::graph::{self, Graph, Graphs};
use super::tensor::Checker;
use super::{Backend, Cuda};
use crate::backend::{BackendLimits, BackendResult, Batch, KvLayout};

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
    let mut num_tokens = limits.max_tokens;
    while num_tokens > 1 {
        if let Some(batch) = prompts(num_tokens, &limits, max_context_len, &layout) {
            run_once(cuda, &batch, operations)?;
        }
        num_tokens = num_tokens.next_power_of_two() / 2;
    }
    // Attention has told how many shares it takes, unless no prompt fits.
    let (_, _, reserved, _) = cuda.reserved(check.operation)?;
    let mut graphs = Graphs::new(max_context_len, reserved.step.num_shares());
    for rows in graph::row_sizes(limits.max_slots).into_iter().take_while(|&rows| rows <= layout.num_blocks) {
        run_once(cuda, &decodes(rows, limits.vocab_size), operations)?;
        let sizes = graphs.launch_sizes(rows);
        graphs.insert(rows, record(cuda, check, sizes, operations)?);
    }
    cuda.graphs = graphs;
    cuda.gpu.synchronize()
}

fn run_once(cuda: &mut Cuda, batch: &Batch, operations: Operations<'_>) -> BackendResult<()> {
    cuda.run_step(batch, operations)?;
    cuda.collect().map(drop)
}

/// Records a step of decodes; a batch of as many rows was the last to run.
fn record(
    cuda: &mut Cuda,
    check: Checker,
    sizes: LaunchSizes,
    operations: Operations<'_>,
) -> BackendResult<Graph> {
    let (_, gpu, reserved, _) = cuda.reserved(check.operation)?;
    reserved.step.batch.launch = sizes;
    reserved.step.is_recording = true;
    Graph::start_recording(gpu)?;
    let worked = reserved.step.prepare(gpu).and_then(|()| operations(cuda, sizes.rows));
    let graph = Graph::end_recording(&cuda.gpu);
    let (_, _, reserved, _) = cuda.reserved(check.operation)?;
    reserved.step.is_recording = false;
    worked.and(graph)
}

/// `rows` decodes at position 0, all sampled.
fn decodes(rows: usize, vocab_size: usize) -> Batch {
    rows_of(rows, 1, 1, vocab_size)
}

/// A batch of `num_tokens` prompt tokens in rows of one size, of which the last may be shorter, all sampled, or `None`
/// where such a batch does not fit.
fn prompts(
    num_tokens: usize,
    limits: &BackendLimits,
    max_context_len: usize,
    layout: &KvLayout,
) -> Option<Batch> {
    let row_tokens = num_tokens.div_ceil(num_tokens.div_ceil(layout.block_size).min(limits.max_slots));
    let row_blocks = row_tokens.div_ceil(layout.block_size);
    let rows = num_tokens.div_ceil(row_tokens);
    let fits = row_tokens <= max_context_len && rows * row_blocks <= layout.num_blocks;
    fits.then(|| rows_of(num_tokens, row_tokens, row_blocks, limits.vocab_size))
}

/// `num_tokens` tokens in rows of `row_tokens`, the last of what is left. Tokens differ: products of equal rows would
/// draw less power and so be timed at a clock that they do not keep.
fn rows_of(num_tokens: usize, row_tokens: usize, row_blocks: usize, vocab_size: usize) -> Batch {
    const STEP: u64 = 2_654_435_761;
    let token = |index: usize| (index as u64 * STEP % vocab_size as u64) as u32;
    let rows = num_tokens.div_ceil(row_tokens);
    let query_starts: Vec<_> = (0..=rows).map(|row| (row * row_tokens).min(num_tokens) as u32).collect();
    Batch {
        slots: (0..rows as u32).collect(),
        context_lens: query_starts.windows(2).map(|ends| ends[1] - ends[0]).collect(),
        query_starts,
        tokens: (0..num_tokens).map(token).collect(),
        block_starts: (0..=rows).map(|row| (row * row_blocks) as u32).collect(),
        block_tables: (0..(rows * row_blocks) as u32).collect(),
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
        let tokens: std::collections::BTreeSet<_> = batch.tokens.iter().collect();
        assert_eq!(tokens.len(), limits.vocab_size);
    }
}
