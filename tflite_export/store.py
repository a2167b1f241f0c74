"""Stores the float32 weights of a file sparse, each where that makes the file smaller.

A weight is unpacked by a DENSIFY operator when the file is loaded, which every operator can read
from, or, for blocks of 1x4 in a FULLY_CONNECTED, is left to the runtime's own sparse kernel.
"""

import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import encoding, flatbuffer

# operator -> which of its inputs is the weight
WEIGHTS = {"FULLY_CONNECTED": 1, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1,
           "GATHER": 0}
OVERHEAD = 256  # bytes that an encoded tensor and its DENSIFY add to the file, at most
BLOCK = 4  # of the float kernel of FULLY_CONNECTED
NATIVE_VERSION = 8  # of a FULLY_CONNECTED with a sparse weight; XNNPACK takes others for dense
# A pattern has blocks if so much of its sparsity is left when only whole blocks count. Below, the
# kernel multiplies zeros and the file stores them.
MINIMUM_OF_BLOCKS = 0.9


def store_sparse(tflite):
    """The file with its weights stored sparse where that is smaller, and how many they are.

    Args:
      tflite: bytes of a .tflite file.

    Returns:
      (bytes, int). The bytes are those given if no weight gets smaller.
    """
    model, count = flatbuffer.read(tflite), 0
    buffers = {}  # buffer of a dense weight -> that of its values, for tensors that share it
    for graph in model.subgraphs:
        densify = []
        for index, users in _weights(model, graph):
            tensor = graph.tensors[index]
            value = flatbuffer.constant(model, tensor)
            native = _fits_kernel(value) and all(
                flatbuffer.operator(model, op) == "FULLY_CONNECTED" for op in users)
            encoded = encoding.encode(value, block=BLOCK) if native else encoding.smallest(value)
            if encoded is None or encoded.bytes + OVERHEAD >= value.nbytes:
                continue
            count += 1
            key = tensor.buffer, native
            if key not in buffers:
                buffers[key] = flatbuffer.add_constant(model, encoded.values)
            if native:
                tensor.buffer, tensor.sparsity = buffers[key], encoded.sparsity
                code = flatbuffer.operator_code(
                    model, schema.BuiltinOperator.FULLY_CONNECTED, NATIVE_VERSION)
                for op in users:
                    op.opcodeIndex = code
            else:
                densify.append(_densify(model, graph, index, buffers[key], encoded.sparsity))
        graph.operators = densify + graph.operators
    return (flatbuffer.write(model), count) if count else (tflite, 0)


def _weights(model, graph):
    """(index, operators that use it) of each tensor that may be stored sparse."""
    ports = {int(t) for t in [*graph.inputs, *graph.outputs]}
    found = {}
    for op in graph.operators or []:
        place = WEIGHTS.get(flatbuffer.operator(model, op))
        if place is not None and len(op.inputs) > place:
            found.setdefault(int(op.inputs[place]), []).append(op)
    for index, users in found.items():
        if index < 0 or index in ports:
            continue
        tensor = graph.tensors[index]
        value = flatbuffer.constant(model, tensor)
        if (value is not None and value.ndim >= 2 and value.dtype == np.float32
                and tensor.sparsity is None and not tensor.isVariable):
            others = [op for op in graph.operators if index in op.inputs
                      and all(op is not user for user in users)]
            yield index, users + others


def _fits_kernel(value):
    """Are the zeros of a matrix in blocks of 1x4?"""
    if value.ndim != 2 or value.shape[1] % BLOCK:
        return False
    empty = np.mean((value.reshape(value.shape[0], -1, BLOCK) == 0).all(-1))
    return empty > MINIMUM_OF_BLOCKS * np.mean(value == 0)


def _densify(model, graph, index, buffer, sparsity):
    """Turns tensor `index` into the output of a DENSIFY, which is returned."""
    unpacked = graph.tensors[index]
    packed = copy.copy(unpacked)
    packed.buffer, packed.sparsity = buffer, sparsity
    unpacked.buffer, unpacked.name = 0, f"{flatbuffer.name(unpacked)}/dense".encode()
    graph.tensors.append(packed)
    op = schema.OperatorT()
    op.opcodeIndex = flatbuffer.operator_code(model, schema.BuiltinOperator.DENSIFY, 1)
    op.inputs = np.array([len(graph.tensors) - 1], np.int32)
    op.outputs = np.array([index], np.int32)
    op.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    op.builtinOptions = schema.DensifyOptionsT()
    return op
