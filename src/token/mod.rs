//! Text to tokens and back: the model's own tokenizer and chat template, incremental detokenising, stop
//! strings.

mod added;
mod bytes;
mod chat;
mod decoding;
mod gguf;
mod guard;
mod hf;
mod hf_config;
mod limits;
mod pieces;
mod pipeline;
mod pretokenizer;
mod python_json;
mod section;
mod sentencepiece;
mod stop;
mod stream;
mod strftime;
mod template;
mod template_code;
mod template_growth;
mod template_ops;
mod tokenizer_json;

use std::fmt;
use std::sync::Arc;

pub use stop::{NUM_STOP_STRINGS_MAX, STOP_STRING_BYTES_MAX, StopMatcher, StopOutcome};
pub use stream::{DecodeOptions, StreamDecoder};

use crate::error::{Error, Result, Status};
use crate::format::Checkpoint;
use crate::sample::GenerationDefaults;
use added::{AddedTokens, Part};
use chat::{Marker, Marking};
use limits::TEXT_BYTES_MAX;
use pieces::Pieces;
use pipeline::Pipeline;
use sentencepiece::SentencePiece;
use template::ChatTemplate;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add what the model expects around a text, such as a BOS token in front. It is not added a second time
    /// to a text that spells it, where `parse_special` makes that a token.
    pub add_special_tokens: bool,
    /// Let the text spell special tokens. Otherwise their spellings are text like any other.
    pub parse_special: bool,
}

/// A model's text layer. Nothing in it changes after loading: one may be used from any number of threads at
/// once.
pub struct Tokenizer {
    encoder: Encoder,
    added: AddedTokens,
    marker: Marker,
    pieces: Arc<Pieces>,
    strips_leading_space: bool,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    eos_tokens: Vec<u32>,
    /// A template that does not compile is an error of the calls that need it, not of loading.
    template: Option<Result<ChatTemplate>>,
    generation_defaults: GenerationDefaults,
}

/// What turns text between added tokens into tokens.
enum Encoder {
    Pipeline(Box<Pipeline>),
    SentencePiece(SentencePiece),
    /// Token ids are bytes.
    Bytes,
}

/// What a loader found.
struct Parts {
    encoder: Encoder,
    added: AddedTokens,
    pieces: Pieces,
    strips_leading_space: bool,
    /// Tokens around a text, where they are asked for.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    eos_tokens: Vec<u32>,
    template: Option<Result<ChatTemplate>>,
    generation_defaults: GenerationDefaults,
}

impl Tokenizer {
    /// Loads the tokenizer of a model; random weights have that of [`Tokenizer::bytes`].
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        match checkpoint {
            Checkpoint::Directory(directory) => hf::load(directory.path()),
            Checkpoint::Gguf(file) => {
                gguf::load(file.metadata()).map_err(|error| error.context(file.path().display()))
            }
            Checkpoint::Random(_) => Ok(Self::bytes()),
        }
    }

    /// A tokenizer without a model: ids below 256 are bytes, 256 ends the output.
    pub fn bytes() -> Self {
        // Built of constants alone, so that a failure is a defect of the library.
        bytes::tokenizer(usize::MAX).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// The same with the ids below `vocab_size` alone. Other bytes are no tokens, and where 256 is none nothing ends
    /// the output.
    pub fn bytes_below(vocab_size: usize) -> Self {
        bytes::tokenizer(vocab_size).unwrap_or_else(|error| unreachable!("{error}"))
    }

    fn assemble(parts: Parts) -> Result<Self> {
        Ok(Self {
            marker: Marker::new("special tokens", parts.added.special_spellings())?,
            encoder: parts.encoder,
            added: parts.added,
            pieces: Arc::new(parts.pieces),
            strips_leading_space: parts.strips_leading_space,
            prefix: parts.prefix,
            suffix: parts.suffix,
            eos_tokens: parts.eos_tokens,
            template: parts.template,
            generation_defaults: parts.generation_defaults,
        })
    }

    /// Token ids of `text`, which may have at most 16 MiB.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        if text.len() > TEXT_BYTES_MAX {
            let problem = format!("the text has {} bytes; at most {TEXT_BYTES_MAX} are allowed", text.len());
            return Err(Error::invalid_argument(problem));
        }
        let mut ids = self.encode_parts(text, &self.added.split(text, options.parse_special))?;
        if options.add_special_tokens {
            if !(options.parse_special && ids.starts_with(&self.prefix)) {
                ids.splice(0..0, self.prefix.iter().copied());
            }
            if !(options.parse_special && ids.ends_with(&self.suffix)) {
                ids.extend_from_slice(&self.suffix);
            }
        }
        Ok(ids)
    }

    fn encode_parts(&self, text: &str, parts: &[Part]) -> Result<Vec<u32>> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.encode(text, parts),
            Encoder::SentencePiece(model) => Ok(model.encode(text, parts)),
            Encoder::Bytes => Ok(parts.iter().flat_map(|part| part_bytes(text, part)).collect()),
        }
    }

    /// Text of `ids`; bytes that are not UTF-8 become U+FFFD. Fails on an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= self.vocab_size()) {
            let problem = format!("tokens[{index}] is {id}; the vocabulary has {} tokens", self.vocab_size());
            return Err(Error::invalid_argument(problem));
        }
        let mut decoder = StreamDecoder::new(self, DecodeOptions { skip_special, continues: false });
        let mut text = String::new();
        for &id in ids {
            decoder.push_into(id, &mut text);
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// The bytes that token `id` contributes in the middle of a text: none for special tokens unless
    /// `include_special`, none for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32, include_special: bool) -> &[u8] {
        if self.is_special(id) && !include_special { &[] } else { self.pieces.bytes(id) }
    }

    /// The text that the chat template makes of `messages`, a JSON array of objects with `role` and
    /// `content`; with `add_generation_prompt` it ends where the assistant's answer begins.
    pub fn apply_chat_template(&self, messages: &str, add_generation_prompt: bool) -> Result<String> {
        self.template()?.render(&chat::parse_messages(messages)?, add_generation_prompt)
    }

    /// Tokens of a prompt made of `messages`, ready for the assistant's answer. Special tokens are the
    /// template's alone: what messages spell stays text.
    pub fn encode_chat(&self, messages: &str) -> Result<Vec<u32>> {
        self.encode_chat_if(messages, |_| Ok(()))
    }

    /// The same, unless `check` refuses the number of bytes that the prompt has as text: encoding takes time, and a
    /// template may make much of a short message.
    pub fn encode_chat_if(
        &self,
        messages: &str,
        check: impl FnOnce(usize) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let template = self.template()?;
        let messages = chat::parse_messages(messages)?;
        let marker = Marker::choose(|c| template.contains(c) || chat::contains(&messages, c))?;
        let render = |marking: Marking| {
            let mut marked = messages.clone();
            let is_suspicious = self.marker.mark(&mut marked, marker, marking)?;
            let text = template.render(&marked, true)?;
            let parts = self.added.split(&text, true);
            Ok::<_, Error>((text, parts, is_suspicious))
        };
        let (text, parts, is_suspicious) = render(Marking::Spellings)?;
        if is_suspicious && self.specials_of(&parts) != self.specials_of(&render(Marking::Beginnings)?.1) {
            return Err(Error::new(
                Status::TemplateFailed,
                "the chat template would make special tokens out of pieces of a message",
            ));
        }
        let (text, parts) = chat::unmark(&text, parts, marker);
        check(text.len())?;
        self.encode_parts(&text, &parts)
    }

    fn specials_of(&self, parts: &[Part]) -> Vec<u32> {
        parts.iter().filter_map(|part| part.token).filter(|&id| self.is_special(id)).collect()
    }

    fn template(&self) -> Result<&ChatTemplate> {
        match &self.template {
            Some(Ok(template)) => Ok(template),
            Some(Err(error)) => Err(error.clone()),
            None => {
                let problem = "the model has no chat template; give the prompt as text or tokens";
                Err(Error::new(Status::Unsupported, problem))
            }
        }
    }

    /// Longest text that `num_tokens` tokens can stand for, and never less than 16 KiB: what is longer need not be
    /// encoded to know that it does not fit.
    pub fn text_bytes_max(&self, num_tokens: usize) -> usize {
        const ALWAYS_ALLOWED: usize = 16 << 10;
        num_tokens.saturating_mul(self.pieces.bytes_max()).clamp(ALWAYS_ALLOWED, TEXT_BYTES_MAX)
    }

    /// Tokens in the vocabulary; ids are below it. The model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.pieces.num_tokens()
    }

    /// Tokens that end the output.
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos_tokens
    }

    /// Whether [`Tokenizer::encode_chat`] can work.
    pub fn has_chat_template(&self) -> bool {
        matches!(self.template, Some(Ok(_)))
    }

    /// Whether `id` steers the model rather than being text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// What the model recommends for sampling.
    pub fn generation_defaults(&self) -> GenerationDefaults {
        self.generation_defaults.clone()
    }

    fn pieces(&self) -> Arc<Pieces> {
        Arc::clone(&self.pieces)
    }

    fn strips_leading_space(&self) -> bool {
        self.strips_leading_space
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_tokens", &self.eos_tokens)
            .field("has_chat_template", &self.has_chat_template())
            .finish_non_exhaustive()
    }
}

fn part_bytes<'a>(text: &'a str, part: &Part) -> Box<dyn Iterator<Item = u32> + 'a> {
    match part.token {
        Some(id) => Box::new(std::iter::once(id)),
        None => Box::new(text[part.range.clone()].bytes().map(u32::from)),
    }
}

#[cfg(test)]
mod tests;
