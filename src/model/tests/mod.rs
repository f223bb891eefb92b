//! The decoder on checkpoints, against golden logits and against its own plan.

mod axes;
mod families;
mod families_facts;
mod families_golden;
mod families_hostile;
mod families_table;
mod gguf_golden;
mod golden;
mod hostile;
mod loading;
mod naive;
mod plans;
mod random;
mod reference;
mod rope;
mod smollm2;
