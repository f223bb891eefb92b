//! Incremental detokenising: whole code points out as soon as they are complete, no byte lost.

use std::sync::Arc;

use crate::token::Tokenizer;
use crate::token::pieces::Pieces;

/// How tokens become text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Special tokens contribute no text.
    pub skip_special: bool,
    /// The tokens follow others, so that a space at their start is kept: SentencePiece vocabularies write the
    /// first word of a text with a space in front, which is dropped at the start of a text only.
    pub continues: bool,
}

/// Turns tokens into text one at a time. All text together equals `String::from_utf8_lossy` of all bytes
/// together: each maximal invalid sequence becomes one U+FFFD, and an incomplete code point is held back.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// Drop one space in front of the first text.
    strip_space: bool,
    /// The bytes of an incomplete code point: at most 3.
    pending: [u8; 3],
    num_pending: usize,
}

impl StreamDecoder {
    /// A decoder at the start of its stream. It holds what it needs of `tokenizer` by reference count.
    pub fn new(tokenizer: &Tokenizer, options: DecodeOptions) -> Self {
        Self {
            pieces: tokenizer.pieces(),
            skip_special: options.skip_special,
            strip_space: tokenizer.strips_leading_space() && !options.continues,
            pending: [0; 3],
            num_pending: 0,
        }
    }

    /// The text that became certain with `token`; often one word, empty within a code point of several
    /// tokens. A token outside the vocabulary (models pad theirs) contributes nothing.
    pub fn push(&mut self, token: u32) -> String {
        let mut text = String::new();
        self.push_into(token, &mut text);
        text
    }

    /// [`StreamDecoder::push`] that appends to `text`.
    pub fn push_into(&mut self, token: u32, text: &mut String) {
        if self.skip_special && self.pieces.is_special(token) {
            return;
        }
        let pieces = Arc::clone(&self.pieces);
        let mut bytes = pieces.bytes(token);
        if self.strip_space && !bytes.is_empty() {
            self.strip_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.push_bytes(bytes, text);
    }

    /// Ends the stream: U+FFFD where a code point was left incomplete. The decoder then stands at the start
    /// of a stream that continues.
    pub fn finish(&mut self) -> String {
        let incomplete = std::mem::take(&mut self.num_pending) > 0;
        if incomplete { char::REPLACEMENT_CHARACTER.to_string() } else { String::new() }
    }

    fn push_bytes(&mut self, mut bytes: &[u8], text: &mut String) {
        // A code point that began in earlier tokens is completed byte by byte, so that nothing is copied
        // twice.
        while self.num_pending > 0 {
            let Some((&byte, rest)) = bytes.split_first() else { return };
            let mut sequence = [0; 4];
            sequence[..self.num_pending].copy_from_slice(&self.pending[..self.num_pending]);
            sequence[self.num_pending] = byte;
            let sequence = &sequence[..self.num_pending + 1];
            match std::str::from_utf8(sequence) {
                Ok(complete) => text.push_str(complete),
                Err(error) if error.error_len().is_none() => {
                    self.pending[..sequence.len()].copy_from_slice(sequence);
                    self.num_pending = sequence.len();
                    bytes = rest;
                    continue;
                }
                Err(_) => {
                    // The pending bytes were a valid beginning, so what is wrong is the new byte, which may
                    // begin a code point of its own.
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.num_pending = 0;
                    break;
                }
            }
            self.num_pending = 0;
            bytes = rest;
        }
        self.push_from_boundary(bytes, text);
    }

    /// Takes bytes that begin at a code point's border.
    fn push_from_boundary(&mut self, bytes: &[u8], text: &mut String) {
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let is_incomplete = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if chunks.peek().is_none() && is_incomplete {
                self.pending[..invalid.len()].copy_from_slice(invalid);
                self.num_pending = invalid.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/stream.rs"]
mod tests;
