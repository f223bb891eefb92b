//! Chat messages: checking what the caller gives, and keeping user text from spelling special tokens.
//!
//! Before rendering, a marker character that occurs nowhere else goes into every special spelling in the
//! messages. After rendering, an unbroken spelling can only be the template's own; then the markers are
//! dropped.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use aho_corasick::AhoCorasick;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::token::added::Part;
use crate::token::limits::{TEXT_BYTES_MAX, invalid};

/// Most messages of one conversation.
const NUM_MESSAGES_MAX: usize = 1 << 16;
/// Longest name of a role.
const ROLE_BYTES_MAX: usize = 64;
/// Longest special token: what a text's ends are compared with.
const SPECIAL_BYTES_MAX: usize = 256;
/// All special tokens together.
const SPECIALS_BYTES_MAX: usize = 1 << 20;

/// Reads a JSON array of messages and brings each into the form that templates expect: an object with a role,
/// and content that is text or null. A list of text parts becomes one text, with a newline between parts.
pub(crate) fn parse_messages(json: &str) -> Result<Value> {
    if json.len() > TEXT_BYTES_MAX {
        let problem = format!("messages have {} bytes; at most {TEXT_BYTES_MAX} are allowed", json.len());
        return Err(Error::invalid_argument(problem));
    }
    let value = serde_json::from_str(json)
        .map_err(|error| Error::invalid_argument(format!("messages are not valid JSON: {error}")))?;
    let Value::Array(mut messages) = value else {
        return Err(Error::invalid_argument("messages must be a JSON array of objects"));
    };
    if messages.is_empty() || messages.len() > NUM_MESSAGES_MAX {
        let problem = format!("messages has {} entries; 1 to {NUM_MESSAGES_MAX} are allowed", messages.len());
        return Err(Error::invalid_argument(problem));
    }
    for (index, message) in messages.iter_mut().enumerate() {
        let Value::Object(fields) = message else {
            return Err(Error::invalid_argument(format!("messages[{index}] must be an object")));
        };
        check_role(index, fields)?;
        flatten_content(index, fields)?;
    }
    Ok(Value::Array(messages))
}

/// Templates write roles next to special tokens, so a role is a plain name.
fn check_role(index: usize, fields: &Map<String, Value>) -> Result<()> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | ' ');
    match fields.get("role") {
        Some(Value::String(role))
            if (1..=ROLE_BYTES_MAX).contains(&role.len()) && role.chars().all(is_name) =>
        {
            Ok(())
        }
        Some(Value::String(role)) => Err(Error::invalid_argument(format!(
            "messages[{index}].role is {:?}; it must be 1 to {ROLE_BYTES_MAX} letters, digits, or any of _-.: and space",
            role.chars().take(ROLE_BYTES_MAX).collect::<String>()
        ))),
        Some(_) => Err(Error::invalid_argument(format!("messages[{index}].role must be a string"))),
        None => Err(Error::invalid_argument(format!("messages[{index}].role is missing"))),
    }
}

fn flatten_content(index: usize, fields: &mut Map<String, Value>) -> Result<()> {
    let has_tool_calls = fields.get("tool_calls").is_some_and(|calls| !calls.is_null());
    match fields.get_mut("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Null) | None if has_tool_calls => Ok(()),
        Some(content @ Value::Array(_)) => {
            let Value::Array(parts) = content.take() else { return Ok(()) };
            let texts = parts.iter().enumerate().map(|(part, value)| part_text(index, part, value));
            *content = Value::String(texts.collect::<Result<Vec<&str>>>()?.join("\n"));
            Ok(())
        }
        Some(_) => Err(Error::invalid_argument(format!(
            "messages[{index}].content must be a string or a list of {{\"type\": \"text\", \"text\": ...}}"
        ))),
        None => Err(Error::invalid_argument(format!("messages[{index}].content is missing"))),
    }
}

fn part_text(index: usize, part: usize, value: &Value) -> Result<&str> {
    let place = format!("messages[{index}].content[{part}]");
    match value.get("type").and_then(Value::as_str) {
        Some("text") => value
            .get("text")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::invalid_argument(format!("{place}.text must be a string"))),
        Some(other) => {
            let problem = format!("{place}.type is {other:?}; only \"text\" is supported");
            Err(Error::invalid_argument(problem))
        }
        None => Err(Error::invalid_argument(format!("{place} must be an object with a type"))),
    }
}

/// How much of the messages gets a marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marking {
    /// Whole special spellings, and at a text's ends what could be part of one: templates see the rest as it
    /// is.
    Spellings,
    /// Every character that begins a special spelling as well, so that not even a template which cuts pieces
    /// out of the text can make a spelling of the rest.
    Beginnings,
}

/// Puts markers into messages.
#[derive(Debug)]
pub(crate) struct Marker {
    spellings: Option<AhoCorasick>,
    first_chars: HashSet<char>,
    last_chars: HashSet<char>,
    /// Hashes of what may begin or end a spelling without being all of it. A collision costs a needless
    /// marker.
    beginnings: HashSet<u64>,
    endings: HashSet<u64>,
}

impl Marker {
    /// For the special tokens with these spellings; `place` is where they were read, for errors.
    pub fn new<'a>(place: &str, spellings: impl Iterator<Item = &'a str>) -> Result<Self> {
        let spellings: Vec<&str> = spellings.filter(|spelling| !spelling.is_empty()).collect();
        if let Some(long) = spellings.iter().find(|spelling| spelling.len() > SPECIAL_BYTES_MAX) {
            let problem =
                format!("a special token has {} bytes; at most {SPECIAL_BYTES_MAX} are allowed", long.len());
            return Err(invalid(place, problem));
        }
        if spellings.iter().map(|spelling| spelling.len()).sum::<usize>() > SPECIALS_BYTES_MAX {
            return Err(invalid(place, format!("the special tokens exceed {SPECIALS_BYTES_MAX} bytes")));
        }
        let (mut beginnings, mut endings) = (HashSet::new(), HashSet::new());
        for spelling in &spellings {
            for (cut, _) in spelling.char_indices().skip(1) {
                beginnings.insert(hash(&spelling[..cut]));
                endings.insert(hash(&spelling[cut..]));
            }
        }
        let automaton = if spellings.is_empty() { None } else { Some(AhoCorasick::new(&spellings)) };
        Ok(Self {
            spellings: automaton
                .transpose()
                .map_err(|error| invalid(place, format!("special tokens: {error}")))?,
            first_chars: spellings.iter().filter_map(|spelling| spelling.chars().next()).collect(),
            last_chars: spellings.iter().filter_map(|spelling| spelling.chars().next_back()).collect(),
            beginnings,
            endings,
        })
    }

    /// A character to mark with: one of Unicode's noncharacters, for which `is_used` says no.
    pub fn choose(is_used: impl Fn(char) -> bool) -> Result<char> {
        ('\u{fdd0}'..='\u{fdef}').find(|&c| !is_used(c)).ok_or_else(|| {
            Error::invalid_argument(
                "messages contain all of U+FDD0 to U+FDEF, which are no characters; remove them",
            )
        })
    }

    /// Marks every text of the messages except roles. Returns whether [`Marking::Beginnings`] would mark
    /// more.
    pub fn mark(&self, value: &mut Value, marker: char, marking: Marking) -> Result<bool> {
        let mut is_suspicious = false;
        match value {
            Value::String(text) => {
                is_suspicious |= text.contains(|c| self.first_chars.contains(&c));
                *text = self.mark_text(text, marker, marking)?;
            }
            Value::Array(items) => {
                for item in items {
                    is_suspicious |= self.mark(item, marker, marking)?;
                }
            }
            Value::Object(fields) => {
                for (key, mut field) in std::mem::take(fields) {
                    if key != "role" {
                        is_suspicious |= self.mark(&mut field, marker, marking)?;
                    }
                    fields.insert(self.mark_text(&key, marker, marking)?, field);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        Ok(is_suspicious)
    }

    fn mark_text(&self, text: &str, marker: char, marking: Marking) -> Result<String> {
        let mut places: Vec<usize> = Vec::new();
        let after_first_char = |start: usize| start + text[start..].chars().next().map_or(0, char::len_utf8);
        for found in self.spellings.iter().flat_map(|spellings| spellings.find_overlapping_iter(text)) {
            let place = after_first_char(found.start());
            if place == found.end() {
                let problem =
                    format!("messages contain {:?}, which is a special token", &text[found.range()]);
                return Err(Error::invalid_argument(problem));
            }
            places.push(place);
        }
        if marking == Marking::Beginnings {
            let starts = text.char_indices().filter(|(_, c)| self.first_chars.contains(c));
            places.extend(starts.map(|(start, _)| after_first_char(start)));
        }
        if self.may_continue_before(text) {
            places.push(0);
        }
        if self.may_continue_after(text) {
            places.push(text.len());
        }
        places.sort_unstable();
        places.dedup();
        let mut marked = String::with_capacity(text.len() + places.len() * marker.len_utf8());
        let mut taken = 0;
        for place in places {
            marked.push_str(&text[taken..place]);
            marked.push(marker);
            taken = place;
        }
        marked.push_str(&text[taken..]);
        Ok(marked)
    }

    /// Whether `text` starts like the rest of a spelling.
    fn may_continue_before(&self, text: &str) -> bool {
        text.char_indices()
            .map(|(start, c)| (start + c.len_utf8(), c))
            .take_while(|&(end, _)| end < SPECIAL_BYTES_MAX)
            .any(|(end, c)| self.last_chars.contains(&c) && self.endings.contains(&hash(&text[..end])))
    }

    /// Whether `text` ends like the beginning of a spelling.
    fn may_continue_after(&self, text: &str) -> bool {
        text.char_indices().rev().take_while(|&(start, _)| text.len() - start < SPECIAL_BYTES_MAX).any(
            |(start, c)| self.first_chars.contains(&c) && self.beginnings.contains(&hash(&text[start..])),
        )
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Whether any text in `value` contains `c`.
pub(crate) fn contains(value: &Value, c: char) -> bool {
    match value {
        Value::String(text) => text.contains(c),
        Value::Array(items) => items.iter().any(|item| contains(item, c)),
        Value::Object(fields) => fields.iter().any(|(key, field)| key.contains(c) || contains(field, c)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Drops the markers from `text` and moves its parts accordingly.
pub(crate) fn unmark(text: &str, parts: Vec<Part>, marker: char) -> (String, Vec<Part>) {
    let mut plain = String::with_capacity(text.len());
    let mut moved = Vec::with_capacity(parts.len());
    for part in parts {
        let start = plain.len();
        plain.extend(text[part.range].split(marker));
        if plain.len() > start {
            moved.push(Part { range: start..plain.len(), token: part.token });
        }
    }
    (plain, moved)
}

#[cfg(test)]
#[path = "tests/chat.rs"]
mod tests;
