//! The one error type that crosses module borders, and the numbered codes of the C ABI.
//!
//! Modules keep an enum of their own with the context in it and convert it here; the status says what a
//! program may do about it, the message what a person should do.

use std::fmt;

/// Numbered outcome of a call or a request. The numbers are ABI: never reused, never changed.
///
/// 1 to 99 blame the caller's arguments, 100 to 199 the model's files, 200 to 299 a shortage, 300 to 399 the
/// device, 400 to 499 the state of the engine or request, 900 and up a defect in the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// An argument or option has a value that is not allowed; the message names it.
    InvalidArgument = 1,
    /// The handle is stale, foreign or of another type.
    InvalidHandle = 2,
    /// `struct_size` of a struct is smaller than the first version of it, or larger than this library knows
    /// with non-zero bytes in the part that it does not know.
    InvalidStructSize = 3,
    /// Text that must be UTF-8 is not.
    InvalidUtf8 = 4,
    /// The library cannot do this, or not with this model.
    Unsupported = 5,
    /// The prompt, or prompt and requested tokens, can never fit the context or the KV cache.
    PromptTooLong = 6,
    /// The chat template refused the messages, or went over its limits.
    TemplateFailed = 7,
    /// No request of this id is in flight.
    UnknownRequest = 8,
    /// A file of the model is missing.
    ModelNotFound = 100,
    /// A file of the model could not be read.
    ModelIo = 101,
    /// A file of the model is malformed; the message names file and field.
    ModelInvalid = 102,
    /// The model is well-formed but uses something that this version does not implement.
    ModelUnsupported = 103,
    /// The bounded request queue is full. Retry after polling.
    Busy = 200,
    /// Host memory is short.
    OutOfMemory = 201,
    /// Device memory is short.
    DeviceOutOfMemory = 202,
    /// The plan does not fit the memory limit that the options set.
    MemoryLimit = 203,
    /// No such device, or what it needs is missing: its driver, cuBLASLt, or this build's backend for it.
    DeviceUnavailable = 300,
    /// A fatal device error; the engine is dead, the process is not.
    DeviceLost = 301,
    /// The engine is closed or was closed while the request was in flight.
    Closed = 400,
    /// The handle was inherited through `fork`; only the parent may use it.
    Forked = 401,
    /// The host aborted loading from its progress callback.
    Aborted = 402,
    /// The model produced NaN or infinite logits for this request.
    NumericError = 403,
    /// A defect in the library, contained; the message says where.
    Internal = 900,
}

/// Who can do something about a [`Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Category {
    /// Not an error.
    None = 0,
    /// The call's arguments.
    Argument = 1,
    /// The model's files.
    Model = 2,
    /// A shortage of memory or of queue places.
    Resource = 3,
    /// The device or its driver.
    Device = 4,
    /// The state of the engine or request.
    Lifecycle = 5,
    /// The library.
    Internal = 6,
}

impl Status {
    /// Every status, in numeric order.
    pub const ALL: [Status; 24] = [
        Status::Ok,
        Status::InvalidArgument,
        Status::InvalidHandle,
        Status::InvalidStructSize,
        Status::InvalidUtf8,
        Status::Unsupported,
        Status::PromptTooLong,
        Status::TemplateFailed,
        Status::UnknownRequest,
        Status::ModelNotFound,
        Status::ModelIo,
        Status::ModelInvalid,
        Status::ModelUnsupported,
        Status::Busy,
        Status::OutOfMemory,
        Status::DeviceOutOfMemory,
        Status::MemoryLimit,
        Status::DeviceUnavailable,
        Status::DeviceLost,
        Status::Closed,
        Status::Forked,
        Status::Aborted,
        Status::NumericError,
        Status::Internal,
    ];

    /// The category, from the number's range.
    pub fn category(self) -> Category {
        match self as i32 {
            0 => Category::None,
            1..=99 => Category::Argument,
            100..=199 => Category::Model,
            200..=299 => Category::Resource,
            300..=399 => Category::Device,
            400..=499 => Category::Lifecycle,
            _ => Category::Internal,
        }
    }

    /// Whether the same call can succeed later without a change by the caller.
    pub fn is_retryable(self) -> bool {
        matches!(self, Status::Busy)
    }

    /// Short fixed text, for logs.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::InvalidArgument => "invalid argument",
            Status::InvalidHandle => "invalid handle",
            Status::InvalidStructSize => "invalid struct size",
            Status::InvalidUtf8 => "invalid UTF-8",
            Status::Unsupported => "unsupported",
            Status::PromptTooLong => "prompt too long",
            Status::TemplateFailed => "chat template failed",
            Status::UnknownRequest => "unknown request",
            Status::ModelNotFound => "model not found",
            Status::ModelIo => "model I/O error",
            Status::ModelInvalid => "invalid model",
            Status::ModelUnsupported => "unsupported model",
            Status::Busy => "busy",
            Status::OutOfMemory => "out of memory",
            Status::DeviceOutOfMemory => "out of device memory",
            Status::MemoryLimit => "memory limit too low",
            Status::DeviceUnavailable => "device unavailable",
            Status::DeviceLost => "device lost",
            Status::Closed => "closed",
            Status::Forked => "used after fork",
            Status::Aborted => "aborted",
            Status::NumericError => "numeric error",
            Status::Internal => "internal error",
        }
    }
}

/// A status with a message for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `status`; the message says what is wrong, with names and values, and what to do.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        debug_assert_ne!(status, Status::Ok);
        Self { status, message: message.into() }
    }

    /// [`Status::InvalidArgument`].
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// [`Status::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Status::Internal, message)
    }

    /// The numbered code.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The message, without the status' name.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same status with `context: ` before the message.
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self { status: self.status, message: format!("{context}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.name(), self.message)
    }
}

impl std::error::Error for Error {}
