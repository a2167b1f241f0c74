"""Reads the constants of a .tflite file, sparse ones decoded; no policy, NumPy only.

The sparse encoding (`SparsityParameters` of the TFLite schema) is a tree of levels: the dimensions
of the tensor in `traversalOrder`, then those of the blocks if there are any. A level is DENSE
(every index of 0..denseSize-1 is there) or SPARSE_CSR (`arraySegments[i]:arraySegments[i + 1]` are
the places in `arrayIndices` of the children of node i). The leaves, in order, own the values.
"""

from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_DTYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT16: np.int16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.BOOL: np.bool_,
}


class Constant(NamedTuple):
    """A constant tensor of a file."""

    name: str
    value: np.ndarray  # dense, as a kernel sees it
    is_sparse: bool  # stored with a sparse encoding
    bytes: int  # its values and, where it is sparse, its indices


def constants(tflite):
    """The constant tensors of all subgraphs of `tflite` (bytes), in the file's order."""
    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    result = []
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or len(data) == 0 or tensor.type not in _DTYPES:
                continue
            stored = np.frombuffer(np.asarray(data, np.uint8).tobytes(), _DTYPES[tensor.type])
            shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
            value = (
                stored.reshape(shape)
                if tensor.sparsity is None
                else decode(stored, shape, tensor.sparsity)
            )
            size = stored.nbytes + (0 if tensor.sparsity is None else _index_bytes(tensor.sparsity))
            result.append(Constant(tensor.name.decode(), value, tensor.sparsity is not None, size))
    return result


def decode(stored, shape, sparsity):
    """The dense array of `shape` encoded by `stored` and `sparsity` (a SparsityParametersT)."""
    rank = len(shape)
    order = [int(d) for d in sparsity.traversalOrder]
    blocked = [] if sparsity.blockMap is None else [int(d) for d in sparsity.blockMap]
    index = {}  # dimension -> its coordinate at each node of the level
    nodes = 1
    for dimension, level in zip(order, sparsity.dimMetadata):
        if level.format == schema.DimensionType.DENSE:
            children = np.full(nodes, level.denseSize)
            coordinate = np.tile(np.arange(level.denseSize), nodes)
        else:
            children = np.diff(np.asarray(level.arraySegments.values, np.int64))
            coordinate = np.asarray(level.arrayIndices.values, np.int64)
        index = {d: np.repeat(c, children) for d, c in index.items()}
        index[dimension] = coordinate
        nodes = len(coordinate)
    for i, dimension in enumerate(blocked):  # block dimension rank + i subdivides this one
        block = sparsity.dimMetadata[order.index(rank + i)].denseSize
        index[dimension] = index[dimension] * block + index[rank + i]
    dense = np.zeros(shape, stored.dtype)
    dense[tuple(index[d] for d in range(rank))] = stored
    return dense


def _index_bytes(sparsity):
    levels = [level for level in sparsity.dimMetadata if level.format != schema.DimensionType.DENSE]
    return sum(
        np.asarray(v.values).nbytes
        for level in levels
        for v in (level.arraySegments, level.arrayIndices)
    )
