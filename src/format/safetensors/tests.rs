//! Safetensors directories that are right, and directories that lie.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};

use super::*;
use crate::error::{Error, Status};
use crate::format::tensor::Encoding;
use crate::format::{Checkpoint, GgufFile};

/// A file of a header and `num_bytes` bytes of data.
fn file(header: &str, num_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..num_bytes).map(|byte| byte as u8));
    bytes
}

fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

/// The table of a directory whose only file holds `bytes`.
fn open(bytes: &[u8]) -> FormatResult<TensorTable> {
    let directory = directory(&[(SINGLE_FILE, bytes)]);
    Ok(Directory::open(directory.path())?.tensors.expect("the file is there"))
}

#[track_caller]
fn refused(bytes: &[u8], what: &str) {
    let error = Error::from(open(bytes).expect_err("the file must be refused"));
    assert_eq!(error.status(), Status::ModelInvalid, "{error}");
    assert!(error.message().contains(SINGLE_FILE) && error.message().contains(what), "{error}");
}

const HEADER: &str = r#"{"__metadata__":{"format":"pt"},
    "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},
    "a":{"shape":[2],"dtype":"F32","data_offsets":[0,8]},
    "none":{"dtype":"F16","shape":[0,4],"data_offsets":[20,20]},
    "scalar":{"dtype":"I64","shape":[],"data_offsets":[20,28]}}  "#;

#[test]
fn a_single_file_is_read() {
    let table = open(&file(HEADER, 28)).unwrap();
    assert_eq!(table.names().collect::<Vec<_>>(), ["a", "b", "none", "scalar"]);
    let info = table.get("b").unwrap();
    assert_eq!(
        (info.shape.as_slice(), info.encoding, info.num_bytes),
        ([2, 3].as_slice(), Encoding::BF16, 12)
    );
    let mut bytes = [0; 4];
    table.read(info, 8, &mut bytes).unwrap();
    assert_eq!(bytes, [16, 17, 18, 19]);
    assert!(matches!(table.get("scalar").unwrap().encoding, Encoding::Other(_)));
}

#[test]
fn headers_that_lie_are_refused() {
    let one = |entry: &str, num_bytes| file(&format!("{{\"a\":{{{entry}}}}}"), num_bytes);
    open(&one(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 8)).unwrap();
    for (entry, num_bytes, what) in [
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 7, "data_offsets"),
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#, 9, "data_offsets"),
        (r#""dtype":"F32","shape":[2],"data_offsets":[4,12]"#, 12, "\"a\""),
        (r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#, 8, "12 bytes"),
        (r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#, 8, "data_offsets"),
        (r#""dtype":"F32","shape":[-2],"data_offsets":[0,8]"#, 8, "-2"),
        (r#""dtype":"F32","shape":[2.0],"data_offsets":[0,8]"#, 8, "header"),
        (r#""dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]"#, 8, "overflows"),
        (r#""dtype":"F4","shape":[1],"data_offsets":[0,0]"#, 0, "inside a byte"),
        (r#""dtype":"F33","shape":[2],"data_offsets":[0,8]"#, 8, "F33"),
        (r#""dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]"#, 8, "at most 8"),
        (r#""dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]"#, 8, "shape"),
        (r#""dtype":"F32","shape":[2]"#, 8, "data_offsets"),
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]"#, 8, "data_offsets"),
        (r#""dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551616]"#, 8, "header"),
    ] {
        refused(&one(entry, num_bytes), what);
    }
}

#[test]
fn tensors_must_share_the_data_without_gap_overlap_or_duplicate() {
    let two = |second: &str, start: usize| {
        let (end, header) = (start + 4, r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"#);
        let second = format!(r#""{second}":{{"dtype":"F32","shape":[1],"data_offsets":[{start},{end}]}}}}"#);
        file(&format!("{header}{second}"), end)
    };
    open(&two("b", 4)).unwrap();
    refused(&two("b", 5), "\"b\"");
    refused(&two("b", 3), "\"b\"");
    refused(&two("b", 0), "");
    refused(&two("a", 4), "there twice");
    refused(&file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "there twice");
}

#[test]
fn malformed_headers_are_refused() {
    refused(&[], "header length");
    refused(&[1; 7], "header length");
    refused(&file("", 0), "header");
    refused(&file("[]", 0), "header");
    refused(&file("{} x", 0), "header");
    refused(&file(&"{\"a\":".repeat(1000), 0), "header");
    let deep = format!("{{\"__metadata__\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    refused(&file(&deep, 0), "from text to text");
    let deep = format!("{{\"a\":{{\"shape\":{}{}}}}}", "[".repeat(200_000), "]".repeat(200_000));
    refused(&file(&deep, 0), "header");
    refused(&file(r#"{"__metadata__":{"format":1}}"#, 0), "expected text");
    refused(&shard(&"n".repeat(1025)), "a name of 1025 bytes");
    let dtype = format!(r#"{{"a":{{"dtype":"{}"}}}}"#, "F".repeat(1 << 20));
    let error = Error::from(open(&file(&dtype, 0)).unwrap_err());
    assert!(error.message().len() < 600, "a message of {} bytes", error.message().len());
    let mut not_utf8 = file("{\"a\":1}", 0);
    not_utf8[10] = 0xff;
    refused(&not_utf8, "header");
    for length in [3, (64 << 20) + 1, u64::MAX] {
        let mut bytes = file("{}", 0);
        bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
        refused(&bytes, "header length");
    }
}

#[test]
fn memory_for_the_table_is_bounded() {
    let entries: Vec<String> = (0..400_000)
        .map(|index| format!(r#""{index}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    refused(&file(&format!("{{{}}}", entries.join(",")), 0), "takes more than");
}

fn shard(tensor: &str) -> Vec<u8> {
    file(&format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}"#), 8)
}

fn index(entries: &[(&str, &str)]) -> Vec<u8> {
    let entries: Vec<String> =
        entries.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
    format!(r#"{{"metadata":{{"total_size":16}},"weight_map":{{{}}}}}"#, entries.join(",")).into_bytes()
}

#[track_caller]
fn shards_refused(directory: &Path, what: &str) {
    let error = Error::from(Directory::open(directory).expect_err("the directory must be refused"));
    assert!(matches!(error.status(), Status::ModelInvalid | Status::ModelNotFound), "{error}");
    assert!(error.message().contains(what), "{error}");
}

#[test]
fn shards_are_read_through_the_index() {
    let index = index(&[("a", "1.safetensors"), ("b", "2.safetensors")]);
    let directory =
        directory(&[(INDEX_FILE, &index), ("1.safetensors", &shard("a")), ("2.safetensors", &shard("b"))]);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
    let info = checkpoint.tensor("b").unwrap();
    assert!(checkpoint.weights().unwrap().path_of(info).ends_with("2.safetensors"));
    let mut bytes = [0; 8];
    checkpoint.read(info, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_index_that_lies_is_refused() {
    let (a, b) = (shard("a"), shard("b"));
    let with = |index: &[u8]| directory(&[(INDEX_FILE, index), ("1.safetensors", &a), ("2.safetensors", &b)]);
    let both = |a, b| with(&index(&[("a", a), ("b", b)]));
    shards_refused(both("1.safetensors", "3.safetensors").path(), "3.safetensors");
    shards_refused(both("2.safetensors", "1.safetensors").path(), "weight_map.a");
    shards_refused(with(&index(&[("a", "1.safetensors"), ("c", "2.safetensors")])).path(), "weight_map.c");
    shards_refused(with(&index(&[("a", "1.safetensors"), ("a", "1.safetensors")])).path(), "there twice");
    for json in ["", "[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#, "{\"weight_map\":{}} x"]
    {
        shards_refused(with(json.as_bytes()).path(), "weight_map");
    }
    shards_refused(with(br#"{"weight_map":{},"weight_map":{}}"#).path(), "duplicate");
    let long = "n".repeat(1025);
    shards_refused(with(&index(&[(&long, "1.safetensors")])).path(), "a name of 1025 bytes");
    shards_refused(with(&index(&[("a", &long)])).path(), "a name of 1025 bytes");

    let index = index(&[("a", "1.safetensors"), ("b", "copy.safetensors")]);
    let twice = directory(&[(INDEX_FILE, &index), ("1.safetensors", &a), ("copy.safetensors", &a)]);
    shards_refused(twice.path(), "is in");
}

#[test]
fn shards_cannot_leave_the_directory() {
    let outside = directory(&[("secret.safetensors", &shard("a"))]);
    let target = outside.path().join("secret.safetensors");
    let escapes =
        [target.to_str().unwrap(), "../secret.safetensors", "x/../../secret", "..", ".", "", "a\\b"];
    for name in escapes {
        let index = index(&[("a", name)]);
        shards_refused(directory(&[(INDEX_FILE, &index)]).path(), "weight_map");
    }
    let linked = directory(&[(INDEX_FILE, &index(&[("a", "link.safetensors")]))]);
    std::os::unix::fs::symlink(&target, linked.path().join("link.safetensors")).unwrap();
    shards_refused(linked.path(), "not a file of the model directory");
}

#[test]
fn a_snapshot_of_the_hugging_face_cache_may_link_to_its_blobs() {
    let model = tempfile::tempdir().unwrap();
    let (snapshot, blobs) = (model.path().join("snapshots/0123abcd"), model.path().join("blobs"));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    std::fs::write(blobs.join("ffff"), shard("a")).unwrap();
    std::fs::write(snapshot.join(INDEX_FILE), index(&[("a", "1.safetensors")])).unwrap();
    std::os::unix::fs::symlink("../../blobs/ffff", snapshot.join("1.safetensors")).unwrap();
    assert!(Directory::open(&snapshot).unwrap().weights().unwrap().get("a").is_some());
}

#[test]
fn directories_without_weights_open_and_say_what_is_missing() {
    let empty = directory(&[("config.json", b"{}")]);
    let checkpoint = Checkpoint::open(empty.path()).unwrap();
    assert_eq!(checkpoint.tensor_names().count(), 0);
    let error = checkpoint.weights().unwrap_err();
    assert_eq!(error.status(), Status::ModelNotFound);
    assert!(error.message().contains(SINGLE_FILE), "{error}");
}

#[test]
fn pickles_are_refused() {
    let pickled = directory(&[("config.json", b"{}"), ("pytorch_model.bin", b"\x80\x02")]);
    let in_directory = Checkpoint::open(pickled.path()).unwrap().weights().unwrap_err();
    let by_path = Checkpoint::open(&pickled.path().join("pytorch_model.bin")).unwrap_err();
    for error in [in_directory, by_path] {
        assert_eq!(error.status(), Status::ModelUnsupported);
        let message = error.message();
        assert!(message.contains("pytorch_model.bin") && message.contains("convert"), "{error}");
    }
}

#[test]
fn a_directory_of_gguf_files_needs_a_choice() {
    let two = directory(&[("a.gguf", b""), ("b.gguf", b"")]);
    assert!(Checkpoint::open(two.path()).unwrap_err().message().contains("2 GGUF files"));
    // One alone stands for the directory, so that its own error shows.
    let one = directory(&[("a.gguf", b"GGML")]);
    assert!(Checkpoint::open(one.path()).unwrap_err().message().contains("not a GGUF file"));
    assert!(GgufFile::open(&one.path().join("a.gguf")).is_err());
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let odd = tempfile::tempdir().unwrap();
    std::fs::create_dir(odd.path().join(SINGLE_FILE)).unwrap();
    shards_refused(odd.path(), "regular file");
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let bytes = file(HEADER, 28);
    for length in 0..bytes.len() {
        refused(&bytes[..length], "");
    }
}

proptest::proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Whatever bytes change, the file opens with tensors that lie inside it or gives an error.
    #[test]
    fn mutated_files_never_panic(edits in vec((0usize..4096, any::<u8>()), 1..5)) {
        let mut bytes = file(HEADER, 28);
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if let Ok(table) = open(&bytes) {
            for info in table.names().map(|name| table.get(name).unwrap()) {
                assert!(info.offset + info.num_bytes <= bytes.len() as u64);
            }
        }
    }
}
