//! Families.

use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::model::spec::ModelSpec;

/// The architecture of a checkpoint.
pub fn load_spec(checkpoint: &Checkpoint) -> Result<ModelSpec> {
    let _ = checkpoint;
    Err(Error::internal("not there yet"))
}
