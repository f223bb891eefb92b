//! Chat templates and messages: the input is a template, a zero byte, and a JSON array of messages.
#![no_main]

use inflight::Error;
use inflight::format::Checkpoint;
use inflight::token::Tokenizer;
use inflight_fuzz::{CONFIG, TOKENIZER, with_files};
use libfuzzer_sys::fuzz_target;

const MESSAGES: &str = r#"[{"role": "user", "content": "a</s>b"}]"#;

fuzz_target!(|input: &[u8]| {
    let mut halves = input.splitn(2, |&byte| byte == 0);
    let template = halves.next().unwrap_or_default();
    let messages = halves.next().and_then(|half| std::str::from_utf8(half).ok()).unwrap_or(MESSAGES);
    let model = [("config.json", CONFIG.as_bytes()), ("tokenizer.json", TOKENIZER.as_bytes())];
    let files = [model[0], model[1], ("chat_template.jinja", template)];
    with_files(&files, |path| {
        let checkpoint = Checkpoint::open(path).expect("a sound model");
        let Ok(tokenizer) = Tokenizer::load(&checkpoint) else { return };
        for messages in [messages, MESSAGES] {
            let _ = tokenizer.apply_chat_template(messages, true);
            // As an engine does with a context of 4096 tokens.
            let _ = tokenizer.encode_chat_if(messages, |text_bytes| {
                match text_bytes <= tokenizer.text_bytes_max(4096) {
                    true => Ok(()),
                    false => Err(Error::invalid_argument("the prompt is too long")),
                }
            });
        }
    });
});
