//! From a host's request to what the scheduler and the output thread need: every number is checked here, before
//! anything else sees it.

use std::time::{Duration, Instant};

use crate::engine::event::RequestId;
use crate::engine::queue::Queue;
use crate::engine::request::{Prompt, Request};
use crate::engine::scheduler::{Scheduler, SchedulerConfig};
use crate::engine::sequence::{Micros, SequenceParams};
use crate::error::{Error, Result, Status};
use crate::token::{EncodeOptions, StopMatcher, Tokenizer};

/// Most stop tokens of a request.
const MAX_STOP_TOKENS: usize = 256;

/// The limits that a request is checked against.
pub(super) struct Admission<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) scheduler: &'a SchedulerConfig,
    pub(super) max_model_len: usize,
    pub(super) vocab_size: usize,
    pub(super) epoch: Instant,
}

/// A request that passed.
pub(super) struct Admitted {
    pub(super) params: SequenceParams,
    pub(super) stops: Option<StopMatcher>,
    pub(super) min_tokens: u32,
    pub(super) user_data: u64,
    pub(super) queue: Option<Queue>,
}

impl Admission<'_> {
    /// Checks and resolves `request`, which came in at `enqueued_at`. Lengths come first, and token ids are moved
    /// rather than copied: what a host may send is not bounded by anything.
    pub(super) fn admit(&self, id: RequestId, request: Request, enqueued_at: Instant) -> Result<Admitted> {
        let prompt = match request.prompt {
            Prompt::Tokens(tokens) => tokens,
            text => self.encode(&text)?,
        };
        let max_tokens = self.max_tokens(prompt.len(), request.max_tokens)?;
        self.check_tokens(&prompt)?;
        if request.min_tokens as usize > max_tokens {
            return Err(Error::invalid_argument(format!(
                "min_tokens is {} but at most {max_tokens} tokens can be produced",
                request.min_tokens
            )));
        }
        let stop_tokens = self.stop_tokens(request.stop_tokens, request.ignore_eos)?;
        let mut sampling =
            request.sampling.resolve(&self.tokenizer.generation_defaults(), self.vocab_size)?;
        if request.min_tokens > 0 {
            sampling.min_tokens = request.min_tokens;
            sampling.suppressed_tokens = stop_tokens.clone();
        }
        let stops = match request.stop_strings.is_empty() {
            true => None,
            false => Some(StopMatcher::new(&request.stop_strings)?),
        };
        let params = SequenceParams {
            id,
            prompt,
            sampling,
            max_tokens,
            stop_tokens,
            priority: request.priority,
            deadline: request.timeout.map(|timeout| self.deadline(enqueued_at, timeout)),
        };
        let Request { min_tokens, user_data, queue, .. } = request;
        Ok(Admitted { params, stops, min_tokens, user_data, queue })
    }

    /// Token ids of `prompt`, which may be longer than the context.
    pub(super) fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = self.encode(prompt)?;
        self.check_tokens(&tokens)?;
        Ok(tokens)
    }

    fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text { text, add_special_tokens, parse_special } => {
                let options =
                    EncodeOptions { add_special_tokens: *add_special_tokens, parse_special: *parse_special };
                self.check_text_bytes(text.len())?;
                self.tokenizer.encode(text, options)
            }
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
            Prompt::Chat(messages) => {
                self.tokenizer.encode_chat_if(messages, |text_bytes| self.check_text_bytes(text_bytes))
            }
        }
    }

    /// Whether there is at least one token, and all are of the vocabulary.
    fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::invalid_argument("the prompt is empty; it needs at least one token"));
        }
        let vocab_size = self.vocab_size;
        match tokens.iter().position(|&token| token as usize >= vocab_size) {
            None => Ok(()),
            Some(index) => Err(Error::invalid_argument(format!(
                "prompt token {index} is {}, but the vocabulary has {vocab_size} tokens",
                tokens[index]
            ))),
        }
    }

    /// Refuses a text that cannot fit before time and memory go into encoding it.
    fn check_text_bytes(&self, text_bytes: usize) -> Result<()> {
        let bytes_max = self.tokenizer.text_bytes_max(self.max_model_len);
        if text_bytes > bytes_max {
            return Err(Error::new(
                Status::PromptTooLong,
                format!(
                    "the prompt has {text_bytes} bytes, but at most {bytes_max} fit max_model_len {}; shorten it",
                    self.max_model_len
                ),
            ));
        }
        Ok(())
    }

    /// The number of outputs that the request may have, from what it asks for and what the context leaves.
    fn max_tokens(&self, prompt_len: usize, max_tokens: u32) -> Result<usize> {
        let room = self.max_model_len.saturating_sub(prompt_len);
        let wanted = match max_tokens {
            0 => room.max(1),
            wanted => wanted as usize,
        };
        if wanted > room || !Scheduler::fits(self.scheduler, prompt_len, wanted) {
            return Err(Error::new(
                Status::PromptTooLong,
                format!(
                    "{prompt_len} prompt tokens and max_tokens {wanted} do not fit max_model_len {}; shorten one \
                     of them or create the engine with a larger max_model_len or kv_cache_bytes",
                    self.max_model_len
                ),
            ));
        }
        Ok(wanted)
    }

    fn stop_tokens(&self, mut stop_tokens: Vec<u32>, ignore_eos: bool) -> Result<Vec<u32>> {
        let vocab_size = self.vocab_size;
        if stop_tokens.len() > MAX_STOP_TOKENS {
            return Err(Error::invalid_argument(format!(
                "{} stop_tokens; at most {MAX_STOP_TOKENS} are allowed",
                stop_tokens.len()
            )));
        }
        if let Some(&token) = stop_tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::invalid_argument(format!(
                "stop token {token} is outside the vocabulary of {vocab_size} tokens"
            )));
        }
        if !ignore_eos {
            stop_tokens.extend(self.tokenizer.eos_tokens());
        }
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Ok(stop_tokens)
    }

    /// `timeout` after `enqueued_at` on the engine's clock; the time that tokenising took is part of it.
    fn deadline(&self, enqueued_at: Instant, timeout: Duration) -> Micros {
        let enqueued_after = enqueued_at.saturating_duration_since(self.epoch);
        u64::try_from(enqueued_after.saturating_add(timeout).as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Admits a request that came in three seconds after the engine's start.
    fn admit(request: Request) -> Result<Admitted> {
        let epoch = Instant::now();
        let tokenizer = Tokenizer::bytes();
        let scheduler = SchedulerConfig {
            max_num_sequences: 4,
            max_batched_tokens: 8,
            token_quantum: 1,
            block_size: 16,
            num_blocks: 10,
        };
        let vocab_size = tokenizer.vocab_size();
        let admission =
            Admission { tokenizer: &tokenizer, scheduler: &scheduler, max_model_len: 100, vocab_size, epoch };
        admission.admit(1, request, epoch + Duration::from_secs(3))
    }

    fn tokens(tokens: Vec<u32>) -> Request {
        Request::new(Prompt::Tokens(tokens))
    }

    #[test]
    fn a_timeout_counts_from_the_moment_of_enqueueing() {
        let admitted = admit(Request { timeout: Some(Duration::from_millis(7)), ..tokens(vec![1]) }).unwrap();
        assert_eq!(admitted.params.deadline, Some(3_007_000));
        assert_eq!(admit(tokens(vec![1])).unwrap().params.deadline, None);
    }

    #[test]
    fn token_ids_are_moved_and_their_number_is_checked_first() {
        let prompt = vec![1, 2, 3];
        let address = prompt.as_ptr();
        assert_eq!(admit(tokens(prompt)).unwrap().params.prompt.as_ptr(), address);
        let too_long = admit(tokens(vec![u32::MAX; 100])).err().unwrap();
        assert_eq!(too_long.status(), Status::PromptTooLong);
    }

    #[test]
    fn a_prompt_is_kept_once() {
        let mut request = tokens(vec![1, 2, 3]);
        request.sampling.repetition_penalty = Some(1.5);
        let params = admit(request).unwrap().params;
        assert_eq!((params.prompt.len(), params.sampling.prompt.len()), (3, 0));
    }
}
