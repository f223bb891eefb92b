//! Text to tokens through the `tokenizers` crate: normalise, cut into words, apply the model.

use tokenizers::normalizer::Range;
use tokenizers::{
    Model, ModelWrapper, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, PreTokenizerWrapper, Token,
};

use crate::error::{Error, Result, Status};
use crate::token::added::{AddedTokens, Part};
use crate::token::guard;

/// The stages of a `tokenizer.json`. Each stage's meaning is the crate's; that special tokens are decided by the
/// caller, per call, is ours.
pub(crate) struct Pipeline {
    pub model: ModelWrapper,
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Tokens that are found in the normalised text; none of them special.
    pub normalized_added: AddedTokens,
}

impl Pipeline {
    /// Token ids of `text`, whose `parts` cover it.
    pub fn encode(&self, text: &str, parts: &[Part]) -> Result<Vec<u32>> {
        guard::contain(Status::Internal, "encoding text", || {
            self.run(text, parts)
                .map_err(|error| Error::invalid_argument(format!("the text cannot be encoded: {error}")))
        })
    }

    fn run(&self, text: &str, parts: &[Part]) -> tokenizers::Result<Vec<u32>> {
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
        let mut ids = Vec::new();
        for (word, _, tokens) in words.get_splits(OffsetReferential::Original, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => ids.extend(self.model.tokenize(word)?.iter().map(|token| token.id)),
            }
        }
        Ok(ids)
    }
}

fn found(id: u32) -> Vec<Token> {
    vec![Token::new(id, String::new(), (0, 0))]
}
