//! Rust files as the checks read them: text, and code without comments, strings and tests.

use std::path::{Path, PathBuf};

/// A Rust file.
pub struct Source {
    /// Relative to the root of the repository.
    pub path: String,
    pub text: String,
    /// The text with comments, strings and characters blanked, every line in its place.
    pub code: String,
    /// `code` with test modules blanked too; empty for files of tests.
    pub product: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = blank_text(text);
        let is_test = !path.starts_with("src/") || path.ends_with("tests.rs") || path.contains("/tests/");
        let product = if is_test { String::new() } else { blank_test_modules(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, product }
    }

    pub fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }

    pub fn is_library(&self) -> bool {
        self.path.starts_with("src/") && !self.path.starts_with("src/bin/")
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn repository() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["src", "tests", "benches", "examples"] {
        collect(&root().join(folder), &mut sources);
    }
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap();
            sources.push(Source::new(relative, &std::fs::read_to_string(&path).unwrap()));
        }
    }
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Bytes of the block in braces that `code` starts with.
pub fn block_len(code: &str) -> usize {
    let mut depth = 0;
    for (position, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return position + 1;
        }
    }
    code.len()
}

/// Blanks modules under `#[cfg(test)]` in code that has no comments and strings left.
fn blank_test_modules(code: &str) -> String {
    let mut product = code.to_owned();
    for (position, attribute) in code.match_indices("#[cfg(test)]") {
        let rest = &code[position + attribute.len()..];
        let (Some(open), end) = (rest.find('{'), rest.find(';').unwrap_or(rest.len())) else { continue };
        if open < end {
            let length = attribute.len() + open + block_len(&rest[open..]);
            product.replace_range(position..position + length, &blank(&code[position..][..length]));
        }
    }
    product
}

fn blank(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { c } else { ' ' }).collect()
}

/// Blanks comments, strings and characters; lifetimes stay.
fn blank_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let follows_word = out.chars().next_back().is_some_and(is_word);
        let length = match c {
            '/' | '"' | '\'' => literal_len(rest),
            'r' | 'b' | 'c' if !follows_word => literal_len(rest),
            _ => 0,
        };
        if length > 0 {
            out += &blank(&rest[..length]);
        } else {
            out.push(c);
        }
        rest = &rest[length.max(c.len_utf8())..];
    }
    out
}

/// Bytes of the comment, string or character that `text` starts with; 0 where it starts with code.
fn literal_len(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return text.find("*/").map_or(text.len(), |end| end + 2);
    }
    let prefix = text.len() - text.trim_start_matches(['b', 'c']).len();
    let body = &text[prefix..];
    if let Some(raw) = body.strip_prefix('r') {
        let num_hashes = raw.len() - raw.trim_start_matches('#').len();
        let close = format!("\"{}", "#".repeat(num_hashes));
        let Some(content) = raw[num_hashes..].strip_prefix('"') else { return 0 };
        let end = content.find(&close).map_or(content.len(), |end| end + close.len());
        return prefix + 2 + num_hashes + end;
    }
    match body.chars().next() {
        Some('"') => prefix + quoted_len(body, '"'),
        Some('\'') if body[1..].starts_with('\\') => prefix + quoted_len(body, '\''),
        Some('\'') => {
            let character = body[1..].chars().next().map_or(0, char::len_utf8);
            if body[1 + character..].starts_with('\'') { prefix + character + 2 } else { 0 }
        }
        _ => 0,
    }
}

/// Bytes up to and including the closing quote, escapes skipped.
fn quoted_len(text: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (position, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return position + 1,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn text_is_told_from_code() {
    for (text, code) in [
        ("a // b\nc", "a     \nc"),
        ("a \"b{\\\"\" c", "a        c"),
        ("a r#\"b\"{\"# c", "a          c"),
        ("'{' '\\'' 'a x<'a>", "         'a x<'a>"),
        ("br\"{\" for b'{'", "      for     "),
        ("/* { */ b", "        b"),
    ] {
        assert_eq!(blank_text(text), code);
    }
}
