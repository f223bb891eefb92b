//! The decoder on checkpoints, against golden logits and against its own plan.

mod axes;
mod families;
mod golden;
mod hostile;
mod loading;
mod naive;
mod random;
mod reference;
mod rope;
mod smollm2;
