//! JSON in the form of Python's `json.dumps`, which chat templates were written for.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Longest result; a template that asks for more is refused.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Options of `json.dumps`.
#[derive(Debug, Default)]
pub(crate) struct Style {
    pub ensure_ascii: bool,
    /// Spaces per level; `None`: all on one line.
    pub indent: Option<usize>,
    /// Between items, and between key and value.
    pub separators: Option<(String, String)>,
    pub sort_keys: bool,
}

/// `json.dumps(value, ...)`; the error says what is wrong.
pub(crate) fn dumps(value: &impl Serialize, style: Style) -> Result<String, String> {
    if style.indent.is_some_and(|indent| indent > 64) {
        return Err("tojson: indent must be at most 64".to_owned());
    }
    let item_separator = if style.indent.is_some() { "," } else { ", " };
    let (item_separator, key_separator) =
        style.separators.unwrap_or_else(|| (item_separator.to_owned(), ": ".to_owned()));
    let formatter = PythonFormatter {
        indent: style.indent,
        item_separator,
        key_separator,
        ensure_ascii: style.ensure_ascii,
        depth: 0,
        is_empty: true,
    };
    let mut output = Limited(Vec::new());
    let mut serializer = Serializer::with_formatter(&mut output, formatter);
    let result = if style.sort_keys {
        serde_json::to_value(value).and_then(|mut value| {
            value.sort_all_objects();
            value.serialize(&mut serializer)
        })
    } else {
        value.serialize(&mut serializer)
    };
    result.map_err(|error| format!("tojson: {error}"))?;
    String::from_utf8(output.0).map_err(|error| format!("tojson: {error}"))
}

/// Writes up to a limit.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!("more than {OUTPUT_BYTES_MAX} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct PythonFormatter {
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    depth: usize,
    /// Whether the innermost container has had no item yet.
    is_empty: bool,
}

impl PythonFormatter {
    fn open(&mut self, writer: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close(&mut self, writer: &mut (impl io::Write + ?Sized), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(bracket)
    }

    fn begin_item(&mut self, writer: &mut (impl io::Write + ?Sized), is_first: bool) -> io::Result<()> {
        if !is_first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.is_empty = false;
        self.new_line(writer)
    }

    fn new_line(&self, writer: &mut (impl io::Write + ?Sized)) -> io::Result<()> {
        match self.indent {
            Some(indent) => {
                writer.write_all(b"\n")?;
                writer.write_all(" ".repeat(indent * self.depth).as_bytes())
            }
            None => Ok(()),
        }
    }
}

impl Formatter for PythonFormatter {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key_separator.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return writer.write_all(text.as_bytes());
        }
        for c in text.chars() {
            if c.is_ascii() {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn looks_like_python() {
        let value = json!({"b": [1, 2.5, true, null], "a": {"é\n<": "日🙂"}, "e": [], "o": {}});
        let dump = |style| dumps(&value, style).unwrap();
        let plain = r#"{"b": [1, 2.5, true, null], "a": {"é\n<": "日🙂"}, "e": [], "o": {}}"#;
        assert_eq!(dump(Style::default()), plain);
        let ascii =
            r#"{"a": {"\u00e9\n<": "\u65e5\ud83d\ude42"}, "b": [1, 2.5, true, null], "e": [], "o": {}}"#;
        assert_eq!(dump(Style { ensure_ascii: true, sort_keys: true, ..Style::default() }), ascii);
        let separators = Some((",".to_owned(), ":".to_owned()));
        let tight = r#"{"b":[1,2.5,true,null],"a":{"é\n<":"日🙂"},"e":[],"o":{}}"#;
        assert_eq!(dump(Style { separators, ..Style::default() }), tight);
        let indented = "{\n  \"b\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"a\": {\n    \"é\\n<\": \"日🙂\"\n  },\n  \"e\": [],\n  \"o\": {}\n}";
        assert_eq!(dump(Style { indent: Some(2), ..Style::default() }), indented);
    }

    #[test]
    fn huge_indents_are_refused() {
        let error = dumps(&json!([1]), Style { indent: Some(1 << 40), ..Style::default() }).unwrap_err();
        assert!(error.contains("indent"), "{error}");
    }
}
