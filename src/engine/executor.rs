//! What runs a planned step: a model on a backend, or something that behaves like one.

use crate::backend::{Backend, BackendResult, Sampled};
use crate::engine::batch::StepPlan;
use crate::model::decoder::Decoder;

/// Runs steps in the order in which they are submitted.
pub trait Executor: Send {
    /// Steps that may be submitted before the first is collected. Above 1 the next step is planned and handed
    /// over while one runs.
    fn pipeline_depth(&self) -> usize;

    /// Starts a step; may return before it has run.
    fn submit(&mut self, plan: &StepPlan) -> BackendResult<()>;

    /// Waits for the oldest step that was submitted and not collected; one entry per sampled row, in row order.
    fn collect(&mut self) -> BackendResult<Vec<Sampled>>;
}

/// A decoder on its backend.
pub struct ModelExecutor<B: Backend> {
    decoder: Decoder<B>,
    pipeline_depth: usize,
}

impl<B: Backend> ModelExecutor<B> {
    /// Backends whose operations return before they have run take a `pipeline_depth` of 2.
    pub fn new(decoder: Decoder<B>, pipeline_depth: usize) -> Self {
        Self { decoder, pipeline_depth }
    }
}

impl<B: Backend> Executor for ModelExecutor<B> {
    fn pipeline_depth(&self) -> usize {
        self.pipeline_depth
    }

    fn submit(&mut self, plan: &StepPlan) -> BackendResult<()> {
        for (slot, state) in &plan.resets {
            self.decoder.reset_slot(*slot, state)?;
        }
        self.decoder.forward(&plan.batch)
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        self.decoder.collect()
    }
}
