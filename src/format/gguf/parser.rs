//! Parsing of a GGUF file's header, metadata and tensor table.
//!
//! Nothing in the file is believed: every count is compared with the bytes that are left before anything is
//! allocated for it, and what the parsed form takes in memory is bounded by [`MAX_DECODED_BYTES`].

use std::io::Read;
use std::path::Path;

use crate::format::error::{FormatError, FormatResult};
use crate::format::gguf::metadata::{Metadata, MetadataValue};
use crate::format::tensor::{Encoding, MAX_NAME_BYTES, TensorInfo, check_disjoint};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Bound on the memory that metadata and tensor table take; real files need a tenth of it.
const MAX_DECODED_BYTES: u64 = 128 << 20;
/// What a string or a table entry takes beside its characters, rounded up.
const ENTRY_BYTES: u64 = 48;
const MAX_KEY_BYTES: u64 = 65535;
const MAX_DIMS: u32 = 4;

/// What a file holds beside the tensors' data.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Parses a file of `file_bytes` bytes from its start; `path` is for errors.
pub(super) fn parse(path: &Path, input: impl Read, file_bytes: u64) -> FormatResult<Contents> {
    let mut parser =
        Parser { path, input, position: 0, file_bytes, budget: MAX_DECODED_BYTES, field: "magic".to_owned() };
    if parser.bytes::<4>()? != MAGIC {
        return Err(parser.invalid("not a GGUF file"));
    }
    parser.version()?;
    parser.field = "tensor count".to_owned();
    let num_tensors = parser.u64()?;
    parser.field = "metadata count".to_owned();
    let num_values = parser.u64()?;
    let metadata = parser.metadata(num_values)?;
    let tensors = parser.tensors(num_tensors)?;
    let alignment = alignment(&metadata)?;
    let tensors = parser.place(tensors, alignment)?;
    Ok(Contents { metadata, tensors })
}

fn alignment(metadata: &Metadata) -> FormatResult<u64> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&MetadataValue::Unsigned(value)) if value.is_power_of_two() => Ok(value),
        Some(value) => Err(FormatError::invalid(
            metadata.path(),
            KEY,
            format!("must be an unsigned power of two, but is {value:?}"),
        )),
    }
}

/// A tensor whose data offset still counts from the start of the data section.
struct RawTensor {
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    offset: u64,
    num_bytes: u64,
}

struct Parser<'a, R> {
    path: &'a Path,
    input: R,
    position: u64,
    file_bytes: u64,
    /// Bytes that the parsed form may still take.
    budget: u64,
    /// What is being read, for errors.
    field: String,
}

impl<R: Read> Parser<'_, R> {
    fn invalid(&self, message: impl Into<String>) -> FormatError {
        FormatError::invalid(self.path, &self.field, message)
    }

    fn unsupported(&self, message: impl Into<String>) -> FormatError {
        FormatError::unsupported(self.path, &self.field, message)
    }

    fn remaining(&self) -> u64 {
        self.file_bytes - self.position
    }

    fn fill(&mut self, buffer: &mut [u8]) -> FormatResult<()> {
        if buffer.len() as u64 > self.remaining() {
            return Err(self.invalid(format!("the file ends inside it, at byte {}", self.file_bytes)));
        }
        self.input.read_exact(buffer).map_err(|error| FormatError::io(self.path, error))?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> FormatResult<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> FormatResult<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> FormatResult<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// Takes `bytes` from the budget.
    fn charge(&mut self, bytes: u64) -> FormatResult<()> {
        self.budget = self.budget.checked_sub(bytes).ok_or_else(|| {
            self.invalid(format!("metadata and tensor table take more than {MAX_DECODED_BYTES} bytes"))
        })?;
        Ok(())
    }

    /// Checks that `count` items of at least `item_bytes` each can still follow.
    fn check_count(&self, count: u64, item_bytes: u64) -> FormatResult<usize> {
        match count.checked_mul(item_bytes) {
            Some(bytes) if bytes <= self.remaining() => usize::try_from(count).ok(),
            _ => None,
        }
        .ok_or_else(|| {
            let remaining = self.remaining();
            self.invalid(format!("{count} items do not fit the {remaining} bytes that are left of the file"))
        })
    }

    /// An empty vector with room for `count` items, which is charged.
    fn reserve<T>(&mut self, count: usize) -> FormatResult<Vec<T>> {
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
        self.charge(bytes)?;
        let mut items = Vec::new();
        items.try_reserve_exact(count).map_err(|_| FormatError::OutOfMemory {
            path: self.path.to_owned(),
            what: "metadata",
            bytes,
        })?;
        Ok(items)
    }

    fn string(&mut self, max_bytes: u64) -> FormatResult<String> {
        let num_bytes = self.u64()?;
        if num_bytes > max_bytes {
            return Err(self.invalid(format!("text of {num_bytes} bytes, more than {max_bytes}")));
        }
        let length = self.check_count(num_bytes, 1)?;
        let mut bytes: Vec<u8> = self.reserve(length)?;
        bytes.resize(length, 0);
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| self.invalid(format!("text is not UTF-8: {error}")))
    }

    fn version(&mut self) -> FormatResult<()> {
        self.field = "version".to_owned();
        match self.u32()? {
            2 | 3 => Ok(()),
            1 => Err(self.unsupported("version 1; convert the file with a current llama.cpp")),
            version if matches!(version.swap_bytes(), 1..=3) => {
                Err(self.unsupported("the file is big-endian; convert it to little-endian"))
            }
            version => Err(self.unsupported(format!("version {version}; versions 2 and 3 are supported"))),
        }
    }

    fn metadata(&mut self, num_values: u64) -> FormatResult<Metadata> {
        /// Length of the key, type, and a value of one byte.
        const MIN_VALUE_BYTES: u64 = 8 + 4 + 1;
        let num_values = self.check_count(num_values, MIN_VALUE_BYTES)?;
        let mut metadata = Metadata::new(self.path);
        for index in 0..num_values {
            self.field = format!("metadata key {index}");
            self.charge(2 * ENTRY_BYTES)?;
            let key = self.string(MAX_KEY_BYTES)?;
            self.field.clone_from(&key);
            let value_type = self.u32()?;
            let value = self.value(value_type)?;
            if !metadata.insert(key, value) {
                return Err(self.invalid("the key is there twice"));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, value_type: u32) -> FormatResult<MetadataValue> {
        Ok(match value_type {
            0 => MetadataValue::Unsigned(self.bytes::<1>()?[0].into()),
            1 => MetadataValue::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => MetadataValue::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => MetadataValue::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => MetadataValue::Unsigned(self.u32()?.into()),
            5 => MetadataValue::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => MetadataValue::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => MetadataValue::Bool(self.boolean()?),
            8 => MetadataValue::Text(self.string(u64::MAX)?),
            9 => self.array()?,
            10 => MetadataValue::Unsigned(self.u64()?),
            11 => MetadataValue::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => MetadataValue::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(self.invalid(format!("unknown value type {value_type}"))),
        })
    }

    fn boolean(&mut self) -> FormatResult<bool> {
        match self.bytes::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            byte => Err(self.invalid(format!("a boolean must be 0 or 1, but is {byte}"))),
        }
    }

    fn array(&mut self) -> FormatResult<MetadataValue> {
        let item_type = self.u32()?;
        let count = self.u64()?;
        Ok(match item_type {
            0 => self.integers(count, |[byte]: [u8; 1]| Some(byte.into()))?,
            1 => self.integers(count, |bytes| Some(i8::from_le_bytes(bytes).into()))?,
            2 => self.integers(count, |bytes| Some(u16::from_le_bytes(bytes).into()))?,
            3 => self.integers(count, |bytes| Some(i16::from_le_bytes(bytes).into()))?,
            4 => self.integers(count, |bytes| Some(u32::from_le_bytes(bytes).into()))?,
            5 => self.integers(count, |bytes| Some(i32::from_le_bytes(bytes).into()))?,
            6 => self.floats(count, f32::from_le_bytes)?,
            7 => self.integers(count, |[byte]: [u8; 1]| (byte <= 1).then_some(byte.into()))?,
            8 => self.texts(count)?,
            9 => return Err(self.unsupported("an array of arrays")),
            10 => self.integers(count, |bytes| i64::try_from(u64::from_le_bytes(bytes)).ok())?,
            11 => self.integers(count, |bytes| Some(i64::from_le_bytes(bytes)))?,
            12 => self.floats(count, |bytes| f64::from_le_bytes(bytes) as f32)?,
            _ => return Err(self.invalid(format!("unknown item type {item_type}"))),
        })
    }

    fn integers<const N: usize>(
        &mut self,
        count: u64,
        decode: impl Fn([u8; N]) -> Option<i64>,
    ) -> FormatResult<MetadataValue> {
        let count = self.check_count(count, N as u64)?;
        let mut items = self.reserve(count)?;
        for index in 0..count {
            let item = decode(self.bytes()?);
            items.push(item.ok_or_else(|| self.invalid(format!("item {index} is out of range")))?);
        }
        Ok(MetadataValue::Integers(items))
    }

    fn floats<const N: usize>(
        &mut self,
        count: u64,
        decode: impl Fn([u8; N]) -> f32,
    ) -> FormatResult<MetadataValue> {
        let count = self.check_count(count, N as u64)?;
        let mut items = self.reserve(count)?;
        for _ in 0..count {
            items.push(decode(self.bytes()?));
        }
        Ok(MetadataValue::Floats(items))
    }

    fn texts(&mut self, count: u64) -> FormatResult<MetadataValue> {
        let count = self.check_count(count, 8)?;
        let mut items = self.reserve(count)?;
        for _ in 0..count {
            self.charge(ENTRY_BYTES)?;
            items.push(self.string(u64::MAX)?);
        }
        Ok(MetadataValue::Texts(items))
    }

    fn tensors(&mut self, num_tensors: u64) -> FormatResult<Vec<RawTensor>> {
        /// Length of the name, number of dimensions, one dimension, type and offset.
        const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;
        self.field = "tensor count".to_owned();
        let num_tensors = self.check_count(num_tensors, MIN_TENSOR_BYTES)?;
        let mut tensors = self.reserve(num_tensors)?;
        for index in 0..num_tensors {
            self.field = format!("tensor {index}");
            self.charge(4 * ENTRY_BYTES)?;
            let name = self.string(MAX_NAME_BYTES as u64)?;
            self.field = format!("tensor {name:?}");
            tensors.push(self.tensor(name)?);
        }
        Ok(tensors)
    }

    fn tensor(&mut self, name: String) -> FormatResult<RawTensor> {
        let num_dims = self.u32()?;
        if num_dims == 0 || num_dims > MAX_DIMS {
            return Err(self.invalid(format!("{num_dims} dimensions; 1 to {MAX_DIMS} are allowed")));
        }
        let mut shape = Vec::with_capacity(num_dims as usize);
        for _ in 0..num_dims {
            let size = self.u64()?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            shape.push(size.ok_or_else(|| self.invalid("a dimension is 0 or too large"))?);
        }
        // The file stores the innermost dimension first.
        shape.reverse();
        let type_id = self.u32()?;
        let encoding = self.encoding(type_id)?;
        let num_bytes = self.num_bytes(&shape, encoding)?;
        let offset = self.u64()?;
        Ok(RawTensor { name, shape, encoding, offset, num_bytes })
    }

    fn encoding(&self, type_id: u32) -> FormatResult<Encoding> {
        Ok(match type_id {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            6 => Encoding::Q5_0,
            7 => Encoding::Q5_1,
            8 => Encoding::Q8_0,
            12 => Encoding::Q4_K,
            13 => Encoding::Q5_K,
            14 => Encoding::Q6_K,
            30 => Encoding::BF16,
            // What ggml defines beyond these: Q8_1, Q2_K, Q3_K, Q8_K, the IQ and TQ types, integers, doubles.
            9..=11 | 15..=29 | 34..=41 => {
                return Err(self.unsupported(format!(
                    "type {type_id} is not supported; requantise to Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, \
                     Q5_K, Q6_K, F16, BF16 or F32"
                )));
            }
            _ => return Err(self.invalid(format!("unknown type {type_id}"))),
        })
    }

    fn num_bytes(&self, shape: &[usize], encoding: Encoding) -> FormatResult<u64> {
        let (block_len, block_bytes) = (encoding.block_len(), encoding.block_bytes());
        let innermost = shape[shape.len() - 1];
        if !innermost.is_multiple_of(block_len) {
            let message =
                format!("{innermost} columns are no multiple of {encoding:?}'s block of {block_len}");
            return Err(self.invalid(message));
        }
        let num_elements = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
        num_elements
            .and_then(|elements| (elements / block_len as u64).checked_mul(block_bytes as u64))
            .ok_or_else(|| self.invalid(format!("shape {shape:?} overflows")))
    }

    /// Turns offsets into positions in the file and checks that no data lies outside it or overlaps.
    fn place(&mut self, tensors: Vec<RawTensor>, alignment: u64) -> FormatResult<Vec<TensorInfo>> {
        self.field = "tensor data".to_owned();
        let data_start = self.position.checked_next_multiple_of(alignment);
        let data_start = data_start.ok_or_else(|| self.invalid("the alignment overflows"))?;
        let mut infos: Vec<TensorInfo> = Vec::with_capacity(tensors.len());
        for RawTensor { name, shape, encoding, offset, num_bytes } in tensors {
            self.field = format!("tensor {name:?}");
            if !offset.is_multiple_of(alignment) {
                return Err(self.invalid(format!("offset {offset} is not aligned to {alignment} bytes")));
            }
            let start = data_start.checked_add(offset);
            let end = start.and_then(|start| start.checked_add(num_bytes));
            let (Some(offset), Some(_)) = (start, end.filter(|&end| end <= self.file_bytes)) else {
                return Err(self.invalid(format!(
                    "its {num_bytes} bytes at offset {offset} of the data lie outside the file of {} bytes",
                    self.file_bytes
                )));
            };
            infos.push(TensorInfo { name, shape, encoding, num_bytes, file_index: 0, offset });
        }
        let mut ranges: Vec<_> = infos
            .iter()
            .map(|info| (info.offset, info.offset + info.num_bytes, info.name.as_str()))
            .collect();
        check_disjoint(self.path, &mut ranges)?;
        Ok(infos)
    }
}
