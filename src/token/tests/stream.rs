use proptest::prelude::*;

use super::*;
use crate::token::EncodeOptions;

const ALL: DecodeOptions = DecodeOptions { skip_special: false, continues: false };
const TEXT_ONLY: DecodeOptions = DecodeOptions { skip_special: true, continues: false };

fn pieces_of(tokens: &[u32]) -> Vec<String> {
    let mut decoder = StreamDecoder::new(&Tokenizer::bytes(), TEXT_ONLY);
    let mut pieces: Vec<String> = tokens.iter().map(|&token| decoder.push(token)).collect();
    pieces.push(decoder.finish());
    pieces
}

#[test]
fn a_code_point_comes_whole() {
    assert_eq!(pieces_of(&[0xe2, 0x82, 0xac, 0x21]), ["", "", "€", "!", ""]);
    assert_eq!(pieces_of(&[0xf0, 0x9f, 0x99, 0x82]), ["", "", "", "🙂", ""]);
}

#[test]
fn invalid_bytes_become_one_replacement_per_maximal_sequence() {
    // F0 9F is a valid beginning that the 'a' cuts short: one replacement, then the 'a'.
    assert_eq!(pieces_of(&[0xf0, 0x9f, 0x61]), ["", "", "\u{fffd}a", ""]);
    // E2 82 cut short by another beginning, which then completes.
    assert_eq!(pieces_of(&[0xe2, 0x82, 0xc3, 0xa9]), ["", "", "\u{fffd}", "é", ""]);
    assert_eq!(pieces_of(&[0xff, 0x80]), ["\u{fffd}", "\u{fffd}", ""]);
    assert_eq!(pieces_of(&[0xe2, 0x82]), ["", "", "\u{fffd}"]);
}

#[test]
fn special_tokens_do_not_interrupt_a_code_point() {
    let tokenizer = Tokenizer::bytes();
    let eos = tokenizer.eos_tokens()[0];
    assert_eq!(pieces_of(&[0xc3, eos, 0xa9]), ["", "", "é", ""]);
    let mut decoder = StreamDecoder::new(&tokenizer, ALL);
    let text: String = [0xc3, eos].iter().map(|&token| decoder.push(token)).collect();
    assert!(text.starts_with("\u{fffd}<|"), "{text}");
}

#[test]
fn tokens_outside_the_vocabulary_contribute_nothing() {
    assert_eq!(pieces_of(&[0x61, u32::MAX, 0x62]), ["a", "", "b", ""]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn equals_lossy_decoding_of_the_whole(
        // Bytes that begin, continue and break code points, far denser than uniform ones.
        bytes in prop::collection::vec(prop::sample::select(
            vec![0x41u8, 0x7f, 0x80, 0x82, 0x9f, 0xa0, 0xac, 0xbf, 0xc0, 0xc3, 0xe0, 0xe2, 0xed, 0xf0, 0xf4, 0xff],
        ), 0..40),
        cuts in prop::collection::vec(1usize..5, 40),
    ) {
        let whole = String::from_utf8_lossy(&bytes);
        let mut decoder = StreamDecoder::new(&Tokenizer::bytes(), TEXT_ONLY);
        let mut text = String::new();
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (piece, tail) = rest.split_at(cut.min(rest.len()));
            decoder.push_bytes(piece, &mut text);
            rest = tail;
        }
        text += &decoder.finish();
        prop_assert_eq!(&text, &whole);
        let tokens: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
        prop_assert_eq!(pieces_of(&tokens).concat(), whole);
    }

    #[test]
    fn text_survives_the_round_trip(text in "\\PC{0,40}") {
        let tokenizer = Tokenizer::bytes();
        let options = EncodeOptions { add_special_tokens: false, parse_special: false };
        let tokens = tokenizer.encode(&text, options).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text);
    }
}
