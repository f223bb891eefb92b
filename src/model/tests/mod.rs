//! The decoder on checkpoints, against golden logits and against its own plan.

mod families;
mod golden;
mod hostile;
mod loading;
mod naive;
mod random;
mod rope;
mod smollm2;
