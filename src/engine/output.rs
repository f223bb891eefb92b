//! The output thread: tokens in, text and events out. The scheduler never waits for text.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::engine::event::{FinishReason, RequestId};
use crate::engine::scheduler::Outcome;
use crate::engine::step::Message;
use crate::engine::stream::{RequestStream, Taken};
use crate::engine::sync::mpsc::{Receiver, Sender};
use crate::error::{Error, Status};

/// From the scheduler thread.
pub(super) enum OutputMessage {
    /// A request has been accepted.
    Open(Box<RequestStream>),
    /// What became of requests, in order.
    Outcomes(Vec<Outcome>),
    /// The engine ends; so does every request, with this error.
    Close(Error),
}

/// Runs until the scheduler thread is gone. Streams that are left then end themselves.
pub(super) fn run(messages: Receiver<OutputMessage>, scheduler: Sender<Message>) {
    let mut output = Output { streams: HashMap::new(), scheduler };
    while let Ok(message) = messages.recv() {
        match message {
            OutputMessage::Open(stream) => {
                output.streams.insert(stream.id(), stream);
            }
            OutputMessage::Outcomes(outcomes) => {
                outcomes.into_iter().for_each(|outcome| output.take(outcome))
            }
            OutputMessage::Close(error) => {
                for (_, stream) in output.streams.drain() {
                    stream.finish(FinishReason::Error, Some(error.clone()));
                }
            }
        }
    }
}

struct Output {
    streams: HashMap<RequestId, Box<RequestStream>>,
    scheduler: Sender<Message>,
}

impl Output {
    /// Applies one outcome. Outcomes of requests that ended here first, by a stop string, are ignored.
    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Started { id } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.start();
                }
            }
            Outcome::Token { id, token, logprobs, is_stop } => {
                let Some(stream) = self.streams.get_mut(&id) else {
                    return;
                };
                // A defect in detokenising must cost this request, not the thread that serves all of them.
                match catch_unwind(AssertUnwindSafe(|| stream.push_token(token, logprobs, is_stop))) {
                    Ok(Taken::Accepted) => {}
                    Ok(Taken::Abandoned) => self.tell(Message::Cancel(id)),
                    Ok(Taken::Stopped) => {
                        self.streams.remove(&id);
                        self.tell(Message::Remove(id));
                    }
                    Err(_) => {
                        let error = Error::internal(format!("detokenising token {token} failed"));
                        self.end(id, FinishReason::Error, Some(error));
                        self.tell(Message::Remove(id));
                    }
                }
            }
            Outcome::Ended { id, reason } => {
                let error = (reason == FinishReason::Error)
                    .then(|| Error::new(Status::NumericError, "the model's logits held NaN or an infinity"));
                self.end(id, reason, error);
            }
        }
    }

    fn end(&mut self, id: RequestId, reason: FinishReason, error: Option<Error>) {
        if let Some(stream) = self.streams.remove(&id) {
            stream.finish(reason, error);
        }
    }

    /// A scheduler that is gone has ended every request already.
    fn tell(&self, message: Message) {
        let _ = self.scheduler.send(message);
    }
}
