//! The decoder on checkpoints, against golden logits and against its own plan.

mod golden;
mod naive;
