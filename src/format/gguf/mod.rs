//! GGUF v2 and v3 files.

mod metadata;
mod parser;
#[cfg(test)]
mod tests;

use std::io::BufReader;
use std::path::{Path, PathBuf};

pub use metadata::{Metadata, MetadataValue};

use crate::format::error::{FormatError, FormatResult};
use crate::format::tensor::{SourceFile, TensorTable};

/// Number of files that a model is split into.
const SPLIT_COUNT: &str = "split.count";

/// An open GGUF file: its metadata and the table of its tensors.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    metadata: Metadata,
    tensors: TensorTable,
}

impl GgufFile {
    /// Opens a file and reads everything but the tensors' data.
    pub fn open(path: &Path) -> FormatResult<Self> {
        let source = SourceFile::open(path)?;
        let input = BufReader::with_capacity(1 << 20, &source.file);
        let contents = parser::parse(path, input, source.num_bytes)?;
        if let Some(&MetadataValue::Unsigned(2..)) = contents.metadata.get(SPLIT_COUNT) {
            let message = "the model is split into several files; merge them with llama-gguf-split --merge";
            return Err(FormatError::unsupported(path, SPLIT_COUNT, message));
        }
        let mut tensors = TensorTable::default();
        tensors.add_file(source);
        for tensor in contents.tensors {
            tensors.add_tensor(tensor)?;
        }
        Ok(Self { path: path.to_owned(), metadata: contents.metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors.
    pub fn tensors(&self) -> &TensorTable {
        &self.tensors
    }
}
