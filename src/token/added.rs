//! Tokens that are found in the text by their spelling, before the model sees the rest.

use std::collections::HashSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::error::Result;
use crate::token::limits::{NUM_ADDED_TOKENS_MAX, TOKEN_BYTES_MAX, VOCABULARY_BYTES_MAX, invalid};

/// A token with its spelling and how it is found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub id: u32,
    pub spelling: String,
    /// Steers the model; found only where the caller lets the text spell special tokens.
    pub special: bool,
    /// Found only between characters that cannot be part of a word.
    pub single_word: bool,
    /// Swallows the whitespace before it.
    pub strips_left: bool,
    /// Swallows the whitespace after it.
    pub strips_right: bool,
    /// Found in the normalised text.
    pub normalized: bool,
}

/// A part of a text: a token that was found in it, or text for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub range: Range<usize>,
    pub token: Option<u32>,
}

/// Finds added tokens: leftmost, then longest.
#[derive(Debug, Default)]
pub(crate) struct AddedTokens {
    all: Finder,
    text_only: Finder,
}

#[derive(Debug, Default)]
struct Finder {
    tokens: Vec<AddedToken>,
    automaton: Option<AhoCorasick>,
}

impl AddedTokens {
    /// A finder of `tokens`; `place` is where they were read, for errors.
    pub fn new(place: &str, tokens: Vec<AddedToken>) -> Result<Self> {
        if tokens.len() > NUM_ADDED_TOKENS_MAX {
            let problem =
                format!("{} added tokens; at most {NUM_ADDED_TOKENS_MAX} are allowed", tokens.len());
            return Err(invalid(place, problem));
        }
        if let Some(token) = tokens.iter().find(|token| token.spelling.len() > TOKEN_BYTES_MAX) {
            let problem = format!("token {} is longer than {TOKEN_BYTES_MAX} bytes", token.id);
            return Err(invalid(place, problem));
        }
        if tokens.iter().map(|token| token.spelling.len()).sum::<usize>() > VOCABULARY_BYTES_MAX / 16 {
            let problem = format!("the added tokens exceed {} bytes", VOCABULARY_BYTES_MAX / 16);
            return Err(invalid(place, problem));
        }
        let mut spellings = HashSet::new();
        if let Some(twice) = tokens.iter().find(|token| !spellings.insert(token.spelling.as_str())) {
            return Err(invalid(place, format!("token {:?} is given twice", twice.spelling)));
        }
        let text_only = tokens.iter().filter(|token| !token.special).cloned().collect();
        Ok(Self { all: Finder::new(place, tokens)?, text_only: Finder::new(place, text_only)? })
    }

    /// Cuts `text` into parts that cover it, special tokens found only where `parse_special` says so.
    pub fn split(&self, text: &str, parse_special: bool) -> Vec<Part> {
        if parse_special { self.all.split(text) } else { self.text_only.split(text) }
    }

    /// Whether there is nothing to find.
    pub fn is_empty(&self) -> bool {
        self.all.tokens.is_empty()
    }

    /// Spellings of the special tokens.
    pub fn special_spellings(&self) -> impl Iterator<Item = &str> {
        self.all.tokens.iter().filter(|token| token.special).map(|token| token.spelling.as_str())
    }
}

impl Finder {
    fn new(place: &str, mut tokens: Vec<AddedToken>) -> Result<Self> {
        tokens.retain(|token| !token.spelling.is_empty());
        if tokens.is_empty() {
            return Ok(Self::default());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // A table over all bytes would take a kilobyte per byte of the spellings.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|token| token.spelling.as_bytes()))
            .map_err(|error| invalid(place, format!("added tokens: {error}")))?;
        Ok(Self { tokens, automaton: Some(automaton) })
    }

    fn split(&self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut end = 0;
        let matches = self.automaton.iter().flat_map(|automaton| automaton.find_iter(text));
        for found in matches {
            let token = &self.tokens[found.pattern().as_usize()];
            let Some(range) = token.extent(text, found.range(), end) else { continue };
            if end < range.start {
                parts.push(Part { range: end..range.start, token: None });
            }
            end = range.end;
            parts.push(Part { range, token: Some(token.id) });
        }
        if end < text.len() {
            parts.push(Part { range: end..text.len(), token: None });
        }
        parts
    }
}

impl AddedToken {
    /// What the token covers of `text` when its spelling stands at `found` and everything before `taken`
    /// belongs to other tokens; `None` where it does not count.
    fn extent(&self, text: &str, found: Range<usize>, taken: usize) -> Option<Range<usize>> {
        let (before, after) = (&text[..found.start], &text[found.end..]);
        let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        if self.single_word && (joins(before.chars().next_back()) || joins(after.chars().next())) {
            return None;
        }
        // The whitespace that the token before swallowed may reach past this spelling's start.
        let mut start = found.start.max(taken);
        if self.strips_left {
            start = before.trim_end().len().max(taken);
        }
        let mut end = found.end;
        if self.strips_right {
            end = text.len() - after.trim_start().len();
        }
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, spelling: &str) -> AddedToken {
        AddedToken { id, spelling: spelling.to_owned(), special: true, ..AddedToken::default() }
    }

    fn split(tokens: Vec<AddedToken>, text: &str, parse_special: bool) -> Vec<(String, Option<u32>)> {
        let parts = AddedTokens::new("t", tokens).unwrap().split(text, parse_special);
        parts.into_iter().map(|part| (text[part.range].to_owned(), part.token)).collect()
    }

    fn owned(parts: &[(&str, Option<u32>)]) -> Vec<(String, Option<u32>)> {
        parts.iter().map(|(text, token)| ((*text).to_owned(), *token)).collect()
    }

    #[test]
    fn special_tokens_are_found_only_where_allowed() {
        let tokens = || vec![token(7, "<s>"), AddedToken { special: false, ..token(9, "<t>") }];
        let special = owned(&[("a", None), ("<s>", Some(7)), ("<t>", Some(9)), ("b", None)]);
        assert_eq!(split(tokens(), "a<s><t>b", true), special);
        assert_eq!(
            split(tokens(), "a<s><t>b", false),
            owned(&[("a<s>", None), ("<t>", Some(9)), ("b", None)])
        );
        assert_eq!(split(tokens(), "", true), []);
    }

    #[test]
    fn the_longest_of_the_leftmost_wins() {
        let tokens = vec![token(1, "<a"), token(2, "<a>"), token(3, "a><")];
        assert_eq!(split(tokens, "<a><", true), owned(&[("<a>", Some(2)), ("<", None)]));
    }

    #[test]
    fn whitespace_and_words_are_respected() {
        let strips = AddedToken { strips_left: true, strips_right: true, ..token(1, "<m>") };
        let parts = owned(&[("a", None), (" \n<m>  ", Some(1)), ("<m>\t", Some(1)), ("b", None)]);
        assert_eq!(split(vec![strips], "a \n<m>  <m>\tb", true), parts);
        let word = AddedToken { single_word: true, ..token(1, "the") };
        assert_eq!(
            split(vec![word], "the_ then the", true),
            owned(&[("the_ then ", None), ("the", Some(1))])
        );
        let blank = AddedToken { strips_right: true, ..token(1, "x") };
        let parts = owned(&[("x  ", Some(1)), ("y", None)]);
        assert_eq!(split(vec![blank, token(2, " ")], "x  y", true), parts);
    }

    #[test]
    fn a_spelling_given_twice_is_refused() {
        let error = AddedTokens::new("t", vec![token(1, "x"), token(2, "x")]).unwrap_err();
        assert_eq!(error.message(), "t: token \"x\" is given twice");
    }
}
