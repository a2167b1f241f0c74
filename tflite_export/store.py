"""How each weight of a file is stored: the encoding that its policy prefers, and only that.

`quantize="int8_weights"` stores float32 weights as int8 with a scale for each output channel.
DENSIFY and DEQUANTIZE unpack them when the file is loaded, so that every operator can read them and
computes in float32. What a kernel of FULLY_CONNECTED can read sparse has neither.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import encoding, flatbuffer, kernels, weights, xnnpack

# Bytes that a tensor and an operator to unpack it add to the file, at most, beside the tensor's
# name, which is written once more; and that a new kind of operator adds, once.
OVERHEAD, OVERHEAD_OF_FILE = 256, 64
DEQUANTIZE_VERSION = 5  # the first that takes a scale for each channel


class Policy(NamedTuple):
    """What may be done to a file's weights; `convert` explains the values."""

    sparse: str | bool = "auto"  # "auto", "size", "speed" or False
    int8: bool = False  # store float32 weights as int8
    runtime: str = "litert"
    # "speed" unpacks only these: keys of weights that XNNPACK runs sparse after unpacking
    fast: frozenset = frozenset()


class Stored(NamedTuple):
    """What became of a file."""

    tflite: bytes  # the bytes given, if no weight is stored in another way
    sparse: int  # number of weights stored sparse


def store(tflite, policy=Policy()):
    """The file with its weights stored as `policy` says.

    Args:
        tflite: bytes of a .tflite file.
        policy: Policy.

    Returns:
        Stored.
    """
    model = flatbuffer.read(tflite)
    plans, buffers = [], {}  # buffers: what was added for one already, where tensors share it
    unpacking = {id(graph): [] for graph in model.subgraphs}
    for weight in weights.find(model):
        tensor = weight.tensor
        plan = None if tensor.sparsity is not None else _choose(weight, policy)
        if plan is None:
            continue
        plans.append(plan)
        key = tensor.buffer, plan.kind, weight.channel, weight.value.shape
        if key not in buffers:
            buffers[key] = flatbuffer.add_constant(model, plan.values)
        if plan.kind == "native":
            tensor.buffer, tensor.sparsity = buffers[key], plan.sparsity
            code = flatbuffer.operator_code(
                model, schema.BuiltinOperator.FULLY_CONNECTED, xnnpack.NATIVE_VERSION)
            for op in weight.users:
                op.opcodeIndex = code
            continue
        index, before = weight.index, unpacking[id(weight.graph)]
        if plan.scale is not None:
            index, op = _dequantize(model, weight.graph, index, plan.scale, weight.channel)
            before.insert(0, op)
        weight.graph.tensors[index].buffer = buffers[key]
        if plan.sparsity is not None:
            before.insert(0, _densify(model, weight.graph, index, plan.sparsity))
    for graph in model.subgraphs:
        graph.operators = unpacking[id(graph)] + graph.operators
    count = sum(plan.sparsity is not None for plan in plans)
    return Stored(flatbuffer.write(model) if plans else tflite, count)


class _Plan(NamedTuple):
    """One way to store a weight that is not the way it is stored."""

    kind: str  # "native", "unpacked", "int8" or "unpacked int8"
    bytes: int  # in the file, estimated
    values: np.ndarray
    sparsity: Any = None
    scale: np.ndarray | None = None  # of int8 values


def _choose(weight, policy):
    """The _Plan for a weight; None: it stays as it is."""
    plans = [plan for plan in _plans(weight, policy) if plan.bytes < weight.value.nbytes]
    faster = [plan for plan in plans if plan.kind == "native"]
    if faster and (policy.sparse == "speed" or policy.sparse == "auto" and not policy.int8):
        return faster[0]
    return min(plans, key=lambda plan: plan.bytes, default=None)


def _plans(weight, policy):
    added = overhead(weight)
    kernel, refused = kernels.native(weight, policy.runtime)
    if policy.sparse and refused is None and (
            policy.sparse == "size" or pays(weight, kernel)):
        encoded = encoding.encode(weight.value, block=kernel.block)
        yield _Plan("native", encoded.bytes + OVERHEAD, *encoded)
    unpack = (policy.sparse in ("auto", "size") or weight.key in policy.fast) and (
        kernels.unpackable(weight, policy.runtime) is None)
    encoded = encoding.smallest(weight.value) if unpack else None
    if encoded is not None:
        yield _Plan("unpacked", encoded.bytes + added, *encoded)
    if policy.int8 and weight.value.dtype == np.float32:
        values, scale = quantized(weight.value, weight.channel)
        extra = 12 * scale.size  # a scale takes 4 bytes and its zero point 8, for each tensor
        yield _Plan("int8", values.nbytes + extra + added, values, scale=scale)
        unpack = unpack and kernels.before_dequantize(weight) is None
        encoded = encoding.smallest(values) if unpack else None
        if encoded is not None:
            yield _Plan("unpacked int8", encoded.bytes + 2 * extra + 2 * added, *encoded, scale)


def overhead(weight):
    """Bytes that an operator which unpacks the weight, and its tensor, take besides the values."""
    return OVERHEAD + len(weight.name.encode())


def pays(weight, kernel):
    """Whether a native kernel is faster than the dense one at this weight's empty blocks, to the
    nearest block: pruning to exactly that fraction suffices."""
    count = weight.value.size // kernel.block
    empty = kernels.empty_blocks(weight.value, kernel.block)
    return round(empty * count) >= round(least_empty(weight, kernel) * count)


def least_empty(weight, kernel):
    """The fraction of empty blocks from which a native kernel is the faster one."""
    return kernel.faster_from if weight.rows <= 1 else kernel.faster_from_rows


def quantized(weight, channel):
    """(int8 array, float32 scale of each channel): $q = \\mathrm{round}(w / s)$ with
    $s = \\max |w| / 127$. Zeros stay zeros; a channel without normal scale has the scale 1."""
    axes = tuple(d for d in range(weight.ndim) if d != channel)
    scale = (np.abs(weight).max(axis=axes, keepdims=True) / np.float32(127)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1  # 0, or so small that it has few digits
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


def dense_file(tflite):
    """The dense twin with the dense kernels that its layers would have had: `dense_twin` keeps the
    version that tells XNNPACK to leave a layer alone, so that both compute with the same
    kernels."""
    model = flatbuffer.read(dense_twin(tflite))
    for graph in model.subgraphs:
        for op in graph.operators or []:
            code = model.operatorCodes[op.opcodeIndex]
            if (flatbuffer.operator(model, op) == "FULLY_CONNECTED"
                    and code.version == xnnpack.NATIVE_VERSION):
                op.opcodeIndex = flatbuffer.operator_code(
                    model, schema.BuiltinOperator.FULLY_CONNECTED, _dense_version(graph, op))
    return flatbuffer.write(model)


def _dense_version(graph, op):
    """The version of FULLY_CONNECTED that a dense weight asks for."""
    data, weight = (graph.tensors[int(index)] for index in op.inputs[:2])
    if weight.type != schema.TensorType.INT8 or data.type != schema.TensorType.FLOAT32:
        return 4
    if len(weight.quantization.scale) > 1:
        return 12
    return 9 if op.builtinOptions.asymmetricQuantizeInputs else 3


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
