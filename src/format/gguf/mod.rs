//! GGUF v2 and v3 files.

mod metadata;
mod parser;
#[cfg(test)]
mod tests;

use std::io::BufReader;
use std::path::Path;

pub use metadata::{Metadata, MetadataValue};

use crate::format::error::FormatResult;
use crate::format::tensor::{SourceFile, TensorTable};

/// An open GGUF file: its metadata and the table of its tensors.
#[derive(Debug)]
pub struct GgufFile {
    path: std::path::PathBuf,
    metadata: Metadata,
    tensors: TensorTable,
}

impl GgufFile {
    /// Opens a file and reads everything but the tensors' data.
    pub fn open(path: &Path) -> FormatResult<Self> {
        let source = SourceFile::open(path)?;
        let input = BufReader::with_capacity(1 << 20, &source.file);
        let contents = parser::parse(path, input, source.num_bytes)?;
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
