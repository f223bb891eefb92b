//! `ifl_status`: the numbered outcome of a call or a request.

use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use super::ffi::guard_value;
use crate::error::{Category, Status};

/// Outcome of a call or of a request, an ifl_status_value. 0 is success, so "if (status)" reads "if it
/// failed".
///
/// Since 0.1.0.
pub type ifl_status = i32;

/// Values of an ifl_status. Numbers are never changed and never reused. A newer library may return numbers
/// that this header does not list; treat those by their category.
///
/// 1 to 99 blame the call's arguments, 100 to 199 the model's files, 200 to 299 a shortage, 300 to 399 the
/// device, 400 to 499 the state of the engine or the request, and 900 and up a defect in the library.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum ifl_status_value {
    /// Success.
    IFL_OK = 0,
    /// An argument or a field has a value that is not allowed; the message names it.
    IFL_INVALID_ARGUMENT = 1,
    /// The handle is NULL, was destroyed, or is of another kind.
    IFL_INVALID_HANDLE = 2,
    /// A struct_size is below that of the struct's first version, or fields are set that this library does
    /// not know.
    IFL_INVALID_STRUCT_SIZE = 3,
    /// Text that must be UTF-8 is not.
    IFL_INVALID_UTF8 = 4,
    /// This version of the library cannot do it, such as run on more than one CUDA device, or the model cannot, such
    /// as chat without a chat template.
    IFL_UNSUPPORTED = 5,
    /// The prompt, or the prompt and the tokens asked for, can never fit the context or the KV cache.
    IFL_PROMPT_TOO_LONG = 6,
    /// The chat template refused the messages or went over its limits of time and output.
    IFL_TEMPLATE_FAILED = 7,
    /// No request of this id is in flight. No function returns it in this version.
    IFL_UNKNOWN_REQUEST = 8,
    /// A file of the model is missing.
    IFL_MODEL_NOT_FOUND = 100,
    /// A file of the model could not be read.
    IFL_MODEL_IO = 101,
    /// A file of the model is malformed; the message names file and field.
    IFL_MODEL_INVALID = 102,
    /// The model is well-formed but uses something that this version does not implement.
    IFL_MODEL_UNSUPPORTED = 103,
    /// Every place for a request is taken. Poll each queue that has requests, with a time limit, then try again; see
    /// ifl_engine_enqueue.
    IFL_BUSY = 200,
    /// Host memory is short.
    IFL_OUT_OF_MEMORY = 201,
    /// Device memory is short.
    IFL_DEVICE_OUT_OF_MEMORY = 202,
    /// What the options ask for does not fit their memory_limit_bytes.
    IFL_MEMORY_LIMIT = 203,
    /// There is no such device, or what it needs is missing: its driver, cuBLASLt, or this build's backend for it
    /// (ifl_has_feature).
    IFL_DEVICE_UNAVAILABLE = 300,
    /// The device failed fatally. The engine is dead and its requests have ended with this status; the
    /// process is not harmed, but may have to restart before it can use that device again.
    IFL_DEVICE_LOST = 301,
    /// The engine or the queue is closed, or was closed while the request was in flight.
    IFL_CLOSED = 400,
    /// The handle was made before a fork, by another process; only that one may use it.
    IFL_FORKED = 401,
    /// The host's progress callback aborted loading.
    IFL_ABORTED = 402,
    /// The model gave NaN or infinite logits for this request.
    IFL_NUMERIC_ERROR = 403,
    /// A defect in the library, contained. The message says where; please report it.
    IFL_INTERNAL = 900,
}

/// Who can do something about a status, an ifl_category_value.
///
/// Since 0.1.0.
pub type ifl_category = i32;

/// Values of an ifl_category.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum ifl_category_value {
    /// Not an error.
    IFL_CATEGORY_NONE = 0,
    /// The call's arguments are wrong.
    IFL_CATEGORY_ARGUMENT = 1,
    /// The model's files are missing or wrong.
    IFL_CATEGORY_MODEL = 2,
    /// Memory or places in a queue are short.
    IFL_CATEGORY_RESOURCE = 3,
    /// The device or its driver.
    IFL_CATEGORY_DEVICE = 4,
    /// The state of the engine or the request.
    IFL_CATEGORY_LIFECYCLE = 5,
    /// A defect in the library.
    IFL_CATEGORY_INTERNAL = 6,
}

/// Short English name of a status, such as "busy", for logs.
///
/// - status: any number; one that the library does not know gives "unknown status".
///
/// Returns a NUL-terminated text that lives as long as the library; never NULL.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_status_name(status: ifl_status) -> *const c_char {
    const UNKNOWN: *const c_char = c"unknown status".as_ptr();
    guard_value(UNKNOWN, |_| known(status).map_or(UNKNOWN, |status| NAMES[&(status as i32)].as_ptr()))
}

/// Category of a status.
///
/// - status: any number; one that the library does not know counts as IFL_CATEGORY_INTERNAL.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_status_category(status: ifl_status) -> ifl_category {
    const UNKNOWN: ifl_category = ifl_category_value::IFL_CATEGORY_INTERNAL as ifl_category;
    guard_value(UNKNOWN, |_| known(status).map_or(UNKNOWN, |status| number_of_category(status.category())))
}

/// 1 where the same call can succeed later without any change by the caller (after IFL_BUSY: once there is a place,
/// see ifl_engine_enqueue), 0 otherwise.
///
/// - status: any number; one that the library does not know gives 0.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_status_is_retryable(status: ifl_status) -> u32 {
    guard_value(0, |_| u32::from(known(status).is_some_and(Status::is_retryable)))
}

/// The names with the NUL that C wants.
static NAMES: LazyLock<HashMap<i32, CString>> = LazyLock::new(|| {
    let terminated = |status: Status| CString::new(status.name()).expect("names hold no NUL");
    Status::ALL.into_iter().map(|status| (status as i32, terminated(status))).collect()
});

fn known(number: ifl_status) -> Option<Status> {
    Status::ALL.into_iter().find(|status| *status as i32 == number)
}

/// The number that stands for `status` in C.
pub(super) fn number(status: Status) -> ifl_status {
    use ifl_status_value::*;
    let value = match status {
        Status::Ok => IFL_OK,
        Status::InvalidArgument => IFL_INVALID_ARGUMENT,
        Status::InvalidHandle => IFL_INVALID_HANDLE,
        Status::InvalidStructSize => IFL_INVALID_STRUCT_SIZE,
        Status::InvalidUtf8 => IFL_INVALID_UTF8,
        Status::Unsupported => IFL_UNSUPPORTED,
        Status::PromptTooLong => IFL_PROMPT_TOO_LONG,
        Status::TemplateFailed => IFL_TEMPLATE_FAILED,
        Status::UnknownRequest => IFL_UNKNOWN_REQUEST,
        Status::ModelNotFound => IFL_MODEL_NOT_FOUND,
        Status::ModelIo => IFL_MODEL_IO,
        Status::ModelInvalid => IFL_MODEL_INVALID,
        Status::ModelUnsupported => IFL_MODEL_UNSUPPORTED,
        Status::Busy => IFL_BUSY,
        Status::OutOfMemory => IFL_OUT_OF_MEMORY,
        Status::DeviceOutOfMemory => IFL_DEVICE_OUT_OF_MEMORY,
        Status::MemoryLimit => IFL_MEMORY_LIMIT,
        Status::DeviceUnavailable => IFL_DEVICE_UNAVAILABLE,
        Status::DeviceLost => IFL_DEVICE_LOST,
        Status::Closed => IFL_CLOSED,
        Status::Forked => IFL_FORKED,
        Status::Aborted => IFL_ABORTED,
        Status::NumericError => IFL_NUMERIC_ERROR,
        Status::Internal => IFL_INTERNAL,
    };
    value as ifl_status
}

fn number_of_category(category: Category) -> ifl_category {
    use ifl_category_value::*;
    let value = match category {
        Category::None => IFL_CATEGORY_NONE,
        Category::Argument => IFL_CATEGORY_ARGUMENT,
        Category::Model => IFL_CATEGORY_MODEL,
        Category::Resource => IFL_CATEGORY_RESOURCE,
        Category::Device => IFL_CATEGORY_DEVICE,
        Category::Lifecycle => IFL_CATEGORY_LIFECYCLE,
        Category::Internal => IFL_CATEGORY_INTERNAL,
    };
    value as ifl_category
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_engine() {
        for status in Status::ALL {
            assert_eq!(number(status), status as i32, "{status:?}");
        }
    }

    #[test]
    fn every_status_has_a_name_and_unknown_numbers_are_harmless() {
        for status in Status::ALL {
            assert_eq!(NAMES[&(status as i32)].to_str(), Ok(status.name()));
            assert_eq!(ifl_status_category(status as i32), status.category() as i32);
            assert_eq!(ifl_status_is_retryable(status as i32) == 1, status.is_retryable());
        }
        for number in [-1, 9, 99, 12345, i32::MIN, i32::MAX] {
            assert!(!ifl_status_name(number).is_null());
            assert_eq!(ifl_status_category(number), ifl_category_value::IFL_CATEGORY_INTERNAL as i32);
            assert_eq!(ifl_status_is_retryable(number), 0);
        }
    }
}
