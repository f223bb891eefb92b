//! The pre-tokenizers that GGUF files name with `tokenizer.ggml.pre`: how text is cut into words before merging.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::error::{Error, Result};
use crate::token::limits::unsupported;

/// The rules of one name. Expressions apply in turn, each to the pieces that the one before left; what none
/// matches stays a piece.
pub(crate) struct PreTokenizer {
    pub expressions: &'static [&'static str],
    /// A word that is a token as a whole is not taken apart.
    pub ignore_merges: bool,
    /// Whether a text begins with BOS where the file does not say.
    pub adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const FINNISH: &str = " ?[^(\\s|.,!?…。，、।۔،)]+";

impl PreTokenizer {
    /// The rules named `name` in the file `place`.
    pub fn named(place: &str, name: &str) -> Result<Self> {
        let expressions: &[&str] = match name {
            "default" => &[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "roberta-bpe" | "trillion" => &[GPT2],
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
                &[r"\p{N}", GPT2]
            }
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "dbrx" | "smaug-bpe" | "glm4"
            | "chatglm-bpe" => &[LLAMA3],
            "qwen2" | "stablelm2" | "deepseek-r1-qwen" => &[QWEN2],
            "tekken" => &[TEKKEN],
            "gpt-4o" | "llama4" => &[GPT4O],
            "falcon" => &[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"],
            "deepseek-coder" => &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
            "deepseek-v3" => &[
                r"\p{N}{1,3}",
                "[一-龥぀-ゟ゠-ヿ]+",
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
            ],
            "bloom" | "poro-chat" | "gpt3-finnish" => &[FINNISH],
            "viking" => &[FINNISH, r"\p{N}"],
            _ => {
                let problem = format!("tokenizer.ggml.pre is {name:?}, which this version does not know");
                return Err(unsupported(place, problem));
            }
        };
        let is_llama3 = matches!(name, "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral");
        Ok(Self {
            expressions,
            ignore_merges: is_llama3 || name == "tekken",
            adds_bos: is_llama3 || name == "tekken",
        })
    }

    /// The crate's form of the rules, for a vocabulary in the byte alphabet.
    pub fn build(&self) -> Result<PreTokenizerWrapper> {
        let split = |expression: &&str| {
            Split::new(SplitPattern::Regex((*expression).to_owned()), SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::Split)
                .map_err(|error| Error::internal(format!("pre-tokenizer {expression}: {error}")))
        };
        let mut steps = self.expressions.iter().map(split).collect::<Result<Vec<_>>>()?;
        steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;
    use crate::error::Status;
    use crate::token::pieces::byte_level_bytes;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = PreTokenizedString::from(text);
        PreTokenizer::named("f", name).unwrap().build().unwrap().pre_tokenize(&mut words).unwrap();
        let words = words.get_splits(OffsetReferential::Original, OffsetType::None);
        words.into_iter().map(|(word, ..)| String::from_utf8(byte_level_bytes(word)).unwrap()).collect()
    }

    #[test]
    fn names_cut_as_their_models_do() {
        let text = "It's  2024, OK?\n\nYES'LL";
        assert_eq!(
            words("gpt-2", text),
            ["It", "'s", " ", " 2024", ",", " OK", "?", "\n", "\n", "YES", "'", "LL"]
        );
        let smollm =
            ["It", "'s", " ", " ", "2", "0", "2", "4", ",", " OK", "?", "\n", "\n", "YES", "'", "LL"];
        assert_eq!(words("smollm", text), smollm);
        let llama3 = ["It", "'s", " ", " ", "202", "4", ",", " OK", "?\n\n", "YES", "'LL"];
        assert_eq!(words("llama-bpe", text), llama3);
        let qwen2 = ["It", "'s", " ", " ", "2", "0", "2", "4", ",", " OK", "?\n\n", "YES", "'LL"];
        assert_eq!(words("qwen2", text), qwen2);
        assert_eq!(words("gpt-4o", "camelCase it's"), ["camel", "Case", " it's"]);
        assert_eq!(words("tekken", "camelCase 12"), ["camel", "Case", " ", "1", "2"]);
        assert_eq!(words("deepseek-v3", "日本語 1234"), ["日本語", " ", "123", "4"]);
    }

    #[test]
    fn every_rule_compiles_and_loses_nothing() {
        let text = "a1 é日本 \r\n\t!?🙂  x_y 12345 'll\u{0}";
        for name in [
            "default",
            "gpt-2",
            "smollm",
            "llama-bpe",
            "qwen2",
            "tekken",
            "gpt-4o",
            "falcon",
            "deepseek-coder",
            "deepseek-v3",
            "bloom",
            "viking",
        ] {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let error = PreTokenizer::named("model.gguf", "novel-bpe").err().unwrap();
        assert_eq!(error.status(), Status::ModelUnsupported);
        assert!(error.message().contains("\"novel-bpe\""), "{error}");
    }
}
