//! Decoders against golden blocks; encoders against their definition.

use half::{bf16, f16};
use serde_json::Value;

use super::*;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn blocks_decode_as_the_gguf_package_does() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quant_blocks.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let formats = golden["formats"].as_array().unwrap();
    assert_eq!(formats.len(), 10);
    for format in formats {
        let name = format["name"].as_str().unwrap();
        let decode = match name {
            "Q4_0" => decode_q4_0,
            "Q4_1" => decode_q4_1,
            "Q5_0" => decode_q5_0,
            "Q5_1" => decode_q5_1,
            "Q8_0" => decode_q8_0,
            "Q4_K" => decode_q4_k,
            "Q5_K" => decode_q5_k,
            "Q6_K" => decode_q6_k,
            "F16" => decode_f16,
            "BF16" => decode_bf16,
            _ => panic!("{name}"),
        };
        let blocks = unhex(format["blocks"].as_str().unwrap());
        let mut expected = vec![0.0; format["value_bits"].as_str().unwrap().len() / 8];
        decode_f32(&unhex(format["value_bits"].as_str().unwrap()), &mut expected);
        let mut values = vec![f32::NAN; expected.len()];
        decode(&blocks, &mut values);
        assert_eq!(values, expected, "{name}");
    }
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    // One unit in the last place of bf16 at 1.0 is 2^-7: halves go to the even neighbour.
    let ulp = 2f32.powi(-7);
    let values =
        [1.0 + ulp / 2.0, 1.0 + 1.5 * ulp, 1.0 + 0.49 * ulp, 1.0 + 0.51 * ulp, -1.0 - ulp / 2.0, f32::MAX];
    let expected = [1.0, 1.0 + 2.0 * ulp, 1.0, 1.0 + ulp, -1.0, f32::INFINITY];
    let mut bytes = vec![0xaa; 2 * values.len()];
    encode_bf16(&values, &mut bytes);
    let mut back = vec![f32::NAN; values.len()];
    decode_bf16(&bytes, &mut back);
    assert_eq!(back, expected);

    // And 2^-10 for f16.
    let ulp = 2f32.powi(-10);
    let values = [1.0 + ulp / 2.0, 1.0 + 1.5 * ulp, 65519.0, 65520.0, 1e-8, f32::NEG_INFINITY];
    let expected = [1.0, 1.0 + 2.0 * ulp, 65504.0, f32::INFINITY, 0.0, f32::NEG_INFINITY];
    encode_f16(&values, &mut bytes);
    decode_f16(&bytes, &mut back);
    assert_eq!(back, expected);
}

#[test]
fn narrow_floats_round_trip_bit_by_bit() {
    for bits in 0..=u16::MAX {
        let mut bytes = [0; 2];
        if !f16::from_bits(bits).is_nan() {
            encode_f16(&[f16::from_bits(bits).to_f32()], &mut bytes);
            assert_eq!(u16::from_le_bytes(bytes), bits);
        }
        if !bf16::from_bits(bits).is_nan() {
            encode_bf16(&[bf16::from_bits(bits).to_f32()], &mut bytes);
            assert_eq!(u16::from_le_bytes(bytes), bits);
        }
    }
}

#[test]
#[should_panic(expected = "partial blocks")]
fn a_partial_block_is_a_defect_of_the_caller() {
    decode_q4_0(&[0; 17], &mut [0.0; 32]);
}
