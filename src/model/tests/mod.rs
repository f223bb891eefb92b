//! The decoder on checkpoints, against golden logits and against its own plan.

mod families;
mod golden;
mod loading;
mod naive;
mod rope;
mod smollm2;
