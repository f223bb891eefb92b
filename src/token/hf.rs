//! Tokenizers of Hugging Face directories.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::{
    Encoding, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, PostProcessor,
    PostProcessorWrapper, Token,
};

use crate::error::{Error, Result, Status};
use crate::token::added::{AddedToken, AddedTokens};
use crate::token::decoding::DecodeRule;
use crate::token::guard;
use crate::token::hf_config::Config;
use crate::token::limits::{self, SECTION_BYTES_MAX, TOKENIZER_FILE_BYTES_MAX, invalid, unsupported};
use crate::token::pieces::{Piece, Pieces};
use crate::token::pipeline::Pipeline;
use crate::token::pretokenizer::cuts_at_spaces;
use crate::token::section;
use crate::token::tokenizer_json::{AddedTokenEntry, Merges, ModelEntry, TokenizerFile, Vocabulary};
use crate::token::{Encoder, Parts, Tokenizer};

/// Reads `tokenizer.json` and the configuration files beside it.
pub(crate) fn load(directory: &Path) -> Result<Tokenizer> {
    let path = directory.join("tokenizer.json");
    let file = limits::read_file(&path, TOKENIZER_FILE_BYTES_MAX)?
        .ok_or_else(|| Error::new(Status::ModelNotFound, format!("{}: no such file", path.display())))?;
    let place = path.display().to_string();
    let config = Config::read(directory)?;
    // Parsing recurses with the file's nesting, and the crate's stages may panic on what they find.
    guard::on_own_stack(Status::ModelInvalid, &place, || parse(&place, &file, config))
}

/// Builds a tokenizer from the content of a `tokenizer.json`; `place` names the file in errors.
pub(crate) fn parse(place: &str, content: &[u8], config: Config) -> Result<Tokenizer> {
    let file: TokenizerFile = serde_json::from_slice(content).map_err(|error| invalid(place, error))?;
    let mut added: Vec<AddedToken> = file.added_tokens.into_iter().map(added_token).collect();
    for spelling in [&config.bos_token, &config.eos_token].into_iter().flatten() {
        if !added.iter().any(|token| &token.spelling == spelling)
            && let Some(id) = file.model.vocab.id(spelling)
        {
            added.push(AddedToken { id, spelling: spelling.clone(), special: true, ..AddedToken::default() });
        }
    }
    let normalizer = section::<NormalizerWrapper>(place, "normalizer", file.normalizer)?;
    let pre_tokenizer = section(place, "pre_tokenizer", file.pre_tokenizer)?;
    let post_processor = section::<PostProcessorWrapper>(place, "post_processor", file.post_processor)?;
    let decode_rule = DecodeRule::parse(&format!("{place}: decoder"), file.decoder.map(RawValue::get))?;
    let pieces = pieces(place, &file.model.vocab, &added, &decode_rule)?;
    let (prefix, suffix) = surroundings(place, post_processor.as_ref(), pieces.num_tokens())?;
    let eos_token =
        config.eos_token.as_ref().and_then(|eos| added.iter().find(|token| &token.spelling == eos));
    let eos_tokens = config.eos_tokens(pieces.num_tokens(), eos_token.map(|token| token.id))?;
    let model = model(&format!("{place}: model"), file.model, &added)?;
    let (normalized, added) = added.into_iter().partition(|token| token.normalized);
    let normalized_added =
        AddedTokens::new(place, normalized_spellings(place, normalizer.as_ref(), normalized)?)?;
    let is_local = matches!(normalizer, None | Some(NormalizerWrapper::NFC(_)));
    let cuts_at_spaces =
        is_local && normalized_added.is_empty() && pre_tokenizer.as_ref().is_some_and(cuts_at_spaces);
    let pipeline = Pipeline { model, normalizer, pre_tokenizer, normalized_added, cuts_at_spaces };
    Tokenizer::assemble(Parts {
        encoder: Encoder::Pipeline(Box::new(pipeline)),
        added: AddedTokens::new(place, added)?,
        pieces,
        strips_leading_space: decode_rule.strips_leading_space,
        prefix,
        suffix,
        eos_tokens,
        template: config.template(),
        generation_defaults: config.generation_defaults,
    })
}

/// Special tokens are always found as they are spelled, even where a file says `normalized`: whether a text
/// contains one must not depend on what normalising makes of it.
fn added_token(entry: AddedTokenEntry) -> AddedToken {
    AddedToken {
        id: entry.id,
        spelling: entry.content,
        special: entry.special,
        single_word: entry.single_word,
        strips_left: entry.lstrip,
        strips_right: entry.rstrip,
        normalized: !entry.special && entry.normalized.unwrap_or(true),
    }
}

/// Parses a section with the crate's types, once it is known to be small and to ask for nothing large.
fn section<T: DeserializeOwned>(place: &str, name: &str, raw: Option<&RawValue>) -> Result<Option<T>> {
    let Some(json) = raw.map(RawValue::get) else { return Ok(None) };
    let place = format!("{place}: {name}");
    if json.len() > SECTION_BYTES_MAX {
        let problem =
            format!("the section has {} bytes; at most {SECTION_BYTES_MAX} are allowed", json.len());
        return Err(invalid(&place, problem));
    }
    section::check(&place, json)?;
    serde_json::from_str(json).map(Some).map_err(|error| invalid(&place, error))
}

/// The bytes of every token. An added token that the model knows too must have the model's id.
fn pieces(place: &str, vocab: &Vocabulary, added: &[AddedToken], rule: &DecodeRule) -> Result<Pieces> {
    let added_ids: HashMap<&str, u32> =
        added.iter().map(|token| (token.spelling.as_str(), token.id)).collect();
    let mut pieces = Vec::with_capacity(added.len() + vocab.len());
    for (text, id) in vocab.entries() {
        match added_ids.get(text) {
            Some(&added_id) if added_id != id => {
                let problem =
                    format!("token {text:?} has id {added_id} in added_tokens and {id} in model.vocab");
                return Err(invalid(place, problem));
            }
            Some(_) => {}
            None => pieces.push(Piece { id, bytes: rule.bytes(text), special: false }),
        }
    }
    let literal = |token: &AddedToken| {
        let bytes = token.spelling.clone().into_bytes();
        Piece { id: token.id, bytes, special: token.special }
    };
    pieces.extend(added.iter().map(literal));
    Pieces::new(place, pieces)
}

/// The crate's model. It does not get to know the special tokens' spellings, so that it can never make one of
/// ordinary text.
fn model(place: &str, entry: ModelEntry, added: &[AddedToken]) -> Result<ModelWrapper> {
    let is_scored = matches!(entry.vocab, Vocabulary::Scores(_));
    let kind = entry.kind.as_deref().unwrap_or(if is_scored { "Unigram" } else { "BPE" });
    let specials: HashSet<&str> =
        added.iter().filter(|token| token.special).map(|token| token.spelling.as_str()).collect();
    match kind {
        "BPE" => bpe(place, entry, &specials),
        "Unigram" => unigram(place, entry, &specials),
        other => Err(unsupported(place, format!("type {other:?}; BPE and Unigram are supported"))),
    }
}

fn bpe(place: &str, entry: ModelEntry, specials: &HashSet<&str>) -> Result<ModelWrapper> {
    let Vocabulary::Ids(ids) = entry.vocab else {
        return Err(invalid(place, "vocab of a BPE model must be an object of token ids"));
    };
    let merges = entry.merges.unwrap_or(Merges(Vec::new())).0;
    let unknown = entry.unk_token.as_deref();
    let num_entries = ids.len();
    let mut vocab: Vocab = ids.into_iter().collect();
    if vocab.len() != num_entries {
        return Err(invalid(place, "vocab has a token twice"));
    }
    if let Some(unknown) = unknown.filter(|unknown| !vocab.contains_key(*unknown)) {
        return Err(invalid(place, format!("unk_token {unknown:?} is not in vocab")));
    }
    let prefix = entry.continuing_subword_prefix.unwrap_or_default();
    let mut kept = Vec::with_capacity(merges.len());
    for (index, (left, right)) in merges.into_iter().enumerate() {
        let merged = right.strip_prefix(&prefix).map(|tail| format!("{left}{tail}"));
        let known = |token: &str| vocab.contains_key(token);
        let Some(merged) = merged.filter(|merged| known(merged) && known(&left) && known(&right)) else {
            let problem = format!("merges[{index}] joins {left:?} and {right:?}, which vocab does not allow");
            return Err(invalid(place, problem));
        };
        if ![&left, &right, &merged].into_iter().any(|token| specials.contains(token.as_str())) {
            kept.push((left, right));
        }
    }
    vocab.retain(|token, _| !specials.contains(token.as_str()) || Some(token.as_str()) == unknown);
    let mut builder = BPE::builder()
        .vocab_and_merges(vocab, kept)
        // The crate would cache words per host thread and never give them back.
        .cache_capacity(0)
        .fuse_unk(entry.fuse_unk)
        .byte_fallback(entry.byte_fallback)
        .ignore_merges(entry.ignore_merges);
    if !prefix.is_empty() {
        builder = builder.continuing_subword_prefix(prefix);
    }
    if let Some(suffix) = entry.end_of_word_suffix.filter(|suffix| !suffix.is_empty()) {
        builder = builder.end_of_word_suffix(suffix);
    }
    if let Some(unknown) = entry.unk_token {
        builder = builder.unk_token(unknown);
    }
    builder.build().map(ModelWrapper::BPE).map_err(|error| invalid(place, error))
}

fn unigram(place: &str, entry: ModelEntry, specials: &HashSet<&str>) -> Result<ModelWrapper> {
    let Vocabulary::Scores(mut scores) = entry.vocab else {
        return Err(invalid(place, "vocab of a Unigram model must be an array of pairs of token and score"));
    };
    let Some(unk_id) = entry.unk_id.filter(|&unk_id| unk_id < scores.len()) else {
        return Err(invalid(place, "unk_id must be the index of an entry of vocab"));
    };
    check_search_tree(place, &scores)?;
    for (token, _) in &mut scores {
        // Ids are indexes, so the entry stays; its spelling becomes one that no text contains.
        if specials.contains(token.as_str()) {
            token.clear();
        }
    }
    let model = Unigram::from(scores, Some(unk_id), entry.byte_fallback);
    let mut model = model.map_err(|error| invalid(place, error))?;
    model.resize_cache(0);
    Ok(ModelWrapper::Unigram(model))
}

/// Refuses what would make the crate's search tree, which has a node of a third of a kilobyte for each byte that
/// tokens do not share, take more than some 200 MB, or so deep that dropping it overflows a thread's stack.
fn check_search_tree(place: &str, scores: &[(String, f64)]) -> Result<()> {
    const NUM_NODES_MAX: usize = 600_000;
    const DEPTH_MAX: usize = 512;
    let mut tokens: Vec<&[u8]> = scores.iter().map(|(token, _)| token.as_bytes()).collect();
    if let Some(long) = tokens.iter().find(|token| token.len() > DEPTH_MAX) {
        let problem = format!("vocab has a token of {} bytes; at most {DEPTH_MAX} are allowed", long.len());
        return Err(invalid(place, problem));
    }
    tokens.sort_unstable();
    let (mut num_nodes, mut previous) = (0, &[][..]);
    for token in tokens {
        let num_shared = token.iter().zip(previous).take_while(|(a, b)| a == b).count();
        num_nodes += token.len() - num_shared;
        previous = token;
    }
    if num_nodes > NUM_NODES_MAX {
        let problem =
            format!("vocab needs a search tree of {num_nodes} nodes; at most {NUM_NODES_MAX} are allowed");
        return Err(invalid(place, problem));
    }
    Ok(())
}

/// What the post-processor puts before and after a text, such as a BOS token.
fn surroundings(
    place: &str,
    post_processor: Option<&PostProcessorWrapper>,
    num_tokens: usize,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let Some(post_processor) = post_processor else { return Ok(Default::default()) };
    // An id that no token has stands for the text.
    let text = u32::MAX;
    let encoding = Encoding::from_tokens(vec![Token::new(text, String::new(), (0, 0))], 0);
    let processed = post_processor
        .process(encoding, None, true)
        .map_err(|e| invalid(place, format!("post_processor: {e}")))?;
    let mut halves = processed.get_ids().split(|&id| id == text);
    let (Some(prefix), Some(suffix), None) = (halves.next(), halves.next(), halves.next()) else {
        return Err(unsupported(place, "post_processor does not use the text exactly once"));
    };
    if let Some(id) = [prefix, suffix].concat().into_iter().find(|&id| id as usize >= num_tokens) {
        return Err(invalid(
            place,
            format!("post_processor adds token {id}, which the vocabulary does not have"),
        ));
    }
    Ok((prefix.to_vec(), suffix.to_vec()))
}

/// The tokens with their spelling as it looks after normalising.
fn normalized_spellings(
    place: &str,
    normalizer: Option<&NormalizerWrapper>,
    mut tokens: Vec<AddedToken>,
) -> Result<Vec<AddedToken>> {
    let Some(normalizer) = normalizer else { return Ok(tokens) };
    for token in &mut tokens {
        let mut spelling = NormalizedString::from(token.spelling.as_str());
        normalizer.normalize(&mut spelling).map_err(|error| {
            invalid(place, format!("normalizer fails on the added token {:?}: {error}", token.spelling))
        })?;
        token.spelling = spelling.get().to_owned();
    }
    // Spellings that became equal cannot be told apart; the first token keeps it.
    let mut seen = HashSet::new();
    tokens.retain(|token| seen.insert(token.spelling.clone()));
    Ok(tokens)
}
