"""Stores the float32 weights of a file sparse, or as int8, each where that makes the file smaller.

A sparse weight is unpacked by a DENSIFY operator and an int8 one by a DEQUANTIZE when the file is
loaded, so that every operator can read it and computes in float32. Blocks of 1x4 in the float32
weight of a FULLY_CONNECTED are left to the runtime's own sparse kernel.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import encoding, flatbuffer

# operator -> which of its inputs is the weight, and the dimension of its output channels
WEIGHTS = {"FULLY_CONNECTED": (1, 0), "CONV_2D": (1, 0), "DEPTHWISE_CONV_2D": (1, 3),
           "TRANSPOSE_CONV": (1, 0), "GATHER": (0, 0)}
OVERHEAD = 256  # bytes that a tensor and an operator to unpack it add to the file, at most
BLOCK = 4  # of the float kernel of FULLY_CONNECTED
NATIVE_VERSION = 8  # of a FULLY_CONNECTED with a sparse weight; XNNPACK takes others for dense
DEQUANTIZE_VERSION = 5  # the first that takes a scale for each channel
# A pattern has blocks if so much of its sparsity is left when only whole blocks count. Below, the
# kernel multiplies zeros and the file stores them.
MINIMUM_OF_BLOCKS = 0.9


def store(tflite, *, sparse=True, int8=False):
    """The file with its weights stored sparse or as int8 where that is smaller.

    Args:
      tflite: bytes of a .tflite file.
      sparse: store weights sparse.
      int8: store weights as int8 too, symmetric, with a scale for each output channel:
        $q = \\mathrm{round}(w / s),\\ s = \\max |w| / 127$. Zeros stay zeros.

    Returns:
      (bytes, number of weights stored sparse). The bytes are those given if no weight gets smaller.
    """
    model = flatbuffer.read(tflite)
    plans, buffers = [], {}  # buffers: what was added for one already, where tensors share it
    for graph in model.subgraphs:
        unpacking = []
        for index, users, channel in _weights(model, graph):
            tensor = graph.tensors[index]
            only_dense_layers = all(
                flatbuffer.operator(model, op) == "FULLY_CONNECTED" for op in users)
            weight = flatbuffer.constant(model, tensor)
            plan = min(_plans(weight, channel, sparse, int8, only_dense_layers),
                       key=lambda plan: plan.bytes)
            if plan.values is None:
                continue
            plans.append(plan)
            key = tensor.buffer, plan.native, channel
            if key not in buffers:
                buffers[key] = flatbuffer.add_constant(model, plan.values)
            if plan.native:
                tensor.buffer, tensor.sparsity = buffers[key], plan.sparsity
                code = flatbuffer.operator_code(
                    model, schema.BuiltinOperator.FULLY_CONNECTED, NATIVE_VERSION)
                for op in users:
                    op.opcodeIndex = code
                continue
            if plan.scale is not None:
                index, op = _dequantize(model, graph, index, plan.scale, channel)
                unpacking.insert(0, op)
            graph.tensors[index].buffer = buffers[key]
            if plan.sparsity is not None:
                unpacking.insert(0, _densify(model, graph, index, plan.sparsity))
        graph.operators = unpacking + graph.operators
    count = sum(plan.sparsity is not None for plan in plans)
    return (flatbuffer.write(model) if plans else tflite), count


class _Plan(NamedTuple):
    """One way to store a weight."""

    bytes: int  # in the file, estimated
    values: np.ndarray | None = None  # None: the weight stays as it is
    sparsity: Any = None
    scale: np.ndarray | None = None  # of int8 values
    native: bool = False  # without DENSIFY


def _plans(weight, channel, sparse, int8, only_dense_layers):
    yield _Plan(weight.nbytes)
    if sparse and only_dense_layers and _fits_kernel(weight):
        encoded = encoding.encode(weight, block=BLOCK)
        yield _Plan(encoded.bytes + OVERHEAD, *encoded, native=True)
        if not int8:
            return  # where the kernel runs, it is the faster one too
    kinds = [(weight, None)] + ([quantized(weight, channel)] if int8 else [])
    for values, scale in kinds:
        # a scale takes 4 bytes and its zero point 8, for each tensor of int8 values
        extra = 0 if scale is None else 12 * scale.size
        encoded = encoding.smallest(values) if sparse else None
        if encoded is not None:
            yield _Plan(encoded.bytes + 2 * extra + OVERHEAD * (1 if scale is None else 2),
                        *encoded, scale)
        if scale is not None:
            yield _Plan(values.nbytes + extra + OVERHEAD, values, scale=scale)


def quantized(weight, channel):
    """(int8 array, float32 scale of each channel); a channel of zeros has the scale 1."""
    axes = tuple(d for d in range(weight.ndim) if d != channel)
    greatest = np.abs(weight).max(axis=axes, keepdims=True)
    scale = np.where(greatest > 0, greatest / np.float32(127), np.float32(1)).astype(np.float32)
    values = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
    return values, scale.reshape(-1)


def dense_twin(tflite):
    """The file with every sparse weight stored dense: what it must compute the same as."""
    model = flatbuffer.read(tflite)
    for graph in model.subgraphs:
        kept = []
        for op in graph.operators or []:
            if flatbuffer.operator(model, op) != "DENSIFY":
                kept.append(op)
                continue
            if len(op.inputs) != 1 or len(op.outputs) != 1 or min(*op.inputs, *op.outputs) < 0:
                raise ValueError("The .tflite file is damaged: a DENSIFY has "
                                 f"{len(op.inputs)} inputs and {len(op.outputs)} outputs.")
            packed, unpacked = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
            value = flatbuffer.constant(model, packed)
            if value is None:
                raise ValueError(f"The input {flatbuffer.name(packed)!r} of a DENSIFY is not a "
                                 "constant.")
            unpacked.buffer = flatbuffer.add_constant(model, value)
        graph.operators = kept
        for tensor in graph.tensors:
            if tensor.sparsity is not None:
                value = flatbuffer.constant(model, tensor)
                if value is not None:
                    tensor.buffer = flatbuffer.add_constant(model, value)
                tensor.sparsity = None
    return flatbuffer.write(model)


def _weights(model, graph):
    """(index, operators that use it, channel dimension) of each tensor that may be changed."""
    ports = {int(t) for t in [*graph.inputs, *graph.outputs]}
    found = {}
    for op in graph.operators or []:
        place, channel = WEIGHTS.get(flatbuffer.operator(model, op), (None, None))
        if place is not None and len(op.inputs) > place:
            found.setdefault(int(op.inputs[place]), ([], channel))[0].append(op)
    for index, (users, channel) in found.items():
        if index < 0 or index in ports:
            continue
        tensor = graph.tensors[index]
        value = flatbuffer.constant(model, tensor)
        if (value is not None and value.ndim >= 2 and value.dtype == np.float32
                and tensor.sparsity is None and not tensor.isVariable):
            others = [op for op in graph.operators if index in op.inputs
                      and all(op is not user for user in users)]
            yield index, users + others, channel


def _fits_kernel(value):
    """Are the zeros of a matrix in blocks of 1x4?"""
    if value.ndim != 2 or value.shape[1] % BLOCK:
        return False
    empty = np.mean((value.reshape(value.shape[0], -1, BLOCK) == 0).all(-1))
    return empty > MINIMUM_OF_BLOCKS * np.mean(value == 0)


def _densify(model, graph, index, sparsity):
    """A DENSIFY in front of tensor `index`, which becomes its output."""
    packed = _move(graph, index, "dense")
    graph.tensors[packed].sparsity = sparsity
    return _operator(model, packed, index, schema.BuiltinOperator.DENSIFY, 1,
                     schema.BuiltinOptions.DensifyOptions, schema.DensifyOptionsT())


def _dequantize(model, graph, index, scale, channel):
    """(the tensor of int8 values, a DEQUANTIZE of it) in front of tensor `index`."""
    values = _move(graph, index, "float32")
    tensor = graph.tensors[values]
    tensor.type = schema.TensorType.INT8
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = scale
    tensor.quantization.zeroPoint = np.zeros(scale.size, np.int64)
    tensor.quantization.quantizedDimension = channel
    return values, _operator(
        model, values, index, schema.BuiltinOperator.DEQUANTIZE, DEQUANTIZE_VERSION,
        schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT())


def _move(graph, index, suffix):
    """Makes tensor `index` one without a constant; returns the copy that keeps it, and its name."""
    computed = graph.tensors[index]
    graph.tensors.append(copy.copy(computed))
    computed.buffer, computed.name = 0, f"{flatbuffer.name(computed)}/{suffix}".encode()
    return len(graph.tensors) - 1


def _operator(model, source, target, builtin, version, kind, options):
    op = schema.OperatorT()
    op.opcodeIndex = flatbuffer.operator_code(model, builtin, version)
    op.inputs, op.outputs = np.array([source], np.int32), np.array([target], np.int32)
    op.builtinOptionsType, op.builtinOptions = kind, options
    return op
