//! Checkpoint containers: safetensors directories and GGUF files. Bytes in, named tensors and metadata out;
//! nothing here knows what a model is.

mod description;
pub mod error;
pub mod gguf;
pub mod safetensors;
mod tensor;

use std::path::Path;

use crate::error::Result;

pub use description::Description;
pub use error::FormatError;
pub use gguf::GgufFile;
pub use safetensors::Directory;
pub use tensor::{Encoding, TensorInfo, TensorTable};

use error::FormatResult;
use tensor::SourceFile;

/// A model on disk.
#[derive(Debug)]
pub enum Checkpoint {
    /// A directory in Hugging Face layout.
    Directory(Directory),
    /// A GGUF file.
    Gguf(GgufFile),
    /// A description without weights, which are made up.
    Random(Description),
}

impl Checkpoint {
    /// Opens a directory or a GGUF file; reads headers and metadata, no weights. A directory that holds one
    /// GGUF file and no `config.json` or `model_spec.json` stands for that file.
    ///
    /// A directory without weights opens, because tokenizers and templates can be used without them;
    /// [`Checkpoint::weights`] then fails.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::open_any(path)?)
    }

    /// The same for what describes a model, with weights or without: also takes a `config.json` or
    /// `model_spec.json` under any name that ends in `.json`, as [`Checkpoint::random`] does.
    pub fn open_description(path: &Path) -> Result<Self> {
        match is_json(path) && path.is_file() {
            true => Ok(Self::random(path, 0)),
            false => Self::open(path),
        }
    }

    /// Stands for a model of random parameters, the same for the same `seed`. `path` is a `config.json` or
    /// `model_spec.json` under any name, or a directory that holds one of them; it is read with the model's
    /// description.
    pub fn random(path: &Path, seed: u64) -> Self {
        Self::Random(Description::new(path, seed))
    }

    fn open_any(path: &Path) -> FormatResult<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| FormatError::io(path, error))?;
        if metadata.is_dir() {
            return match safetensors::lone_gguf(path)? {
                Some(file) => Ok(Self::Gguf(GgufFile::open(&file)?)),
                None => Ok(Self::Directory(Directory::open(path)?)),
            };
        }
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            extension if safetensors::PICKLE_EXTENSIONS.contains(&extension) => {
                Err(safetensors::pickle_refused(path))
            }
            "safetensors" => Err(FormatError::unsupported(
                path,
                "model path",
                "give the directory that holds the file and its config.json",
            )),
            "json" => Err(FormatError::unsupported(
                path,
                "model path",
                "the file describes a model but has no weights; give the directory that holds both. \
                 `inflight inspect`, `plan` and `bench --random-weights` take a description alone",
            )),
            _ => Ok(Self::Gguf(GgufFile::open(path)?)),
        }
    }

    /// The directory or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(directory) => directory.path(),
            Self::Gguf(file) => file.path(),
            Self::Random(description) => description.path(),
        }
    }

    /// The table of tensors, or an error that says which files are missing.
    pub fn weights(&self) -> Result<&TensorTable> {
        match self {
            Self::Directory(directory) => directory.weights(),
            Self::Gguf(file) => Ok(file.tensors()),
            Self::Random(description) => {
                Err(FormatError::not_found(description.path(), "no weights: they are made up").into())
            }
        }
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.weights().ok()?.get(name)
    }

    /// Names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.weights().ok().into_iter().flat_map(TensorTable::names)
    }

    /// Fills `buffer` with the bytes of `tensor`, one of this checkpoint's, that start at byte `start` of it.
    pub fn read(&self, tensor: &TensorInfo, start: u64, buffer: &mut [u8]) -> Result<()> {
        Ok(self.weights()?.read(tensor, start, buffer)?)
    }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// Reads the file at `path`, which must not be larger than `max_bytes`.
pub fn read_small_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    Ok(SourceFile::open(path)?.read_all(max_bytes)?)
}
