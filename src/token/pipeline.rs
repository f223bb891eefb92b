//! Text to tokens through the `tokenizers` crate: normalise, cut into words, apply the model.

use tokenizers::normalizer::Range;
use tokenizers::{
    Model, ModelWrapper, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, PreTokenizerWrapper, Token,
};

use crate::error::{Error, Result, Status};
use crate::token::added::{AddedTokens, Part};
use crate::token::guard;

/// The stages of a `tokenizer.json`. Each stage's meaning is the crate's; that special tokens are decided by
/// the caller, per call, is ours.
pub(crate) struct Pipeline {
    pub model: ModelWrapper,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Tokens that are found in the normalised text; none of them special.
    pub normalized_added: AddedTokens,
    /// Whether no word reaches across a space between two ASCII letters, and none looks across it.
    pub cuts_at_spaces: bool,
}

/// Longest text that goes through the stages in one piece, where it may be cut. The crate keeps about a
/// hundred bytes for each byte of it.
const PIECE_BYTES_MAX: usize = 128 << 10;

impl Pipeline {
    /// Token ids of `text`, whose `parts` cover it.
    pub fn encode(&self, text: &str, parts: &[Part]) -> Result<Vec<u32>> {
        guard::contain(Status::Internal, "encoding text", || {
            self.run(text, parts)
                .map_err(|error| Error::invalid_argument(format!("the text cannot be encoded: {error}")))
        })
    }

    fn run(&self, text: &str, parts: &[Part]) -> tokenizers::Result<Vec<u32>> {
        let mut ids = Vec::new();
        if !self.cuts_at_spaces {
            self.run_piece(text, parts, &mut ids)?;
            return Ok(ids);
        }
        for part in parts {
            match part.token {
                Some(id) => ids.push(id),
                None => {
                    for piece in pieces(&text[part.range.clone()], PIECE_BYTES_MAX) {
                        self.run_piece(piece, &[Part { range: 0..piece.len(), token: None }], &mut ids)?;
                    }
                }
            }
        }
        Ok(ids)
    }

    fn run_piece(&self, text: &str, parts: &[Part], ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut words = PreTokenizedString::from(text);
        words.split(|_, whole| {
            let slice = |part: &Part| {
                let piece =
                    whole.slice(Range::Original(part.range.clone())).ok_or("part outside the text")?;
                Ok((piece, part.token.map(found)))
            };
            parts.iter().map(slice).collect::<tokenizers::Result<Vec<_>>>()
        })?;
        words.split(|_, mut piece| {
            if let Some(normalizer) = &self.normalizer {
                normalizer.normalize(&mut piece)?;
            }
            let slice = |part: Part| {
                let piece = piece.slice(Range::Normalized(part.range)).ok_or("part outside the text")?;
                Ok((piece, part.token.map(found)))
            };
            let parts = self.normalized_added.split(piece.get(), false);
            parts.into_iter().map(slice).collect::<tokenizers::Result<Vec<_>>>()
        })?;
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        // The ids are gathered word by word, as a word's own tokens carry copies of their text.
        for (word, _, tokens) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => ids.extend(self.model.tokenize(word)?.iter().map(|token| token.id)),
            }
        }
        Ok(())
    }
}

/// Cuts `text` before spaces between two ASCII letters, so that pieces have at most `bytes_max` bytes where
/// there are such spaces often enough.
pub(crate) fn pieces(text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let is_cut = |&place: &usize| {
            let bytes = rest.as_bytes();
            bytes[place] == b' '
                && bytes[place - 1].is_ascii_alphabetic()
                && bytes[place + 1].is_ascii_alphabetic()
        };
        let last = rest.len() - 1;
        let near = bytes_max.min(last);
        let cut = if rest.len() <= bytes_max {
            None
        } else {
            (1..near).rev().find(is_cut).or_else(|| (near.max(1)..last).find(is_cut))
        };
        let (piece, tail) = rest.split_at(cut.unwrap_or(rest.len()));
        rest = tail;
        Some(piece)
    })
}

fn found(id: u32) -> Vec<Token> {
    vec![Token::new(id, String::new(), (0, 0))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_only_at_spaces_between_letters() {
        let cut = |text: &'static str, bytes_max| pieces(text, bytes_max).collect::<Vec<_>>();
        assert_eq!(cut("ab cd ef", 100), ["ab cd ef"]);
        assert_eq!(cut("ab cd ef", 4), ["ab", " cd", " ef"]);
        assert_eq!(cut("ab  cd é f\n g", 3), ["ab  cd é f\n g"]);
        assert_eq!(cut("abcdefgh i", 3), ["abcdefgh", " i"]);
        assert_eq!(cut("", 3), [""; 0]);
        assert_eq!(cut("a b", 1), ["a", " b"]);
        assert_eq!(cut(" a ", 1), [" a "]);
    }
}
