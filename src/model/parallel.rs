//! Whether a model can be cut over several devices.

use crate::model::spec::{ModelSpec, NormExtent, Positions};

/// An operation that a model needs before several devices can run it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorParallelGap {
    /// A norm whose sum runs over all devices.
    NormOverDevices,
    /// ALiBi whose slopes follow a head's index among all devices' heads.
    AlibiOfSomeHeads,
}

impl TensorParallelGap {
    /// What is needed, in a few words.
    pub fn name(self) -> &'static str {
        match self {
            TensorParallelGap::NormOverDevices => "a norm over all devices",
            TensorParallelGap::AlibiOfSomeHeads => "ALiBi for a part of the heads",
        }
    }
}

impl ModelSpec {
    /// What is missing for tensor parallelism; nothing where every large matrix can be cut with the operations that
    /// there are.
    ///
    /// The cut: projections of queries, keys, values and attention's output by heads, where key-value heads fewer
    /// than devices are copied; MLPs, shared and single experts by their width, with routers and gates copied; the
    /// head by vocabulary, with a copy of the embedding on every device. Sums over devices then stand where a
    /// block's result is added to the residual, before its bias and its norm, in every shape of block. It follows
    /// from the axes alone. Whether counts of heads divide is a question to a model of a family, not to the family.
    pub fn tensor_parallel_gaps(&self) -> Vec<TensorParallelGap> {
        let gaps = [
            (TensorParallelGap::NormOverDevices, self.attention.qk_norm == Some(NormExtent::Width)),
            (TensorParallelGap::AlibiOfSomeHeads, matches!(self.positions, Positions::Alibi { .. })),
        ];
        gaps.into_iter().filter(|(_, is_there)| *is_there).map(|(gap, _)| gap).collect()
    }
}
