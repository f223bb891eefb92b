//! The JSON header of one safetensors file.
//!
//! The safetensors crate's own reader wants the whole file in memory and takes duplicate keys, so the header
//! is read here, with the crate's element types, and checked for everything that a file can lie about.

use std::collections::BTreeSet;
use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::format::error::{FormatError, FormatResult};
use crate::format::tensor::{Encoding, MAX_NAME_BYTES, SourceFile, try_zeroed};

/// Bytes of the length that stands before the header.
const LENGTH_BYTES: u64 = 8;
/// Below the format's own limit of 100 MB, to bound memory; enough for half a million tensors.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// Bound on the memory that the tables of a checkpoint take; enough for 150 thousand tensors in shards.
pub(super) const MAX_DECODED_BYTES: u64 = 96 << 20;
/// What an entry takes in the tables beside its name, rounded up.
const ENTRY_BYTES: u64 = 256;
const MAX_DIMS: usize = 8;

/// One tensor of a header; `start..end` counts from the start of the data.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) encoding: Encoding,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A file's header, checked.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: Vec<Entry>,
    pub(super) data_start: u64,
}

/// Reads and checks the header of `source`. What its table takes is charged to `budget`.
pub(super) fn read(source: &SourceFile, budget: &mut u64) -> FormatResult<Header> {
    let invalid = |message: String| FormatError::invalid(&source.path, "header length", message);
    if source.num_bytes < LENGTH_BYTES {
        return Err(invalid(format!("the file has only {} bytes", source.num_bytes)));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > source.num_bytes - LENGTH_BYTES {
        return Err(invalid(format!(
            "{length} bytes, more than the file's {} or the limit of {MAX_HEADER_BYTES}",
            source.num_bytes
        )));
    }
    let mut bytes = try_zeroed(&source.path, "the header", length)?;
    source.read_at(LENGTH_BYTES, &mut bytes)?;
    let tensors = parse(&bytes, budget)
        .map_err(|error| FormatError::invalid(&source.path, "header", error.to_string()))?;
    let data_start = LENGTH_BYTES + length;
    let mut header = Header { tensors, data_start };
    check(&mut header, source)?;
    Ok(header)
}

fn parse(bytes: &[u8], budget: &mut u64) -> serde_json::Result<Vec<Entry>> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let tensors = HeaderSeed { budget }.deserialize(&mut deserializer)?;
    // The format pads the header with spaces, which `end` skips.
    deserializer.end()?;
    Ok(tensors)
}

/// Every byte of the data must belong to exactly one tensor, and as many as dtype and shape say.
fn check(header: &mut Header, source: &SourceFile) -> FormatResult<()> {
    let invalid = |name: &str, message: String| {
        Err(FormatError::invalid(&source.path, format!("tensor {name:?}"), message))
    };
    header.tensors.sort_by_key(|entry| (entry.start, entry.end));
    let mut data_end = 0;
    for entry in &header.tensors {
        if entry.start != data_end {
            let message =
                format!("its data starts at {}, but the data before ends at {data_end}", entry.start);
            return invalid(&entry.name, message);
        }
        data_end = entry.end;
    }
    let data_bytes = source.num_bytes - header.data_start;
    if data_end != data_bytes {
        let message =
            format!("the tensors take {data_end} bytes, but the file has {data_bytes} bytes of data");
        return Err(FormatError::invalid(&source.path, "data_offsets", message));
    }
    Ok(())
}

/// Reads the header's object: tensor names and `__metadata__`, each at most once.
struct HeaderSeed<'a> {
    budget: &'a mut u64,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Vec<Entry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Vec<Entry>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut names = BTreeSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            check_name(&name)?;
            charge(self.budget, ENTRY_BYTES + 2 * name.len() as u64)?;
            if !names.insert(name.clone()) {
                return Err(de::Error::custom(format_args!("tensor {name:?} is there twice")));
            }
            if name == "__metadata__" {
                map.next_value::<Texts>()?;
                continue;
            }
            let raw = map.next_value::<RawEntry>()?;
            entries.push(raw.into_entry(name).map_err(de::Error::custom)?);
        }
        Ok(entries)
    }
}

/// Refuses names that are too long to quote.
pub(super) fn check_name<E: de::Error>(name: &str) -> Result<(), E> {
    if name.len() > MAX_NAME_BYTES {
        let length = name.len();
        return Err(E::custom(format_args!("a name of {length} bytes, more than {MAX_NAME_BYTES}")));
    }
    Ok(())
}

/// Takes `bytes` from the budget.
pub(super) fn charge<E: de::Error>(budget: &mut u64, bytes: u64) -> Result<(), E> {
    *budget = budget
        .checked_sub(bytes)
        .ok_or_else(|| E::custom(format_args!("the table takes more than {MAX_DECODED_BYTES} bytes")))?;
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn into_entry(self, name: String) -> Result<Entry, String> {
        let (start, end) = self.data_offsets;
        let Shape(shape) = self.shape;
        let num_bits = shape
            .iter()
            .try_fold(self.dtype.bitsize() as u64, |product, &size| product.checked_mul(size as u64))
            .filter(|bits| bits.is_multiple_of(8))
            .ok_or_else(|| format!("tensor {name:?}: shape {shape:?} overflows or ends inside a byte"))?;
        if end.checked_sub(start) != Some(num_bits / 8) {
            return Err(format!(
                "tensor {name:?}: data_offsets [{start}, {end}] do not hold the {} bytes of {:?} {shape:?}",
                num_bits / 8,
                self.dtype
            ));
        }
        Ok(Entry { name, shape, encoding: encoding(self.dtype), start, end })
    }
}

fn encoding(dtype: Dtype) -> Encoding {
    match dtype {
        Dtype::F32 => Encoding::F32,
        Dtype::F16 => Encoding::F16,
        Dtype::BF16 => Encoding::BF16,
        Dtype::F64 => Encoding::Other("F64"),
        Dtype::BOOL => Encoding::Other("BOOL"),
        Dtype::U8 | Dtype::I8 => Encoding::Other("8-bit integer"),
        Dtype::U16 | Dtype::I16 => Encoding::Other("16-bit integer"),
        Dtype::U32 | Dtype::I32 => Encoding::Other("32-bit integer"),
        Dtype::U64 | Dtype::I64 => Encoding::Other("64-bit integer"),
        Dtype::F8_E5M2 | Dtype::F8_E4M3 => Encoding::Other("8-bit float"),
        _ => Encoding::Other("another type"),
    }
}

/// An object from text to text, checked and dropped.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;

        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object from text to text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                while map.next_key::<IgnoredAny>()?.is_some() {
                    map.next_value_seed(TextSeed)?;
                }
                Ok(Texts)
            }
        }
        deserializer.deserialize_map(TextsVisitor)
    }
}

/// Text, checked and dropped.
struct TextSeed;

impl<'de> DeserializeSeed<'de> for TextSeed {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for TextSeed {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("text")
    }

    fn visit_str<E: de::Error>(self, _text: &str) -> Result<(), E> {
        Ok(())
    }
}

/// A shape of bounded length, so that a hostile one cannot take memory.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;

        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "an array of at most {MAX_DIMS} sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = sequence.next_element()? {
                    if sizes.len() == MAX_DIMS {
                        return Err(de::Error::invalid_length(MAX_DIMS + 1, &self));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}
