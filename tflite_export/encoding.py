"""The sparse encoding of one tensor: a dense array to values and indices, and back.

`SparsityParameters` of the TFLite schema is a tree of levels: the dimensions of the tensor in
`traversalOrder`, then those inside a block if there are any. A level is DENSE (every index of
0..denseSize-1 is there) or SPARSE_CSR (`arraySegments[i]:arraySegments[i + 1]` are the places in
`arrayIndices` of the children of node i). The leaves, in order, own the values.

What is written here has one SPARSE_CSR level, along one dimension of the tensor. NumPy and the
generated schema only; what a runtime makes of an encoding is known to `kernels.py`.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

INDEX_TYPES = (  # the smallest that holds the greatest index is taken
    (np.uint8, schema.SparseIndexVector.Uint8Vector, schema.Uint8VectorT),
    (np.uint16, schema.SparseIndexVector.Uint16Vector, schema.Uint16VectorT),
    (np.int32, schema.SparseIndexVector.Int32Vector, schema.Int32VectorT),
)
LIMIT = 2**31 - 1  # bytes of a tensor


class Encoded(NamedTuple):
    """A tensor as the file stores it."""

    values: np.ndarray  # one-dimensional: those of the kept blocks
    sparsity: Any  # schema.SparsityParametersT

    @property
    def bytes(self):
        """Of values, segments and indices."""
        return self.values.nbytes + index_bytes(self.sparsity)


def encode(dense, axis=-1, block=1):
    """`dense` with a SPARSE_CSR level along `axis`, which is traversed last.

    Args:
      dense: array of rank 1 or more, without dimensions of size 0.
      axis: the dimension whose indices are stored.
      block: how many consecutive elements along the last dimension are kept or left out together;
        more than 1 needs `axis` to be the last, and a multiple of `block` elements along it.

    Returns:
      Encoded. `-0.0` is a zero, and comes back as `0.0`; NaN is none. Of an array of zeros the
      first one is kept.

    Raises:
      ValueError: for a block that does not fit.

    Example:

    ```python
    import numpy as np
    from tflite_export import encoding
    encoded = encoding.encode(np.array([[0, 5, 0, 0], [0, 0, 0, 7]], "int8"))
    assert encoded.values.tolist() == [5, 7]
    assert encoded.bytes == 2 * (1 + 1) + 3  # values, their columns, where the two rows begin
    ```
    """
    dense = np.asarray(dense)
    rank, axis = dense.ndim, axis % dense.ndim
    if block > 1 and (axis != rank - 1 or dense.shape[-1] % block):
        raise ValueError(f"Blocks of 1x{block} lie along the last dimension, which must be a "
                         f"multiple of {block}. Received: shape {dense.shape}, axis {axis}")
    order = [d for d in range(rank) if d != axis] + [axis]
    rows = dense.transpose(order).reshape(-1, dense.shape[axis] // block, block)
    kept = (rows != 0).any(axis=-1)
    if not kept.any():
        kept.flat[:1] = True  # a constant without values is none for the runtimes
    segments = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])

    parameters = schema.SparsityParametersT()
    levels = [_dense_level(dense.shape[d]) for d in order[:-1]]
    levels.append(_csr_level(segments, np.nonzero(kept)[1]))
    if block > 1:
        order.append(rank)
        parameters.blockMap = np.array([axis], np.int32)
        levels.append(_dense_level(block))
    parameters.traversalOrder, parameters.dimMetadata = np.array(order, np.int32), levels
    return Encoded(np.ascontiguousarray(rows[kept].ravel()), parameters)


def smallest(dense):
    """The smallest encoding without blocks, by rows or by columns; None if none is smaller than
    the dense array.

    By columns pays where the last dimension has more than 256 indices and another has not: an
    index then takes one byte.
    """
    dense = np.asarray(dense)
    if dense.size == 0 or dense.ndim == 0:
        return None
    candidates = [encode(dense, axis) for axis in {0, dense.ndim - 1}]
    best = min(candidates, key=lambda encoded: encoded.bytes)
    return best if best.bytes < dense.nbytes else None


def lower_bound(dense):
    """Bytes of the best CSR encoding there could be: each non-zero value with the shortest index
    of its place along the last or the first dimension, without segments."""
    dense = np.asarray(dense)
    index = min(_index_dtype(dense.shape[axis] - 1).itemsize for axis in (0, -1))
    return int(np.count_nonzero(dense)) * (dense.itemsize + index)


def decode(values, sparsity, shape):
    """The dense array that `values` and `sparsity` stand for, whoever has written them.

    Args:
      values: one-dimensional array.
      sparsity: schema.SparsityParametersT.
      shape: of the dense array.

    Raises:
      ValueError: for an encoding that is not consistent.
    """
    rank = len(shape)
    order = [int(d) for d in _list(sparsity.traversalOrder)]
    blocked = [int(d) for d in _list(sparsity.blockMap)]
    levels = _list(sparsity.dimMetadata)
    _expect(sorted(order) == list(range(rank + len(blocked))) and len(levels) == len(order)
            and all(0 <= d < rank for d in blocked),
            f"traversal order {order[:9]} with block map {blocked[:9]} does not fit shape "
            f"{tuple(shape)}")
    sizes = {rank + i: _block_size(levels[order.index(rank + i)]) for i in range(len(blocked))}
    sizes.update({d: size // math.prod(sizes[rank + i] for i, b in enumerate(blocked) if b == d)
                  for d, size in enumerate(shape)})
    size = math.prod(shape) * values.itemsize
    _expect(size <= LIMIT, f"it would take {size:,} bytes unpacked, more than 2 GB")
    # Every node of a level has a segment of the next one, or is a value: more cannot be right.
    most = max([len(values), *(len(_vector(level.arraySegments)) for level in levels
                               if level.format != schema.DimensionType.DENSE)])
    index, nodes = {}, 1  # dimension -> its coordinate at each node of the level
    for dimension, level in zip(order, levels):
        if level.format == schema.DimensionType.DENSE:
            _expect(level.denseSize == sizes[dimension],
                    f"dimension {dimension} has {level.denseSize} entries, not {sizes[dimension]}")
            _expect(nodes * level.denseSize <= most, f"there are {most} values and segments for "
                    f"{nodes * level.denseSize} places")
            children = np.full(nodes, level.denseSize)
            coordinate = np.tile(np.arange(level.denseSize), nodes)
        else:
            segments, coordinate = _vector(level.arraySegments), _vector(level.arrayIndices)
            children = np.diff(segments)
            _expect(len(children) == nodes and segments[0] == 0 and (children >= 0).all()
                    and segments[-1] == len(coordinate),
                    f"the segments of dimension {dimension} do not fit its indices")
            _expect(coordinate.size == 0 or 0 <= coordinate.min()
                    and coordinate.max() < sizes[dimension],
                    f"an index of dimension {dimension} is outside it")
        index = {d: np.repeat(c, children) for d, c in index.items()}
        index[dimension] = coordinate
        nodes = len(coordinate)
    _expect(nodes == len(values), f"{len(values)} values for {nodes} places")
    for i, dimension in enumerate(blocked):
        index[dimension] = index[dimension] * sizes[rank + i] + index[rank + i]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(index[d] for d in range(rank))] = values
    return dense


def index_bytes(sparsity):
    """Bytes of the segments and indices."""
    return sum(np.asarray(vector.values).nbytes for level in sparsity.dimMetadata
               if level.format != schema.DimensionType.DENSE
               for vector in (level.arraySegments, level.arrayIndices))


def describe(sparsity):
    """One word: "CSR", "CSR by columns", "1x4 blocks", or the levels of a foreign encoding."""
    order, blocked = _list(sparsity.traversalOrder), _list(sparsity.blockMap)
    formats = [level.format for level in sparsity.dimMetadata]
    rank = len(order) - len(blocked)
    csr = [i for i, f in enumerate(formats) if f != schema.DimensionType.DENSE]
    if csr == [rank - 1] and not len(blocked):
        return "CSR" if order[rank - 1] == rank - 1 else "CSR by columns"
    if csr == [rank - 1] and [int(d) for d in blocked] == [rank - 1]:
        return f"1x{sparsity.dimMetadata[rank].denseSize} blocks"
    names = ["DENSE" if f == schema.DimensionType.DENSE else "CSR" for f in formats]
    return f"{' '.join(names)} in the order {' '.join(str(int(d)) for d in order)}"


def _index_dtype(greatest):
    return np.dtype(next(t for t, _, _ in INDEX_TYPES if greatest <= np.iinfo(t).max))


def _index_vector(indices):
    greatest = int(indices.max(initial=0))
    for dtype, kind, make in INDEX_TYPES:
        if greatest <= np.iinfo(dtype).max:
            vector = make()
            vector.values = indices.astype(dtype)
            return kind, vector
    raise ValueError(f"{greatest} non-zero values are more than an index of the format can count.")


def _dense_level(size):
    level = schema.DimensionMetadataT()
    level.format, level.denseSize = schema.DimensionType.DENSE, int(size)
    return level


def _csr_level(segments, indices):
    level = schema.DimensionMetadataT()
    level.format, level.denseSize = schema.DimensionType.SPARSE_CSR, 0
    level.arraySegmentsType, level.arraySegments = _index_vector(segments)
    level.arrayIndicesType, level.arrayIndices = _index_vector(indices)
    return level


def _block_size(level):
    _expect(level.format == schema.DimensionType.DENSE and level.denseSize > 0,
            "the inside of a block is not dense")
    return level.denseSize


def _vector(vector):
    _expect(vector is not None and vector.values is not None, "a sparse level has no indices")
    return np.asarray(vector.values, np.int64)


def _list(vector):
    return [] if vector is None else vector


def _expect(condition, what):
    if not condition:
        raise ValueError(f"Not a sparse encoding of TFLite: {what}.")
