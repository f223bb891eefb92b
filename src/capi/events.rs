//! `ifl_events`: a batch of events, laid out for C.

use std::ffi::c_char;

use super::ffi::{guard_value, terminated};
use super::status::{ifl_status, ifl_status_value, number};
use crate::backend::TokenLogprob;
use crate::engine::{Event, EventKind, FinishReason, Output};

/// What an event says, an ifl_event_kind_value.
///
/// Since 0.1.0.
pub type ifl_event_kind = i32;

/// Values of an ifl_event_kind.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum ifl_event_kind_value {
    /// More output: tokens, text, log-probabilities.
    IFL_EVENT_OUTPUT = 1,
    /// The end of the request: reason, status, counts, timings. Nothing follows for this request.
    IFL_EVENT_FINISHED = 2,
}

/// Why a request ended, an ifl_finish_reason_value.
///
/// Since 0.1.0.
pub type ifl_finish_reason = i32;

/// Values of an ifl_finish_reason.
///
/// Since 0.1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum ifl_finish_reason_value {
    /// It has not ended; the value in output events.
    IFL_FINISH_NONE = 0,
    /// An end-of-sequence token, a stop token or a stop string.
    IFL_FINISH_STOP = 1,
    /// max_tokens or the context is used up.
    IFL_FINISH_LENGTH = 2,
    /// The host cancelled it.
    IFL_FINISH_CANCELLED = 3,
    /// Its timeout_ms passed.
    IFL_FINISH_DEADLINE = 4,
    /// It failed; status and message of the event say how.
    IFL_FINISH_ERROR = 5,
}

/// A batch of events, as ifl_engine_poll and ifl_queue_poll return it. Owned by the caller, who frees it with
/// ifl_events_free; it is independent of the engine and the queue, may outlive them, and never changes.
///
/// Functions: ifl_events_count, ifl_events_get, ifl_events_free. Since 0.1.0.
pub struct ifl_events {
    views: Vec<ifl_event>,
    /// What the views point into; never changed after they were made.
    _data: Vec<EventData>,
}

/// One event. Reach each through ifl_events_get, not by counting on from another: the struct may grow.
/// Everything in it, and everything that it points to, belongs to the batch and lives until
/// ifl_events_free. Fields that do not concern the kind are 0, or empty text.
///
/// Since 0.1.0.
#[derive(Debug)]
#[repr(C)]
pub struct ifl_event {
    /// Size of the struct in the library that made it. Where this is less than your sizeof, the fields beyond
    /// it do not exist.
    pub struct_size: u32,
    /// What the event says.
    pub kind: ifl_event_kind,
    /// The request's id.
    pub request_id: u64,
    /// The request's user_data.
    pub user_data: u64,
    /// Token ids of this piece of output, in order; NULL where there are none.
    pub token_ids: *const u32,
    /// Number of token_ids; may be 0 where text was held back and is released now.
    pub num_tokens: u64,
    /// Text that these tokens and earlier ones complete: UTF-8, always whole code points, NUL-terminated,
    /// never NULL. Pieces of one request in a row are the whole text.
    pub text: *const c_char,
    /// Length of text in bytes without the NUL; may be 0. Text can hold NUL characters of its own.
    pub text_len: u64,
    /// Tokens of which the log-probability is reported: num_logprobs for each of token_ids, of which the
    /// first is the token itself and the others the likeliest tokens, in falling order. Those of token i
    /// start at index i * num_logprobs. NULL where none were asked for.
    pub logprob_tokens: *const u32,
    /// Natural logarithms of their probabilities under the model, before penalties, bias and temperature;
    /// indexed as logprob_tokens. A row with fewer entries is filled up with the token IFL_NO_TOKEN.
    pub logprobs: *const f32,
    /// Entries for each token: the token itself and the alternatives, so one more than the
    /// ifl_request.num_logprobs that was asked for. 0 where none were asked for.
    pub num_logprobs: u64,
    /// Why the request ended.
    pub finish_reason: ifl_finish_reason,
    /// What went wrong, for IFL_FINISH_ERROR; IFL_OK otherwise.
    pub status: ifl_status,
    /// The same for a person: UTF-8, NUL-terminated, never NULL.
    pub message: *const c_char,
    /// Length of message in bytes without the NUL.
    pub message_len: u64,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Tokens of the whole output.
    pub num_output_tokens: u32,
    /// Microseconds from ifl_engine_enqueue to the first step that ran the request; 0 where none did.
    pub queued_us: u64,
    /// Microseconds from ifl_engine_enqueue to the first token; 0 where there was none.
    pub first_token_us: u64,
    /// Microseconds from ifl_engine_enqueue to the end.
    pub total_us: u64,
}

/// Token id that stands for no token; `IFL_NO_TOKEN` in the header.
const NO_TOKEN: u32 = u32::MAX;

/// What one view points into.
struct EventData {
    token_ids: Vec<u32>,
    text: Box<[u8]>,
    logprob_tokens: Vec<u32>,
    logprobs: Vec<f32>,
    message: Box<[u8]>,
}

impl ifl_events {
    pub(super) fn new(events: Vec<Event>) -> Self {
        let (views, data) = events.into_iter().map(convert).unzip();
        Self { views, _data: data }
    }
}

fn convert(event: Event) -> (ifl_event, EventData) {
    let (kind, output, finished) = match event.kind {
        EventKind::Output(output) => (ifl_event_kind_value::IFL_EVENT_OUTPUT as i32, output, None),
        EventKind::Finished(finished) => {
            (ifl_event_kind_value::IFL_EVENT_FINISHED as i32, Output::default(), Some(finished))
        }
    };
    let error = finished.as_ref().and_then(|finished| finished.error.as_ref());
    let num_logprobs = output.logprobs.iter().map(Vec::len).max().unwrap_or(0);
    let data = EventData {
        text: terminated(&output.text),
        logprob_tokens: flatten(&output.logprobs, num_logprobs, NO_TOKEN, |entry| entry.token),
        logprobs: flatten(&output.logprobs, num_logprobs, f32::NEG_INFINITY, |entry| entry.logprob),
        token_ids: output.token_ids,
        message: terminated(error.map_or("", |error| error.message())),
    };
    let status = error.map_or(ifl_status_value::IFL_OK as i32, |error| number(error.status()));
    let finished = finished.as_ref();
    let timings = finished.map(|finished| finished.timings).unwrap_or_default();
    let view = ifl_event {
        struct_size: size_of::<ifl_event>() as u32,
        kind,
        request_id: event.request_id,
        user_data: event.user_data,
        token_ids: pointer(&data.token_ids),
        num_tokens: data.token_ids.len() as u64,
        text: data.text.as_ptr().cast(),
        text_len: data.text.len() as u64 - 1,
        logprob_tokens: pointer(&data.logprob_tokens),
        logprobs: pointer(&data.logprobs),
        num_logprobs: num_logprobs as u64,
        finish_reason: finished.map_or(ifl_finish_reason_value::IFL_FINISH_NONE as i32, |finished| {
            number_of_reason(finished.reason)
        }),
        status,
        message: data.message.as_ptr().cast(),
        message_len: data.message.len() as u64 - 1,
        num_prompt_tokens: finished.map_or(0, |finished| finished.num_prompt_tokens),
        num_output_tokens: finished.map_or(0, |finished| finished.num_output_tokens),
        queued_us: timings.queued_us,
        first_token_us: timings.first_token_us,
        total_us: timings.total_us,
    };
    (view, data)
}

fn number_of_reason(reason: FinishReason) -> ifl_finish_reason {
    use ifl_finish_reason_value::*;
    let value = match reason {
        FinishReason::Stop => IFL_FINISH_STOP,
        FinishReason::Length => IFL_FINISH_LENGTH,
        FinishReason::Cancelled => IFL_FINISH_CANCELLED,
        FinishReason::Deadline => IFL_FINISH_DEADLINE,
        FinishReason::Error => IFL_FINISH_ERROR,
    };
    value as ifl_finish_reason
}

/// Rows one after the other, each filled up to `width` with `filler`.
fn flatten<T: Copy>(
    rows: &[Vec<TokenLogprob>],
    width: usize,
    filler: T,
    field: impl Fn(&TokenLogprob) -> T,
) -> Vec<T> {
    let row = |row: &Vec<TokenLogprob>| {
        let mut values: Vec<T> = row.iter().map(&field).collect();
        values.resize(width, filler);
        values
    };
    rows.iter().flat_map(row).collect()
}

/// Where the elements are; NULL where there are none.
fn pointer<T>(elements: &[T]) -> *const T {
    if elements.is_empty() { std::ptr::null() } else { elements.as_ptr() }
}

/// Number of events in a batch.
///
/// - events: a batch, or NULL, which is the empty batch.
///
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_events_count(events: *const ifl_events) -> u64 {
    guard_value(0, |caller| caller.object(events).map_or(0, |events| events.views.len() as u64))
}

/// One event of a batch. Events of one request come in order.
///
/// - events: a batch, or NULL, which is the empty batch.
/// - index: 0 to ifl_events_count - 1.
///
/// Returns the event, which belongs to the batch and lives until ifl_events_free, or NULL for an index beyond
/// the last, so that a loop needs no count.
/// Threads: any, at any time. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_events_get(events: *const ifl_events, index: u64) -> *const ifl_event {
    guard_value(std::ptr::null(), |caller| {
        let views = caller.object(events).map_or([].as_slice(), |events| &events.views);
        usize::try_from(index).ok().and_then(|index| views.get(index)).map_or(std::ptr::null(), |view| view)
    })
}

/// Frees a batch, its events and all that they point to.
///
/// - events: a batch that has not been freed, or NULL, which does nothing.
///
/// Threads: any; no other thread may use the batch any more. Errors: none. Since 0.1.0.
#[unsafe(no_mangle)]
pub extern "C" fn ifl_events_free(events: *mut ifl_events) {
    guard_value((), |caller| caller.free(events));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Finished, Timings};
    use crate::error::{Error, Status};

    fn output(logprobs: Vec<Vec<TokenLogprob>>) -> Event {
        let output = Output { token_ids: vec![7, 9], text: "a\0ß".to_owned(), logprobs };
        Event { request_id: 3, user_data: 4, kind: EventKind::Output(output) }
    }

    #[test]
    fn output_is_laid_out_for_c() {
        let events = ifl_events::new(vec![output(Vec::new())]);
        let (view, data) = (&events.views[0], &events._data[0]);
        assert_eq!((view.request_id, view.user_data, view.num_tokens, view.text_len), (3, 4, 2, 4));
        assert_eq!(view.text.cast(), data.text.as_ptr());
        assert_eq!(&*data.text, "a\0ß\0".as_bytes());
        assert_eq!(view.token_ids, data.token_ids.as_ptr());
        assert!(view.logprobs.is_null() && view.logprob_tokens.is_null());
        assert_eq!(view.kind, ifl_event_kind_value::IFL_EVENT_OUTPUT as i32);
        assert_eq!(
            (view.finish_reason, view.status),
            (ifl_finish_reason_value::IFL_FINISH_NONE as i32, ifl_status_value::IFL_OK as i32)
        );
    }

    #[test]
    fn short_rows_of_log_probabilities_are_filled_up() {
        let entry = |token, logprob| TokenLogprob { token, logprob };
        let events =
            ifl_events::new(vec![output(vec![vec![entry(7, -0.5), entry(1, -1.0)], vec![entry(9, -2.0)]])]);
        assert_eq!(events.views[0].num_logprobs, 2);
        assert_eq!(events._data[0].logprob_tokens, [7, 1, 9, NO_TOKEN]);
        assert_eq!(events._data[0].logprobs, [-0.5, -1.0, -2.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn a_failure_carries_status_and_message() {
        let finished = Finished {
            reason: FinishReason::Error,
            error: Some(Error::new(Status::NumericError, "NaN in row 3")),
            num_prompt_tokens: 5,
            num_output_tokens: 6,
            timings: Timings { queued_us: 1, first_token_us: 2, total_us: 3 },
        };
        let event = Event { request_id: 1, user_data: 2, kind: EventKind::Finished(finished) };
        let events = ifl_events::new(vec![event]);
        let (view, data) = (&events.views[0], &events._data[0]);
        assert_eq!(view.kind, ifl_event_kind_value::IFL_EVENT_FINISHED as i32);
        assert_eq!(view.finish_reason, ifl_finish_reason_value::IFL_FINISH_ERROR as i32);
        assert_eq!(view.status, ifl_status_value::IFL_NUMERIC_ERROR as i32);
        assert_eq!((&*data.message, view.message_len), (b"NaN in row 3\0".as_slice(), 12));
        assert_eq!((&*data.text, view.text_len), (b"\0".as_slice(), 0));
        assert_eq!((view.num_prompt_tokens, view.num_output_tokens), (5, 6));
        assert_eq!((view.queued_us, view.first_token_us, view.total_us), (1, 2, 3));
    }
}
