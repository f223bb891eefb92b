//! Stop strings over streamed text: what can be shown is shown at once, the rest is held back until it is
//! known.

use crate::error::{Error, Result};

/// Most stop strings of one request.
pub const NUM_STOP_STRINGS_MAX: usize = 64;
/// Longest stop string, in bytes.
pub const STOP_STRING_BYTES_MAX: usize = 4096;

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StopOutcome {
    /// Text that belongs to the output for certain.
    pub emit: String,
    /// Index of the stop string that ended the output; everything before it has been emitted.
    pub matched: Option<usize>,
}

/// Finds the leftmost occurrence of any of several stop strings in a stream; of those that start at the same
/// place the first in the list wins. How the stream is cut into pieces makes no difference.
///
/// Each string has its own Knuth-Morris-Pratt automaton (Knuth, Morris and Pratt 1977). After each byte,
/// automaton `i` knows the longest prefix of string `i` that ends there, and so the earliest place where an
/// occurrence can still begin; the earliest such place of all is where the held text starts.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    strings: Vec<StopString>,
    /// Text not yet emitted is `held[held_start..]`.
    held: String,
    held_start: usize,
    /// Bytes of the stream that the automata have seen.
    num_bytes: u64,
    /// Bytes of the stream that were emitted: the position of `held_start`.
    num_emitted: u64,
    /// Leftmost match so far: where it begins, and which string.
    best: Option<(u64, usize)>,
    ended: bool,
}

#[derive(Debug, Clone)]
struct StopString {
    bytes: Box<[u8]>,
    /// `borders[n]`: length of the longest proper prefix of the first `n` bytes that also ends them; `[0]` is
    /// 0.
    borders: Box<[u16]>,
    /// Bytes of the string that end the stream so far.
    num_matched: usize,
}

impl StopString {
    fn new(bytes: &[u8]) -> Self {
        let mut borders = vec![0u16; bytes.len() + 1];
        let mut border = 0usize;
        for index in 1..bytes.len() {
            while border > 0 && bytes[border] != bytes[index] {
                border = usize::from(borders[border]);
            }
            border += usize::from(bytes[border] == bytes[index]);
            borders[index + 1] = border as u16;
        }
        Self { bytes: bytes.into(), borders: borders.into(), num_matched: 0 }
    }

    /// Takes one byte; whether the string ends with it.
    fn advance(&mut self, byte: u8) -> bool {
        if self.num_matched == self.bytes.len() {
            self.num_matched = usize::from(self.borders[self.num_matched]);
        }
        while self.num_matched > 0 && self.bytes[self.num_matched] != byte {
            self.num_matched = usize::from(self.borders[self.num_matched]);
        }
        self.num_matched += usize::from(self.bytes[self.num_matched] == byte);
        self.num_matched == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for `stop_strings`: at most 64, each of 1 to 4096 bytes. Without any it passes text through.
    pub fn new<S: AsRef<str>>(stop_strings: &[S]) -> Result<Self> {
        if stop_strings.len() > NUM_STOP_STRINGS_MAX {
            return Err(Error::invalid_argument(format!(
                "stop_strings has {} entries; at most {NUM_STOP_STRINGS_MAX} are allowed",
                stop_strings.len()
            )));
        }
        let mut strings = Vec::with_capacity(stop_strings.len());
        for (index, string) in stop_strings.iter().enumerate() {
            let bytes = string.as_ref().as_bytes();
            if bytes.is_empty() || bytes.len() > STOP_STRING_BYTES_MAX {
                return Err(Error::invalid_argument(format!(
                    "stop_strings[{index}] has {} bytes; 1 to {STOP_STRING_BYTES_MAX} are allowed",
                    bytes.len()
                )));
            }
            strings.push(StopString::new(bytes));
        }
        let held = String::new();
        Ok(Self { strings, held, held_start: 0, num_bytes: 0, num_emitted: 0, best: None, ended: false })
    }

    /// A matcher that panics whenever it is used, as one with a defect might.
    #[cfg(test)]
    pub(crate) fn broken() -> Self {
        Self { held_start: usize::MAX / 2, ..Self::new(&["x"]).expect("a stop string") }
    }

    /// Takes the next piece of the stream. After a match everything further is swallowed.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.ended {
            return StopOutcome::default();
        }
        if self.strings.is_empty() {
            return StopOutcome { emit: text.to_owned(), matched: None };
        }
        self.held.push_str(text);
        for &byte in text.as_bytes() {
            self.num_bytes += 1;
            if self.advance(byte) {
                return self.end_at_best();
            }
        }
        let end = self.earliest_candidate().min(self.best.map_or(u64::MAX, |(start, _)| start));
        StopOutcome { emit: self.emit_until(end), matched: None }
    }

    /// Ends the stream: what is held back comes out, or the match that was waiting for an earlier one to
    /// fail.
    pub fn flush(&mut self) -> StopOutcome {
        if self.ended {
            return StopOutcome::default();
        }
        if self.best.is_some() {
            return self.end_at_best();
        }
        self.ended = true;
        StopOutcome { emit: self.emit_until(self.num_bytes), matched: None }
    }

    /// Takes one byte; whether there is a match that no candidate can beat any more.
    fn advance(&mut self, byte: u8) -> bool {
        for (index, string) in self.strings.iter_mut().enumerate() {
            if string.advance(byte) {
                let found = (self.num_bytes - string.num_matched as u64, index);
                self.best = Some(self.best.map_or(found, |best| best.min(found)));
            }
        }
        let mut candidates = self.strings.iter().enumerate();
        self.best.is_some_and(|best| {
            !candidates.any(|(index, string)| (self.num_bytes - string.num_matched as u64, index) < best)
        })
    }

    /// Where in the stream the first occurrence that is still possible would begin.
    fn earliest_candidate(&self) -> u64 {
        let num_matched = self.strings.iter().map(|string| string.num_matched).max().unwrap_or(0);
        self.num_bytes - num_matched as u64
    }

    fn end_at_best(&mut self) -> StopOutcome {
        let Some((start, index)) = self.best else { return StopOutcome::default() };
        let emit = self.emit_until(start);
        self.ended = true;
        self.held = String::new();
        StopOutcome { emit, matched: Some(index) }
    }

    /// The held text before the position `end` of the stream. Positions are starts of candidates or the end
    /// of a piece, and a candidate starts with a whole code point, so this never splits one.
    fn emit_until(&mut self, end: u64) -> String {
        let length = (end - self.num_emitted) as usize;
        let emit = self.held[self.held_start..self.held_start + length].to_owned();
        self.held_start += length;
        self.num_emitted = end;
        // Moving the rest to the front only when it is the smaller half keeps the cost linear in the stream.
        if self.held_start * 2 >= self.held.len() {
            self.held.drain(..self.held_start);
            self.held_start = 0;
        }
        emit
    }
}

#[cfg(test)]
#[path = "tests/stop.rs"]
mod tests;
