use proptest::prelude::*;

use super::*;

/// Runs the matcher over `pieces`: everything emitted, and the index that matched.
fn run(stop_strings: &[String], pieces: &[&str]) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(stop_strings).unwrap();
    let mut text = String::new();
    for piece in pieces {
        let outcome = matcher.push(piece);
        text.push_str(&outcome.emit);
        if outcome.matched.is_some() {
            assert_eq!(matcher.push("more"), StopOutcome::default());
            assert_eq!(matcher.flush(), StopOutcome::default());
            return (text, outcome.matched);
        }
    }
    let outcome = matcher.flush();
    (text + &outcome.emit, outcome.matched)
}

/// The definition: leftmost, then first in the list.
fn by_definition(stop_strings: &[String], text: &str) -> (String, Option<usize>) {
    let best = stop_strings.iter().enumerate().filter_map(|(i, s)| text.find(s).map(|at| (at, i))).min();
    best.map_or((text.to_owned(), None), |(at, index)| (text[..at].to_owned(), Some(index)))
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn text_is_emitted_as_soon_as_it_is_certain() {
    let mut matcher = StopMatcher::new(&["\nUser:", "</s>"]).unwrap();
    let mut emit = |text: &str| {
        let outcome = matcher.push(text);
        (outcome.emit, outcome.matched)
    };
    assert_eq!(emit("Hello"), ("Hello".to_owned(), None));
    assert_eq!(emit(" there\n"), (" there".to_owned(), None));
    assert_eq!(emit("Us"), (String::new(), None));
    assert_eq!(emit("ual"), ("\nUsual".to_owned(), None));
    assert_eq!(emit(" <"), (" ".to_owned(), None));
    assert_eq!(emit("/s>tail"), (String::new(), Some(1)));
}

#[test]
fn leftmost_wins_then_order() {
    assert_eq!(run(&strings(&["b", "ab"]), &["xab"]), ("x".to_owned(), Some(1)));
    assert_eq!(run(&strings(&["abc", "ab"]), &["abd"]), (String::new(), Some(1)));
    assert_eq!(run(&strings(&["ab", "abc"]), &["ab", "c"]), (String::new(), Some(0)));
    assert_eq!(run(&strings(&["abc", "ab"]), &["a", "b", "c"]), (String::new(), Some(0)));
    // "bc" is complete while "abcd" may still come; it does not.
    assert_eq!(run(&strings(&["abcd", "bc"]), &["ab", "c", "e"]), ("a".to_owned(), Some(1)));
    assert_eq!(run(&strings(&["abcd", "bc"]), &["abc"]), ("a".to_owned(), Some(1)));
}

#[test]
fn held_text_comes_out_at_the_end() {
    assert_eq!(run(&strings(&["STOP"]), &["go ST", "O"]), ("go STO".to_owned(), None));
    assert_eq!(run(&[], &["as", " is"]), ("as is".to_owned(), None));
}

#[test]
fn code_points_are_never_split() {
    // 'é' is C3 A9 and 'ê' is C3 AA: the common first byte must not cut the text.
    assert_eq!(run(&strings(&["é"]), &["ê", "aé"]), ("êa".to_owned(), Some(0)));
    assert_eq!(run(&strings(&["🙂!"]), &["🙂", "🙂!"]), ("🙂".to_owned(), Some(0)));
}

#[test]
fn limits_are_checked() {
    let too_many = vec!["x"; 65];
    assert!(StopMatcher::new(&too_many).unwrap_err().message().contains("65 entries"));
    assert!(StopMatcher::new(&["ok", ""]).unwrap_err().message().contains("stop_strings[1] has 0 bytes"));
    assert!(StopMatcher::new(&["x".repeat(4097)]).unwrap_err().message().contains("4097 bytes"));
    StopMatcher::new(&vec!["x".repeat(4096); 64]).unwrap();
}

#[test]
fn hostile_repetition_stays_linear() {
    // Each string nearly matches at every position of the stream; quadratic work would be 10^13 steps.
    let stop_strings: Vec<String> = (0..64).map(|i| "a".repeat(4095 - i) + "b").collect();
    let mut matcher = StopMatcher::new(&stop_strings).unwrap();
    let start = std::time::Instant::now();
    let mut num_emitted = 0;
    for _ in 0..200_000 {
        num_emitted += matcher.push("a").emit.len();
    }
    num_emitted += matcher.flush().emit.len();
    assert_eq!(num_emitted, 200_000);
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

    #[test]
    fn any_cut_gives_what_the_definition_says(
        stop_strings in prop::collection::vec("[abé]{1,5}", 0..5),
        pieces in prop::collection::vec("[abcé]{0,6}", 0..12),
    ) {
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&stop_strings, &pieces), by_definition(&stop_strings, &pieces.concat()));
    }
}
