"""Reads a GGUF file with the gguf package: metadata to stdout, values to files.

    python3 read.py FILE FOLDER

Prints a JSON document: `fields` (metadata by key) and `tensors` (name, type, shape, outermost first, and
whether the package knows how to decode it). The decoded values of tensor number N go to FOLDER/N, as
f32 in the byte order of this machine.
"""

import json
import pathlib
import sys

import numpy
from gguf import GGUFReader, quants

reader = GGUFReader(sys.argv[1])
folder = pathlib.Path(sys.argv[2])
tensors = []
for number, tensor in enumerate(reader.tensors):
    try:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        values = None
    if values is not None:
        numpy.ascontiguousarray(values, dtype=numpy.float32).tofile(folder / str(number))
    tensors.append(
        {
            "name": tensor.name,
            "type": tensor.tensor_type.name,
            "shape": [int(size) for size in reversed(tensor.shape)],
            "decoded": values is not None,
        }
    )
fields = {
    key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
}
print(json.dumps({"fields": fields, "tensors": tensors}, default=lambda value: value.item()))
