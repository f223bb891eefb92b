//! GGUF files that are right, and files that lie.

use std::io::Write;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};

use super::*;
use crate::error::{Error, Status};
use crate::format::error::FormatError;
use crate::format::tensor::Encoding;

const ALIGNMENT: usize = 32;

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A file under construction; the parts that a test wants to get wrong are plain bytes.
#[derive(Clone)]
struct Draft {
    magic: [u8; 4],
    version: u32,
    num_tensors: u64,
    num_values: u64,
    values: Vec<u8>,
    tensors: Vec<u8>,
    data: Vec<u8>,
}

impl Draft {
    fn new() -> Self {
        let (values, tensors, data) = Default::default();
        Self { magic: *b"GGUF", version: 3, num_tensors: 0, num_values: 0, values, tensors, data }
    }

    fn value(mut self, key: &str, value_type: u32, bytes: &[u8]) -> Self {
        self.num_values += 1;
        self.values.extend(text(key));
        self.values.extend(value_type.to_le_bytes());
        self.values.extend(bytes);
        self
    }

    fn array(self, key: &str, item_type: u32, count: u64, bytes: &[u8]) -> Self {
        let mut array = item_type.to_le_bytes().to_vec();
        array.extend(count.to_le_bytes());
        array.extend(bytes);
        self.value(key, 9, &array)
    }

    /// Adds a table entry; `dims` innermost first.
    fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        self.num_tensors += 1;
        self.tensors.extend(text(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        self.tensors.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self
    }

    fn data(mut self, num_bytes: usize) -> Self {
        self.data = (0..num_bytes).map(|byte| byte as u8).collect();
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = self.magic.to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.num_tensors.to_le_bytes());
        bytes.extend(self.num_values.to_le_bytes());
        bytes.extend(&self.values);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn open(&self) -> FormatResult<GgufFile> {
        open(&self.build())
    }

    /// The error of a file that must not open, checked to name the file and `field`.
    #[track_caller]
    fn refused(&self, status: Status, field: &str) -> String {
        let error = Error::from(self.open().expect_err("the file must be refused"));
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains("model.gguf") && error.message().contains(field), "{error}");
        error.message().to_owned()
    }
}

fn open(bytes: &[u8]) -> FormatResult<GgufFile> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    GgufFile::open(&path)
}

/// A file with every type of value and several types of tensors.
fn sample() -> Draft {
    Draft::new()
        .value("general.architecture", 8, &text("llama"))
        .value("u8", 0, &[200])
        .value("i8", 1, &[0xff])
        .value("u16", 2, &40000u16.to_le_bytes())
        .value("i16", 3, &(-2i16).to_le_bytes())
        .value("u32", 4, &4_000_000_000u32.to_le_bytes())
        .value("i32", 5, &(-3i32).to_le_bytes())
        .value("f32", 6, &1.5f32.to_le_bytes())
        .value("yes", 7, &[1])
        .value("u64", 10, &u64::MAX.to_le_bytes())
        .value("i64", 11, &7i64.to_le_bytes())
        .value("f64", 12, &0.1f64.to_le_bytes())
        .array("texts", 8, 3, &[text("a"), text(""), text("é")].concat())
        .array("bools", 7, 2, &[1, 0])
        .array("i32s", 5, 2, &[1i32.to_le_bytes(), (-1i32).to_le_bytes()].concat())
        .array("f32s", 6, 2, &[0.5f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat())
        .array("f64s", 12, 1, &0.25f64.to_le_bytes())
        .array("empty", 4, 0, &[])
        .tensor("plain", &[3, 2], 0, 0)
        .tensor("quantised", &[64, 2], 3, 32)
        .tensor("super", &[256], 14, 128)
        .data(128 + 210)
}

#[test]
fn metadata_is_widened_and_typed() {
    let file = sample().open().unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.text("general.architecture").unwrap(), Some("llama"));
    for (key, value) in [("u8", 200), ("u16", 40000), ("u32", 4_000_000_000), ("u64", u64::MAX), ("i64", 7)] {
        assert_eq!(metadata.unsigned(key).unwrap(), Some(value), "{key}");
    }
    for (key, value) in
        [("i8", -1.0), ("i16", -2.0), ("i32", -3.0), ("f32", 1.5), ("f64", 0.1), ("u8", 200.0)]
    {
        assert_eq!(metadata.float(key).unwrap(), Some(value), "{key}");
    }
    assert_eq!(metadata.bool("yes").unwrap(), Some(true));
    assert_eq!(metadata.texts("texts").unwrap().unwrap(), ["a", "", "é"]);
    assert_eq!(metadata.integers("bools").unwrap().unwrap(), [1, 0]);
    assert_eq!(metadata.integers("i32s").unwrap().unwrap(), [1, -1]);
    assert_eq!(metadata.floats("f32s").unwrap().unwrap(), [0.5, 2.0]);
    assert_eq!(metadata.floats("f64s").unwrap().unwrap(), [0.25]);
    assert!(metadata.integers("empty").unwrap().unwrap().is_empty());
    assert_eq!(metadata.text("absent").unwrap(), None);
    assert_eq!(metadata.keys().count(), 18);

    for error in [
        metadata.text("u8").unwrap_err(),
        metadata.unsigned("i8").unwrap_err(),
        metadata.unsigned("f32").unwrap_err(),
        metadata.bool("u8").unwrap_err(),
        metadata.float("yes").unwrap_err(),
        metadata.texts("i32s").unwrap_err(),
        metadata.integers("f32s").unwrap_err(),
        metadata.floats("texts").unwrap_err(),
    ] {
        assert_eq!(error.status(), Status::ModelInvalid);
        assert!(error.message().contains("model.gguf: ") && error.message().contains("must be"), "{error}");
    }
}

#[test]
fn tensors_are_found_and_read() {
    let file = sample().open().unwrap();
    let table = file.tensors();
    assert_eq!(table.names().collect::<Vec<_>>(), ["plain", "quantised", "super"]);
    let info = table.get("quantised").unwrap();
    assert_eq!(
        (info.shape.as_slice(), info.encoding, info.num_bytes),
        ([2, 64].as_slice(), Encoding::Q4_1, 80)
    );
    let mut bytes = [0; 10];
    table.read(info, 70, &mut bytes).unwrap();
    assert_eq!(bytes, std::array::from_fn(|index| 32 + 70 + index as u8));
}

#[test]
fn version_2_and_other_alignments_are_read() {
    let mut draft = sample();
    draft.version = 2;
    draft.open().unwrap();
    let aligned = |alignment: u32, offset| {
        Draft::new()
            .value("general.alignment", 4, &alignment.to_le_bytes())
            .tensor("t", &[1], 0, 0)
            .tensor("u", &[1], 0, offset)
            .data(64)
    };
    aligned(4, 4).open().unwrap();
    aligned(32, 4).refused(Status::ModelInvalid, "\"u\"");
    aligned(0, 32).refused(Status::ModelInvalid, "general.alignment");
    aligned(12, 12).refused(Status::ModelInvalid, "general.alignment");
    aligned(1 << 31, 0).refused(Status::ModelInvalid, "\"t\"");
    let huge = Draft::new().value("general.alignment", 10, &(1u64 << 63).to_le_bytes());
    huge.tensor("t", &[1], 0, 0).refused(Status::ModelInvalid, "\"t\"");
    Draft::new().value("general.alignment", 8, &text("x")).refused(Status::ModelInvalid, "general.alignment");
}

#[test]
fn foreign_files_are_refused() {
    let change = |change: fn(&mut Draft)| {
        let mut draft = sample();
        change(&mut draft);
        draft
    };
    change(|draft| draft.magic = *b"GGML").refused(Status::ModelInvalid, "not a GGUF file");
    let split = |count: u16| Draft::new().value("split.count", 2, &count.to_le_bytes());
    split(1).open().unwrap();
    split(2).refused(Status::ModelUnsupported, "split.count");
    change(|draft| draft.version = 1).refused(Status::ModelUnsupported, "version 1");
    change(|draft| draft.version = 4).refused(Status::ModelUnsupported, "version 4");
    change(|draft| draft.version = 3u32.swap_bytes()).refused(Status::ModelUnsupported, "big-endian");
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    for count in [19, 1 << 32, u64::MAX / 13 + 1, u64::MAX] {
        let mut draft = sample();
        draft.num_values = count;
        draft.refused(Status::ModelInvalid, "");
    }
    for count in [4, 1 << 32, u64::MAX / 32 + 1, u64::MAX] {
        let mut draft = sample();
        draft.num_tensors = count;
        draft.refused(Status::ModelInvalid, "tensor");
    }
    for count in [33, 1 << 40, u64::MAX / 4 + 1, u64::MAX] {
        for item_type in [0, 4, 6, 8, 12] {
            Draft::new().array("array", item_type, count, &[0; 4]).refused(Status::ModelInvalid, "array");
        }
    }
    let long_text = [&u64::MAX.to_le_bytes()[..], b"x"].concat();
    Draft::new().value("text", 8, &long_text).refused(Status::ModelInvalid, "text");
}

#[test]
fn values_out_of_range_are_refused() {
    let draft = Draft::new;
    draft().value("key", 7, &[2]).refused(Status::ModelInvalid, "boolean");
    draft().value("key", 13, &[0; 16]).refused(Status::ModelInvalid, "type 13");
    draft().array("key", 13, 1, &[0; 16]).refused(Status::ModelInvalid, "type 13");
    draft().array("key", 9, 1, &[0; 16]).refused(Status::ModelUnsupported, "array of arrays");
    draft().array("key", 10, 1, &u64::MAX.to_le_bytes()).refused(Status::ModelInvalid, "item 0");
    draft().array("key", 7, 2, &[1, 2]).refused(Status::ModelInvalid, "item 1");
    draft().value("key", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).refused(Status::ModelInvalid, "UTF-8");
    draft().value("twice", 0, &[0]).value("twice", 0, &[1]).refused(Status::ModelInvalid, "twice");
    draft().value(&"k".repeat(70_000), 0, &[0]).refused(Status::ModelInvalid, "metadata key 0");
}

#[test]
fn tensors_that_lie_are_refused() {
    let with = |dims: &[u64], type_id, offset| Draft::new().tensor("t", dims, type_id, offset).data(64);
    with(&[16], 0, 0).open().unwrap();
    with(&[17], 0, 0).refused(Status::ModelInvalid, "outside the file");
    with(&[16], 0, 32).refused(Status::ModelInvalid, "outside the file");
    with(&[1], 0, u64::MAX - 31).refused(Status::ModelInvalid, "outside the file");
    with(&[], 0, 0).refused(Status::ModelInvalid, "dimensions");
    with(&[1; 5], 0, 0).refused(Status::ModelInvalid, "dimensions");
    with(&[4, 0], 0, 0).refused(Status::ModelInvalid, "dimension");
    with(&[1 << 40, 1 << 40], 0, 0).refused(Status::ModelInvalid, "overflows");
    with(&[u64::MAX], 0, 0).refused(Status::ModelInvalid, "overflows");
    with(&[33], 2, 0).refused(Status::ModelInvalid, "block of 32");
    with(&[128], 12, 0).refused(Status::ModelInvalid, "block of 256");
    with(&[16], 999, 0).refused(Status::ModelInvalid, "unknown type 999");
    with(&[256], 23, 0).refused(Status::ModelUnsupported, "requantise");

    let two =
        |name: &str, offset| Draft::new().tensor("t", &[10], 0, 0).tensor(name, &[2], 0, offset).data(96);
    two("u", 64).open().unwrap();
    two("u", 32).refused(Status::ModelInvalid, "overlap");
    two("t", 64).refused(Status::ModelInvalid, "\"t\"");
}

#[test]
fn memory_for_the_tables_is_bounded() {
    // An empty string takes 8 bytes in the file and several times as many in memory.
    let draft = Draft::new().array("texts", 8, 4 << 20, &vec![0; 32 << 20]);
    draft.refused(Status::ModelInvalid, "take more than");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    for path in ["/dev/zero", "/tmp"] {
        let error = Error::from(GgufFile::open(Path::new(path)).unwrap_err());
        assert!(error.message().contains("regular file"), "{error}");
    }
    let error = GgufFile::open(Path::new("/nonexistent.gguf")).unwrap_err();
    assert!(matches!(error, FormatError::NotFound { .. }));
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let bytes = sample().build();
    for length in 0..bytes.len() {
        let error = Error::from(parse(&bytes[..length]).expect_err("a part must not parse"));
        assert!(matches!(error.status(), Status::ModelInvalid | Status::ModelUnsupported), "{error}");
    }
    parse(&bytes).unwrap();
}

fn parse(bytes: &[u8]) -> FormatResult<parser::Contents> {
    parser::parse(Path::new("model.gguf"), bytes, bytes.len() as u64)
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    /// Whatever bytes change, the file parses into tensors that lie inside it or gives an error.
    #[test]
    fn mutated_files_never_panic(edits in vec((0usize..4096, any::<u8>()), 1..6)) {
        let mut bytes = sample().build();
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(contents) = parse(&bytes) {
            for tensor in contents.tensors {
                assert!(tensor.offset + tensor.num_bytes <= bytes.len() as u64);
            }
        }
    }
}
