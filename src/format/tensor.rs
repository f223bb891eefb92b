//! Named tensors of a checkpoint: what they are, where their bytes lie, and how to read them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::format::error::{FormatError, FormatResult};

/// How a tensor's elements are stored. Names are GGUF's; all are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum Encoding {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 4 bits with a scale per 32 elements.
    Q4_0,
    /// 4 bits with a scale and a minimum per 32 elements.
    Q4_1,
    /// 5 bits with a scale per 32 elements.
    Q5_0,
    /// 5 bits with a scale and a minimum per 32 elements.
    Q5_1,
    /// 8 bits with a scale per 32 elements.
    Q8_0,
    /// 4 bits with 6-bit scales and minima in a super-block of 256 elements.
    Q4_K,
    /// 5 bits with 6-bit scales and minima in a super-block of 256 elements.
    Q5_K,
    /// 6 bits with 8-bit scales in a super-block of 256 elements.
    Q6_K,
    /// An element type that no weight may have, by its container's name; a file may hold tensors of it as
    /// long as nobody reads them.
    Other(&'static str),
}

impl Encoding {
    /// Elements of a block; 1 for plain types, 0 for [`Encoding::Other`].
    pub fn block_len(self) -> usize {
        match self {
            Encoding::F32 | Encoding::F16 | Encoding::BF16 => 1,
            Encoding::Q4_0 | Encoding::Q4_1 | Encoding::Q5_0 | Encoding::Q5_1 | Encoding::Q8_0 => 32,
            Encoding::Q4_K | Encoding::Q5_K | Encoding::Q6_K => 256,
            Encoding::Other(_) => 0,
        }
    }

    /// Bytes of a block; 0 for [`Encoding::Other`].
    pub fn block_bytes(self) -> usize {
        match self {
            Encoding::F32 => 4,
            Encoding::F16 | Encoding::BF16 => 2,
            Encoding::Q4_0 => 18,
            Encoding::Q4_1 => 20,
            Encoding::Q5_0 => 22,
            Encoding::Q5_1 => 24,
            Encoding::Q8_0 => 34,
            Encoding::Q4_K => 144,
            Encoding::Q5_K => 176,
            Encoding::Q6_K => 210,
            Encoding::Other(_) => 0,
        }
    }
}

/// Longest name of a tensor, so that an error can quote it.
pub(crate) const MAX_NAME_BYTES: usize = 1024;

/// A tensor of a checkpoint. Containers guarantee that its bytes lie inside its file and overlap no other's,
/// and that their number fits shape and encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the checkpoint.
    pub name: String,
    /// Sizes, outermost first; the innermost is a multiple of the encoding's block.
    pub shape: Vec<usize>,
    /// Element type.
    pub encoding: Encoding,
    /// Bytes of all elements.
    pub num_bytes: u64,
    /// Index of the file in its table.
    pub(crate) file_index: usize,
    /// Position of the first byte in the file.
    pub(crate) offset: u64,
}

/// A file that is open for reading at any position.
#[derive(Debug)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) num_bytes: u64,
}

impl SourceFile {
    /// Opens a regular file; anything else (a pipe would block, a device never ends) is refused.
    pub(crate) fn open(path: &Path) -> FormatResult<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| FormatError::io(path, error))?;
        if !metadata.is_file() {
            return Err(FormatError::invalid(path, "file type", "not a regular file"));
        }
        let file = File::open(path).map_err(|error| FormatError::io(path, error))?;
        let num_bytes = file.metadata().map_err(|error| FormatError::io(path, error))?.len();
        Ok(Self { path: path.to_owned(), file, num_bytes })
    }

    /// The whole file, which must not be larger than `max_bytes`.
    pub(crate) fn read_all(&self, max_bytes: u64) -> FormatResult<Vec<u8>> {
        if self.num_bytes > max_bytes {
            let message = format!("{} bytes, more than the {max_bytes} that are allowed", self.num_bytes);
            return Err(FormatError::invalid(&self.path, "file size", message));
        }
        let mut bytes = try_zeroed(&self.path, "the file", self.num_bytes)?;
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> FormatResult<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| FormatError::io(&self.path, error))
    }
}

/// `num_bytes` zeros, or [`FormatError::OutOfMemory`].
pub(crate) fn try_zeroed(path: &Path, what: &'static str, num_bytes: u64) -> FormatResult<Vec<u8>> {
    let out_of_memory = || FormatError::OutOfMemory { path: path.to_owned(), what, bytes: num_bytes };
    let length = usize::try_from(num_bytes).map_err(|_| out_of_memory())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| out_of_memory())?;
    bytes.resize(length, 0);
    Ok(bytes)
}

/// Every tensor of a checkpoint, with the files that hold them.
#[derive(Debug, Default)]
pub struct TensorTable {
    files: Vec<SourceFile>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorTable {
    /// Adds a file and returns its index.
    pub(crate) fn add_file(&mut self, file: SourceFile) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    /// Adds a tensor of a file that has been added; a name that is there already is an error.
    pub(crate) fn add_tensor(&mut self, tensor: TensorInfo) -> FormatResult<()> {
        let path = &self.files[tensor.file_index].path;
        if let Some(other) = self.tensors.get(&tensor.name) {
            let message = format!("is in {} too", self.files[other.file_index].path.display());
            return Err(FormatError::invalid(path, format!("tensor {:?}", tensor.name), message));
        }
        self.tensors.insert(tensor.name.clone(), tensor);
        Ok(())
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// File that holds `tensor`.
    pub fn path_of(&self, tensor: &TensorInfo) -> &Path {
        &self.files[tensor.file_index].path
    }

    /// Fills `buffer` with the bytes of `tensor` that start at byte `start` of it.
    pub fn read(&self, tensor: &TensorInfo, start: u64, buffer: &mut [u8]) -> FormatResult<()> {
        let end = start.checked_add(buffer.len() as u64);
        assert!(end.is_some_and(|end| end <= tensor.num_bytes), "a read past the end of {}", tensor.name);
        let file = &self.files[tensor.file_index];
        file.read_at(tensor.offset + start, buffer).map_err(|error| match error {
            FormatError::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                FormatError::invalid(&file.path, &tensor.name, "the file was cut short while it was read")
            }
            error => error,
        })
    }
}

/// Checks that byte ranges `(start, end, name)` do not overlap. Sorts them.
pub(crate) fn check_disjoint(path: &Path, ranges: &mut [(u64, u64, &str)]) -> FormatResult<()> {
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, end, first), (start, _, second)) = (pair[0], pair[1]);
        if start < end {
            let message = format!("its bytes overlap those of tensor {first:?}");
            return Err(FormatError::invalid(path, format!("tensor {second:?}"), message));
        }
    }
    Ok(())
}
