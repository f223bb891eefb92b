//! How large the results of text operations get, computed before the operations are carried out.

use minijinja::value::{Value, ValueKind};

use super::template_ops::TEXT_BYTES_MAX;

/// What an operation will make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Growth {
    /// A text of at most this many bytes.
    Bytes(usize),
    /// A list of at most this many values.
    Values(usize),
}

impl Growth {
    /// Of the filter or method `operation` on `value`; `None` for those whose results are hardly larger than
    /// their arguments, and for calls that will be refused for their types.
    pub(crate) fn of(operation: &str, value: &Value, args: &[Value]) -> Option<Growth> {
        let first = args.first();
        match operation {
            "join" => match value.as_str() {
                Some(separator) if first.is_some() => Some(join(first?, separator)),
                _ => Some(join(value, first.and_then(Value::as_str).unwrap_or_default())),
            },
            "replace" => replace(value.as_str()?, first?.as_str()?, args.get(1)?.as_str()?),
            "split" | "splitlines" | "lines" | "list" => Some(Growth::Values(pieces(value.as_str()?, first))),
            "batch" | "slice" => Some(Growth::Values(first?.as_usize()?)),
            "indent" => Some(indent(value.as_str()?, args)),
            "format" => Some(format_fields(value.as_str()?, args)),
            _ => None,
        }
    }

    /// Whether a rendering may have it at once.
    pub(crate) fn is_allowed(self) -> bool {
        match self {
            Growth::Bytes(num_bytes) => num_bytes <= TEXT_BYTES_MAX,
            Growth::Values(num_values) => num_values <= TEXT_BYTES_MAX / size_of::<Value>(),
        }
    }
}

fn join(sequence: &Value, separator: &str) -> Growth {
    if let Some(text) = sequence.as_str() {
        // The items are its characters.
        return Growth::Bytes(text.len().saturating_mul(1 + separator.len()));
    }
    let mut num_bytes = 0usize;
    for item in sequence.try_iter().into_iter().flatten() {
        let item_bytes = item.as_str().map_or(0, str::len);
        num_bytes = num_bytes.saturating_add(item_bytes).saturating_add(separator.len());
        if num_bytes > TEXT_BYTES_MAX {
            break;
        }
    }
    Growth::Bytes(num_bytes)
}

fn replace(text: &str, from: &str, to: &str) -> Option<Growth> {
    let num_matches = text.matches(from).count();
    Some(Growth::Bytes(text.len().saturating_add(num_matches.saturating_mul(to.len()))))
}

fn pieces(text: &str, separator: Option<&Value>) -> usize {
    match separator.and_then(Value::as_str) {
        Some(separator) if !separator.is_empty() => 1 + text.matches(separator).count(),
        // At white space, at line ends or into characters: as many pieces as there are bytes at most.
        _ => text.len(),
    }
}

fn indent(text: &str, args: &[Value]) -> Growth {
    let width = args.iter().filter_map(Value::as_usize).max().unwrap_or(4);
    let num_lines = 1 + text.matches('\n').count();
    Growth::Bytes(text.len().saturating_add(num_lines.saturating_mul(width)))
}

/// Fields repeat arguments and may ask for widths; every number in the text may be one.
fn format_fields(text: &str, args: &[Value]) -> Growth {
    let num_fields = text.matches(['%', '{']).count();
    let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let sum_of_widths =
        widths.fold(0usize, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(usize::MAX)));
    let from_argument = match text.contains('*') {
        true => args.iter().filter_map(Value::as_usize).max().unwrap_or(0),
        false => 0,
    };
    let longest = args.iter().map(printed_bytes).max().unwrap_or(0).max(from_argument);
    Growth::Bytes(text.len().saturating_add(sum_of_widths).saturating_add(num_fields.saturating_mul(longest)))
}

fn printed_bytes(value: &Value) -> usize {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => text.len(),
        (None, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => value.to_string().len(),
        _ => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(operation: &str, value: Value, args: &[Value]) -> usize {
        match Growth::of(operation, &value, args) {
            Some(Growth::Bytes(num_bytes)) => num_bytes,
            other => panic!("{operation}: {other:?}"),
        }
    }

    #[test]
    fn bounds_are_at_least_what_is_made() {
        let list = Value::from(vec!["ab", "c"]);
        assert!(bytes("join", list.clone(), &[Value::from(", ")]) >= "ab, c".len());
        assert!(bytes("join", Value::from(", "), &[list]) >= "ab, c".len());
        assert!(
            bytes("replace", Value::from("aXa"), &[Value::from("a"), Value::from("bcd")]) >= "bcdXbcd".len()
        );
        assert!(bytes("replace", Value::from("ab"), &[Value::from(""), Value::from("-")]) >= "-a-b-".len());
        assert!(bytes("indent", Value::from("a\nb"), &[Value::from(7)]) >= "       a\n       b".len());
        assert!(bytes("format", Value::from("%9d|%s"), &[Value::from(1), Value::from("xyz")]) >= 13);
        let split = Growth::of("split", &Value::from("a b c"), &[Value::from(" ")]);
        assert_eq!(split, Some(Growth::Values(3)));
    }

    #[test]
    fn what_is_far_too_large_is_not_allowed() {
        let long = Value::from("a".repeat(100_000));
        assert!(!Growth::of("replace", &long, &[Value::from("a"), long.clone()]).unwrap().is_allowed());
        assert!(!Growth::of("join", &long, std::slice::from_ref(&long)).unwrap().is_allowed());
        assert!(!Growth::of("format", &Value::from("%999999999d"), &[]).unwrap().is_allowed());
        assert!(
            !Growth::of("slice", &Value::from(vec![1]), &[Value::from(1_000_000_000)]).unwrap().is_allowed()
        );
        assert!(
            Growth::of("join", &Value::from(vec!["a"; 1000]), &[Value::from(", ")]).unwrap().is_allowed()
        );
    }
}
