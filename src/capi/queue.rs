//! `ifl_queue`: further completion queues, and what polling has in common.

use std::os::fd::AsRawFd;
use std::time::Duration;

use super::engine::{engine_of, ifl_engine};
use super::error::ifl_error;
use super::events::ifl_events;
use super::ffi::{Caller, guard, guard_value};
use super::handle::Handles;
use super::status::ifl_status;
use crate::engine::{Event, Queue};
use crate::error::{Error, Result};

/// Every queue that hosts hold.
pub(super) static QUEUES: Handles<Queue> = Handles::new(0x1d, "queue");

/// A completion queue: name it in requests, and their events come here and not to the engine's own queue. So
/// the parts of a host drain their own requests. A handle, not a pointer: never dereferenced, never reused.
///
/// Functions: ifl_queue_create, ifl_queue_poll, ifl_queue_fd, ifl_queue_destroy. Since 0.1.0.
pub struct ifl_queue {
    _opaque: (),
}

/// Makes a further queue for an engine. It stays usable after the engine is closed or destroyed, to take the
/// events that wait in it.
///
/// - engine: the engine whose requests will name it.
/// - queue: receives the handle; end it with ifl_queue_destroy. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine
/// (such as IFL_DEVICE_LOST), once it has ended. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_queue_create(
    engine: *mut ifl_engine,
    queue: *mut *mut ifl_queue,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(queue, "queue")?;
        out.set(QUEUES.insert(engine_of(engine)?.create_queue()?)?);
        Ok(())
    })
}

/// Takes every event that waits in a queue, as ifl_engine_poll does for the engine's own.
///
/// - queue: the queue.
/// - timeout_ms: 0: do not block; -1: wait until there is an event; otherwise wait at most so many
///   milliseconds.
/// - events: receives the batch, NULL where nothing came in time; free it with ifl_events_free. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time; each event goes to one of the callers.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_CLOSED, or what ended the engine, once
/// the engine has ended and the queue is empty. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_queue_poll(
    queue: *mut ifl_queue,
    timeout_ms: i32,
    events: *mut *mut ifl_events,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| poll(caller, timeout_ms, events, |timeout| QUEUES.get(queue)?.poll(timeout)))
}

/// A descriptor that is readable (poll, select, epoll: POLLIN) while events wait in the queue or the engine
/// has ended; then call ifl_queue_poll with timeout 0. Once the engine has ended it stays readable for ever, also
/// where it had ended before this call: stop watching it at the first IFL_CLOSED.
///
/// - queue: the queue.
/// - fd: receives the descriptor, the same at each call. It belongs to the queue and is closed by
///   ifl_queue_destroy, before that returns: do not read from it, write to it or close it. Not NULL.
/// - error: receives the error where the call fails; may be NULL.
///
/// Threads: any, at any time.
/// Errors: IFL_INVALID_ARGUMENT, IFL_INVALID_HANDLE, IFL_FORKED; IFL_OUT_OF_MEMORY where the process has no
/// descriptors left; IFL_CLOSED where another thread destroys the queue meanwhile. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_queue_fd(
    queue: *mut ifl_queue,
    fd: *mut i32,
    error: *mut *mut ifl_error,
) -> ifl_status {
    guard(error, |caller| {
        let out = caller.out(fd, "fd")?;
        out.set(QUEUES.get(queue)?.descriptor()?.as_raw_fd());
        Ok(())
    })
}

/// Ends a queue: events in it are dropped, its descriptor is closed, requests that name it are cancelled, those
/// that wait for their first step included, and threads that wait in ifl_queue_poll return with IFL_CLOSED. The
/// requests' places are free when they have ended, within one step, and not yet when this call returns.
///
/// - queue: the queue. NULL, a queue that was destroyed already, and one made before a fork by another
///   process are left alone.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_queue_destroy(queue: *mut ifl_queue) {
    guard_value((), |_| {
        if let Ok(queue) = QUEUES.remove(queue) {
            queue.abandon();
        }
    });
}

/// Polls with C's idea of a timeout and an empty batch.
pub(super) fn poll(
    caller: &Caller,
    timeout_ms: i32,
    events: *mut *mut ifl_events,
    take: impl FnOnce(Option<Duration>) -> Result<Vec<Event>>,
) -> Result<()> {
    let out = caller.out(events, "events")?;
    let timeout = match (u64::try_from(timeout_ms), timeout_ms) {
        (Ok(milliseconds), _) => Some(Duration::from_millis(milliseconds)),
        (Err(_), -1) => None,
        _ => {
            let message =
                format!("timeout_ms is {timeout_ms}; -1 (wait), 0 (do not block) or more is allowed");
            return Err(Error::invalid_argument(message));
        }
    };
    let events = take(timeout)?;
    if events.is_empty() {
        out.set(std::ptr::null_mut());
    } else {
        out.set_box(ifl_events::new(events));
    }
    Ok(())
}
