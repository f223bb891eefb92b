//! Models without weights: a description alone.

use std::path::{Path, PathBuf};

/// Where a model is described, and the seed that its parameters are made up from.
#[derive(Debug)]
pub struct Description {
    path: PathBuf,
    seed: u64,
}

impl Description {
    pub(super) fn new(path: &Path, seed: u64) -> Self {
        Self { path: path.to_owned(), seed }
    }

    /// A `config.json` or `model_spec.json` under any name, or a directory that holds one of them.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The seed of the parameters.
    pub fn seed(&self) -> u64 {
        self.seed
    }
}
