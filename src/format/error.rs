//! What can be wrong with a checkpoint's files.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error as ThisError;

use crate::error::{Error, Status};

/// A checkpoint that cannot be read. Every variant names the file, and the field where there is one.
#[derive(Debug, ThisError)]
pub enum FormatError {
    /// A file that is needed is not there.
    #[error("{}: {message}", path.display())]
    NotFound {
        /// The file or directory.
        path: PathBuf,
        /// What is missing and what to do.
        message: String,
    },
    /// The operating system refused to read a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file contradicts its format or itself.
    #[error("{}: {field}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field, key or tensor.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file is well-formed, but this version does not read what it holds.
    #[error("{}: {field}: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field, key or tensor.
        field: String,
        /// What is not supported, and what to do.
        message: String,
    },
    /// Host memory is short.
    #[error("{}: {bytes} bytes for {what} could not be allocated", path.display())]
    OutOfMemory {
        /// The file.
        path: PathBuf,
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
}

/// `text`, cut where it quotes so much of a file that no person would read it.
pub(crate) fn bounded(mut text: String) -> String {
    const MAX_BYTES: usize = 400;
    if text.len() > MAX_BYTES {
        let end = (0..=MAX_BYTES).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// Result of reading a checkpoint's files.
pub type FormatResult<T> = Result<T, FormatError>;

impl FormatError {
    pub(crate) fn not_found(path: &Path, message: impl Into<String>) -> Self {
        Self::NotFound { path: path.to_owned(), message: message.into() }
    }

    /// An I/O error; an absent file is [`FormatError::NotFound`].
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::not_found(path, "there is no such file or directory"),
            _ => Self::Io { path: path.to_owned(), source },
        }
    }

    pub(crate) fn invalid(path: &Path, field: impl Display, message: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            field: bounded(field.to_string()),
            message: bounded(message.into()),
        }
    }

    pub(crate) fn unsupported(path: &Path, field: impl Display, message: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_owned(),
            field: bounded(field.to_string()),
            message: bounded(message.into()),
        }
    }
}

impl From<FormatError> for Error {
    fn from(error: FormatError) -> Self {
        let status = match &error {
            FormatError::NotFound { .. } => Status::ModelNotFound,
            FormatError::Io { .. } => Status::ModelIo,
            FormatError::Invalid { .. } => Status::ModelInvalid,
            FormatError::Unsupported { .. } => Status::ModelUnsupported,
            FormatError::OutOfMemory { .. } => Status::OutOfMemory,
        };
        Error::new(status, error.to_string())
    }
}
