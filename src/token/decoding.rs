//! How a vocabulary entry becomes bytes: the section `decoder` of `tokenizer.json`, worked out once per
//! token.

use crate::error::Result;
use crate::token::limits::{SECTION_BYTES_MAX, invalid, unsupported};
use crate::token::pieces::{byte_fallback_byte, byte_level_bytes};
use crate::token::tokenizer_json::{DecoderNode, PatternNode};

/// The decoders that treat each token by itself, which is what streaming needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DecodeRule {
    /// Characters stand for bytes.
    pub byte_level: bool,
    /// `<0x0A>` stands for a byte.
    pub byte_fallback: bool,
    /// Texts to replace, in order.
    pub replacements: Vec<(String, String)>,
    /// A text's first space is not part of it.
    pub strips_leading_space: bool,
}

impl DecodeRule {
    /// Reads the section; `place` names it in errors.
    pub fn parse(place: &str, json: Option<&str>) -> Result<Self> {
        let Some(json) = json else {
            return Err(unsupported(place, "there is none, so tokens cannot be joined to text"));
        };
        if json.len() > SECTION_BYTES_MAX {
            let problem = format!("{} bytes; at most {SECTION_BYTES_MAX} are allowed", json.len());
            return Err(invalid(place, problem));
        }
        let node: DecoderNode = serde_json::from_str(json).map_err(|error| invalid(place, error))?;
        let mut rule = Self::default();
        rule.add(place, node)?;
        Ok(rule)
    }

    fn add(&mut self, place: &str, node: DecoderNode) -> Result<()> {
        match node.kind.as_str() {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Sequence" => {
                for inner in node.decoders {
                    self.add(place, inner)?;
                }
            }
            "Metaspace" => {
                let replacement = node.replacement.unwrap_or_else(|| "▁".to_owned());
                self.add_replacement(place, replacement, " ".to_owned())?;
                let is_prepended = node.add_prefix_space.unwrap_or(true);
                self.strips_leading_space = is_prepended && node.prepend_scheme.as_deref() != Some("never");
            }
            "Replace" => match (node.pattern, node.content) {
                (Some(PatternNode::String(pattern)), Some(content)) => {
                    self.add_replacement(place, pattern, content)?;
                }
                _ => return Err(unsupported(place, "Replace without a plain text pattern")),
            },
            "Strip" => match (node.content.as_deref(), node.start, node.stop) {
                (_, Some(0), Some(0)) => {}
                (Some(" "), Some(1), Some(0)) => self.strips_leading_space = true,
                _ => return Err(unsupported(place, "Strip of anything but one space at the start")),
            },
            other => return Err(unsupported(place, format!("type {other:?}"))),
        }
        Ok(())
    }

    fn add_replacement(&mut self, place: &str, pattern: String, content: String) -> Result<()> {
        // All replacements together let a token grow at most fourfold, so that the table of all tokens stays
        // in proportion to the file.
        let grows =
            |(pattern, content): &(String, String)| content.len().div_ceil(pattern.len().max(1)).max(1);
        let added = (pattern, content);
        let growth = self.replacements.iter().map(grows).fold(grows(&added), usize::saturating_mul);
        if added.0.is_empty() || growth > 4 || self.replacements.len() == 64 {
            return Err(invalid(place, format!("cannot replace {:?} by {:?}", added.0, added.1)));
        }
        self.replacements.push(added);
        Ok(())
    }

    /// The bytes of the vocabulary entry `text`.
    pub fn bytes(&self, text: &str) -> Vec<u8> {
        if self.byte_level {
            return byte_level_bytes(text);
        }
        if let Some(byte) = byte_fallback_byte(text).filter(|_| self.byte_fallback) {
            return vec![byte];
        }
        let mut text = text.to_owned();
        for (pattern, content) in &self.replacements {
            if text.contains(pattern.as_str()) {
                text = text.replace(pattern.as_str(), content);
            }
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn the_usual_sections_are_understood() {
        let byte_level =
            r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
        let rule = DecodeRule::parse("d", Some(byte_level)).unwrap();
        assert_eq!(rule.bytes("ĠhiĊ"), b" hi\n");
        let llama = r#"{"type":"Sequence","decoders":[
            {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},
            {"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        let rule = DecodeRule::parse("d", Some(llama)).unwrap();
        assert!(rule.strips_leading_space);
        assert_eq!((rule.bytes("▁▁a"), rule.bytes("<0x0A>")), (b"  a".to_vec(), b"\n".to_vec()));
        let metaspace = r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"never"}"#;
        let rule = DecodeRule::parse("d", Some(metaspace)).unwrap();
        assert!(!rule.strips_leading_space);
        assert_eq!(rule.bytes("<0x0A>"), b"<0x0A>");
    }

    #[test]
    fn what_cannot_be_streamed_is_named() {
        for (json, name) in [
            (r#"{"type":"WordPiece","prefix":"x","cleanup":true}"#, "WordPiece"),
            (r#"{"type":"Replace","pattern":{"Regex":"a+"},"content":""}"#, "Replace"),
            (r#"{"type":"Strip","content":" ","start":0,"stop":1}"#, "Strip"),
        ] {
            let error = DecodeRule::parse("d", Some(json)).unwrap_err();
            assert_eq!(error.status(), Status::ModelUnsupported);
            assert!(error.message().contains(name), "{error}");
        }
        assert_eq!(DecodeRule::parse("d", None).unwrap_err().status(), Status::ModelUnsupported);
        let grows = r#"{"type":"Replace","pattern":{"String":"a"},"content":"aaaaaaaaa"}"#;
        assert_eq!(DecodeRule::parse("d", Some(grows)).unwrap_err().status(), Status::ModelInvalid);
    }
}
