//! Recorded decode steps: CUDA graphs, one per size of batch, that the host launches as a whole.
//!
//! A graph holds the launches of a step with their grids and addresses. What differs between steps of one size
//! lies in device arrays at fixed places; blocks of a grid that the batch does not fill end at once.

use std::collections::BTreeMap;
use std::ptr;

use cudarc::driver::sys;

use super::batch::{LaunchSizes, LoadedBatch};
use super::driver::Gpu;
use super::plan::AttentionPlan;
use super::recording::Recording;
use crate::backend::BackendResult;

const OPERATION: &str = "record_graph";

/// A launchable graph.
pub(super) struct Graph {
    exec: sys::CUgraphExec,
}

// SAFETY: graph handles may be used from any thread, by one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Makes a graph of what was recorded.
    pub(super) fn new(gpu: &Gpu, recording: &Recording) -> BackendResult<Graph> {
        let mut exec = ptr::null_mut();
        // SAFETY: the pointer is to a local and the nodes live; the executable graph does not need them.
        let instantiated = unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, recording.graph(), 0) };
        gpu.check(OPERATION, instantiated)?;
        let graph = Graph { exec };
        // SAFETY: graph and stream live, in one context.
        gpu.check(OPERATION, unsafe { sys::cuGraphUpload(graph.exec, gpu.stream()) })?;
        Ok(graph)
    }

    /// Puts the recorded work on the stream.
    pub(super) fn launch(&self, gpu: &Gpu) -> BackendResult<()> {
        // SAFETY: graph and stream live, in one context.
        gpu.check("launch_graph", unsafe { sys::cuGraphLaunch(self.exec, gpu.stream()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the backend waits for its stream before it drops its graphs; an error changes nothing.
        let _ = unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}

/// The recorded steps of a backend: decodes that are all sampled, by their largest numbers of rows.
#[derive(Default)]
pub(super) struct Graphs {
    graphs: BTreeMap<usize, Graph>,
    /// Sizes that could not be recorded.
    pub(super) num_missing: usize,
    /// Contexts up to which the recorded operations were checked.
    max_context_len: usize,
    /// Shares of attention that the operations were recorded for at the most.
    max_shares: usize,
}

impl Graphs {
    /// An empty set for contexts of up to `max_context_len` tokens and up to `max_shares` shares of attention.
    pub(super) fn new(max_context_len: usize, max_shares: usize) -> Graphs {
        Graphs { max_context_len, max_shares, ..Graphs::default() }
    }

    /// What a step of up to `rows` rows is launched for.
    pub(super) fn launch_sizes(&self, rows: usize) -> LaunchSizes {
        let num_shares = AttentionPlan::num_shares(rows, self.max_context_len, self.max_shares);
        LaunchSizes::decodes(rows, num_shares)
    }

    pub(super) fn insert(&mut self, rows: usize, graph: Graph) {
        self.graphs.insert(rows, graph);
    }

    /// The smallest recorded step that runs `batch`, a batch of decodes that are all sampled.
    pub(super) fn find(&self, batch: &LoadedBatch) -> Option<&Graph> {
        if !batch.is_all_sampled || batch.max_context_len > self.max_context_len {
            return None;
        }
        let (&rows, graph) = self.graphs.range(batch.num_rows..).next()?;
        (batch.launch.decode_shares <= self.launch_sizes(rows).decode_shares).then_some(graph)
    }
}

/// Numbers of rows that steps are recorded for: each wastes at most an eighth of a step, above 8 rows.
pub(super) fn row_sizes(max_rows: usize) -> Vec<usize> {
    let mut sizes = vec![1, 2, 4];
    let mut rows = 8;
    while rows < max_rows {
        sizes.push(rows);
        rows += (1 << rows.ilog2() >> 3).max(8);
    }
    sizes.retain(|&rows| rows < max_rows);
    sizes.push(max_rows);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_dense_and_end_at_the_limit() {
        assert_eq!(row_sizes(1), [1]);
        assert_eq!(row_sizes(20), [1, 2, 4, 8, 16, 20]);
        assert_eq!(row_sizes(33), [1, 2, 4, 8, 16, 24, 32, 33]);
        for max_rows in 1..2000 {
            let sizes = row_sizes(max_rows);
            assert_eq!(sizes.last(), Some(&max_rows));
            assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]), "{sizes:?}");
            let is_dense = |pair: &[usize]| pair[1] - pair[0] <= (pair[0] / 8).max(8);
            assert!(sizes.windows(2).all(is_dense), "{sizes:?}");
        }
    }
}
