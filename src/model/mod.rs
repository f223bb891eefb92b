//! From a model directory to logits: the architecture as data, its weights, and the decoder that runs it.

pub mod decoder;
pub mod families;
pub mod spec;
pub mod weights;
