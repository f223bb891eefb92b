//! The host's end of one request: turns tokens into text and events.
//!
//! A stream is the right to emit a request's events. It lives in exactly one place at a time (the caller's
//! stack, the command to the scheduler, the output thread), and emits the one terminal event when it is finished
//! or, at the latest, when it is dropped. That is what makes the promise hold on every path.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::backend::TokenLogprob;
use crate::config::{LogLevel, Logger};
use crate::engine::event::{Event, EventKind, FinishReason, Finished, Output, RequestId, Timings};
use crate::engine::queue::{Pushed, Queue};
use crate::engine::sync::Arc;
use crate::engine::sync::atomic::{AtomicU64, Ordering};
use crate::error::{Error, Status};
use crate::token::{StopMatcher, StreamDecoder};

/// A place among the requests that may be accepted and not yet read to their ends; dropping it frees the place.
pub(super) struct Place {
    num_taken: Arc<AtomicU64>,
}

impl Place {
    /// Takes a place where fewer than `max` are taken.
    pub(super) fn take(num_taken: &Arc<AtomicU64>, max: u64) -> Option<Place> {
        num_taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |taken| (taken < max).then_some(taken + 1))
            .ok()
            .map(|_| Place { num_taken: num_taken.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.num_taken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a stream is made of.
pub(super) struct StreamParams {
    pub(super) id: RequestId,
    pub(super) user_data: u64,
    pub(super) queue: Queue,
    pub(super) decoder: StreamDecoder,
    pub(super) stops: Option<StopMatcher>,
    /// Outputs before which stop strings do not count.
    pub(super) min_tokens: u32,
    pub(super) num_prompt_tokens: u32,
    pub(super) enqueued_at: Instant,
    /// Counts ends.
    pub(super) num_finished: Arc<AtomicU64>,
    pub(super) logger: Logger,
}

/// See the module's description.
pub(super) struct RequestStream {
    params: StreamParams,
    /// Goes with the terminal event to the queue, so that whoever has polled that event finds the place free.
    place: Option<Place>,
    has_matched_stop: bool,
    num_output_tokens: u32,
    timings: Timings,
    is_finished: bool,
}

/// What the engine must do after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Go on.
    Accepted,
    /// A stop string matched; the stream is finished.
    Stopped,
    /// Nobody reads the stream any more.
    Abandoned,
}

impl RequestStream {
    pub(super) fn new(params: StreamParams, place: Place) -> Self {
        params.queue.open(params.id);
        Self {
            params,
            place: Some(place),
            has_matched_stop: false,
            num_output_tokens: 0,
            timings: Timings::default(),
            is_finished: false,
        }
    }

    pub(super) fn id(&self) -> RequestId {
        self.params.id
    }

    /// The first step that runs the request has been planned.
    pub(super) fn start(&mut self) {
        self.timings.queued_us = self.elapsed_us();
    }

    /// Takes the next token. One that `is_stop` ends the request and produces no text.
    pub(super) fn push_token(&mut self, token: u32, logprobs: Vec<TokenLogprob>, is_stop: bool) -> Taken {
        self.num_output_tokens += 1;
        if self.num_output_tokens == 1 {
            self.timings.first_token_us = self.elapsed_us();
        }
        let mut text = String::new();
        if !is_stop {
            self.params.decoder.push_into(token, &mut text);
            self.filter_stops(&mut text);
        }
        let logprobs = if logprobs.is_empty() { Vec::new() } else { vec![logprobs] };
        let pushed = self.push_output(Output { token_ids: vec![token], text, logprobs });
        if self.has_matched_stop {
            self.emit_finished(FinishReason::Stop, None);
            return Taken::Stopped;
        }
        match pushed {
            Pushed::Accepted => Taken::Accepted,
            Pushed::Abandoned => Taken::Abandoned,
        }
    }

    /// Ends the stream: releases text that was held back, then emits the terminal event.
    pub(super) fn finish(mut self, reason: FinishReason, error: Option<Error>) {
        self.emit_finished(reason, error);
    }

    /// Gives the stream up without any event; for requests that were not accepted after all.
    pub(super) fn disarm(mut self) {
        self.is_finished = true;
        self.params.queue.forget(self.params.id);
    }

    /// Passes `text` through the stop strings.
    fn filter_stops(&mut self, text: &mut String) {
        if let Some(stops) = &mut self.params.stops
            && self.num_output_tokens > self.params.min_tokens
        {
            let outcome = stops.push(text);
            *text = outcome.emit;
            self.has_matched_stop |= outcome.matched.is_some();
        }
    }

    fn push_output(&self, output: Output) -> Pushed {
        self.params.queue.push_output(self.params.id, self.params.user_data, output)
    }

    fn emit_finished(&mut self, reason: FinishReason, error: Option<Error>) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let (reason, error) = self.release_text(reason, error);
        self.timings.total_us = self.elapsed_us();
        let finished = Finished {
            reason,
            error,
            num_prompt_tokens: self.params.num_prompt_tokens,
            num_output_tokens: self.num_output_tokens,
            timings: self.timings,
        };
        self.params.logger.log(
            LogLevel::Debug,
            format_args!(
                "request {}: {reason:?} after {} tokens in {} us",
                self.params.id, self.num_output_tokens, self.timings.total_us
            ),
        );
        // Before the event, so that whoever sees that finds it counted.
        self.params.num_finished.fetch_add(1, Ordering::Relaxed);
        let event = Event {
            request_id: self.params.id,
            user_data: self.params.user_data,
            kind: EventKind::Finished(finished),
        };
        self.params.queue.push_last(event, self.place.take());
    }

    /// Lets out what is held back and says how the request then ends: where a stop string matches now, the output
    /// has stopped there rather than at its length. A panic is a defect in detokenising. It must not get further,
    /// since the terminal event is still to come and the thread may be unwinding already.
    fn release_text(&mut self, reason: FinishReason, error: Option<Error>) -> (FinishReason, Option<Error>) {
        if self.has_matched_stop {
            return (reason, error);
        }
        let released = catch_unwind(AssertUnwindSafe(|| self.release_held_text()));
        match (released, reason) {
            (Ok(()), FinishReason::Length) if self.has_matched_stop => (FinishReason::Stop, error),
            (Err(_), FinishReason::Stop | FinishReason::Length) => {
                let error = Error::internal("detokenising the end of the output failed");
                (FinishReason::Error, Some(error))
            }
            _ => (reason, error),
        }
    }

    /// Bytes that waited for the rest of a code point, then text that could have become a stop string.
    fn release_held_text(&mut self) {
        let mut text = self.params.decoder.finish();
        self.filter_stops(&mut text);
        if let (Some(stops), false) = (&mut self.params.stops, self.has_matched_stop) {
            let outcome = stops.flush();
            text.push_str(&outcome.emit);
            self.has_matched_stop = outcome.matched.is_some();
        }
        if !text.is_empty() {
            // The terminal event follows at once, so there is nothing left to end.
            let _ = self.push_output(Output { text, ..Output::default() });
        }
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.params.enqueued_at.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.is_finished {
            let error = Error::new(Status::Closed, "the engine stopped before the request ended");
            self.emit_finished(FinishReason::Error, Some(error));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::token::{DecodeOptions, Tokenizer};

    /// A stream of the echo device's vocabulary, and the queue that it writes to.
    pub(in crate::engine) fn stream(id: RequestId, stops: Option<StopMatcher>) -> (RequestStream, Queue) {
        let queue = Queue::new(1, 1000, |_, _| {});
        let params = StreamParams {
            id,
            user_data: 0,
            queue: queue.clone(),
            decoder: StreamDecoder::new(
                &Tokenizer::bytes(),
                DecodeOptions { skip_special: true, continues: true },
            ),
            stops,
            min_tokens: 0,
            num_prompt_tokens: 1,
            enqueued_at: Instant::now(),
            num_finished: Arc::default(),
            logger: Logger::default(),
        };
        let place = Place::take(&Arc::default(), 1).unwrap();
        (RequestStream::new(params, place), queue)
    }

    /// How the one request of `queue` ended; `None` where it has not.
    pub(in crate::engine) fn end(queue: &Queue) -> Option<Finished> {
        queue.poll(Some(std::time::Duration::ZERO)).unwrap().into_iter().find_map(|event| match event.kind {
            EventKind::Finished(finished) => Some(finished),
            EventKind::Output(_) => None,
        })
    }

    #[test]
    fn a_defect_in_the_end_of_the_text_is_the_requests_error() {
        for reason in [FinishReason::Length, FinishReason::Stop] {
            let (stream, queue) = stream(1, Some(StopMatcher::broken()));
            stream.finish(reason, None);
            let end = end(&queue).unwrap();
            assert_eq!(end.reason, FinishReason::Error);
            assert_eq!(end.error.unwrap().status(), Status::Internal);
        }
        let (stream, queue) = stream(1, Some(StopMatcher::broken()));
        stream.finish(FinishReason::Cancelled, None);
        assert_eq!(end(&queue).unwrap().reason, FinishReason::Cancelled);
    }

    #[test]
    fn a_defect_while_a_thread_unwinds_does_not_end_the_process() {
        let (stream, queue) = stream(1, Some(StopMatcher::broken()));
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _stream = stream;
            panic!("the thread has a defect of its own");
        }));
        assert!(unwound.is_err());
        assert_eq!(end(&queue).unwrap().error.unwrap().status(), Status::Closed);
    }
}
