//! Checkpoint containers: safetensors directories and GGUF files. Bytes in, named tensors and metadata out;
//! nothing here knows what a model is.

pub mod gguf;
pub mod safetensors;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A model on disk.
#[derive(Debug)]
pub enum Checkpoint {
    /// A directory in Hugging Face layout.
    Directory(PathBuf),
    /// A GGUF file's metadata and tensors.
    Gguf(gguf::Metadata),
}

impl Checkpoint {
    /// Opens a directory or a GGUF file; reads headers and metadata, no weights.
    pub fn open(path: &Path) -> Result<Self> {
        let _ = path;
        Err(Error::internal("not there yet"))
    }
}
