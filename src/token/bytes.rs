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

/// Ids 0 to 255 are bytes, 256 ends the output, 257 and 258 delimit chat turns.
pub(crate) fn tokenizer() -> Result<Tokenizer> {
    let specials = || (256u32..).zip(SPECIALS);
    let bytes = (0..=255u8).map(|byte| Piece { id: byte.into(), bytes: vec![byte], special: false });
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
        eos_tokens: vec![256],
        template: Some(ChatTemplate::compile(TemplateSource {
            place: PLACE,
            source: TEMPLATE,
            bos_token: None,
            eos_token: None,
        })?),
        generation_defaults: GenerationDefaults::default(),
    })
}
