//! Streaming against its definition: decoding token by token equals decoding at once, and stop strings are found
//! where a search of the whole text finds them, however it is cut into pieces.
#![no_main]

use inflight::token::{DecodeOptions, StopMatcher, StreamDecoder, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<String>, Vec<u8>)| {
    let (stops, bytes) = input;
    let Ok(mut matcher) = StopMatcher::new(&stops) else { return };
    let tokenizer = Tokenizer::bytes();
    let mut decoder = StreamDecoder::new(&tokenizer, DecodeOptions { skip_special: true, continues: true });
    let (mut text, mut emitted, mut matched) = (String::new(), String::new(), None);
    for byte in bytes.iter().map(|&byte| Some(u32::from(byte))).chain([None]) {
        let piece = match byte {
            Some(id) => decoder.push(id),
            None => decoder.finish(),
        };
        text.push_str(&piece);
        let outcome = matcher.push(&piece);
        emitted.push_str(&outcome.emit);
        matched = matched.or(outcome.matched);
    }
    let last = matcher.flush();
    emitted.push_str(&last.emit);
    assert_eq!(text, String::from_utf8_lossy(&bytes));
    let places = stops.iter().enumerate().filter_map(|(index, stop)| text.find(stop).map(|at| (at, index)));
    let (end, index) = places.min().map_or((text.len(), None), |(at, index)| (at, Some(index)));
    assert_eq!((emitted.as_str(), matched.or(last.matched)), (&text[..end], index));
});
