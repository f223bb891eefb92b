//! Text to tokens and back.
#![allow(missing_docs)]
use crate::error::*;
use crate::sample::GenerationDefaults;
pub struct Tokenizer {
    eos: Vec<u32>,
}
pub struct EncodeOptions {
    pub add_special_tokens: bool,
    pub parse_special: bool,
}
impl Tokenizer {
    pub fn load(_c: &crate::format::Checkpoint) -> Result<Self> {
        Ok(Self { eos: vec![2] })
    }
    pub fn bytes() -> Self {
        Self { eos: vec![256] }
    }
    pub fn encode(&self, text: &str, _o: EncodeOptions) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }
    pub fn decode(&self, ids: &[u32], _skip: bool) -> Result<String> {
        Ok(String::from_utf8_lossy(&ids.iter().map(|&i| i as u8).collect::<Vec<_>>()).into_owned())
    }
    pub fn apply_chat_template(&self, m: &str, _g: bool) -> Result<String> {
        Ok(m.to_owned())
    }
    pub fn vocab_size(&self) -> usize {
        259
    }
    pub fn eos_tokens(&self) -> &[u32] {
        &self.eos
    }
    pub fn has_chat_template(&self) -> bool {
        true
    }
    pub fn generation_defaults(&self) -> GenerationDefaults {
        GenerationDefaults::default()
    }
}
pub struct StreamDecoder {}
impl StreamDecoder {
    pub fn new(_t: &Tokenizer) -> Self {
        Self {}
    }
    pub fn push(&mut self, token: u32, out: &mut String) {
        if token < 256 {
            out.push(token as u8 as char)
        }
    }
    pub fn finish(&mut self, _out: &mut String) {}
}
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}
pub struct StopOutcome {
    pub emit: String,
    pub matched: Option<usize>,
}
impl StopMatcher {
    pub fn new(s: &[String]) -> Result<Self> {
        Ok(Self { stops: s.to_vec(), held: String::new() })
    }
    pub fn push(&mut self, text: &str) -> StopOutcome {
        self.held.push_str(text);
        for (i, s) in self.stops.iter().enumerate() {
            if let Some(p) = self.held.find(s.as_str()) {
                return StopOutcome { emit: self.held[..p].to_owned(), matched: Some(i) };
            }
        }
        StopOutcome { emit: String::new(), matched: None }
    }
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}
