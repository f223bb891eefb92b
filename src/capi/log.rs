//! `ifl_log_callback`: the engine's log lines, for the host.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::ffi::HostCallback;
use crate::config::{LogLevel, Logger};

/// Severity of a log line, an ifl_log_level_value.
///
/// Since 0.1.0.
pub type ifl_log_level = i32;

/// Values of an ifl_log_level.
///
/// Since 0.1.0.
#[derive(Clone, Copy)]
#[repr(C)]
pub enum ifl_log_level_value {
    /// Something failed.
    IFL_LOG_ERROR = 1,
    /// Something is off, but goes on.
    IFL_LOG_WARN = 2,
    /// Milestones of an engine's life.
    IFL_LOG_INFO = 3,
    /// Details of each request.
    IFL_LOG_DEBUG = 4,
}

/// Receives one log line, without a newline.
///
/// - user_data: log_user_data of the options.
/// - level: how severe.
/// - message: UTF-8, NUL-terminated; valid during the call only.
/// - message_len: its length in bytes without the NUL.
///
/// Threads: called on the engine's threads and on threads that call the engine, by several at once, and never
/// while the library holds a lock that its functions take. It may call this library, but not destroy its own
/// engine. It must return: no longjmp, no C++ exception, no unwinding may leave it. It is not called any more
/// once ifl_engine_destroy has returned, unless a call was under way then and takes longer than half a
/// second.
/// Since 0.1.0.
pub type ifl_log_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: ifl_log_level,
        message: *const c_char,
        message_len: u64,
    ),
>;

/// How long [`LogGate::close`] waits for lines that are being logged.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Lets log lines through to the host until its engine is destroyed: a step that outlasts the engine may
/// still have something to say, but the host may have freed its `user_data` by then.
#[derive(Clone, Default)]
pub(super) struct LogGate {
    is_closed: Arc<RwLock<bool>>,
}

impl LogGate {
    /// Logs lines up to and including `level` through the gate.
    pub(super) fn logger(&self, level: LogLevel, callback: HostCallback<ifl_log_callback>) -> Logger {
        let is_closed = self.is_closed.clone();
        let sink = move |level: LogLevel, message: &str| {
            // Held during the call, and recursive, because the callback may call functions that log.
            let is_closed = is_closed.read_recursive();
            if !*is_closed {
                callback.log(level as ifl_log_level, message);
            }
        };
        Logger::new(level, Arc::new(sink))
    }

    /// Shuts the gate behind the lines that are being logged. Stays open where the host does not return from
    /// one.
    pub(super) fn close(&self) {
        if let Some(mut is_closed) = self.is_closed.try_write_for(CLOSE_LIMIT) {
            *is_closed = true;
        }
    }
}
