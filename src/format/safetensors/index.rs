//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::header::{charge, check_name};
use crate::format::error::{FormatError, FormatResult};
use crate::format::tensor::SourceFile;

const MAX_INDEX_BYTES: u64 = 64 << 20;
/// What an entry takes in memory beside its name, rounded up.
const ENTRY_BYTES: u64 = 96;

/// The parsed index: tensor name to index of its shard.
#[derive(Debug, Default)]
pub(super) struct Index {
    shards: BTreeMap<String, usize>,
    shard_names: Vec<String>,
    weight_map: BTreeMap<String, usize>,
}

impl Index {
    /// File names of the shards, each once.
    pub(super) fn shards(&self) -> impl Iterator<Item = &str> {
        self.shard_names.iter().map(String::as_str)
    }

    /// Tensors, each with its shard's file name.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.weight_map.iter().map(|(tensor, &shard)| (tensor.as_str(), self.shard_names[shard].as_str()))
    }

    fn shard_index(&mut self, name: &str) -> usize {
        if let Some(&index) = self.shards.get(name) {
            return index;
        }
        self.shards.insert(name.to_owned(), self.shard_names.len());
        self.shard_names.push(name.to_owned());
        self.shard_names.len() - 1
    }
}

/// Reads the index at `path`. What it takes in memory is charged to `budget`.
pub(super) fn read(path: &Path, budget: &mut u64) -> FormatResult<Index> {
    let bytes = SourceFile::open(path)?.read_all(MAX_INDEX_BYTES)?;
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    let index = IndexSeed { budget }.deserialize(&mut deserializer);
    let index = index.and_then(|index| deserializer.end().map(|()| index));
    index.map_err(|error| FormatError::invalid(path, "weight_map", error.to_string()))
}

/// The path of shard `name` of `directory`, which must not lead out of it: a plain file name, and where it is
/// a link, one into the directory itself or into the `blobs` of the Hugging Face cache that the directory is
/// a snapshot of (`<model>/snapshots/<revision>` beside `<model>/blobs`).
pub(super) fn resolve(directory: &Path, index_path: &Path, name: &str) -> FormatResult<PathBuf> {
    let escapes = || {
        let message = format!("shard {name:?} is not a file of the model directory");
        FormatError::invalid(index_path, "weight_map", message)
    };
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
        return Err(escapes());
    }
    let path = directory.join(name);
    let target = path.canonicalize().map_err(|error| FormatError::io(&path, error))?;
    let home = directory.canonicalize().map_err(|error| FormatError::io(directory, error))?;
    let blobs = home
        .parent()
        .filter(|snapshots| snapshots.file_name().is_some_and(|name| name == "snapshots"))
        .and_then(Path::parent)
        .map(|model| model.join("blobs"));
    match target.parent() {
        Some(parent) if parent == home || Some(parent) == blobs.as_deref() => Ok(path),
        _ => Err(escapes()),
    }
}

/// Reads the index' object; `weight_map` at most once, other fields skipped.
struct IndexSeed<'a> {
    budget: &'a mut u64,
}

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = Index;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with a weight_map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        #[derive(Deserialize)]
        enum Field {
            #[serde(rename = "weight_map")]
            WeightMap,
            #[serde(other)]
            Other,
        }
        let mut index = None;
        while let Some(field) = map.next_key()? {
            match field {
                Field::WeightMap if index.is_some() => return Err(de::Error::duplicate_field("weight_map")),
                Field::WeightMap => {
                    index = Some(map.next_value_seed(WeightMapSeed { budget: &mut *self.budget })?);
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        index.ok_or_else(|| de::Error::missing_field("weight_map"))
    }
}

/// Reads the object from tensor names to shard names, each tensor at most once.
struct WeightMapSeed<'a> {
    budget: &'a mut u64,
}

impl<'de> DeserializeSeed<'de> for WeightMapSeed<'_> {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for WeightMapSeed<'_> {
    type Value = Index;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object from tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut index = Index::default();
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            check_name(&tensor)?;
            check_name(&shard)?;
            charge(self.budget, ENTRY_BYTES + (tensor.len() + 2 * shard.len()) as u64)?;
            let shard = index.shard_index(&shard);
            if index.weight_map.contains_key(&tensor) {
                return Err(de::Error::custom(format_args!("tensor {tensor:?} is there twice")));
            }
            index.weight_map.insert(tensor, shard);
        }
        Ok(index)
    }
}
