//! Where the rows of parameters come from, and how they are made of what is there.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::backend::DType;
use crate::error::{Error, Result, Status};
use crate::format::{Encoding, TensorInfo, TensorTable};
use crate::model::convert;
use crate::model::random::Generator;
use crate::model::spec::Orientation;
use crate::model::weights::{Adjustment, Part, Source};
use crate::quant;

/// Bytes that are filled and sent to the device at a time.
const CHUNK_BYTES: usize = 16 << 20;
/// Elements that a thread reads and converts at a time: whole blocks of every encoding.
const PIECE_LEN: usize = 1 << 18;

/// Rows of a parameter that come from one place.
pub(super) struct Origin<'a> {
    source: &'a Source,
    source_index: usize,
    /// The parameter's row that the first of these becomes.
    first_row: usize,
    num_rows: usize,
    values: Values<'a>,
}

enum Values<'a> {
    /// Made up: the parameter's rows from `start` on, padding not counted.
    Random { generator: Arc<Generator>, start: usize },
    /// All parts of a vector side by side.
    Vector(Elements<'a>),
    /// Rows of a tensor from `start` on. Tensors of more than two dimensions are matrices one under the other.
    Rows { tensor: Tensor<'a>, start: usize },
    /// Columns from `start` on of a matrix, `[_, stride]`.
    Columns { tensor: Tensor<'a>, start: usize, stride: usize },
    /// Padding.
    Zeros,
}

/// Where a vector's elements are.
enum Elements<'a> {
    InCheckpoint(&'a TensorTable),
    Random(Generator),
}

/// Collects the origins of one parameter.
struct Origins<'a, 'b> {
    source: &'a Source,
    source_index: usize,
    next_row: usize,
    collected: &'b mut Vec<Origin<'a>>,
}

impl<'a> Origins<'a, '_> {
    fn add(&mut self, num_rows: usize, values: Values<'a>) {
        let Self { source, source_index, next_row: first_row, .. } = *self;
        self.collected.push(Origin { source, source_index, first_row, num_rows, values });
        self.next_row += num_rows;
    }

    /// Adds a matrix's rows, and the zeros between them, by what `values` makes of the first of several rows of
    /// a part.
    fn add_matrix(&mut self, mut values: impl FnMut(&'a Part, Range<usize>) -> Values<'a>) {
        for part in &self.source.parts {
            let padding = part.row_padding;
            for run in &part.runs {
                let piece_len = if padding.is_none() { run.len().max(1) } else { padding.len };
                for start in run.clone().step_by(piece_len) {
                    self.add(piece_len, values(part, start..start + piece_len));
                    if !padding.is_none() {
                        self.add(padding.stored - padding.len, Values::Zeros);
                    }
                }
            }
        }
    }
}

impl<'a> Origin<'a> {
    /// Origins of all `sources`, whose tensors `table` has, in the shapes and types that they need.
    pub(super) fn in_checkpoint(sources: &'a [Source], table: &'a TensorTable) -> Vec<Self> {
        Self::collect(sources, |origins| match origins.source.is_vector() {
            true => origins.add(1, Values::Vector(Elements::InCheckpoint(table))),
            false => origins.add_matrix(|part, Range { start, .. }| {
                let tensor = Tensor::of(table, part);
                match part.orientation {
                    Orientation::OutIn => Values::Rows { tensor, start },
                    Orientation::InOut => Values::Columns { tensor, start, stride: part.tensor.shape[1] },
                }
            }),
        })
    }

    /// Origins of all `sources`, made up from `seed`.
    pub(super) fn made_up(sources: &'a [Source], seed: u64) -> Vec<Self> {
        Self::collect(sources, |origins| {
            let generator = Generator::new(seed, origins.source);
            if origins.source.is_vector() {
                return origins.add(1, Values::Vector(Elements::Random(generator)));
            }
            let (generator, mut next) = (Arc::new(generator), 0);
            origins.add_matrix(|_, rows| {
                let start = next;
                next += rows.len();
                Values::Random { generator: Arc::clone(&generator), start }
            });
        })
    }

    fn collect(sources: &'a [Source], add: impl Fn(&mut Origins<'a, '_>)) -> Vec<Self> {
        let mut collected = Vec::new();
        for (source_index, source) in sources.iter().enumerate() {
            add(&mut Origins { source, source_index, next_row: 0, collected: &mut collected });
        }
        collected
    }

    /// The rows in order, as many at a time as are filled together.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        let row_bytes = self.source.columns * self.source.dtype.size_bytes();
        let chunk_rows = (CHUNK_BYTES / row_bytes).clamp(1, self.num_rows.max(1));
        (0..self.num_rows).step_by(chunk_rows).map(move |row| Chunk {
            origin: self,
            row,
            num_rows: chunk_rows.min(self.num_rows - row),
        })
    }
}

/// Rows that are filled together.
pub(super) struct Chunk<'a> {
    origin: &'a Origin<'a>,
    /// Counts from the origin's first row.
    row: usize,
    num_rows: usize,
}

impl Chunk<'_> {
    /// Index of the parameter.
    pub(super) fn source_index(&self) -> usize {
        self.origin.source_index
    }

    /// The parameter's row that the first of these becomes.
    pub(super) fn first_row(&self) -> usize {
        self.origin.first_row + self.row
    }

    /// Bytes of the rows in the backend.
    pub(super) fn num_bytes(&self) -> usize {
        self.num_rows * self.origin.source.columns * self.origin.source.dtype.size_bytes()
    }

    /// Fills `target` with the rows, on all threads of the current rayon pool.
    pub(super) fn fill(&self, target: &mut [u8]) -> Result<()> {
        let source = self.origin.source;
        let padding = source.column_padding;
        if padding.is_none() {
            return self.fill_unpadded(target);
        }
        let size_bytes = source.dtype.size_bytes();
        let mut unpadded = Vec::new();
        resize(&mut unpadded, padding.unpadded(target.len() / size_bytes) * size_bytes)?;
        self.fill_unpadded(&mut unpadded)?;
        let rows = target.par_chunks_exact_mut(source.columns * size_bytes);
        rows.zip(unpadded.par_chunks_exact(source.unpadded_columns() * size_bytes))
            .for_each(|(row, unpadded)| padding.spread(unpadded, row, size_bytes));
        Ok(())
    }

    /// Fills `target` with the rows, without the zeros among their columns.
    fn fill_unpadded(&self, target: &mut [u8]) -> Result<()> {
        let source = self.origin.source;
        let columns = source.unpadded_columns();
        match &self.origin.values {
            Values::Random { generator, start } => {
                generator.fill(((start + self.row) * columns) as u64, target);
                Ok(())
            }
            Values::Vector(elements) => fill_vector(elements, source, target),
            Values::Rows { tensor, start } if source.adjustment == Adjustment::UnitRows => {
                fill_unit_rows(*tensor, start + self.row, source, target)
            }
            Values::Rows { tensor, start } => {
                let first_element = (start + self.row) * columns;
                let pieces = target.par_chunks_mut(PIECE_LEN * source.dtype.size_bytes()).enumerate();
                pieces.try_for_each_init(Vec::new, |encoded, (index, piece)| {
                    // Rows are whole blocks, and so are pieces: every piece starts with a block.
                    tensor.read(first_element + index * PIECE_LEN, source.dtype, encoded, piece)
                })
            }
            Values::Columns { tensor, start, stride } => {
                let columns = Columns { tensor: *tensor, start: start + self.row, stride: *stride };
                columns.transpose(self.num_rows, source, target)
            }
            Values::Zeros => {
                target.fill(0);
                Ok(())
            }
        }
    }
}

/// A tensor of a checkpoint.
#[derive(Clone, Copy)]
struct Tensor<'a> {
    table: &'a TensorTable,
    info: &'a TensorInfo,
}

impl<'a> Tensor<'a> {
    fn of(table: &'a TensorTable, part: &Part) -> Self {
        Self { table, info: table.get(&part.tensor.name).expect("every part has been found in the table") }
    }

    /// Reads as many elements from `first_element` on, which starts a block, as fill `target`, by way of
    /// `encoded` where they must be converted.
    fn read(
        &self,
        first_element: usize,
        dtype: DType,
        encoded: &mut Vec<u8>,
        target: &mut [u8],
    ) -> Result<()> {
        let Self { table, info } = self;
        let encoded_bytes =
            |elements: usize| elements / info.encoding.block_len() * info.encoding.block_bytes();
        let start = encoded_bytes(first_element) as u64;
        if convert::is_same(info.encoding, dtype) {
            return Ok(table.read(info, start, target)?);
        }
        resize(encoded, encoded_bytes(target.len() / dtype.size_bytes()))?;
        table.read(info, start, encoded)?;
        convert::convert(info.encoding, encoded, dtype, target);
        Ok(())
    }
}

/// Puts the pieces of a vector, which is kept in f32, side by side.
fn fill_vector(elements: &Elements<'_>, source: &Source, target: &mut [u8]) -> Result<()> {
    const SIZE: usize = size_of::<f32>();
    if source.adjustment == Adjustment::Ones {
        quant::encode_f32(&vec![1.0; source.columns], target);
        return Ok(());
    }
    let (mut encoded, mut values, mut filled) = (Vec::new(), Vec::new(), 0);
    for part in &source.parts {
        resize(&mut values, part.tensor.shape[0] * SIZE)?;
        match elements {
            Elements::Random(generator) => generator.fill(0, &mut values),
            Elements::InCheckpoint(table) => {
                Tensor::of(table, part).read(0, DType::F32, &mut encoded, &mut values)?;
                if source.adjustment == Adjustment::OnePlus {
                    for_each_f32(&mut values, |value| value + 1.0);
                }
            }
        }
        for run in &part.runs {
            let end = filled + part.row_padding.padded(run.len()) * SIZE;
            part.row_padding.spread(
                &values[run.start * SIZE..run.end * SIZE],
                &mut target[filled..end],
                SIZE,
            );
            filled = end;
        }
    }
    Ok(())
}

/// Rows from `first_row` on, each divided by its length; a row of zeros stays.
fn fill_unit_rows(tensor: Tensor<'_>, first_row: usize, source: &Source, target: &mut [u8]) -> Result<()> {
    let rows = target.par_chunks_mut(source.columns * source.dtype.size_bytes()).enumerate();
    rows.try_for_each_init(Default::default, |(encoded, single): &mut (Vec<u8>, Vec<u8>), (index, row)| {
        resize(single, source.columns * size_of::<f32>())?;
        tensor.read((first_row + index) * source.columns, DType::F32, encoded, single)?;
        let mut squares = 0.0;
        for_each_f32(single, |value| {
            squares += f64::from(value).powi(2);
            value
        });
        let factor = if squares > 0.0 { 1.0 / squares.sqrt() } else { 1.0 };
        for_each_f32(single, |value| (f64::from(value) * factor) as f32);
        convert::convert(Encoding::F32, single, source.dtype, row);
        Ok(())
    })
}

/// Replaces every f32 of `bytes` by what `change` makes of it.
fn for_each_f32(bytes: &mut [u8], mut change: impl FnMut(f32) -> f32) {
    for bytes in bytes.as_chunks_mut::<4>().0 {
        *bytes = change(f32::from_le_bytes(*bytes)).to_le_bytes();
    }
}

/// Makes `buffer` hold `num_bytes` bytes, of any value.
fn resize(buffer: &mut Vec<u8>, num_bytes: usize) -> Result<()> {
    buffer.try_reserve(num_bytes.saturating_sub(buffer.len())).map_err(|_| {
        let message = format!("{num_bytes} bytes to convert weights in could not be allocated");
        Error::new(Status::OutOfMemory, message)
    })?;
    buffer.resize(num_bytes, 0);
    Ok(())
}

/// Columns of a matrix, `[_, stride]`, from `start` on.
struct Columns<'a> {
    tensor: Tensor<'a>,
    start: usize,
    stride: usize,
}

impl Columns<'_> {
    /// Fills `target` with `num_columns` columns as rows.
    fn transpose(&self, num_columns: usize, source: &Source, target: &mut [u8]) -> Result<()> {
        let size_bytes = source.dtype.size_bytes();
        let mut untransposed = Vec::new();
        resize(&mut untransposed, target.len())?;
        let pieces = untransposed.par_chunks_mut(num_columns * size_bytes).enumerate();
        pieces.try_for_each_init(Vec::new, |encoded, (row, piece)| {
            self.tensor.read(row * self.stride + self.start, source.dtype, encoded, piece)
        })?;
        let columns = target.par_chunks_mut(source.unpadded_columns() * size_bytes).enumerate();
        columns.for_each(|(column, out)| {
            for (row, element) in out.chunks_exact_mut(size_bytes).enumerate() {
                let start = (row * num_columns + column) * size_bytes;
                element.copy_from_slice(&untransposed[start..start + size_bytes]);
            }
        });
        Ok(())
    }
}
