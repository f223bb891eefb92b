//! SentencePiece's BPE (Kudo and Richardson 2018) with byte fallback, as GGUF files of type `llama` mean it:
//! of all neighbours that together are a token, the pair with the highest score merges first, the leftmost
//! among equals.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use crate::error::Result;
use crate::token::added::Part;
use crate::token::limits::invalid;

/// The character that stands for a space.
pub(crate) const SPACE: char = '▁';

/// A vocabulary with scores.
pub(crate) struct SentencePiece {
    tokens: HashMap<String, Entry>,
    /// Tokens of the 256 bytes, for characters that are no token.
    byte_tokens: Vec<u32>,
    /// Put a space in front of a text and after each added token.
    adds_space: bool,
}

/// Id and score of a token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub id: u32,
    pub score: f32,
}

/// A run of text, linked to its neighbours. A merged run's right half stays in the list with length 0.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    length: u32,
    previous: Option<u32>,
    next: Option<u32>,
}

/// Two neighbours that are a token together.
struct Bigram {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both when the pair was found; a pair whose halves have grown since is stale.
    length: u32,
}

impl PartialEq for Bigram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Bigram {}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl SentencePiece {
    /// A model over the tokens that text may become, without special and byte tokens. `byte_tokens[b]` is the
    /// token of byte `b`; where a vocabulary has none of them, `unknown` takes their place. `place` names the
    /// source of all this in errors.
    pub fn new(
        place: &str,
        tokens: HashMap<String, Entry>,
        byte_tokens: [Option<u32>; 256],
        unknown: Option<u32>,
        adds_space: bool,
    ) -> Result<Self> {
        let byte_token = |(byte, token): (usize, Option<u32>)| {
            token.or(unknown).ok_or_else(|| {
                invalid(place, format!("neither a token for the byte 0x{byte:02X} nor an unknown token"))
            })
        };
        let byte_tokens =
            byte_tokens.into_iter().enumerate().map(byte_token).collect::<Result<Vec<u32>>>()?;
        Ok(Self { tokens, byte_tokens, adds_space })
    }

    /// Token ids of `text`, whose `parts` cover it.
    pub fn encode(&self, text: &str, parts: &[Part]) -> Vec<u32> {
        let mut ids = Vec::new();
        for part in parts {
            match part.token {
                Some(id) => ids.push(id),
                None => {
                    let mut escaped = String::new();
                    // Parts of text are never neighbours, so each begins the text or follows a token.
                    if self.adds_space {
                        escaped.push(SPACE);
                    }
                    escaped
                        .extend(text[part.range.clone()].chars().map(|c| if c == ' ' { SPACE } else { c }));
                    self.encode_escaped(&escaped, &mut ids);
                }
            }
        }
        ids
    }

    fn encode_escaped(&self, text: &str, ids: &mut Vec<u32>) {
        let num_chars = text.chars().count() as u32;
        let mut symbols: Vec<Symbol> = (0u32..)
            .zip(text.char_indices())
            .map(|(index, (start, c))| Symbol {
                start: start as u32,
                length: c.len_utf8() as u32,
                previous: index.checked_sub(1),
                next: Some(index + 1).filter(|&next| next < num_chars),
            })
            .collect();
        let mut queue = BinaryHeap::new();
        for right in 1..num_chars {
            queue.extend(self.bigram(text, &symbols, right - 1, right));
        }
        while let Some(Bigram { left, right, length, .. }) = queue.pop() {
            let (left_symbol, right_symbol) = (symbols[left as usize], symbols[right as usize]);
            let is_stale = left_symbol.length == 0
                || right_symbol.length == 0
                || left_symbol.length + right_symbol.length != length;
            if is_stale {
                continue;
            }
            symbols[left as usize].length = length;
            symbols[left as usize].next = right_symbol.next;
            symbols[right as usize].length = 0;
            if let Some(next) = right_symbol.next {
                symbols[next as usize].previous = Some(left);
                queue.extend(self.bigram(text, &symbols, left, next));
            }
            if let Some(previous) = left_symbol.previous {
                queue.extend(self.bigram(text, &symbols, previous, left));
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            let piece = &text[symbol.start as usize..(symbol.start + symbol.length) as usize];
            match self.tokens.get(piece) {
                Some(entry) => ids.push(entry.id),
                None => ids.extend(piece.bytes().map(|byte| self.byte_tokens[usize::from(byte)])),
            }
        }
    }

    fn bigram(&self, text: &str, symbols: &[Symbol], left: u32, right: u32) -> Option<Bigram> {
        let (start, length) = (symbols[left as usize].start, symbols[left as usize].length);
        let length = length + symbols[right as usize].length;
        let entry = self.tokens.get(&text[start as usize..(start + length) as usize])?;
        Some(Bigram { score: entry.score, left, right, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token `i` of the list has id `i` and the score given; byte `b` has id `1000 + b`.
    fn model(tokens: &[(&str, f32)], adds_space: bool) -> SentencePiece {
        let entry =
            |(id, (text, score)): (u32, &(&str, f32))| ((*text).to_owned(), Entry { id, score: *score });
        let tokens = (0..).zip(tokens).map(entry).collect();
        let bytes = std::array::from_fn(|byte| Some(1000 + byte as u32));
        SentencePiece::new("test", tokens, bytes, None, adds_space).unwrap()
    }

    fn encode(model: &SentencePiece, text: &str) -> Vec<u32> {
        model.encode(text, &[Part { range: 0..text.len(), token: None }])
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_among_equals() {
        let tokens = [("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), ("aba", -5.0), ("aa", -2.0)];
        let model = model(&tokens, false);
        // "ba" beats "ab", then "a" + "ba" is a token.
        assert_eq!(encode(&model, "aba"), [4]);
        // Equal scores: the left "aa" of three.
        assert_eq!(encode(&model, "aaa"), [5, 0]);
        // "ab" twice is equal too; once merged neither half may take part again.
        assert_eq!(encode(&model, "abb"), [2, 1]);
    }

    #[test]
    fn a_merge_may_join_characters_that_are_no_token() {
        let model = model(&[("é!", -1.0)], false);
        assert_eq!(encode(&model, "é!"), [0]);
        assert_eq!(encode(&model, "é?"), [1000 + 0xc3, 1000 + 0xa9, 1000 + u32::from(b'?')]);
    }

    #[test]
    fn spaces_are_added_at_the_start_and_after_tokens() {
        let model = model(&[("▁", -1.0), ("x", -1.0), ("▁x", -0.5)], true);
        let parts = [
            Part { range: 0..1, token: None },
            Part { range: 1..4, token: Some(77) },
            Part { range: 4..6, token: None },
        ];
        assert_eq!(model.encode("x<s> x", &parts), [2, 77, 0, 2]);
        assert!(model.encode("", &[]).is_empty());
    }

    #[test]
    fn bytes_without_tokens_need_an_unknown_token() {
        let error = SentencePiece::new("v", HashMap::new(), [None; 256], None, true).err().unwrap();
        assert!(error.message().contains("0x00"), "{error}");
        let model = SentencePiece::new("v", HashMap::new(), [None; 256], Some(3), false).unwrap();
        assert_eq!(encode(&model, "é"), [3, 3]);
    }

    #[test]
    fn repetition_is_not_quadratic() {
        let tokens: Vec<(String, f32)> = (0..12).map(|n| ("a".repeat(1 << n), -(n as f32))).collect();
        let tokens: Vec<(&str, f32)> = tokens.iter().map(|(text, score)| (text.as_str(), *score)).collect();
        let model = model(&tokens, false);
        let ids = encode(&model, &"a".repeat(1 << 18));
        assert_eq!(ids, vec![11; 1 << 7]);
    }
}
