//! What a model's text files may be at most. Real vocabularies stay far below; the limits bound memory and
//! time that a hostile file can cost.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result, Status};
use crate::format::error::bounded;

/// Largest `tokenizer.json`.
pub(crate) const TOKENIZER_FILE_BYTES_MAX: u64 = 64 << 20;
/// Largest `tokenizer_config.json`, `config.json` or `generation_config.json`.
pub(crate) const CONFIG_FILE_BYTES_MAX: u64 = 4 << 20;
/// Largest section of `tokenizer.json` other than the model and the added tokens.
pub(crate) const SECTION_BYTES_MAX: usize = 4 << 20;
/// Largest chat template.
pub(crate) const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Most tokens; ids are below it.
pub(crate) const NUM_TOKENS_MAX: usize = 1 << 20;
/// Most merge rules.
pub(crate) const NUM_MERGES_MAX: usize = 1 << 20;
/// Most tokens that are matched in text before the model sees it.
pub(crate) const NUM_ADDED_TOKENS_MAX: usize = 1 << 16;
/// Longest token.
pub(crate) const TOKEN_BYTES_MAX: usize = 8 << 10;
/// All tokens together.
pub(crate) const VOCABULARY_BYTES_MAX: usize = 32 << 20;
/// Longest text to encode, and longest JSON array of messages.
pub(crate) const TEXT_BYTES_MAX: usize = 16 << 20;

/// A malformed file; `place` names file and field.
pub(crate) fn invalid(place: &str, problem: impl std::fmt::Display) -> Error {
    Error::new(Status::ModelInvalid, format!("{place}: {}", bounded(problem.to_string())))
}

/// A well-formed file that needs something this version does not have.
pub(crate) fn unsupported(place: &str, what: impl std::fmt::Display) -> Error {
    Error::new(Status::ModelUnsupported, format!("{place}: {}", bounded(what.to_string())))
}

/// The file's content, `None` where there is no such file.
pub(crate) fn read_file(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
    let io = |error: std::io::Error| Error::new(Status::ModelIo, format!("{}: {error}", path.display()));
    // Asked before the file is opened, as opening a pipe waits for its writer.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(invalid(&path.display().to_string(), "not a regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    }
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let too_large = |num_bytes: u64| {
        let problem = format!("{num_bytes} bytes; at most {bytes_max} are allowed");
        Err(invalid(&path.display().to_string(), problem))
    };
    if metadata.len() > bytes_max {
        return too_large(metadata.len());
    }
    let mut content = Vec::new();
    content.try_reserve_exact(metadata.len() as usize + 1).map_err(|_| {
        Error::new(Status::OutOfMemory, format!("{}: {} bytes", path.display(), metadata.len()))
    })?;
    // The file may have grown since its size was asked for.
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(io)?;
    if content.len() as u64 > bytes_max { too_large(content.len() as u64) } else { Ok(Some(content)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_quotes_a_file_is_short() {
        for error in [invalid("f", "x".repeat(9000)), unsupported("f", "é".repeat(9000))] {
            assert!(error.message().starts_with("f: ") && error.message().len() < 500, "{error}");
        }
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokenizer.json");
        assert_eq!(read_file(&path, 10).unwrap(), None);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = read_file(&path, 10).unwrap_err();
        assert!(error.message().ends_with("tokenizer.json: not a regular file"), "{error}");
    }
}
