//! A tokenizer without a model: every byte is a token. The echo engine uses it.

use crate::error::Result;
use crate::sample::GenerationDefaults;
use crate::token::added::{AddedToken, AddedTokens};
use crate::token::pieces::{Piece, Pieces};
use crate::token::template::{ChatTemplate, TemplateSource};
use crate::token::{Encoder, Parts, Tokenizer};

const PLACE: &str = "byte tokenizer";
/// Special tokens from id 256 on; the first ends the output.
const SPECIALS: [&str; 3] = ["<|end|>", "<|im_start|>", "<|im_end|>"];
const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Ids 0 to 255 are bytes, 256 ends the output, 257 and 258 delimit chat turns; those below `vocab_size` alone.
pub(crate) fn tokenizer(vocab_size: usize) -> Result<Tokenizer> {
    let is_there = |id: u32| (id as usize) < vocab_size;
    let specials = || (256u32..).zip(SPECIALS).filter(|(id, _)| is_there(*id));
    let bytes = (0..=255u8).filter(|&byte| is_there(byte.into())).map(|byte| Piece {
        id: byte.into(),
        bytes: vec![byte],
        special: false,
    });
    let special_pieces = specials().map(|(id, spelling)| Piece { id, bytes: spelling.into(), special: true });
    let added = specials().map(|(id, spelling)| AddedToken {
        id,
        spelling: spelling.to_owned(),
        special: true,
        ..AddedToken::default()
    });
    Tokenizer::assemble(Parts {
        encoder: Encoder::Bytes,
        added: AddedTokens::new(PLACE, added.collect())?,
        pieces: Pieces::new(PLACE, bytes.chain(special_pieces).collect())?,
        strips_leading_space: false,
        prefix: Vec::new(),
        suffix: Vec::new(),
        eos_tokens: [256].into_iter().filter(|&id| is_there(id)).collect(),
        template: Some(ChatTemplate::compile(TemplateSource {
            place: PLACE,
            source: TEMPLATE,
            bos_token: None,
            eos_token: None,
        })),
        generation_defaults: GenerationDefaults::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_vocabulary_cuts_it() {
        for vocab_size in 0..300 {
            let tokenizer = tokenizer(vocab_size).unwrap();
            assert_eq!(tokenizer.vocab_size(), vocab_size.min(259));
            assert_eq!(tokenizer.eos_tokens(), if vocab_size > 256 { &[256][..] } else { &[] });
        }
        assert_eq!(tokenizer(100).unwrap().decode(&[72, 99, 33], false).unwrap(), "Hc!");
    }
}
