//! `ifl_error`: what went wrong, for a person.

use std::ffi::c_char;

use super::ffi::{guard_value, terminated};
use super::status::{ifl_status, ifl_status_value, number};
use crate::error::Error;

/// What went wrong in one call: a status for the program and a message for a person. Owned by the caller, who
/// frees it with ifl_error_free; it is independent of the engine and of other errors, and never changes.
///
/// Functions: ifl_error_code, ifl_error_message, ifl_error_free. Since 0.1.0.
pub struct ifl_error {
    status: ifl_status,
    message: Box<[u8]>,
}

impl ifl_error {
    pub(super) fn new(error: Error) -> Self {
        Self { status: number(error.status()), message: terminated(error.message()) }
    }
}

/// The status that the failed call returned.
///
/// - error: an error, or NULL, which gives IFL_OK.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_error_code(error: *const ifl_error) -> ifl_status {
    guard_value(ifl_status_value::IFL_INTERNAL as ifl_status, |caller| {
        caller.object(error).map_or(ifl_status_value::IFL_OK as ifl_status, |error| error.status)
    })
}

/// What is wrong, with names and values, and what to do; English, UTF-8.
///
/// - error: an error, or NULL, which gives the empty text.
/// - len: receives the length in bytes without the NUL; may be NULL.
///
/// Returns a NUL-terminated text that belongs to the error and lives until ifl_error_free; never NULL.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_error_message(error: *const ifl_error, len: *mut u64) -> *const c_char {
    guard_value(c"".as_ptr(), |caller| {
        let message = caller.object(error).map_or(b"\0".as_slice(), |error| &error.message);
        if let Ok(Some(out)) = caller.out_optional(len, "len") {
            out.set(message.len() as u64 - 1);
        }
        message.as_ptr().cast()
    })
}

/// Frees an error and its message.
///
/// - error: an error that has not been freed, or NULL, which does nothing.
///
/// Threads: any; no other thread may use the error any more. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_error_free(error: *mut ifl_error) {
    guard_value((), |caller| caller.free(error));
}
