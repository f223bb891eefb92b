//! What each token contributes to the text, as bytes.

use crate::error::Result;
use crate::token::limits::{NUM_TOKENS_MAX, VOCABULARY_BYTES_MAX, invalid};

/// The bytes of every token, one after another: token `id` owns `bytes[ends[id - 1]..ends[id]]`.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
    bytes_max: usize,
}

/// One token of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    pub id: u32,
    pub bytes: Vec<u8>,
    /// Whether it steers the model rather than being text.
    pub special: bool,
}

impl Pieces {
    /// A table of `pieces`, in any order. Ids that are missing contribute nothing; one that is given twice is
    /// an error, which names `place`.
    pub fn new(place: &str, mut pieces: Vec<Piece>) -> Result<Self> {
        pieces.sort_by_key(|piece| piece.id);
        let num_tokens = pieces.last().map_or(0, |piece| piece.id as usize + 1);
        let num_bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        if num_tokens > NUM_TOKENS_MAX {
            let problem = format!("token id {}; ids must be below {NUM_TOKENS_MAX}", num_tokens - 1);
            return Err(invalid(place, problem));
        }
        if num_bytes > VOCABULARY_BYTES_MAX {
            let problem =
                format!("the tokens have {num_bytes} bytes; at most {VOCABULARY_BYTES_MAX} are allowed");
            return Err(invalid(place, problem));
        }
        let mut table = Self {
            bytes: Vec::with_capacity(num_bytes),
            ends: Vec::with_capacity(num_tokens),
            special: vec![false; num_tokens],
            bytes_max: pieces.iter().map(|piece| piece.bytes.len()).max().unwrap_or(0),
        };
        for piece in pieces {
            let id = piece.id as usize;
            if id < table.ends.len() {
                return Err(invalid(place, format!("two tokens have the id {id}")));
            }
            table.ends.resize(id, table.bytes.len() as u32);
            table.bytes.extend_from_slice(&piece.bytes);
            table.ends.push(table.bytes.len() as u32);
            table.special[id] = piece.special;
        }
        Ok(table)
    }

    /// Ids are below it.
    pub fn num_tokens(&self) -> usize {
        self.ends.len()
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Bytes of the longest token.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The bytes of `id`; none for an id outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let start = (id as usize).checked_sub(1).map_or(0, |previous| self.ends[previous]);
        &self.bytes[start as usize..end as usize]
    }
}

/// The byte that a character of a byte-level vocabulary stands for (Radford et al. 2019): printable Latin-1
/// stands for itself, and U+0100 and up, in order, for the other 68 bytes.
fn byte_level_byte(c: char) -> Option<u8> {
    match c {
        '!'..='~' | '\u{a1}'..='\u{ac}' | '\u{ae}'..='\u{ff}' => u8::try_from(c).ok(),
        '\u{100}'..='\u{120}' => Some((c as u32 - 0x100) as u8),
        '\u{121}'..='\u{142}' => Some((c as u32 - 0x121 + 0x7f) as u8),
        '\u{143}' => Some(0xad),
        _ => None,
    }
}

/// The bytes that a byte-level vocabulary entry stands for; an entry with other characters stands for itself.
pub(crate) fn byte_level_bytes(text: &str) -> Vec<u8> {
    text.chars().map(byte_level_byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| text.as_bytes().to_vec())
}

/// The byte of a SentencePiece byte token such as `<0x0A>`.
pub(crate) fn byte_fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The published definition, which lists the bytes that stand for themselves and counts the others.
    pub(crate) fn byte_level_char(byte: u8) -> char {
        let stands_for_itself = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let num_others = (0..byte).filter(|&other| !stands_for_itself(other)).count();
        if stands_for_itself(byte) {
            char::from(byte)
        } else {
            char::from_u32(256 + num_others as u32).unwrap()
        }
    }

    fn piece(id: u32, bytes: &[u8], special: bool) -> Piece {
        Piece { id, bytes: bytes.to_vec(), special }
    }

    #[test]
    fn the_byte_alphabet_is_a_bijection_with_the_published_corners() {
        let mut chars: Vec<char> = (0..=255).map(byte_level_char).collect();
        for (byte, &c) in (0..=255u8).zip(&chars) {
            assert_eq!(byte_level_byte(c), Some(byte));
        }
        assert_eq!([chars[0], chars[b'\n' as usize], chars[b' ' as usize]], ['Ā', 'Ċ', 'Ġ']);
        assert_eq!([chars[0x7f], chars[0xa0], chars[0xad]], ['ġ', 'ł', 'Ń']);
        chars.sort_unstable();
        chars.dedup();
        assert_eq!(chars.len(), 256);
    }

    #[test]
    fn entries_become_bytes() {
        assert_eq!(byte_level_bytes("Ġcafé"), [b" caf".as_slice(), &[0xe9]].concat());
        assert_eq!(byte_level_bytes("日"), "日".as_bytes());
        assert_eq!(byte_fallback_byte("<0x0A>"), Some(10));
        for no in ["<0x0>", "<0xZZ>", "<0x+A>", "<0x0A", "0x0A", "<0x00A>"] {
            assert_eq!(byte_fallback_byte(no), None, "{no}");
        }
    }

    #[test]
    fn holes_are_empty_and_duplicates_are_refused() {
        let table = Pieces::new("v", vec![piece(4, b"d", true), piece(1, b"ab", false)]).unwrap();
        assert_eq!(table.num_tokens(), 5);
        let all: Vec<&[u8]> = (0..6).map(|id| table.bytes(id)).collect();
        assert_eq!(all, [b"".as_slice(), b"ab", b"", b"", b"d", b""]);
        assert!(table.is_special(4) && !table.is_special(1) && !table.is_special(99));
        let error = Pieces::new("v", vec![piece(1, b"a", false), piece(1, b"b", false)]).unwrap_err();
        assert_eq!(error.message(), "v: two tokens have the id 1");
        let error = Pieces::new("v", vec![piece(u32::MAX, b"a", false)]).unwrap_err();
        assert!(error.message().contains("4294967295"), "{error}");
    }
}
