//! The shape of `tokenizer.json`, read in one pass without building a tree: every count and length is checked
//! as it is met, and sections that the `tokenizers` crate parses are bounded before it sees them.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::token::limits::{
    NUM_ADDED_TOKENS_MAX, NUM_MERGES_MAX, NUM_TOKENS_MAX, TOKEN_BYTES_MAX, VOCABULARY_BYTES_MAX,
};

/// A whole file.
#[derive(Deserialize)]
pub(crate) struct TokenizerFile<'a> {
    #[serde(default, deserialize_with = "added_tokens")]
    pub added_tokens: Vec<AddedTokenEntry>,
    #[serde(borrow, default)]
    pub normalizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub post_processor: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub decoder: Option<&'a RawValue>,
    pub model: ModelEntry,
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
pub(crate) struct AddedTokenEntry {
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    pub normalized: Option<bool>,
    #[serde(default)]
    pub special: bool,
}

/// The section `model` of any type; which fields matter depends on the type. A BPE `dropout` is for training
/// and is ignored.
#[derive(Deserialize)]
pub(crate) struct ModelEntry {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub vocab: Vocabulary,
    pub merges: Option<Merges>,
    pub unk_token: Option<String>,
    pub unk_id: Option<usize>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub fuse_unk: bool,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
}

/// A vocabulary, in the file's order.
pub(crate) enum Vocabulary {
    /// Token and id.
    Ids(Vec<(String, u32)>),
    /// Token and log-probability; the id is the index.
    Scores(Vec<(String, f64)>),
}

impl Vocabulary {
    /// Number of entries.
    pub fn len(&self) -> usize {
        match self {
            Self::Ids(entries) => entries.len(),
            Self::Scores(entries) => entries.len(),
        }
    }

    /// Every token with its id.
    pub fn entries(&self) -> Box<dyn Iterator<Item = (&str, u32)> + '_> {
        match self {
            Self::Ids(entries) => Box::new(entries.iter().map(|(token, id)| (token.as_str(), *id))),
            // The limit on the number of entries keeps indexes within u32.
            Self::Scores(entries) => {
                Box::new(entries.iter().enumerate().map(|(index, (token, _))| (token.as_str(), index as u32)))
            }
        }
    }

    /// Id of a token, by a search through all.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.entries().find(|(text, _)| *text == token).map(|(_, id)| id)
    }
}

/// BPE merges, best first.
pub(crate) struct Merges(pub Vec<(String, String)>);

/// A node of the section `decoder`: the fields of all types together.
#[derive(Deserialize)]
pub(crate) struct DecoderNode {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub decoders: Vec<DecoderNode>,
    pub pattern: Option<PatternNode>,
    pub content: Option<String>,
    pub start: Option<usize>,
    pub stop: Option<usize>,
    pub replacement: Option<String>,
    pub prepend_scheme: Option<String>,
    pub add_prefix_space: Option<bool>,
}

/// What a replacing step looks for.
#[derive(Deserialize)]
pub(crate) enum PatternNode {
    /// Text.
    String(String),
    /// A regular expression.
    Regex(IgnoredAny),
}

/// Counts the bytes of all tokens while they are read.
#[derive(Default)]
struct TotalBytes(usize);

impl TotalBytes {
    fn add<E: serde::de::Error>(&mut self, text: &str) -> Result<(), E> {
        self.0 += text.len();
        if self.0 > VOCABULARY_BYTES_MAX {
            return Err(E::custom(format!("the tokens have more than {VOCABULARY_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

/// A token, refused where it is too long.
struct TokenText(String);

impl<'de> Deserialize<'de> for TokenText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > TOKEN_BYTES_MAX {
            return Err(D::Error::custom(format!(
                "a token has {} bytes; at most {TOKEN_BYTES_MAX}",
                text.len()
            )));
        }
        Ok(Self(text))
    }
}

/// Reads `added_tokens`.
struct AddedTokensVisitor;

impl<'de> Visitor<'de> for AddedTokensVisitor {
    type Value = Vec<AddedTokenEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of added tokens")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut added, mut total) = (Vec::new(), TotalBytes::default());
        while let Some(entry) = entries.next_element::<AddedTokenEntry>()? {
            total.add(&entry.content)?;
            push(&mut added, entry, NUM_ADDED_TOKENS_MAX, "added tokens")?;
        }
        Ok(added)
    }
}

fn push<T, E: serde::de::Error>(list: &mut Vec<T>, entry: T, num_max: usize, what: &str) -> Result<(), E> {
    if list.len() == num_max {
        return Err(E::custom(format!("more than {num_max} {what}")));
    }
    list.push(entry);
    Ok(())
}

fn added_tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<AddedTokenEntry>, D::Error> {
    deserializer.deserialize_seq(AddedTokensVisitor)
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabularyVisitor)
    }
}

struct VocabularyVisitor;

impl<'de> Visitor<'de> for VocabularyVisitor {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of token ids, or an array of pairs of token and score")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vocabulary, A::Error> {
        let (mut ids, mut total) = (Vec::new(), TotalBytes::default());
        while let Some((TokenText(token), id)) = entries.next_entry::<TokenText, u32>()? {
            total.add(&token)?;
            push(&mut ids, (token, id), NUM_TOKENS_MAX, "tokens")?;
        }
        Ok(Vocabulary::Ids(ids))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vocabulary, A::Error> {
        let (mut scores, mut total) = (Vec::new(), TotalBytes::default());
        while let Some((TokenText(token), score)) = entries.next_element::<(TokenText, f64)>()? {
            total.add(&token)?;
            push(&mut scores, (token, score), NUM_TOKENS_MAX, "tokens")?;
        }
        Ok(Vocabulary::Scores(scores))
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MergesVisitor)
    }
}

struct MergesVisitor;

impl<'de> Visitor<'de> for MergesVisitor {
    type Value = Merges;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Merges, A::Error> {
        let (mut merges, mut total) = (Vec::new(), TotalBytes::default());
        while let Some(Merge(left, right)) = entries.next_element()? {
            total.add(&left)?;
            total.add(&right)?;
            push(&mut merges, (left, right), NUM_MERGES_MAX, "merges")?;
        }
        Ok(Merges(merges))
    }
}

/// A merge: `["a", "b"]`, or `"a b"` in older files.
struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge: two tokens with a space between, or a pair of tokens")
    }

    fn visit_str<E: serde::de::Error>(self, merge: &str) -> Result<Merge, E> {
        let halves = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.contains(' '));
        let (left, right) = halves.ok_or_else(|| E::custom(format!("merge {merge:?} is not two tokens")))?;
        Ok(Merge(left.to_owned(), right.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut halves: A) -> Result<Merge, A::Error> {
        let too_few = |num| A::Error::invalid_length(num, &"a pair of tokens");
        let left: TokenText = halves.next_element()?.ok_or_else(|| too_few(0))?;
        let right: TokenText = halves.next_element()?.ok_or_else(|| too_few(1))?;
        if halves.next_element::<IgnoredAny>()?.is_some() {
            return Err(too_few(3));
        }
        Ok(Merge(left.0, right.0))
    }
}
