//! Files of requests: one JSON object a line.

use std::path::Path;

use inflight::Prompt;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::options::{RequestArgs, input_name, read_input};

/// One request of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestLine {
    /// The line's own `id`, given back as it is.
    pub id: Option<Value>,
    /// The prompt.
    pub prompt: Prompt,
    /// What the line says about sampling and limits.
    pub args: RequestArgs,
}

/// How the texts of a file become tokens.
#[derive(Debug, Clone, Copy)]
pub struct TextOptions {
    /// Whether the tokenizer adds what the model expects at the start.
    pub add_special_tokens: bool,
    /// Whether text may spell special tokens.
    pub parse_special: bool,
}

/// Reads all requests of a file, or of standard input for `-`. A line that is not valid fails the whole file
/// before anything runs, and the message names its number.
pub fn read(path: &Path, options: TextOptions) -> Result<Vec<RequestLine>, Failure> {
    let text = read_input(path)?;
    let mut requests = Vec::new();
    for (line_index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let request = parse_line(line, options).map_err(|message| {
            Failure::Usage(format!("{}, line {}: {message}", input_name(path), line_index + 1))
        })?;
        requests.push(request);
    }
    if requests.is_empty() {
        return Err(Failure::Usage(format!("{} holds no requests", input_name(path))));
    }
    Ok(requests)
}

fn parse_line(line: &str, options: TextOptions) -> Result<RequestLine, String> {
    let mut fields: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("not a JSON object: {error}"))?;
    let id = fields.shift_remove("id");
    let prompt = take_prompt(&mut fields, options)?;
    let args = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
    Ok(RequestLine { id, prompt, args })
}

/// Takes the one prompt field out of `fields`.
fn take_prompt(fields: &mut Map<String, Value>, options: TextOptions) -> Result<Prompt, String> {
    let prompt = fields.shift_remove("prompt");
    let tokens = fields.shift_remove("prompt_tokens");
    let messages = fields.shift_remove("messages");
    match (prompt, tokens, messages) {
        (Some(Value::String(text)), None, None) => Ok(Prompt::Text {
            text,
            add_special_tokens: options.add_special_tokens,
            parse_special: options.parse_special,
        }),
        (Some(_), None, None) => Err("prompt is not a string".to_owned()),
        (None, Some(tokens), None) => serde_json::from_value(tokens)
            .map(Prompt::Tokens)
            .map_err(|error| format!("prompt_tokens is not an array of token ids: {error}")),
        (None, None, Some(messages)) if messages.is_array() => Ok(Prompt::Chat(messages.to_string())),
        (None, None, Some(_)) => Err("messages is not an array".to_owned()),
        _ => Err("exactly one of prompt, prompt_tokens and messages must be given".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: TextOptions = TextOptions { add_special_tokens: true, parse_special: false };

    #[test]
    fn the_three_kinds_of_prompt() {
        let line = parse_line(r#"{"id": "a", "prompt": "Hi", "max_tokens": 4}"#, OPTIONS).unwrap();
        assert_eq!(line.id, Some(Value::from("a")));
        assert_eq!(line.args.max_tokens, Some(4));
        assert!(matches!(line.prompt, Prompt::Text { text, add_special_tokens: true, .. } if text == "Hi"));

        let line = parse_line(r#"{"prompt_tokens": [1, 2, 3]}"#, OPTIONS).unwrap();
        assert_eq!((line.id, line.prompt), (None, Prompt::Tokens(vec![1, 2, 3])));

        let line = parse_line(r#"{"messages": [{"role": "user", "content": "Hi"}]}"#, OPTIONS).unwrap();
        assert_eq!(line.prompt, Prompt::Chat(r#"[{"role":"user","content":"Hi"}]"#.to_owned()));
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        for (line, word) in [
            ("{", "not a JSON object"),
            ("[1]", "not a JSON object"),
            ("{}", "exactly one of"),
            (r#"{"prompt": "a", "prompt_tokens": [1]}"#, "exactly one of"),
            (r#"{"prompt": 3}"#, "prompt is not a string"),
            (r#"{"prompt_tokens": [-1]}"#, "prompt_tokens is not an array of token ids"),
            (r#"{"messages": "Hi"}"#, "messages is not an array"),
            (r#"{"prompt": "a", "temprature": 1}"#, "temprature"),
        ] {
            let message = parse_line(line, OPTIONS).unwrap_err();
            assert!(message.contains(word), "{line}: {message}");
        }
    }
}
