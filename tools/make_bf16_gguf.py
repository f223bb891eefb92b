#!/usr/bin/env python3
"""Make a BF16 GGUF file from a quantised one by dequantising its matrices.

Vectors stay F32, as llama.cpp's own converter writes them. The result holds the same weights as the input,
rounded to bfloat16 once, so that engines that keep bf16 weights can be compared on one file.

Needs: pip install gguf==0.19.0
"""

import argparse
import os
import sys

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

DEFAULT_SOURCE = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_TARGET = ".cache/models/SmolLM2-135M-Instruct.BF16.gguf"

# The writer makes these itself.
WRITER_FIELDS = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture"}
# These describe the quantised file and would be wrong for the new one.
QUANTISATION_FIELDS = {"general.file_type", "general.quantization_version"}


def copy_metadata(reader: GGUFReader, writer: GGUFWriter) -> None:
    """Copies every key of `reader` that still holds for the dequantised file."""
    for field in reader.fields.values():
        if field.name in WRITER_FIELDS or field.name in QUANTISATION_FIELDS:
            continue
        value_type = field.types[0]
        element_type = field.types[-1] if value_type == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), value_type, element_type)
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)


def add_tensors(reader: GGUFReader, writer: GGUFWriter) -> None:
    """Adds every tensor: matrices as BF16, vectors as F32."""
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        # A GGUF shape lists the fastest dimension first.
        values = values.reshape(tuple(reversed(tensor.shape.tolist())))
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
        else:
            data = quantize(values, GGMLQuantizationType.BF16)
            writer.add_tensor(tensor.name, data, raw_dtype=GGMLQuantizationType.BF16)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", default=DEFAULT_SOURCE, help="GGUF file to read (%(default)s)")
    parser.add_argument("target", nargs="?", default=DEFAULT_TARGET, help="GGUF file to write (%(default)s)")
    arguments = parser.parse_args()
    if not os.path.isfile(arguments.source):
        print(f"{arguments.source}: no such file", file=sys.stderr)
        return 1

    reader = GGUFReader(arguments.source)
    architecture = reader.fields["general.architecture"].contents()
    # A half-written file under the final name would look finished to whoever comes next.
    unfinished = arguments.target + ".tmp"
    writer = GGUFWriter(unfinished, architecture)
    copy_metadata(reader, writer)
    add_tensors(reader, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, arguments.target)
    print(f"{arguments.target}: {os.path.getsize(arguments.target)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
