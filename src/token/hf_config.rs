//! The configuration files beside `tokenizer.json`: special tokens, chat template, sampling defaults.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::Result;
use crate::sample::GenerationDefaults;
use crate::token::limits::{self, CONFIG_FILE_BYTES_MAX, TEMPLATE_BYTES_MAX, invalid};
use crate::token::template::{ChatTemplate, TemplateSource};

/// What the configuration files say about text.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Spelling of the token that begins a text.
    pub bos_token: Option<String>,
    /// Spelling of the token that ends one.
    pub eos_token: Option<String>,
    /// Chat template and where it was read.
    pub chat_template: Option<(String, String)>,
    /// Ids of tokens that end the output.
    pub eos_ids: Vec<u32>,
    /// Recommended sampling.
    pub generation_defaults: GenerationDefaults,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    bos_token: Option<TokenEntry>,
    eos_token: Option<TokenEntry>,
    chat_template: Option<TemplateEntry>,
}

/// A token by its spelling, or an object with the spelling in it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenEntry {
    Spelling(String),
    Object { content: String },
}

/// One template, or several with names.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateEntry {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize, Default)]
struct GenerationConfig {
    eos_token_id: Option<TokenIds>,
    #[serde(default)]
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<f64>,
    top_p: Option<f64>,
    repetition_penalty: Option<f64>,
}

#[derive(Deserialize, Default)]
struct ModelConfig {
    eos_token_id: Option<TokenIds>,
}

/// One id or several. Negative ids mean "none" in some files.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(i64),
    Several(Vec<i64>),
}

impl TokenIds {
    fn ids(self, place: &str) -> Result<Vec<u32>> {
        let ids = match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        };
        let in_range = |id: i64| {
            u32::try_from(id).map_err(|_| invalid(place, format!("eos_token_id {id} is not a token id")))
        };
        ids.into_iter().filter(|&id| id >= 0).map(in_range).collect()
    }
}

impl TokenEntry {
    fn spelling(self) -> String {
        match self {
            Self::Spelling(spelling) | Self::Object { content: spelling } => spelling,
        }
    }
}

impl Config {
    /// Reads `tokenizer_config.json`, `chat_template.jinja` (which wins over the former's), and
    /// `generation_config.json` or, for the end-of-sequence tokens where that has none, `config.json`. Any of
    /// them may be missing.
    pub fn read(directory: &Path) -> Result<Self> {
        let (place, tokenizer_config) = read_json::<TokenizerConfig>(directory, "tokenizer_config.json")?;
        let mut config = Self {
            bos_token: tokenizer_config.bos_token.map(TokenEntry::spelling),
            eos_token: tokenizer_config.eos_token.map(TokenEntry::spelling),
            chat_template: match tokenizer_config.chat_template {
                Some(entry) => Some((entry.choose(&place)?, format!("{place}: chat_template"))),
                None => None,
            },
            ..Self::default()
        };
        let path = directory.join("chat_template.jinja");
        if let Some(content) = limits::read_file(&path, TEMPLATE_BYTES_MAX as u64)? {
            let place = path.display().to_string();
            let source = String::from_utf8(content).map_err(|error| invalid(&place, error))?;
            config.chat_template = Some((source, place));
        }
        let (place, generation) = read_json::<GenerationConfig>(directory, "generation_config.json")?;
        config.generation_defaults = generation.defaults(&place)?;
        config.eos_ids = match generation.eos_token_id {
            Some(ids) => ids.ids(&place)?,
            None => {
                let (place, model) = read_json::<ModelConfig>(directory, "config.json")?;
                model.eos_token_id.map_or(Ok(Vec::new()), |ids| ids.ids(&place))?
            }
        };
        Ok(config)
    }

    /// The tokens that end the output: those of the configuration, then the tokenizer's own. Each must be
    /// below `num_tokens`.
    pub fn eos_tokens(&self, num_tokens: usize, eos_token: Option<u32>) -> Result<Vec<u32>> {
        let mut eos_tokens = Vec::new();
        for id in self.eos_ids.iter().copied().chain(eos_token) {
            if id as usize >= num_tokens {
                let problem = format!("eos_token_id {id} is outside the vocabulary of {num_tokens} tokens");
                return Err(invalid("generation_config.json or config.json", problem));
            }
            if !eos_tokens.contains(&id) {
                eos_tokens.push(id);
            }
        }
        Ok(eos_tokens)
    }

    /// The chat template, if there is one, or why it cannot be used.
    pub fn template(&self) -> Option<Result<ChatTemplate>> {
        let (source, place) = self.chat_template.as_ref()?;
        let (bos_token, eos_token) = (self.bos_token.as_deref(), self.eos_token.as_deref());
        Some(ChatTemplate::compile(TemplateSource { place, source, bos_token, eos_token }))
    }
}

impl TemplateEntry {
    /// The template named `default`, or the only one.
    fn choose(self, place: &str) -> Result<String> {
        match self {
            Self::One(template) => Ok(template),
            Self::Named(mut named) => {
                let default = named.iter().position(|entry| entry.name == "default");
                match default.or((named.len() == 1).then_some(0)) {
                    Some(index) => Ok(named.swap_remove(index).template),
                    None => Err(invalid(
                        place,
                        "chat_template has several templates and none is named \"default\"",
                    )),
                }
            }
        }
    }
}

impl GenerationConfig {
    fn defaults(&self, place: &str) -> Result<GenerationDefaults> {
        let check = |name: &str, value: Option<f64>, is_allowed: fn(f64) -> bool, range: &str| match value {
            Some(value) if !is_allowed(value) => {
                Err(invalid(place, format!("{name} is {value}; it must be in {range}")))
            }
            value => Ok(value.map(|value| value as f32)),
        };
        let temperature = check("temperature", self.temperature, |x| (0.0..=100.0).contains(&x), "[0, 100]")?;
        let top_k = check("top_k", self.top_k, |x| (0.0..=1e9).contains(&x) && x.fract() == 0.0, "[0, 1e9]")?;
        let top_p = check("top_p", self.top_p, |x| x > 0.0 && x <= 1.0, "(0, 1]")?;
        let repetition_penalty =
            check("repetition_penalty", self.repetition_penalty, |x| x > 0.0 && x <= 100.0, "(0, 100]")?;
        Ok(GenerationDefaults {
            temperature: if self.do_sample == Some(true) { temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: top_k.map_or(0, |top_k| top_k as u32),
            top_p,
            repetition_penalty,
        })
    }
}

/// Reads a configuration file; the default where there is none. Also returns its name for errors.
fn read_json<T: DeserializeOwned + Default>(directory: &Path, name: &str) -> Result<(String, T)> {
    let path = directory.join(name);
    let place = path.display().to_string();
    let Some(content) = limits::read_file(&path, CONFIG_FILE_BYTES_MAX)? else {
        return Ok((place, T::default()));
    };
    let value = serde_json::from_slice(&content).map_err(|error| invalid(&place, error))?;
    Ok((place, value))
}
