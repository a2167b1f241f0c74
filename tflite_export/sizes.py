"""What a float32 file would take with its constants in another dtype, raw and zipped.

The bytes are those of a real file whose values are rounded, so that compressing it means
something; it is not made to be run.
"""

import zlib
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import flatbuffer, store, weights

FLOAT32, GIVEN = "float32, dense", "the file given"
ZIP_LEVEL = 6  # what zip tools take unless told; level 9 takes many times as long with many zeros
SMALL = 1024  # TensorFlow's converter leaves smaller weights alone in dynamic-range quantization


class Size(NamedTuple):
    """The size of a file, in bytes."""

    file: str
    bytes: int
    zipped: int  # after zlib at ZIP_LEVEL


def size(name, tflite):
    """The Size of a file."""
    return Size(name, len(tflite), len(zlib.compress(tflite, ZIP_LEVEL)))


def other_constants(tflite):
    """The bytes of all constants that are no weights: biases, tables, shapes."""
    model = flatbuffer.read(tflite)
    buffers = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    buffers -= {weight.tensor.buffer for weight in weights.find(model)}
    contents = [model.buffers[buffer].data for buffer in buffers]
    return sum(len(content) for content in contents if content is not None)


def dense_sizes(tflite, measured=None):
    """Sizes of a dense file and, if it is a float32 one, of it with float16 and int8 constants,
    but for the mode of quantization that is `measured`, of which there is a real file."""
    if not _is_float32(tflite):
        return (size(GIVEN, tflite),)
    computed = {"float16": ("float16", _float16), "int8": ("int8", _int8),
                "dynamic": ("dynamic range", lambda file: _int8(file, SMALL))}
    return (size(FLOAT32, tflite),
            *(size(f"{name}, dense (computed)", rounded(tflite))
              for mode, (name, rounded) in computed.items() if mode != measured))


def given(tflite):
    """What the dense file is called in a sentence."""
    return "the dense float32 file" if _is_float32(tflite) else "the file given"


def _is_float32(tflite):
    return all(weight.value.dtype == np.float32
               for weight in weights.find(flatbuffer.read(tflite)))


def _float16(tflite):
    model = flatbuffer.read(tflite)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            value = flatbuffer.constant(model, tensor)
            if value is not None and value.dtype == np.float32:
                with np.errstate(over="ignore"):
                    tensor.buffer = flatbuffer.add_constant(model, value.astype(np.float16))
                tensor.type = schema.TensorType.FLOAT16
    return flatbuffer.write(model)


def _int8(tflite, least=0):
    """With int8 weights of at least `least` elements."""
    model = flatbuffer.read(tflite)
    for weight in weights.find(model):
        if weight.value.dtype == np.float32 and weight.value.size >= least:
            values, scale = store.quantized(weight.value, weight.channel)
            tensor = weight.tensor
            tensor.buffer, tensor.type = flatbuffer.add_constant(model, values), (
                schema.TensorType.INT8)
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = scale
            tensor.quantization.zeroPoint = np.zeros(scale.size, np.int64)
            tensor.quantization.quantizedDimension = weight.channel
    return flatbuffer.write(model)
