//! The output thread: tokens in, text and events out. The scheduler never waits for text.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::config::LogLevel;
use crate::engine::event::{FinishReason, RequestId};
use crate::engine::scheduler::Outcome;
use crate::engine::shared::Shared;
use crate::engine::step::Message;
use crate::engine::stream::{RequestStream, Taken};
use crate::engine::sync::mpsc::{Receiver, Sender};
use crate::engine::worker::panic_text;
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

/// Runs until the scheduler thread is gone, then closes the queues.
pub(super) fn run(messages: Receiver<OutputMessage>, scheduler: Sender<Message>, shared: &Shared) {
    let mut output = Output { streams: HashMap::new(), scheduler };
    contain(&messages, &mut output, shared, |output| serve(&messages, output));
    // Streams that are left at the end end themselves, before their queues do.
    drop(output);
    shared.close_queues();
}

/// Runs `serve`. A panic in there is a defect that ends the engine, and every request with that error: the scheduler
/// must not go on for requests that nobody answers. Requests come in until it has hung up.
fn contain(
    messages: &Receiver<OutputMessage>,
    output: &mut Output,
    shared: &Shared,
    serve: impl FnOnce(&mut Output),
) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| serve(output))) {
        let error = Error::internal(format!("the output thread panicked: {}", panic_text(payload.as_ref())));
        shared.logger.log(LogLevel::Error, format_args!("the engine ends: {error}"));
        shared.close(error.clone());
        output.tell(Message::Close);
        output.end_all(&error);
        while let Ok(message) = messages.recv() {
            if let OutputMessage::Open(stream) = message {
                stream.finish(FinishReason::Error, Some(error.clone()));
            }
        }
    }
}

/// Runs until the scheduler thread is gone.
fn serve(messages: &Receiver<OutputMessage>, output: &mut Output) {
    while let Ok(message) = messages.recv() {
        match message {
            OutputMessage::Open(stream) => {
                output.streams.insert(stream.id(), stream);
            }
            OutputMessage::Outcomes(outcomes) => {
                outcomes.into_iter().for_each(|outcome| output.take(outcome))
            }
            OutputMessage::Close(error) => output.end_all(&error),
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

    fn end_all(&mut self, error: &Error) {
        for (_, stream) in self.streams.drain() {
            stream.finish(FinishReason::Error, Some(error.clone()));
        }
    }

    /// A scheduler that is gone has ended every request already.
    fn tell(&self, message: Message) {
        let _ = self.scheduler.send(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Logger;
    use crate::engine::stream::tests::{end, stream};
    use crate::engine::sync::mpsc::channel;
    use crate::token::StopMatcher;

    fn token(id: RequestId) -> OutputMessage {
        let outcome = Outcome::Token { id, token: 97, logprobs: Vec::new(), is_stop: false };
        OutputMessage::Outcomes(vec![outcome])
    }

    #[test]
    fn a_defect_in_detokenising_costs_one_request_and_not_the_thread() {
        let (broken, broken_queue) = stream(1, Some(StopMatcher::broken()));
        let (sound, sound_queue) = stream(2, None);
        let (sender, messages) = channel();
        let (to_scheduler, inbox) = channel();
        sender.send(OutputMessage::Open(Box::new(broken))).unwrap();
        sender.send(OutputMessage::Open(Box::new(sound))).unwrap();
        sender.send(token(1)).unwrap();
        sender.send(token(2)).unwrap();
        let ended = Outcome::Ended { id: 2, reason: FinishReason::Length };
        sender.send(OutputMessage::Outcomes(vec![ended])).unwrap();
        drop(sender);
        let shared = Shared::new(Logger::default());
        run(messages, to_scheduler, &shared);
        let broken = end(&broken_queue).expect("the request has ended");
        assert_eq!(broken.error.unwrap().status(), Status::Internal);
        assert!(matches!(inbox.recv(), Ok(Message::Remove(1))));
        assert_eq!(end(&sound_queue).expect("the other has ended").reason, FinishReason::Length);
        assert!(shared.while_open(|| Ok(())).is_ok(), "the engine goes on");
    }

    #[test]
    fn a_panic_of_the_thread_ends_the_engine_and_every_request() {
        let (early, early_queue) = stream(1, None);
        let (late, late_queue) = stream(2, None);
        let (sender, messages) = channel();
        let (scheduler, inbox) = channel();
        sender.send(OutputMessage::Open(Box::new(early))).unwrap();
        sender.send(OutputMessage::Open(Box::new(late))).unwrap();
        drop(sender);
        let shared = Shared::new(Logger::default());
        let mut output = Output { streams: HashMap::new(), scheduler };
        contain(&messages, &mut output, &shared, |output| {
            let Ok(OutputMessage::Open(stream)) = messages.recv() else { unreachable!("it was sent") };
            output.streams.insert(stream.id(), stream);
            panic!("a defect");
        });
        assert!(matches!(inbox.recv(), Ok(Message::Close)), "the scheduler is told");
        let error = shared.while_open(|| Ok(())).unwrap_err();
        assert_eq!(error.message(), "the output thread panicked: a defect");
        for queue in [early_queue, late_queue] {
            let finished = end(&queue).expect("the request has ended");
            assert_eq!(finished.error.unwrap().status(), Status::Internal);
        }
    }
}
