"""Reads and writes .tflite files: the generated schema's objects, constants, operators.

No policy here; what is stored how is decided in `store.py`.
"""

import copy
import io
import math
import zipfile
import zlib
from typing import NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import encoding, wellformed

MAX_RANK = 8  # of LiteRT's operators

DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.BOOL: np.bool_,
}
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items()
              if isinstance(code, int)}


class Constant(NamedTuple):
    """A constant tensor of a file."""

    name: str
    value: np.ndarray  # dense, as a kernel sees it
    is_sparse: bool  # stored with a sparse encoding
    bytes: int  # its values and, where it is sparse, its indices
    scale: np.ndarray | None  # of an int8 weight, broadcastable: it stands for value * scale


def read(tflite):
    """The file's bytes as a schema.ModelT; `write` puts the files behind it back in place.

    Raises:
      ValueError: for what is no TFLite file, or a damaged one.
    """
    wellformed.check(tflite)
    try:
        model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    except Exception as error:  # the options of an operator: whatever the schema's code raises
        raise ValueError(f"The .tflite file is damaged: {error}.") from None
    _check_numbers(model)
    _bring_in(model, tflite)
    model.packed_files = packed_files(tflite)
    return model


def packed_files(tflite):
    """[(zipfile.ZipInfo, content)] of the zip archive behind the flatbuffer, where TFLite Metadata
    puts labels and vocabularies; empty without one."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(tflite))
    except zipfile.BadZipFile:
        return []
    try:
        return [(info, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError("The files packed behind the .tflite file cannot be read: "
                         f"{error}. Unpack them, and pack them again afterwards.") from None


def pack_files(tflite, files):
    """The file with these [(zipfile.ZipInfo, content)] as a zip archive behind it."""
    if not files:
        return tflite
    whole = io.BytesIO(tflite)
    whole.seek(0, io.SEEK_END)
    with zipfile.ZipFile(whole, "w") as archive:  # "a" would take a zip inside a constant for it
        for info, content in files:
            archive.writestr(copy.copy(info), content)
    return whole.getvalue()


def _bring_in(model, tflite):
    """Takes into the flatbuffer what lies behind it, where some writers put large constants."""
    def behind(what, offset, size):
        if offset + size > len(tflite):
            raise ValueError(f"The .tflite file is damaged: {what} at {offset:,} of {size:,} bytes "
                             f"lies outside its {len(tflite):,} bytes.")
        return np.frombuffer(tflite, np.uint8, size, offset)

    for number, buffer in enumerate(model.buffers):
        if buffer.offset > 1:  # 0 and 1 are no places
            buffer.data = behind(f"buffer {number}", buffer.offset, buffer.size)
        buffer.offset = buffer.size = 0
    for graph in model.subgraphs:
        for op in graph.operators:
            if op.largeCustomOptionsOffset > 1:
                op.customOptions = behind("an operator's options", op.largeCustomOptionsOffset,
                                          op.largeCustomOptionsSize)
            op.largeCustomOptionsOffset = op.largeCustomOptionsSize = 0


def _check_numbers(model):
    """Raises ValueError where something is referred to by a number that does not exist."""
    def check(what, numbers, count, least=0):
        for number in _list(numbers):
            if not least <= number < count:
                raise ValueError(f"The .tflite file is damaged: {what} {number} is used, and there "
                                 f"are {count}.")

    if not model.subgraphs or not model.buffers:
        raise ValueError("The .tflite file has no graph or no buffers.")
    for field in ("operatorCodes", "subgraphs", "buffers", "metadata", "signatureDefs"):
        setattr(model, field, _list(getattr(model, field)))
    buffers = len(model.buffers)
    check("buffer", model.metadataBuffer, buffers)
    check("buffer", [m.buffer for m in model.metadata], buffers)
    for graph in model.subgraphs:
        for field in ("tensors", "operators", "inputs", "outputs"):
            setattr(graph, field, _list(getattr(graph, field)))
        tensors = len(graph.tensors)
        check("buffer", [t.buffer for t in graph.tensors], buffers)
        check("tensor", [*graph.inputs, *graph.outputs], tensors)
        check("operator", [op.opcodeIndex for op in graph.operators], len(model.operatorCodes))
        for op in graph.operators:
            op.inputs, op.outputs = _list(op.inputs), _list(op.outputs)
            check("tensor", op.inputs, tensors, least=-1)
            check("tensor", [*op.outputs, *_list(op.intermediates)], tensors, least=-1)
    for signature in model.signatureDefs:
        check("graph", [signature.subgraphIndex], len(model.subgraphs))
        tensors = len(model.subgraphs[signature.subgraphIndex].tensors)
        check("tensor", [t.tensorIndex for t in (signature.inputs or []) +
                         (signature.outputs or [])], tensors)


def write(model):
    """The bytes of a schema.ModelT, without tensors and buffers that nothing uses.

    Raises:
      ValueError: for more than 2 GB, which the format cannot address.
    """
    for index in range(len(model.subgraphs)):
        _drop_unused_tensors(model, index)
    _drop_unused_buffers(model)
    return pack_files(bytes(_built(model).Output()), getattr(model, "packed_files", ()))


def _built(model):
    size = sum(len(b.data) for b in model.buffers if b.data is not None)
    try:
        builder = flatbuffers.Builder(size + 2**16)
        builder.Finish(model.Pack(builder), wellformed.IDENTIFIER)
    except flatbuffers.builder.BuilderSizeError:  # offsets in the file are signed 32-bit integers
        raise ValueError(f"The constants take {size:,} bytes, and a .tflite file cannot be larger "
                         "than 2 GB: quantize the model, or split it.") from None
    return builder


def constants(tflite):
    """The constant tensors of all subgraphs of `tflite` (bytes) that something uses, in the file's
    order."""
    model, result = read(tflite), []
    for index, graph in enumerate(model.subgraphs):
        for tensor in [graph.tensors[used] for used in sorted(_used_tensors(model, index))]:
            value = constant(model, tensor)
            if value is None:
                continue
            size = len(model.buffers[tensor.buffer].data)
            size += 0 if tensor.sparsity is None else encoding.index_bytes(tensor.sparsity)
            result.append(Constant(name(tensor), value, tensor.sparsity is not None, size,
                                   _scale(tensor, value)))
    return result


def constant(model, tensor):
    """The dense value of a constant tensor; None for another, or a dtype that NumPy lacks."""
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or tensor.type not in DTYPES:
        return None
    if len(data) % np.dtype(DTYPES[tensor.type]).itemsize:
        raise ValueError(f"The .tflite file is damaged: the tensor {name(tensor)[:80]!r} has "
                         f"{len(data)} bytes, no whole number of {DTYPES[tensor.type].__name__}.")
    stored = np.frombuffer(np.asarray(data, np.uint8).tobytes(), DTYPES[tensor.type])
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    if len(shape) > MAX_RANK or min(shape, default=1) < 0:
        raise ValueError(f"The .tflite file is damaged: the tensor {name(tensor)[:80]!r} has "
                         f"{len(shape)} dimensions, the least of {min(shape)}.")
    if tensor.sparsity is not None:
        return encoding.decode(stored, tensor.sparsity, shape)
    if math.prod(shape) != stored.size:
        raise ValueError(f"The .tflite file is damaged: the tensor {name(tensor)[:80]!r} of shape "
                         f"{tuple(shape)} has {stored.size} elements.")
    return stored.reshape(shape)


def _scale(tensor, value):
    scale = None if tensor.quantization is None else tensor.quantization.scale
    if scale is None or len(scale) == 0 or value.ndim == 0:
        return None
    if len(scale) == 1:
        return np.float32(scale[0])
    shape = [1] * value.ndim
    channel = tensor.quantization.quantizedDimension
    if not 0 <= channel < value.ndim or value.shape[channel] != len(scale):
        raise ValueError(f"The .tflite file is damaged: {len(scale)} scales along dimension "
                         f"{channel} of {name(tensor)[:80]!r}, whose shape is {value.shape}.")
    shape[channel] = len(scale)
    return np.asarray(scale, np.float32).reshape(shape)


def name(tensor):
    """The tensor's name as text."""
    return "" if tensor.name is None else bytes(tensor.name).decode("utf-8", "replace")


def main_signature(model):
    """The signature of the first graph, which LiteRT runs, or None; of several the one whose key
    comes first."""
    found = [s for s in model.signatureDefs if s.subgraphIndex == 0]
    return min(found, key=signature_key, default=None)


def named_inputs(model):
    """[(name of an input, its schema.TensorT)], as the signature names them; without one, as the
    tensors are named."""
    graph, signature = model.subgraphs[0], main_signature(model)
    if signature is None or not signature.inputs:
        return [(name(graph.tensors[int(t)]), graph.tensors[int(t)]) for t in graph.inputs]
    return [(bytes(port.name or b"").decode("utf-8", "replace"), graph.tensors[port.tensorIndex])
            for port in signature.inputs]


def signature_key(signature):
    """The signature's key as text."""
    return bytes(signature.signatureKey or b"").decode("utf-8", "replace")


def operator(model, op):
    """"CONV_2D" and so on; a custom operator's own name."""
    code = model.operatorCodes[op.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)  # old files have the latter only
    if builtin == schema.BuiltinOperator.CUSTOM:
        return bytes(code.customCode or b"").decode("utf-8", "replace")
    return _OPERATORS.get(builtin, f"operator {builtin}")


def operators(tflite):
    """The names of the operators of all subgraphs of `tflite` (bytes), in the file's order."""
    model = read(tflite)
    return [operator(model, op) for graph in model.subgraphs for op in graph.operators]


def operator_code(model, builtin, version):
    """The index of an operator's code, which is added if the model has none yet."""
    for index, code in enumerate(model.operatorCodes):
        if (max(code.builtinCode, code.deprecatedBuiltinCode) == builtin
                and code.version == version and not code.customCode):
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.version = builtin, version
    code.deprecatedBuiltinCode = min(builtin, 127)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def add_constant(model, array):
    """The index of a new buffer with the array's bytes."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _drop_unused_tensors(model, index):
    graph = model.subgraphs[index]
    if any(t.quantization is not None and t.quantization.details is not None
           for t in graph.tensors):
        return  # blockwise quantization refers to tensors by number
    used = sorted(_used_tensors(model, index))
    place = {old: new for new, old in enumerate(used)}
    graph.tensors = [graph.tensors[old] for old in used]
    lists, named = _references(model, index)
    for owner, field in lists:
        if getattr(owner, field) is not None:
            setattr(owner, field, np.array([place[int(t)] if t >= 0 else -1
                                            for t in getattr(owner, field)], np.int32))
    for tensor in named:
        tensor.tensorIndex = place[tensor.tensorIndex]


def _references(model, index):
    """What refers to tensors of a graph: [(owner, name of its list of numbers)], and the inputs and
    outputs of signatures."""
    graph = model.subgraphs[index]
    signatures = [s for s in model.signatureDefs or [] if s.subgraphIndex == index]
    lists = [(graph, "inputs"), (graph, "outputs")] + [
        (op, field) for op in graph.operators or [] for field in ("inputs", "outputs",
                                                                  "intermediates")]
    return lists, [t for s in signatures for t in (s.inputs or []) + (s.outputs or [])]


def _used_tensors(model, index):
    lists, named = _references(model, index)
    used = {int(t) for owner, field in lists for t in _list(getattr(owner, field)) if t >= 0}
    return used | {t.tensorIndex for t in named}


def _drop_unused_buffers(model):
    users = [t for graph in model.subgraphs for t in graph.tensors] + (model.metadata or [])
    used = sorted({0} | {user.buffer for user in users}
                  | {int(b) for b in _list(model.metadataBuffer)})
    place = {old: new for new, old in enumerate(used)}
    model.buffers = [model.buffers[old] for old in used]
    for user in users:
        user.buffer = place[user.buffer]
    if model.metadataBuffer is not None:
        model.metadataBuffer = np.array([place[int(b)] for b in model.metadataBuffer], np.int32)


def _list(vector):
    return [] if vector is None else vector
