//! From a model directory to logits: the architecture as data, its weights, and the decoder that runs it.

mod convert;
pub mod decoder;
pub mod error;
pub mod families;
mod form;
pub mod load;
pub mod memory;
mod names;
mod origin;
pub mod padding;
mod parallel;
mod random;
pub mod rope;
pub mod spec;
mod spec_file;
mod support;
#[cfg(test)]
mod tests;
mod validate;
pub mod weights;

pub use decoder::{Decoder, DecoderConfig};
pub use error::ModelError;
pub use families::{load_spec, load_spec_from};
pub use load::{LoadOptions, check_weights};
pub use memory::{DecoderMemory, memory_plan};
pub use parallel::TensorParallelGap;
pub use spec::ModelSpec;
