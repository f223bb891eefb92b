//! What can be wrong with a model's description or weights.

use std::fmt::Display;

use thiserror::Error as ThisError;

use crate::error::{Error, Status};
use crate::format::error::bounded;

/// A model that cannot be loaded. Every variant names the field or tensor.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum ModelError {
    /// A value is missing, of another type, out of range, or contradicts another.
    #[error("{field}: {message}")]
    Invalid {
        /// The field or tensor.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The model asks for something that this version does not implement.
    #[error("{field}: {message}")]
    Unsupported {
        /// The field or tensor.
        field: String,
        /// What is not supported.
        message: String,
    },
}

/// Result of describing a model.
pub type ModelResult<T> = Result<T, ModelError>;

impl ModelError {
    pub(crate) fn invalid(field: impl Display, message: impl Into<String>) -> Self {
        Self::Invalid { field: bounded(field.to_string()), message: bounded(message.into()) }
    }

    pub(crate) fn unsupported(field: impl Display, message: impl Into<String>) -> Self {
        Self::Unsupported { field: bounded(field.to_string()), message: bounded(message.into()) }
    }
}

impl From<ModelError> for Error {
    fn from(error: ModelError) -> Self {
        let status = match &error {
            ModelError::Invalid { .. } => Status::ModelInvalid,
            ModelError::Unsupported { .. } => Status::ModelUnsupported,
        };
        Error::new(status, error.to_string())
    }
}
