//! Requests in flight: enqueue, drain, and cancel them all on Ctrl-C.

use std::collections::BTreeSet;
use std::time::Duration;

use inflight::backend::TokenLogprob;
use inflight::engine::{Finished, RequestId};
use inflight::{Engine, Event, EventKind, FinishReason, Request};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// How long a wait for events lasts before Ctrl-C is looked at again.
pub const POLL_SLICE: Duration = Duration::from_millis(100);

/// The requests that this process has in flight in one engine.
pub struct Flight<'a> {
    engine: &'a Engine,
    interrupt: &'a Interrupt,
    open: BTreeSet<RequestId>,
    cancelled: bool,
}

impl<'a> Flight<'a> {
    /// None yet.
    pub fn new(engine: &'a Engine, interrupt: &'a Interrupt) -> Self {
        Self { engine, interrupt, open: BTreeSet::new(), cancelled: false }
    }

    /// Enqueues a request; its events come from [`Flight::wait`].
    pub fn enqueue(&mut self, request: Request) -> inflight::Result<RequestId> {
        let id = self.engine.enqueue(request)?;
        self.open.insert(id);
        Ok(id)
    }

    /// Requests that have not ended.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether every request has ended.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether Ctrl-C has cancelled the requests.
    pub fn was_cancelled(&self) -> bool {
        self.cancelled
    }

    /// The next events; none at all once every request has ended. After Ctrl-C every request is cancelled,
    /// and what comes is their terminal events.
    pub fn wait(&mut self) -> inflight::Result<Vec<Event>> {
        while !self.is_empty() {
            let events = self.poll(POLL_SLICE)?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
        Ok(Vec::new())
    }

    /// The events that come within `timeout`, perhaps none.
    pub fn poll(&mut self, timeout: Duration) -> inflight::Result<Vec<Event>> {
        if self.interrupt.is_pressed() && !self.cancelled {
            self.cancelled = true;
            for &id in &self.open {
                self.engine.cancel(id)?;
            }
        }
        let events = self.engine.poll(Some(timeout))?;
        for event in &events {
            if matches!(event.kind, EventKind::Finished(_)) {
                self.open.remove(&event.request_id);
            }
        }
        Ok(events)
    }
}

/// What a request has produced so far.
#[derive(Debug, Default)]
pub struct Answer {
    /// Token ids.
    pub token_ids: Vec<u32>,
    /// Text.
    pub text: String,
    /// Per token: itself, then its alternatives.
    pub logprobs: Vec<Vec<TokenLogprob>>,
    /// The terminal event, once it has come.
    pub finished: Option<Finished>,
}

impl Answer {
    /// Takes in an event.
    pub fn absorb(&mut self, kind: EventKind) {
        match kind {
            EventKind::Output(output) => {
                self.token_ids.extend(output.token_ids);
                self.text.push_str(&output.text);
                self.logprobs.extend(output.logprobs);
            }
            EventKind::Finished(finished) => self.finished = Some(finished),
        }
    }

    /// `Err` where the request failed.
    pub fn check(&self) -> Result<(), Failure> {
        match self.finished.as_ref().and_then(|finished| finished.error.clone()) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    /// Output tokens per second after the first, which waits for the prompt; 0 where there are too few.
    pub fn decode_tokens_per_second(&self) -> f64 {
        let Some(finished) = &self.finished else { return 0.0 };
        let decode_us = finished.timings.total_us.saturating_sub(finished.timings.first_token_us);
        if self.token_ids.len() < 2 || decode_us == 0 {
            return 0.0;
        }
        (self.token_ids.len() - 1) as f64 * 1e6 / decode_us as f64
    }

    /// One line for people about what it took.
    pub fn remark(&self) -> String {
        let Some(finished) = &self.finished else { return String::new() };
        format!(
            "[{} prompt tokens, {} output tokens, {:.1} tokens/s, first token after {:.0} ms, finish: {}]",
            finished.num_prompt_tokens,
            finished.num_output_tokens,
            self.decode_tokens_per_second(),
            finished.timings.first_token_us as f64 / 1e3,
            reason_name(finished.reason)
        )
    }

    /// The object that `--json` prints.
    pub fn to_json(&self, prompt_tokens: &[u32]) -> Value {
        let mut object = json!({
            "prompt_tokens": prompt_tokens,
            "token_ids": self.token_ids,
            "text": self.text,
        });
        if !self.logprobs.is_empty() {
            let per_token = |token: &Vec<TokenLogprob>| {
                token.iter().map(|l| json!({"token": l.token, "logprob": l.logprob})).collect::<Value>()
            };
            object["logprobs"] = self.logprobs.iter().map(per_token).collect();
        }
        if let Some(finished) = &self.finished {
            object["finish_reason"] = reason_name(finished.reason).into();
            object["timings"] = json!({
                "queued_us": finished.timings.queued_us,
                "first_token_us": finished.timings.first_token_us,
                "total_us": finished.timings.total_us,
            });
            if let Some(error) = &finished.error {
                object["error"] = error_json(error);
            }
        }
        object
    }
}

/// An error as `--json` prints it.
pub fn error_json(error: &inflight::Error) -> Value {
    json!({"code": error.status() as i32, "status": error.status().name(), "message": error.message()})
}

/// The word for a finish reason in output for machines and people.
pub fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Deadline => "deadline",
        FinishReason::Error => "error",
    }
}
