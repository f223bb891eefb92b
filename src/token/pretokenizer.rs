//! The pre-tokenizers that GGUF files name with `tokenizer.ggml.pre`: how text is cut into words before
//! merging.

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

/// Whether the stage ends a word at every space between two ASCII letters, looking no further: so do GPT-2's
/// own and what is made of the expressions here.
pub(crate) fn cuts_at_spaces(stage: &PreTokenizerWrapper) -> bool {
    cut(stage) == Some(true)
}

/// `Some(false)` for a stage that neither cuts there nor minds a cut; `None` for one that is not known.
fn cut(stage: &PreTokenizerWrapper) -> Option<bool> {
    match stage {
        PreTokenizerWrapper::ByteLevel(byte_level) => {
            (!byte_level.add_prefix_space).then_some(byte_level.use_regex)
        }
        PreTokenizerWrapper::Digits(_) => Some(false),
        PreTokenizerWrapper::Split(split) => match &split.pattern {
            SplitPattern::Regex(regex)
                if split.behavior == SplitDelimiterBehavior::Isolated && !split.invert =>
            {
                let cuts = [GPT2, LLAMA3, QWEN2, TEKKEN, GPT4O].contains(&regex.as_str());
                let is_neutral = [r"\p{N}", r"\p{N}{1,3}"].contains(&regex.as_str());
                (cuts || is_neutral).then_some(cuts)
            }
            _ => None,
        },
        PreTokenizerWrapper::Sequence(stages) => {
            let cuts = stages.as_ref().iter().map(cut).collect::<Option<Vec<bool>>>()?;
            Some(cuts.contains(&true))
        }
        _ => None,
    }
}

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
    use std::collections::HashMap;
    use std::sync::OnceLock;

    use proptest::prelude::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;
    use crate::error::Status;
    use crate::token::pieces::byte_level_bytes;
    use crate::token::pipeline::pieces;

    /// One name for each set of rules.
    const NAMES: [&str; 12] = [
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
    ];

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = PreTokenizedString::from(text);
        static BUILT: OnceLock<HashMap<&str, PreTokenizerWrapper>> = OnceLock::new();
        let build = |name| (name, PreTokenizer::named("f", name).unwrap().build().unwrap());
        BUILT.get_or_init(|| NAMES.map(build).into())[name].pre_tokenize(&mut words).unwrap();
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
        let smollm = ["It", "'s", "  ", "2", "0", "2", "4", ",", " OK", "?", "\n", "\n", "YES", "'", "LL"];
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
        for name in NAMES {
            assert_eq!(words(name, text).concat(), text, "{name}");
        }
    }

    #[test]
    fn only_known_stages_promise_their_cuts() {
        for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o"] {
            assert!(cuts_at_spaces(&PreTokenizer::named("f", name).unwrap().build().unwrap()), "{name}");
        }
        for json in [
            r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}"#,
            r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#,
            r#"{"type":"Digits","individual_digits":true}"#,
            r#"{"type":"Split","pattern":{"Regex":"[a-z ]+"},"behavior":"Isolated","invert":false}"#,
            r#"{"type":"Whitespace"}"#,
        ] {
            assert!(!cuts_at_spaces(&serde_json::from_str(json).unwrap()), "{json}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn words_are_the_same_on_both_sides_of_a_cut(
            parts in prop::collection::vec(prop::sample::select(vec![
                "ab", "C", " ", "  ", "\n", "'s", "'LL", "12", "é", "日", "!", "/", "\r\n", "x y", "A b", "\u{301}",
            ]), 0..20),
        ) {
            let text = parts.concat();
            for name in NAMES {
                let cut: Vec<String> = pieces(&text, 1).flat_map(|piece| words(name, piece)).collect();
                prop_assert_eq!(words(name, &text), cut, "{}", name);
            }
        }
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let error = PreTokenizer::named("model.gguf", "novel-bpe").err().unwrap();
        assert_eq!(error.status(), Status::ModelUnsupported);
        assert!(error.message().contains("\"novel-bpe\""), "{error}");
    }
}
