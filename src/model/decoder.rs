//! The one decoder.
use crate::backend::{Backend, BackendResult, Batch, Sampled, SlotState};
/// Stand-in.
pub struct Decoder<B: Backend> {
    backend: B,
}
impl<B: Backend> Decoder<B> {
    /// Stand-in.
    pub fn reset_slot(&mut self, slot: u32, state: &SlotState) -> BackendResult<()> {
        self.backend.reset_slot(slot, state)
    }
    /// Stand-in.
    pub fn forward(&mut self, batch: &Batch) -> BackendResult<()> {
        self.backend.load_batch(batch)
    }
    /// Stand-in.
    pub fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        self.backend.collect()
    }
}
