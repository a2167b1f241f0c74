"""The sparse encoding: by hand, by counting bytes, and back again for any array."""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from tflite_export import encoding


def levels(encoded):
    """[(segments, indices) or size]"""
    return [level.denseSize if level.format == schema.DimensionType.DENSE
            else (level.arraySegments.values.tolist(), level.arrayIndices.values.tolist())
            for level in encoded.sparsity.dimMetadata]


DENSE = np.array([[0, 5, 0, 0], [0, 0, 0, 0], [6, 0, 0, 7]], "float32")


def test_rows_by_hand():
    encoded = encoding.encode(DENSE)
    assert encoded.values.tolist() == [5, 6, 7]
    assert levels(encoded) == [3, ([0, 1, 1, 3], [1, 0, 3])]
    assert encoded.sparsity.traversalOrder.tolist() == [0, 1]
    assert encoded.bytes == 3 * 4 + 4 + 3
    assert encoding.describe(encoded.sparsity) == "CSR"


def test_columns_by_hand():
    encoded = encoding.encode(DENSE, axis=0)
    assert encoded.values.tolist() == [6, 5, 7]
    assert levels(encoded) == [4, ([0, 1, 2, 2, 3], [2, 0, 2])]
    assert encoded.sparsity.traversalOrder.tolist() == [1, 0]
    assert encoding.describe(encoded.sparsity) == "CSR by columns"


def test_blocks_by_hand():
    encoded = encoding.encode(DENSE, block=2)
    assert encoded.values.tolist() == [0, 5, 6, 0, 0, 7]
    assert levels(encoded) == [3, ([0, 1, 1, 3], [0, 0, 1]), 2]
    assert encoded.sparsity.traversalOrder.tolist() == [0, 1, 2]
    assert encoded.sparsity.blockMap.tolist() == [1]
    assert encoding.describe(encoded.sparsity) == "1x2 blocks"


@pytest.mark.parametrize(("columns", "bytes_each"), [(256, 1), (257, 2), (65537, 4)])
def test_indices_take_the_smallest_type(columns, bytes_each):
    dense = np.zeros((1, columns), "int8")
    dense[0, -1] = 1
    assert encoding.encode(dense).bytes == 1 + bytes_each + 2


def test_the_number_of_values_decides_the_type_of_the_segments():
    assert encoding.encode(np.ones((1, 256), "int8")).bytes == 256 + 256 + 2 * 2


def test_columns_are_taken_where_they_need_shorter_indices():
    dense = np.zeros((200, 300), "float32")
    dense[:, ::10] = 1  # 6,000 values: rows take 2 bytes for an index, columns 1
    assert encoding.encode(dense).bytes == 6000 * (4 + 2) + 201 * 2
    best = encoding.smallest(dense)
    assert encoding.describe(best.sparsity) == "CSR by columns"
    assert best.bytes == 6000 * (4 + 1) + 301 * 2
    assert encoding.lower_bound(dense) == 6000 * 5


def test_what_is_not_smaller_is_not_encoded():
    """int8, 4 x 100: n values take 2 n + 5 * 1 or 2 bytes, and 400 dense."""
    dense = np.zeros(400, "int8")
    dense[:197] = 1
    assert encoding.smallest(dense.reshape(4, 100)).bytes == 2 * 197 + 5
    dense[:198] = 1
    assert encoding.smallest(dense.reshape(4, 100)) is None
    assert encoding.smallest(np.zeros((), "float32")) is None
    assert encoding.smallest(np.zeros((3, 0), "float32")) is None


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    dtype = draw(st.sampled_from(["float32", "float16", "int8", "uint8", "int16", "int32"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dense = rng.integers(1, 100, shape).astype(dtype)
    dense[rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))] = 0
    if draw(st.booleans()):
        dense[rng.random(shape[0]) < 0.5] = 0  # empty rows
    return dense


@settings(max_examples=300, deadline=None)
@given(arrays(), st.data())
def test_decoding_gives_the_array_back(dense, data):
    axis = data.draw(st.integers(0, dense.ndim - 1))
    encoded = encoding.encode(dense, axis)
    back = encoding.decode(*encoded, dense.shape)
    assert back.dtype == dense.dtype
    np.testing.assert_array_equal(back, dense)
    nonzeros = max(1, np.count_nonzero(dense))  # a zero is kept where there is nothing else
    rows = dense.size // dense.shape[axis]
    assert encoded.bytes == nonzeros * (dense.itemsize + 1) + (rows + 1) * (
        1 if nonzeros < 256 else 2)  # no dimension here has more than 256 indices

    block = data.draw(st.sampled_from([2, 3, 4]))
    wide = np.repeat(dense, block, axis=-1)
    np.testing.assert_array_equal(
        encoding.decode(*encoding.encode(wide, block=block), wide.shape), wide)
    best = encoding.smallest(dense)
    if best is not None:
        assert encoding.lower_bound(dense) <= best.bytes < dense.nbytes
        np.testing.assert_array_equal(encoding.decode(*best, dense.shape), dense)


def test_minus_zero_is_a_zero_and_nan_is_none():
    encoded = encoding.encode(np.array([-0.0, np.nan, 0.0], "float32"))
    assert len(encoded.values) == 1 and np.isnan(encoded.values[0])


def test_blocks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"multiple of 4. Received: shape \(2, 6\), axis 1"):
        encoding.encode(np.zeros((2, 6)), block=4)
    with pytest.raises(ValueError, match="along the last dimension"):
        encoding.encode(np.zeros((4, 6)), axis=0, block=2)


@pytest.mark.parametrize(("spoil", "what"), [
    (lambda e, s: s.dimMetadata[1].arrayIndices.values.__setitem__(0, 9), "outside it"),
    (lambda e, s: s.dimMetadata[1].arraySegments.values.__setitem__(3, 9), "do not fit its ind"),
    (lambda e, s: s.dimMetadata[1].arraySegments.values.__setitem__(1, 2), "do not fit its ind"),
    (lambda e, s: setattr(s.dimMetadata[0], "denseSize", 4), "dimension 0 has 4 entries, not 3"),
    (lambda e, s: setattr(s, "traversalOrder", np.array([0, 2])), "traversal order"),
    (lambda e, s: setattr(s, "dimMetadata", s.dimMetadata[:1]), "traversal order"),
    (lambda e, s: setattr(s, "blockMap", np.array([1])), "traversal order"),
    (lambda e, s: setattr(s.dimMetadata[1], "arrayIndices", None), "has no indices"),
    (lambda e, s: e.resize(2, refcheck=False), "2 values for 3 places"),
])
def test_what_is_no_encoding_is_refused(spoil, what):
    values, sparsity = encoding.encode(DENSE)
    values = values.copy()
    spoil(values, sparsity)
    if what == "do not fit its ind" and sparsity.dimMetadata[1].arraySegments.values[1] == 2:
        sparsity.dimMetadata[1].arraySegments.values[2] = 1  # falls
    with pytest.raises(ValueError, match=f"Not a sparse encoding of TFLite: .*{what}"):
        encoding.decode(values, sparsity, DENSE.shape)
