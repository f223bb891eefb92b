//! The decoder on checkpoints, against golden logits and against its own plan.

mod axes;
// Shared with tests that see the library from outside.
#[path = "../../../tests/common/families.rs"]
mod cases;
mod families;
mod families_facts;
mod families_golden;
mod families_hostile;
mod families_table;
mod golden;
mod hostile;
mod loading;
mod naive;
mod plans;
mod random;
mod reference;
mod rope;
mod smollm2;
mod spec_file;
