//! Directories in Hugging Face layout: `model.safetensors`, or shards with `model.safetensors.index.json`.

mod header;
mod index;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::format::error::{FormatError, FormatResult};
use crate::format::tensor::{SourceFile, TensorInfo, TensorTable};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Extensions of files that hold Python pickles, which run code when they are read.
pub(super) const PICKLE_EXTENSIONS: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// A model directory and the table of its tensors.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// `None` where the directory has no weights.
    tensors: Option<TensorTable>,
}

impl Directory {
    /// Opens a directory and reads the headers of its safetensors files, if it has any.
    pub fn open(path: &Path) -> FormatResult<Self> {
        let (single, index) = (path.join(SINGLE_FILE), path.join(INDEX_FILE));
        let tensors = if single.exists() {
            Some(open_single(&single)?)
        } else if index.exists() {
            Some(open_shards(path, &index)?)
        } else {
            None
        };
        Ok(Self { path: path.to_owned(), tensors })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The table of tensors, or an error that says which files are missing.
    pub fn weights(&self) -> Result<&TensorTable> {
        Ok(self.tensors.as_ref().ok_or_else(|| self.missing_weights())?)
    }

    fn missing_weights(&self) -> FormatError {
        let pickles = files_with_extension(&self.path, &PICKLE_EXTENSIONS);
        match pickles.as_deref() {
            Ok([pickle, ..]) => pickle_refused(pickle),
            _ => FormatError::not_found(
                &self.path,
                format!("no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there"),
            ),
        }
    }
}

/// Refusal of a file that would run code.
pub(super) fn pickle_refused(path: &Path) -> FormatError {
    FormatError::unsupported(
        path,
        "file type",
        "pickle files can run code when they are read, so they are refused; convert the model to safetensors",
    )
}

/// The one GGUF file of a directory that describes no model of its own.
pub(super) fn lone_gguf(directory: &Path) -> FormatResult<Option<PathBuf>> {
    // A link that leads nowhere is there, and an error where it is read.
    let is_there = |name: &str| directory.join(name).symlink_metadata().is_ok();
    if is_there("config.json") || is_there("model_spec.json") {
        return Ok(None);
    }
    let mut files = files_with_extension(directory, &["gguf"])?;
    match files.len() {
        0 | 1 => Ok(files.pop()),
        count => Err(FormatError::invalid(
            directory,
            "model path",
            format!("the directory holds {count} GGUF files and no config.json; give the path of one file"),
        )),
    }
}

fn files_with_extension(directory: &Path, extensions: &[&str]) -> FormatResult<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).map_err(|error| FormatError::io(directory, error))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| FormatError::io(directory, error))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if extensions.contains(&extension.to_ascii_lowercase().as_str()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn open_single(path: &Path) -> FormatResult<TensorTable> {
    let mut table = TensorTable::default();
    let mut budget = header::MAX_DECODED_BYTES;
    add_file(&mut table, path, &mut budget)?;
    Ok(table)
}

fn open_shards(directory: &Path, index_path: &Path) -> FormatResult<TensorTable> {
    let mut table = TensorTable::default();
    let mut budget = header::MAX_DECODED_BYTES;
    let index = index::read(index_path, &mut budget)?;
    for shard in index.shards() {
        let path = index::resolve(directory, index_path, shard)?;
        add_file(&mut table, &path, &mut budget)?;
    }
    for (tensor, shard) in index.entries() {
        let is_there =
            table.get(tensor).is_some_and(|info| table.path_of(info).file_name() == Some(shard.as_ref()));
        if !is_there {
            let message = format!("the index says it is in {shard:?}, where it is not");
            return Err(FormatError::invalid(index_path, format!("weight_map.{tensor}"), message));
        }
    }
    Ok(table)
}

/// Adds a safetensors file and all its tensors.
fn add_file(table: &mut TensorTable, path: &Path, budget: &mut u64) -> FormatResult<()> {
    let source = SourceFile::open(path)?;
    let header = header::read(&source, budget)?;
    let file_index = table.add_file(source);
    for entry in header.tensors {
        table.add_tensor(TensorInfo {
            name: entry.name,
            shape: entry.shape,
            encoding: entry.encoding,
            num_bytes: entry.end - entry.start,
            file_index,
            offset: header.data_start + entry.start,
        })?;
    }
    Ok(())
}
