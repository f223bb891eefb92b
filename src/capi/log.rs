//! `ifl_log_callback`: the engine's log lines, for the host.

use std::ffi::{c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
/// while the library holds a lock that its functions take. It may call this library, but neither close nor destroy
/// its own engine, and must not wait, not in ifl_engine_poll or ifl_queue_poll either: the engine's requests stand
/// still meanwhile. It must return: no longjmp, no C++ exception, no unwinding may leave it. No call of it begins
/// once ifl_engine_destroy has returned, or ifl_engine_create has failed. A call that is under way is waited
/// for as long as ifl_engine_destroy may take, 2 seconds, and goes on after that where it takes longer.
/// Since 0.1.0.
pub type ifl_log_callback = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        level: ifl_log_level,
        message: *const c_char,
        message_len: u64,
    ),
>;

/// Lets log lines through to the host until its engine is destroyed: a step that outlasts the engine may
/// still have something to say, but the host may have freed its `user_data` by then.
#[derive(Clone, Default)]
pub(super) struct LogGate {
    inner: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    is_closed: AtomicBool,
    /// Held by lines that are being logged, each of which has looked at `is_closed` since.
    lines: RwLock<()>,
}

impl LogGate {
    /// Logs lines up to and including `level` through the gate.
    pub(super) fn logger(&self, level: LogLevel, callback: HostCallback<ifl_log_callback>) -> Logger {
        let gate = self.inner.clone();
        let sink = move |level: LogLevel, message: &str| {
            // Held during the call, and recursive, because the callback may call functions that log.
            let _under_way = gate.lines.read_recursive();
            if !gate.is_closed.load(Ordering::SeqCst) {
                callback.log(level as ifl_log_level, message);
            }
        };
        Logger::new(level, Arc::new(sink))
    }

    /// Shuts the gate, then waits for the lines that are being logged, at most `limit`; says whether they are done.
    pub(super) fn close(&self, limit: Duration) -> bool {
        self.inner.is_closed.store(true, Ordering::SeqCst);
        self.inner.lines.try_write_for(limit).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// What a host's callback shares with the test.
    struct Host {
        lines: Sender<String>,
        /// A slow line waits for a word from here.
        go_on: Receiver<()>,
    }

    extern "C" fn slow_line(host: *mut c_void, _level: i32, message: *const c_char, len: u64) {
        crate::capi::ffi::tests::with_caller(|caller| {
            let host = caller.object(host.cast::<Host>()).unwrap();
            let line = caller.text(message, len, "message").unwrap();
            host.lines.send(line.to_owned()).unwrap();
            if line == "slow" {
                host.go_on.recv().unwrap();
            }
        });
    }

    #[test]
    fn no_line_begins_behind_a_closed_gate() {
        let (lines, logged) = channel();
        let (go_on, must_wait) = channel();
        let mut host = Host { lines, go_on: must_wait };
        let gate = LogGate::default();
        let function: ifl_log_callback = Some(slow_line);
        let callback = HostCallback::new(function, (&raw mut host).cast());
        let logger = gate.logger(LogLevel::Info, callback);
        std::thread::scope(|scope| {
            scope.spawn(|| logger.log(LogLevel::Info, format_args!("slow")));
            assert_eq!(logged.recv().unwrap(), "slow");
            assert!(!gate.close(Duration::from_millis(20)), "the line is under way");
            logger.log(LogLevel::Info, format_args!("late"));
            go_on.send(()).unwrap();
            assert!(gate.close(Duration::from_secs(60)));
        });
        logger.log(LogLevel::Info, format_args!("later"));
        assert!(logged.try_recv().is_err(), "a line was logged behind the closed gate");
    }
}
