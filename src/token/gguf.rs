//! Tokenizers of GGUF files: the keys `tokenizer.ggml.*`.

use std::collections::HashMap;

use tokenizers::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use crate::error::Result;
use crate::format::gguf::Metadata;
use crate::sample::GenerationDefaults;
use crate::token::added::{AddedToken, AddedTokens};
use crate::token::guard;
use crate::token::limits::{NUM_MERGES_MAX, NUM_TOKENS_MAX, TOKEN_BYTES_MAX, invalid, unsupported};
use crate::token::pieces::{Piece, Pieces, byte_fallback_byte, byte_level_bytes};
use crate::token::pipeline::Pipeline;
use crate::token::pretokenizer::PreTokenizer;
use crate::token::sentencepiece::{Entry, SPACE, SentencePiece};
use crate::token::template::{ChatTemplate, TemplateSource};
use crate::token::{Encoder, Parts, Tokenizer};
use crate::{Error, Status};

const PLACE: &str = "GGUF metadata";
/// Spellings of tokens that end a turn, for files that name only the token that ends a text.
const END_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"];

/// What the metadata says, by key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Source<'a> {
    pub model: &'a str,
    pub pre: Option<&'a str>,
    pub tokens: &'a [String],
    pub token_types: Option<&'a [i64]>,
    pub scores: Option<&'a [f32]>,
    pub merges: Option<&'a [String]>,
    pub bos_token_id: Option<u64>,
    pub eos_token_id: Option<u64>,
    pub eot_token_id: Option<u64>,
    pub eom_token_id: Option<u64>,
    pub unknown_token_id: Option<u64>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<&'a str>,
}

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Reads the tokenizer of a file.
pub(crate) fn load(metadata: &Metadata) -> Result<Tokenizer> {
    let required = |key: &str| Error::new(Status::ModelInvalid, format!("{PLACE}: {key} is missing"));
    build(Source {
        model: metadata.text("tokenizer.ggml.model")?.ok_or_else(|| required("tokenizer.ggml.model"))?,
        pre: metadata.text("tokenizer.ggml.pre")?,
        tokens: metadata.texts("tokenizer.ggml.tokens")?.ok_or_else(|| required("tokenizer.ggml.tokens"))?,
        token_types: metadata.integers("tokenizer.ggml.token_type")?,
        scores: metadata.floats("tokenizer.ggml.scores")?,
        merges: metadata.texts("tokenizer.ggml.merges")?,
        bos_token_id: metadata.unsigned("tokenizer.ggml.bos_token_id")?,
        eos_token_id: metadata.unsigned("tokenizer.ggml.eos_token_id")?,
        eot_token_id: metadata.unsigned("tokenizer.ggml.eot_token_id")?,
        eom_token_id: metadata.unsigned("tokenizer.ggml.eom_token_id")?,
        unknown_token_id: metadata.unsigned("tokenizer.ggml.unknown_token_id")?,
        add_bos_token: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos_token: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: metadata.text("tokenizer.chat_template")?,
    })
}

/// Builds the tokenizer that `source` describes.
pub(crate) fn build(source: Source) -> Result<Tokenizer> {
    let types = check_tokens(&source)?;
    let bos = token_id(&source, "bos_token_id", source.bos_token_id)?;
    let eos = token_id(&source, "eos_token_id", source.eos_token_id)?;
    let spelling = |id: Option<u32>| id.map(|id| source.tokens[id as usize].as_str());
    let (encoder, adds_bos, strips_leading_space) = match source.model {
        "gpt2" => {
            let rules = PreTokenizer::named(PLACE, source.pre.unwrap_or("default"))?;
            (byte_level_bpe(&source, &types, &rules)?, rules.adds_bos, false)
        }
        "llama" => {
            let adds_space = source.add_space_prefix.unwrap_or(true);
            (sentencepiece(&source, &types, adds_space)?, true, adds_space)
        }
        other => {
            let problem = format!("tokenizer.ggml.model is {other:?}; \"gpt2\" and \"llama\" are supported");
            return Err(unsupported(PLACE, problem));
        }
    };
    let when = |flag: Option<bool>, default, token: Option<u32>| token.filter(|_| flag.unwrap_or(default));
    let template = source.chat_template.map(|template| {
        let place = "GGUF metadata: tokenizer.chat_template";
        let (bos_token, eos_token) = (spelling(bos), spelling(eos));
        ChatTemplate::compile(TemplateSource { place, source: template, bos_token, eos_token })
    });
    Tokenizer::assemble(Parts {
        encoder,
        added: AddedTokens::new(PLACE, added_tokens(&source, &types))?,
        pieces: pieces(&source, &types)?,
        strips_leading_space,
        prefix: Vec::from_iter(when(source.add_bos_token, adds_bos, bos)),
        suffix: Vec::from_iter(when(source.add_eos_token, false, eos)),
        eos_tokens: eos_tokens(&source, &types, eos)?,
        template,
        generation_defaults: GenerationDefaults::default(),
    })
}

/// Checks counts and lengths; the types of all tokens.
fn check_tokens(source: &Source) -> Result<Vec<TokenType>> {
    let num_tokens = source.tokens.len();
    if num_tokens == 0 || num_tokens > NUM_TOKENS_MAX {
        let problem =
            format!("tokenizer.ggml.tokens has {num_tokens} entries; 1 to {NUM_TOKENS_MAX} are allowed");
        return Err(invalid(PLACE, problem));
    }
    for (key, num) in
        [("token_type", source.token_types.map(<[i64]>::len)), ("scores", source.scores.map(<[f32]>::len))]
    {
        if let Some(num) = num.filter(|&num| num != num_tokens) {
            let problem =
                format!("tokenizer.ggml.{key} has {num} entries, tokenizer.ggml.tokens {num_tokens}");
            return Err(invalid(PLACE, problem));
        }
    }
    if let Some(index) = source.tokens.iter().position(|token| token.len() > TOKEN_BYTES_MAX) {
        let problem = format!("tokenizer.ggml.tokens[{index}] is longer than {TOKEN_BYTES_MAX} bytes");
        return Err(invalid(PLACE, problem));
    }
    let Some(types) = source.token_types else { return Ok(vec![TokenType::Normal; num_tokens]) };
    let token_type = |(index, &value): (usize, &i64)| match value {
        1 => Ok(TokenType::Normal),
        2 => Ok(TokenType::Unknown),
        3 => Ok(TokenType::Control),
        4 => Ok(TokenType::UserDefined),
        5 => Ok(TokenType::Unused),
        6 => Ok(TokenType::Byte),
        _ => Err(invalid(PLACE, format!("tokenizer.ggml.token_type[{index}] is {value}; 1 to 6 are known"))),
    };
    types.iter().enumerate().map(token_type).collect()
}

fn token_id(source: &Source, key: &str, id: Option<u64>) -> Result<Option<u32>> {
    let Some(id) = id else { return Ok(None) };
    match u32::try_from(id).ok().filter(|&id| (id as usize) < source.tokens.len()) {
        Some(id) => Ok(Some(id)),
        None => {
            let problem = format!("tokenizer.ggml.{key} is {id}; there are {} tokens", source.tokens.len());
            Err(invalid(PLACE, problem))
        }
    }
}

/// Every token with its id and type.
fn entries<'a>(source: &Source<'a>, types: &[TokenType]) -> impl Iterator<Item = (u32, &'a str, TokenType)> {
    (0..).zip(source.tokens).zip(types).map(|((id, text), &kind)| (id, text.as_str(), kind))
}

fn added_tokens(source: &Source, types: &[TokenType]) -> Vec<AddedToken> {
    let mut added = Vec::new();
    for (id, text, kind) in entries(source, types) {
        if matches!(kind, TokenType::Control | TokenType::Unknown | TokenType::UserDefined) {
            let special = kind != TokenType::UserDefined;
            added.push(AddedToken { id, spelling: text.to_owned(), special, ..AddedToken::default() });
        }
    }
    added
}

fn pieces(source: &Source, types: &[TokenType]) -> Result<Pieces> {
    let is_byte_level = source.model == "gpt2";
    let piece = |(id, text, kind): (u32, &str, TokenType)| {
        let bytes = match kind {
            TokenType::Control | TokenType::Unknown | TokenType::UserDefined => text.as_bytes().to_vec(),
            TokenType::Byte => {
                byte_fallback_byte(text).map_or_else(|| text.as_bytes().to_vec(), |byte| vec![byte])
            }
            TokenType::Normal | TokenType::Unused if is_byte_level => byte_level_bytes(text),
            TokenType::Normal | TokenType::Unused => text.replace(SPACE, " ").into_bytes(),
        };
        Piece { id, bytes, special: matches!(kind, TokenType::Control | TokenType::Unknown) }
    };
    Pieces::new(PLACE, entries(source, types).map(piece).collect())
}

fn eos_tokens(source: &Source, types: &[TokenType], eos: Option<u32>) -> Result<Vec<u32>> {
    let eot = token_id(source, "eot_token_id", source.eot_token_id)?;
    let eom = token_id(source, "eom_token_id", source.eom_token_id)?;
    let mut eos_tokens: Vec<u32> = Vec::new();
    let mut add = |id: u32| {
        if !eos_tokens.contains(&id) {
            eos_tokens.push(id);
        }
    };
    eos.into_iter().chain(eot).chain(eom).for_each(&mut add);
    if eot.is_none() {
        // In the Harmony format `<|end|>` ends a message, not the turn; `<|return|>` does that.
        let is_harmony = source.tokens.iter().any(|token| token == "<|return|>");
        entries(source, types)
            .filter(|(_, text, kind)| *kind == TokenType::Control && END_OF_TURN.contains(text))
            .filter(|(_, text, _)| !(is_harmony && *text == "<|end|>"))
            .for_each(|(id, ..)| add(id));
    }
    Ok(eos_tokens)
}

/// GPT-2's BPE over the byte alphabet. Only text tokens take part, so that text can never become a control
/// token.
fn byte_level_bpe(source: &Source, types: &[TokenType], rules: &PreTokenizer) -> Result<Encoder> {
    let merges = source.merges.ok_or_else(|| invalid(PLACE, "tokenizer.ggml.merges is missing"))?;
    if merges.len() > NUM_MERGES_MAX {
        let problem = format!("tokenizer.ggml.merges has {} entries; at most {NUM_MERGES_MAX}", merges.len());
        return Err(invalid(PLACE, problem));
    }
    let text_tokens = || {
        let is_text = |kind| matches!(kind, TokenType::Normal | TokenType::Unused | TokenType::Byte);
        entries(source, types).filter(move |&(_, _, kind)| is_text(kind) || kind == TokenType::UserDefined)
    };
    let vocab: Vocab = text_tokens().map(|(id, text, _)| (text.to_owned(), id)).collect();
    let mut pairs = Merges::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        let (left, right) = merge.split_once(' ').ok_or_else(|| {
            invalid(
                PLACE,
                format!("tokenizer.ggml.merges[{index}] is {merge:?}, not two tokens with a space between"),
            )
        })?;
        let known = |token: &str| vocab.contains_key(token);
        if !known(left) || !known(right) || !known(&format!("{left}{right}")) {
            let problem = format!(
                "tokenizer.ggml.merges[{index}] {merge:?} joins what is not in tokenizer.ggml.tokens"
            );
            return Err(invalid(PLACE, problem));
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let model = guard::contain(Status::ModelInvalid, PLACE, || {
        let builder = BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(rules.ignore_merges);
        // The crate would cache words per host thread and never give them back.
        builder.cache_capacity(0).build().map_err(|error| invalid(PLACE, error))
    })?;
    Ok(Encoder::Pipeline(Box::new(Pipeline {
        model: ModelWrapper::BPE(model),
        normalizer: None,
        pre_tokenizer: Some(rules.build()?),
        normalized_added: AddedTokens::default(),
        cuts_at_spaces: true,
    })))
}

fn sentencepiece(source: &Source, types: &[TokenType], adds_space: bool) -> Result<Encoder> {
    let scores = source.scores.ok_or_else(|| invalid(PLACE, "tokenizer.ggml.scores is missing"))?;
    let unknown = token_id(source, "unknown_token_id", source.unknown_token_id)?;
    let mut tokens = HashMap::new();
    let mut byte_tokens = [None; 256];
    for (id, text, kind) in entries(source, types) {
        let score = scores[id as usize];
        if score.is_nan() {
            return Err(invalid(PLACE, format!("tokenizer.ggml.scores[{id}] is not a number")));
        }
        match kind {
            TokenType::Normal | TokenType::UserDefined | TokenType::Unused => {
                // Some files repeat a token for padding; the last one counts.
                tokens.insert(text.to_owned(), Entry { id, score });
            }
            TokenType::Byte => {
                let byte = byte_fallback_byte(text).ok_or_else(|| {
                    invalid(
                        PLACE,
                        format!("tokenizer.ggml.tokens[{id}] is {text:?}; a byte token looks like <0x0A>"),
                    )
                })?;
                byte_tokens[usize::from(byte)] = Some(id);
            }
            TokenType::Control | TokenType::Unknown => {}
        }
    }
    SentencePiece::new(PLACE, tokens, byte_tokens, unknown, adds_space).map(Encoder::SentencePiece)
}

#[cfg(test)]
#[path = "tests/gguf.rs"]
mod tests;
