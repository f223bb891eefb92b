//! What a benchmark runs: lengths of prompts and outputs, and random prompts.

use std::path::Path;

use crate::failure::Failure;

/// Lengths of one request, in tokens; both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Prompt.
    pub input: u32,
    /// Output.
    pub output: u32,
}

/// Reads a trace, a JSON array of `[input, output]` lengths; `limit` keeps that many from the start.
pub fn read_trace(path: &Path, limit: Option<usize>) -> Result<Vec<Lengths>, Failure> {
    let bad = |message: String| Failure::Usage(format!("{}: {message}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(format!("cannot read it: {error}")))?;
    parse_trace(&text, limit).map_err(bad)
}

fn parse_trace(text: &str, limit: Option<usize>) -> Result<Vec<Lengths>, String> {
    let pairs: Vec<(u32, u32)> = serde_json::from_str(text)
        .map_err(|error| format!("not a JSON array of [input, output] lengths: {error}"))?;
    if pairs.is_empty() {
        return Err("the trace holds no requests".to_owned());
    }
    let mut trace = Vec::new();
    for (index, &(input, output)) in pairs.iter().take(limit.unwrap_or(usize::MAX)).enumerate() {
        if input == 0 || output == 0 {
            return Err(format!("entry {index} is [{input}, {output}]; lengths are at least 1"));
        }
        trace.push(Lengths { input, output });
    }
    Ok(trace)
}

/// A stream of random numbers: SplitMix64 (Steele, Lea and Flood 2014), which a seed fixes for good, so that
/// figures taken years apart ran the same prompts.
#[derive(Debug, Clone)]
pub struct RandomNumbers {
    state: u64,
}

impl RandomNumbers {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next number from 0 up to 1, which it does not reach.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A stream of random token ids.
#[derive(Debug, Clone)]
pub struct RandomTokens {
    numbers: RandomNumbers,
    vocab_size: u32,
}

impl RandomTokens {
    /// Ids below `vocab_size`, which is at least 1.
    pub fn new(seed: u64, vocab_size: u32) -> Self {
        Self { numbers: RandomNumbers::new(seed), vocab_size: vocab_size.max(1) }
    }

    /// The next `len` ids.
    pub fn take(&mut self, len: u32) -> Vec<u32> {
        (0..len).map(|_| self.next_token()).collect()
    }

    fn next_token(&mut self) -> u32 {
        ((u128::from(self.numbers.bits()) * u128::from(self.vocab_size)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_up_to_its_limit() {
        let text = "[[795, 64], [1, 1], [2, 3]]";
        assert_eq!(parse_trace(text, None).unwrap().len(), 3);
        assert_eq!(parse_trace(text, Some(1)).unwrap(), [Lengths { input: 795, output: 64 }]);
    }

    #[test]
    fn a_bad_trace_names_what_is_wrong() {
        assert!(parse_trace("[]", None).unwrap_err().contains("no requests"));
        assert!(parse_trace("[[1, 2], [3, 0]]", None).unwrap_err().contains("entry 1"));
        for bad in ["", "{}", "[[1]]", "[[1, -2]]", "[[1, 2, 3]]", "[[1, 4294967296]]"] {
            assert!(parse_trace(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_depend_on_the_seed_alone_and_cover_the_vocabulary() {
        let tokens = RandomTokens::new(7, 10).take(1000);
        assert_eq!(tokens, RandomTokens::new(7, 10).take(1000));
        assert_ne!(tokens, RandomTokens::new(8, 10).take(1000));
        for token in 0..10 {
            let count = tokens.iter().filter(|&&t| t == token).count();
            assert!((60..140).contains(&count), "{token} came {count} times");
        }
        assert!(tokens.iter().all(|&token| token < 10));
    }
}
