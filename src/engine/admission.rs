//! From a host's request to what the scheduler and the output thread need: every number is checked here, before
//! anything else sees it.

use std::time::{Duration, Instant};

use crate::engine::event::RequestId;
use crate::engine::queue::Queue;
use crate::engine::request::{Prompt, Request};
use crate::engine::scheduler::{Scheduler, SchedulerConfig};
use crate::engine::sequence::SequenceParams;
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
    /// Checks and resolves `request`.
    pub(super) fn admit(&self, id: RequestId, request: Request) -> Result<Admitted> {
        let prompt = self.prompt_tokens(&request.prompt)?;
        let max_tokens = self.max_tokens(prompt.len(), request.max_tokens)?;
        if request.min_tokens as usize > max_tokens {
            return Err(Error::invalid_argument(format!(
                "min_tokens is {} but at most {max_tokens} tokens can be produced",
                request.min_tokens
            )));
        }
        let stop_tokens = self.stop_tokens(&request)?;
        let vocab_size = self.vocab_size;
        let mut sampling =
            request.sampling.resolve(&self.tokenizer.generation_defaults(), vocab_size, &prompt)?;
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
            deadline: request.timeout.map(|timeout| self.deadline(timeout)),
        };
        let Request { min_tokens, user_data, queue, .. } = request;
        Ok(Admitted { params, stops, min_tokens, user_data, queue })
    }

    pub(super) fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokens = match prompt {
            Prompt::Text { text, add_special_tokens, parse_special } => {
                let options =
                    EncodeOptions { add_special_tokens: *add_special_tokens, parse_special: *parse_special };
                self.check_text_bytes(text.len())?;
                self.tokenizer.encode(text, options)?
            }
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat(messages) => {
                self.tokenizer.encode_chat_if(messages, |text_bytes| self.check_text_bytes(text_bytes))?
            }
        };
        if tokens.is_empty() {
            return Err(Error::invalid_argument("the prompt is empty; it needs at least one token"));
        }
        let vocab_size = self.vocab_size;
        match tokens.iter().position(|&token| token as usize >= vocab_size) {
            None => Ok(tokens),
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

    fn stop_tokens(&self, request: &Request) -> Result<Vec<u32>> {
        let vocab_size = self.vocab_size;
        if request.stop_tokens.len() > MAX_STOP_TOKENS {
            return Err(Error::invalid_argument(format!(
                "{} stop_tokens; at most {MAX_STOP_TOKENS} are allowed",
                request.stop_tokens.len()
            )));
        }
        if let Some(&token) = request.stop_tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::invalid_argument(format!(
                "stop token {token} is outside the vocabulary of {vocab_size} tokens"
            )));
        }
        let mut stop_tokens = request.stop_tokens.clone();
        if !request.ignore_eos {
            stop_tokens.extend(self.tokenizer.eos_tokens());
        }
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Ok(stop_tokens)
    }

    fn deadline(&self, timeout: Duration) -> u64 {
        u64::try_from(self.epoch.elapsed().saturating_add(timeout).as_micros()).unwrap_or(u64::MAX)
    }
}
