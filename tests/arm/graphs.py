"""The graphs of the ARM matrix: what XNNPACK's rewrite takes, leaves and gets wrong.

`CLUSTERS` are dense float graphs, stored sparse by the matrix as float32 and as int8. `ENCODINGS`
are files with one weight encoded by hand. `random_cluster(seed)` draws a graph. Sizes are small,
yet large enough that no dimension is mistaken for another.
"""

import copy
import functools

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from arm.builder import Builder
from tflite_export import encoding, flatbuffer, store
from tflite_export.graph import ELEMENTWISE

CLUSTERS, ENCODINGS = {}, {}
SEED, DRAWN = 2026, 24  # of the random graphs


def _cluster(function):
    CLUSTERS[function.__name__] = function
    return function


def _begin(*shape, **arguments):
    """(builder, output of a stem and a depthwise convolution)"""
    b = Builder(**arguments)
    x = b.stem(b.input(*(shape or (1, 32, 32, 3))))
    return b, b.depthwise(x, activation="RELU6")


def _end(b, x, *others):
    """Two 1x1 convolutions, the global mean and a dense layer."""
    x = b.conv(b.conv(x, 48, activation="RELU6"), 32)
    return b.finish(b.dense(b.mean(x), 10), *others)


# Right and sparse.

@_cluster
def plain():
    return _end(*_begin())


@_cluster
def batch_of_two():
    return _end(*_begin(2, 32, 32, 3))


@_cluster
def odd_sizes():
    return _end(*_begin(1, 33, 47, 3))


@_cluster
def residual():
    b, x = _begin()
    x = b.conv(x, 32)
    y = b.conv(b.depthwise(b.conv(x, 64, activation="RELU6"), activation="RELU6"), 32)
    return _end(b, b.binary("ADD", x, y))


@_cluster
def squeeze_excite():
    b, x = _begin(2, 32, 32, 3)
    return _end(b, b.squeeze_excite(b.conv(x, 32, activation="RELU6")))


@_cluster
def strided_depthwise():
    b, x = _begin()
    x = b.depthwise(b.pad(b.conv(x, 32)), 3, 2, "VALID", "RELU6")
    return _end(b, b.depthwise(b.pad(b.conv(x, 32), 2, 2, 2, 2), 5, 2, "VALID"))


@_cluster
def depthwise_5x5():
    b, x = _begin(1, 33, 31, 3)
    return _end(b, b.depthwise(b.conv(x, 32, activation="RELU"), 5, activation="RELU6"))


@_cluster
def hard_swish():
    b, x = _begin()
    return _end(b, b.unary("HARD_SWISH", b.conv(x, 32)))


@_cluster
def many_unary_operators():
    b, x = _begin()
    for kind in ("LOGISTIC", "ELU", "ABS", "TANH", "NEG"):
        x = b.unary(kind, b.conv(x, 24))
    return _end(b, x)


@_cluster
def resized():
    b, x = _begin()
    return _end(b, b.resize(b.conv(x, 32), 24, 24))


@_cluster
def depth_to_space():
    b, x = _begin()
    return b.finish(b.depth_to_space(b.conv(b.conv(x, 48, activation="RELU6"), 16)))


@_cluster
def rescaled_input():
    b = Builder()
    x = b.binary("MUL", b.input(1, 32, 32, 3), b.constant(np.float32(0.5)))
    x = b.binary("SUB", x, b.constant(np.array([0.1, 0.2, 0.3], np.float32)))
    return _end(b, b.depthwise(b.stem(x)))


@_cluster
def sum_instead_of_mean():
    b, x = _begin()
    return b.finish(b.dense(b.mean(b.conv(b.conv(x, 48), 32), kind="SUM"), 10))


@_cluster
def pointwise_dense():
    b, x = _begin()
    x = b.dense(x, 48, keep_num_dims=True, zeros=0.9, activation="RELU")
    return _end(b, x)


@_cluster
def barrier_before_dense():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32))
    return b.finish(b.dense(b.reshape(x, 1, 32), 400))


@_cluster
def large_dense_head():
    b, x = _begin()
    return b.finish(b.dense(b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32)), 400))


@_cluster
def softmax_after_the_head():
    b, x = _begin()
    x = b.dense(b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32)), 10)
    return b.finish(b.add("SOFTMAX", [x], b.shape(x), "SoftmaxOptions", beta=1.0))


@_cluster
def two_heads():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32))
    return b.finish(b.dense(x, 10), b.dense(x, 3))


@_cluster
def pooled_output():
    b, x = _begin()
    return b.finish(b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32)))


@_cluster
def pooled_output_of_rank_4():
    b, x = _begin()
    return b.finish(b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True))


@_cluster
def two_means():
    b, x = _begin()
    x = b.conv(x, 48, activation="RELU6")
    return b.finish(b.dense(b.mean(x), 10), b.dense(b.mean(b.conv(x, 32)), 10))


@_cluster
def two_images():
    b = Builder()
    towers = [b.mean(b.conv(b.depthwise(b.stem(b.input(1, 32, 32, 3))), 48)) for _ in range(2)]
    return b.finish(b.dense(b.concatenate(*towers, axis=1), 10))


@_cluster
def two_branches_of_one_image():
    b = Builder()
    image = b.input(1, 32, 32, 3)
    towers = [b.mean(b.conv(b.depthwise(b.stem(image)), 48)) for _ in range(2)]
    return b.finish(b.dense(b.concatenate(*towers, axis=1), 10))


@_cluster
def hard_sigmoid_by_scalars():
    """As Keras writes squeeze-excite with a hard sigmoid, with scalars of rank 4."""
    b, x = _begin()
    x = b.conv(x, 32, activation="RELU6")
    y = b.conv(b.conv(b.mean(x, keepdims=True), 8, activation="RELU"), 32)
    y = b.binary("ADD", y, b.constant(np.full((1, 1, 1, 1), 3, np.float32)), "RELU6")
    y = b.binary("MUL", y, b.constant(np.full((1, 1, 1, 1), 1 / 6, np.float32)))
    return _end(b, b.binary("MUL", x, y))


@_cluster
def just_over_two_thirds():
    return _end(*_begin(zeros=0.68))


def _unary(kind):
    def graph():
        b, x = _begin()
        return _end(b, b.unary(kind, b.conv(x, 24, activation="RELU6")))
    CLUSTERS[f"unary_{kind.lower()}"] = graph


for _kind in sorted(ELEMENTWISE):
    if _kind not in ("RSQRT", "SQRT"):  # of values that may be 0 or below
        _unary(_kind)


@_cluster
def gate_for_each_place():
    """Spatial attention: a product with one channel."""
    b, x = _begin(2, 30, 32, 3)
    x = b.conv(x, 32, activation="RELU6")
    return _end(b, b.binary("MUL", x, b.unary("LOGISTIC", b.conv(x, 1))))


@_cluster
def vector_of_rank_4_where_all_sizes_agree():
    b, x = _begin(1, 32, 32, 3)
    x = b.conv(x, 16, activation="RELU6")
    vector = np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(1, 1, 1, 16)
    x = b.binary("MUL", b.constant(vector), x)
    return _end(b, b.binary("ADD", b.constant(vector), x))


@_cluster
def vector_of_rank_4_for_a_batch():
    b, x = _begin(3, 32, 32, 3)
    x = b.conv(x, 24, activation="RELU6")
    vector = np.linspace(0.5, 1.5, 24, dtype=np.float32).reshape(1, 1, 1, 24)
    return _end(b, b.binary("MUL", b.constant(vector), x, activation="RELU"))


def _gate(name, value, first, batch):
    def graph():
        b, x = _begin(batch, 32, 32, 3)
        x = b.conv(x, 32, activation="RELU6")
        y = b.conv(b.conv(b.mean(x, keepdims=True), 8, activation="RELU"), 32)
        c = b.constant(value)
        y = b.binary("MUL", *((c, y) if first else (y, c)))
        return _end(b, b.binary("MUL", x, b.unary("LOGISTIC", y)))
    CLUSTERS[name] = graph


_GATE = np.linspace(0.5, 1.5, 32, dtype=np.float32).reshape(1, 1, 1, 32)
_SCALAR = np.full((1, 1, 1, 1), 0.7, np.float32)
_gate("gate_with_a_vector_first", _GATE, True, 1)
_gate("gate_with_a_vector_second", _GATE, False, 1)
_gate("gate_with_a_scalar_first_for_a_batch", _SCALAR, True, 2)
_gate("gate_with_a_scalar_second_for_a_batch", _SCALAR, False, 2)


@_cluster
def two_dense_layers_as_head():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32))
    return b.finish(b.dense(b.dense(x, 20, activation="RELU"), 10))


@_cluster
def activation_before_a_dense_head():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32))
    return b.finish(b.dense(b.unary("TANH", x), 10), b.dense(x, 5))


# Right, but not sparse.

@_cluster
def just_under_two_thirds():
    return _end(*_begin(zeros=0.66))


@_cluster
def same_padding_of_the_stem():
    b = Builder()
    return _end(b, b.depthwise(b.conv(b.input(1, 32, 32, 3), 16, 3, 2, "SAME", "RELU6")))


@_cluster
def same_padding_of_a_strided_depthwise():
    b, x = _begin()
    return _end(b, b.depthwise(b.conv(x, 32), 3, 2, "SAME"))


@_cluster
def max_pool_exit():
    b, x = _begin()
    x = b.pool("MAX_POOL_2D", b.conv(b.conv(x, 48, activation="RELU6"), 32), 16)
    return b.finish(b.dense(b.reshape(x, 1, 32), 10))


@_cluster
def spatial_output():
    b, x = _begin()
    return b.finish(b.conv(b.conv(x, 48, activation="RELU6"), 8))


@_cluster
def flattened_output():
    b, x = _begin()
    x = b.conv(b.conv(x, 48, activation="RELU6"), 8)
    return b.finish(b.dense(b.reshape(x, 1, 16 * 16 * 8), 10))


@_cluster
def stem_5x5():
    b = Builder()
    return _end(b, b.depthwise(b.stem(b.input(1, 32, 32, 3), kernel=5)))


@_cluster
def grey_image():
    b = Builder()
    return _end(b, b.depthwise(b.stem(b.input(1, 32, 32, 1))))


@_cluster
def stem_of_stride_one():
    b = Builder()
    x = b.conv(b.pad(b.input(1, 32, 32, 3)), 16, 3, 1, "VALID", "RELU6")
    return _end(b, b.depthwise(x))


@_cluster
def strided_pointwise():
    b, x = _begin()
    return _end(b, b.conv(x, 32, 1, 2, "VALID"))


@_cluster
def dilated_depthwise():
    b, x = _begin()
    return _end(b, b.depthwise(b.conv(x, 32), dilation=2))


@_cluster
def depth_multiplier():
    b, x = _begin()
    return _end(b, b.depthwise(b.conv(x, 16), multiplier=2))


@_cluster
def dense_3x3_inside():
    b, x = _begin()
    return _end(b, b.conv(b.conv(x, 32), 32, 3))


@_cluster
def only_a_dense_head():
    """No stem at all: a multilayer perceptron with 1x4 blocks would be the native kernel's."""
    b = Builder()
    x = b.dense(b.input(1, 64), 128, zeros=0.9, activation="RELU")
    return b.finish(b.dense(x, 10))


# Wrong somewhere, or thought to be.

@_cluster
def pointwise_head():
    """MobileNet's: a 1x1 convolution after the global mean."""
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    return b.finish(b.reshape(b.conv(x, 10, zeros=0), 1, 10))


@_cluster
def two_pointwise_layers_as_head():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    x = b.unary("HARD_SWISH", b.conv(x, 64))
    return b.finish(b.reshape(b.conv(x, 10, zeros=0), 1, 10))


@_cluster
def activation_and_pointwise_head():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    return b.finish(b.reshape(b.conv(b.unary("HARD_SWISH", x), 10, zeros=0), 1, 10))


@_cluster
def activation_after_a_mean_of_rank_4():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    return b.finish(b.dense(b.unary("HARD_SWISH", x), 10))


@_cluster
def reshaped_mean_of_rank_4():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    return b.finish(b.dense(b.reshape(x, 1, 32), 10))


@_cluster
def pointwise_head_as_output():
    b, x = _begin()
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    return b.finish(b.conv(x, 10, zeros=0))


@_cluster
def two_pointwise_layers_as_output():
    b, x = _begin(2, 33, 32, 3)
    x = b.mean(b.conv(b.conv(x, 48, activation="RELU6"), 32), keepdims=True)
    return b.finish(b.conv(b.conv(x, 64, activation="RELU"), 10, zeros=0))


@_cluster
def dense_after_a_mean_of_rank_4():
    b, x = _begin()
    return b.finish(b.dense(b.mean(b.conv(b.conv(x, 48), 32), keepdims=True), 10))


def _branch(name):
    """Marks a function of (builder, features) that leads away from the cluster beside a mean."""
    def decorate(function):
        def graph():
            b, x = _begin()
            x = b.conv(x, 48, activation="RELU6")
            return b.finish(b.dense(b.mean(b.conv(x, 32)), 10), function(b, x))
        CLUSTERS[name] = graph
        return function
    return decorate


@_branch("branch_to_a_dense_3x3")
def _(b, x):
    return b.mean(b.conv(b.conv(x, 32), 16, 3))


@_branch("branch_to_an_average_pool")
def _(b, x):
    return b.reshape(b.pool("AVERAGE_POOL_2D", b.conv(x, 16), 4), 1, 4 * 4 * 16)


@_branch("branch_to_flatten")
def _(b, x):
    return b.reshape(b.conv(x, 8), 1, 16 * 16 * 8)


@_branch("branch_of_a_depthwise_to_flatten")
def _(b, x):
    return b.reshape(b.depthwise(x), 1, 16 * 16 * 48)


@_branch("branch_of_a_hard_swish_to_average_pool")
def _(b, x):
    return b.pool("AVERAGE_POOL_2D", b.unary("HARD_SWISH", x), 4)


@_branch("branch_to_an_output")
def _(b, x):
    return b.conv(x, 8)


@_branch("branch_to_softmax")
def _(b, x):
    y = b.conv(x, 8)
    return b.add("SOFTMAX", [y], b.shape(y), "SoftmaxOptions", beta=1.0)


@_branch("branch_of_two_to_a_concatenation")
def _(b, x):
    return b.mean(b.concatenate(b.conv(x, 8), b.conv(x, 16)))


@_branch("branch_of_a_sum_to_flatten")
def _(b, x):
    return b.reshape(b.binary("ADD", x, b.conv(x, 48)), 1, 16 * 16 * 48)


@_branch("branch_of_squeeze_excite_to_an_output")
def _(b, x):
    return b.squeeze_excite(x)


@_cluster
def features_are_an_output_too():
    b, x = _begin()
    x = b.conv(x, 48, activation="RELU6")
    return b.finish(b.dense(b.mean(b.conv(x, 32)), 10), x)


@_cluster
def features_are_flattened_too():
    b, x = _begin()
    x = b.conv(x, 48, activation="RELU6")
    return b.finish(b.dense(b.mean(b.conv(x, 32)), 10), b.reshape(x, 1, 16 * 16 * 48))


@_cluster
def concatenation_inside():
    b, x = _begin()
    return _end(b, b.concatenate(b.conv(x, 16), b.conv(x, 16)))


@_cluster
def scale_of_each_channel():
    """Batch normalization after an activation: vectors of rank 1."""
    b, x = _begin()
    x = b.conv(x, 48, activation="RELU6")
    x = b.binary("MUL", x, b.constant(np.linspace(0.5, 1.5, 48, dtype=np.float32)))
    x = b.binary("ADD", x, b.constant(np.linspace(-1, 1, 48, dtype=np.float32)))
    return _end(b, x)


def _operand(name, value, first, kind="MUL"):
    def graph():
        b, x = _begin()
        x = b.conv(x, 48, activation="RELU6")
        c = b.constant(value)
        return _end(b, b.binary(kind, *((c, x) if first else (x, c))))
    CLUSTERS[name] = graph


_VECTOR = np.linspace(0.5, 1.5, 48, dtype=np.float32).reshape(1, 1, 1, 48)
_operand("vector_of_rank_4_first", _VECTOR, True)
_operand("vector_of_rank_4_second", _VECTOR, False)
_operand("scalar_of_rank_4_first", np.full((1, 1, 1, 1), 0.7, np.float32), True)
_operand("scalar_of_rank_4_second", np.full((1, 1, 1, 1), 0.7, np.float32), False)
_operand("scalar_of_rank_0", np.float32(0.7), False)
_operand("sum_with_a_vector_of_rank_4_first", _VECTOR, True, "ADD")
_operand("sum_with_a_vector_of_rank_4_second", _VECTOR, False, "ADD")


@_cluster
def subtraction_inside():
    b, x = _begin()
    x = b.conv(x, 48, activation="RELU6")
    return _end(b, b.binary("SUB", x, b.conv(x, 48)))


@_cluster
def squeeze_excite_of_dense_layers():
    b, x = _begin()
    x = b.conv(x, 32, activation="RELU6")
    y = b.dense(b.dense(b.mean(x), 8, activation="RELU"), 32)
    return _end(b, b.binary("MUL", x, b.reshape(b.unary("LOGISTIC", y), 1, 1, 1, 32)))


@_cluster
def mean_feeds_the_gate_and_an_output():
    b, x = _begin()
    x = b.conv(x, 32, activation="RELU6")
    mean = b.mean(x, keepdims=True)
    gate = b.unary("LOGISTIC", b.conv(b.conv(mean, 8, activation="RELU"), 32))
    return _end(b, b.binary("MUL", x, gate), mean)


@_cluster
def mean_over_one_axis():
    b, x = _begin()
    x = b.conv(b.conv(x, 48, activation="RELU6"), 32)
    return b.finish(b.dense(b.reshape(b.mean(x, axes=(1,)), 1, 16 * 32), 10))


@_cluster
def half_precision_allowed():
    """Inference in float16 with sums in float32: XNNPACK has no such mode, and stays as it is."""
    b, x = _begin()
    b.metadata("reduced_precision_support", b"fp16accfp32")
    return _end(b, x)


@_cluster
def half_precision_sums_allowed():
    b, x = _begin()
    b.metadata("reduced_precision_support", b"fp16accfp16")
    return _end(b, x)


half_precision_sums_allowed.tolerance = 0.03  # 11 bits, over sums of a few hundred products


# A seed's graph.

def random_cluster(seed):
    """A chain of blocks drawn from the seed, of which some may not be fit for the sparse path."""
    draw = np.random.default_rng([SEED, seed])
    b = Builder(seed, zeros=float(draw.choice([0.6, 0.75, 0.9, 0.95])))
    batch, height, width = int(draw.integers(1, 3)), *map(int, draw.integers(18, 48, 2))
    x = b.depthwise(b.stem(b.input(batch, height, width, 3), 16))
    blocks = (
        lambda x: b.conv(x, int(draw.choice([16, 24, 40])), activation="RELU6"),
        lambda x: b.binary("ADD", x, b.conv(b.depthwise(x), b.shape(x)[3])),
        lambda x: b.depthwise(x, int(draw.choice([3, 5])), activation="RELU"),
        lambda x: b.depthwise(b.pad(x), 3, 2, "VALID"),
        lambda x: b.squeeze_excite(x),
        lambda x: b.unary(str(draw.choice(["HARD_SWISH", "LOGISTIC", "ELU"])), x),
        lambda x: b.binary("MUL", x, b.constant(np.ones(b.shape(x)[3], np.float32) * 0.5)),
        lambda x: b.depthwise(x, 3, 2, "SAME"),
        lambda x: b.concatenate(x, b.conv(x, 8)),
    )
    likely = np.array([6, 3, 3, 3, 3, 2, 0.4, 0.4, 0.4])
    for block in draw.choice(len(blocks), int(draw.integers(3, 8)), p=likely / likely.sum()):
        x = blocks[block](b.conv(x, 24)) if block > 0 else blocks[0](x)
    x = b.conv(x, 32)
    exits = (
        lambda: [b.dense(b.mean(x), 10)],
        lambda: [b.dense(b.reshape(b.mean(x), batch, 32), 10)],
        lambda: [b.reshape(b.conv(b.mean(x, keepdims=True), 10), batch, 10)],
        lambda: [b.dense(b.mean(x), 10), b.conv(x, 8)],
        lambda: [b.pool("MAX_POOL_2D", x)],
    )
    likely = np.array([5, 2, 1, 1, 1])
    return b.finish(*exits[draw.choice(len(exits), p=likely / likely.sum())]())


# One encoded weight.

def _encoding(name, tolerance=1e-5):
    """Marks a function that builds a file; `tolerance` is what the arithmetic's rounding needs."""
    def decorate(function):
        function.tolerance = tolerance
        ENCODINGS[name] = function
        return function
    return decorate


def _blocks(rows, columns, block, zeros, seed=0):
    """A float32 matrix whose zeros are whole blocks of 1 x `block`, as many in each row."""
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((rows, columns // block, block)).astype(np.float32)
    order = draw.permuted(np.tile(np.arange(columns // block), (rows, 1)), axis=1)
    weight[order < round(zeros * columns / block)] = 0
    return weight.reshape(rows, columns) / np.float32(np.sqrt(columns * (1 - zeros)))


def _scattered(rows, columns, zeros=0.9):
    return _blocks(rows, columns, 1, zeros)


def _int8(weight, per_channel=True):
    """(int8 values, their scales)"""
    scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim)) if per_channel else None)
    scale = np.atleast_1d(scale / 127).astype(np.float32)
    values = np.round(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return values.astype(np.int8), scale


def _quantization(scale, zero_point=0, channel=0):
    parameters = schema.QuantizationParametersT()
    parameters.scale = np.atleast_1d(np.asarray(scale, np.float32))
    parameters.zeroPoint = np.full(parameters.scale.size, zero_point, np.int64)
    parameters.quantizedDimension = channel
    return parameters


def _weight(b, value, *, block=1, scale=None, channel=0, sparse=True, through=()):
    """The index of a constant with one encoding, behind the operators named in `through`."""
    index = b.constant(value, "weight")
    tensor = b.graph.tensors[index]
    if scale is not None:
        tensor.quantization = _quantization(scale, channel=channel)
    if sparse:
        values, tensor.sparsity = encoding.encode(value, block=block)
        tensor.buffer = flatbuffer.add_constant(b.model, values)
    for kind in through:
        dtype = np.float32 if kind == "DEQUANTIZE" else value.dtype
        index = b.add(kind, [index], value.shape, f"{kind.title()}Options", dtype)
        if kind == "DENSIFY":
            b.graph.tensors[index].quantization = copy.deepcopy(tensor.quantization)
    return index


def _version(b, number):
    """Gives the last operator a version."""
    op = b.graph.operators[-1]
    code = b.model.operatorCodes[op.opcodeIndex]
    op.opcodeIndex = flatbuffer.operator_code(
        b.model, max(code.builtinCode, code.deprecatedBuiltinCode), number)


def _dense_layer(value, *, version=8, **arguments):
    """A file with one FULLY_CONNECTED of float activations."""
    b = Builder()
    x = b.input(1, value.shape[1])
    y = b.dense(x, value.shape[0], weight=_weight(b, value, **arguments))
    _version(b, version)
    return b.finish(y)


def _hybrid(value, **arguments):
    values, scale = _int8(value, per_channel=False)
    return _dense_layer(values, scale=scale, **arguments)


def _int8_layer(value, *, version=8, per_channel=False, depthwise=False, **arguments):
    """A file with one int8 FULLY_CONNECTED, CONV_2D or depthwise one, by the rank of the weight,
    between QUANTIZE and DEQUANTIZE."""
    b = Builder()
    channel = 3 if depthwise else 0
    values, scale = (store.quantized(value, channel) if per_channel
                     else _int8(value, per_channel=False))
    x = b.input(*([1, 4, 4] if value.ndim == 4 else [1]), value.shape[-1])
    x = b.add("QUANTIZE", [x], b.shape(x), "QuantizeOptions", "int8")
    b.graph.tensors[x].quantization = _quantization(0.03)
    weight = _weight(b, values, scale=scale, channel=channel, **arguments)
    y = _layer(b, x, value.shape, weight, depthwise)
    _version(b, 3 if value.ndim == 4 else version)
    b.graph.tensors[y].type = schema.TensorType.INT8
    b.graph.tensors[y].quantization = _quantization(0.03)
    bias = b.graph.tensors[int(b.graph.operators[-1].inputs[2])]
    bias.type, bias.buffer = schema.TensorType.INT32, flatbuffer.add_constant(
        b.model, np.zeros(value.shape[channel], np.int32))
    bias.quantization = _quantization(0.03 * scale)
    y = b.add("DEQUANTIZE", [y], b.shape(y), "DequantizeOptions")
    _version(b, 2)
    return b.finish(y)


def _layer(b, x, shape, weight, depthwise=False):
    """The operator for a weight of this shape."""
    if len(shape) == 2:
        return b.dense(x, shape[0], weight=weight)
    if depthwise:
        return b.depthwise(x, shape[1], weight=weight)
    return b.conv(x, shape[0], shape[1], weight=weight)


def _convolution(value, *, depthwise=False, **arguments):
    b = Builder()
    x = b.input(1, 8, 8, value.shape[-1])
    weight = _weight(b, value, channel=3 if depthwise else 0, **arguments)
    return b.finish(_layer(b, x, value.shape, weight, depthwise))


def _transposed(value, **arguments):
    b = Builder()
    x = b.input(1, 5, 6, value.shape[-1])
    return b.finish(b.transpose_conv(x, _weight(b, value, **arguments)))


def _embedding(value, **arguments):
    """Some rows of a matrix, and a float input, for the matrix feeds no integers."""
    b = Builder()
    found = b.gather(_weight(b, value, **arguments), [3, 0, len(value) - 1, 3])
    return b.finish(b.binary("ADD", b.input(4, value.shape[1]), found))


_ROWS, _COLUMNS = 32, 256


@_encoding("float_csr")
def _():
    return _dense_layer(_scattered(_ROWS, _COLUMNS))


@_encoding("float_1x4")
def _():
    return _dense_layer(_blocks(_ROWS, _COLUMNS, 4, 0.75), block=4)


@_encoding("float_1x16")
def _():
    return _dense_layer(_blocks(_ROWS, _COLUMNS, 16, 0.75), block=16)


@_encoding("float_1x4_of_another_version")
def _():
    return _dense_layer(_blocks(_ROWS, _COLUMNS, 4, 0.75), block=4, version=4)


@_encoding("float_csr_of_another_version")
def _():
    return _dense_layer(_scattered(_ROWS, _COLUMNS), version=9)


@_encoding("float_through_densify")
def _():
    return _dense_layer(_scattered(_ROWS, _COLUMNS), through=["DENSIFY"], version=4)


@_encoding("float_1x4_through_densify")
def _():
    return _dense_layer(_blocks(_ROWS, _COLUMNS, 4, 0.75), block=4, through=["DENSIFY"], version=4)


@_encoding("int8_weight_through_densify_and_dequantize")
def _():
    values, scale = _int8(_scattered(_ROWS, _COLUMNS))
    return _dense_layer(values, scale=scale, through=["DENSIFY", "DEQUANTIZE"], version=4)


@_encoding("float16_through_densify_and_dequantize")
def _():
    return _dense_layer(_scattered(_ROWS, _COLUMNS).astype(np.float16),
                        through=["DENSIFY", "DEQUANTIZE"], version=4)


@_encoding("float16_without_densify")
def _():
    return _dense_layer(_blocks(_ROWS, _COLUMNS, 4, 0.75).astype(np.float16), block=4,
                        through=["DEQUANTIZE"], version=4)


@_encoding("convolution_through_densify")
def _():
    return _convolution(_scattered(_ROWS, 64).reshape(_ROWS, 1, 1, 64), through=["DENSIFY"])


@_encoding("convolution_float16_through_densify")
def _():
    return _convolution(_scattered(_ROWS, 64).reshape(_ROWS, 1, 1, 64).astype(np.float16),
                        through=["DENSIFY", "DEQUANTIZE"])


@_encoding("cluster_of_float16")
def _():
    b, x = _begin()
    for channels in (48, 32):
        weight = b.kernel((channels, 1, 1, b.shape(x)[3]), 0.9).astype(np.float16)
        x = b.conv(x, channels, weight=_weight(b, weight, through=["DENSIFY", "DEQUANTIZE"]))
    return b.finish(b.dense(b.mean(x), 10))


@_encoding("convolution_int8_weight_through_densify_and_dequantize")
def _():
    values, scale = _int8(_scattered(_ROWS, 64).reshape(_ROWS, 1, 1, 64))
    return _convolution(values, scale=scale, through=["DENSIFY", "DEQUANTIZE"])


@_encoding("convolution_without_densify")
def _():
    return _convolution(_scattered(_ROWS, 64).reshape(_ROWS, 1, 1, 64))


# Hybrid layers round activations to int8: 1 part in 254 of each, more where signs cancel.
@_encoding("hybrid_1x16", tolerance=0.05)
def _():
    return _hybrid(_blocks(_ROWS, _COLUMNS, 16, 0.75), block=16)


@_encoding("hybrid_1x16_at_the_limit_of_columns", tolerance=0.05)
def _():
    return _hybrid(_blocks(8, 4096, 16, 0.75), block=16)


@_encoding("hybrid_1x16_beyond_the_limit_of_columns", tolerance=0.05)
def _():
    return _hybrid(_blocks(8, 8192, 16, 0.9), block=16)


@_encoding("hybrid_1x16_with_256_blocks_in_a_row", tolerance=0.05)
def _():
    return _hybrid(_blocks(8, 4096, 16, 0.0), block=16)


@_encoding("hybrid_csr", tolerance=0.05)
def _():
    return _hybrid(_scattered(_ROWS, _COLUMNS))


@_encoding("hybrid_1x4", tolerance=0.05)
def _():
    return _hybrid(_blocks(_ROWS, _COLUMNS, 4, 0.75), block=4)


@_encoding("hybrid_1x16_of_another_version", tolerance=0.05)
def _():
    return _hybrid(_blocks(_ROWS, _COLUMNS, 16, 0.75), block=16, version=12)


@_encoding("hybrid_through_densify", tolerance=0.05)
def _():
    return _hybrid(_scattered(_ROWS, _COLUMNS), through=["DENSIFY"], version=3)


@_encoding("hybrid_convolution_through_densify", tolerance=0.05)
def _():
    values, scale = _int8(_scattered(_ROWS, 64).reshape(_ROWS, 1, 1, 64))
    return _convolution(values, scale=scale, through=["DENSIFY"])


# int8 outputs: half a step of 0.03 either way, of values up to about 3.
@_encoding("int8_1x16", tolerance=0.02)
def _():
    return _int8_layer(_blocks(_ROWS, _COLUMNS, 16, 0.75), block=16)


@_encoding("int8_1x16_per_channel", tolerance=0.02)
def _():
    return _int8_layer(_blocks(_ROWS, _COLUMNS, 16, 0.75), block=16, per_channel=True)


@_encoding("int8_csr", tolerance=0.02)
def _():
    return _int8_layer(_scattered(_ROWS, _COLUMNS))


@_encoding("int8_1x4", tolerance=0.02)
def _():
    return _int8_layer(_blocks(_ROWS, _COLUMNS, 4, 0.75), block=4)


@_encoding("int8_dense_layer_through_densify", tolerance=0.02)
def _():
    return _int8_layer(_scattered(_ROWS, _COLUMNS), through=["DENSIFY"], version=4)


@_encoding("int8_convolution_through_densify", tolerance=0.02)
def _():
    return _int8_layer(_scattered(_ROWS, 64).reshape(_ROWS, 1, 1, 64), through=["DENSIFY"],
                       per_channel=True)


# The other operators, through DENSIFY: stored as float32, as int8, and with int8 activations.

def _scattered_3x3():
    return _scattered(_ROWS, 9 * 16).reshape(_ROWS, 3, 3, 16)


def _scattered_depthwise():
    return _scattered(9, 64, 0.7).reshape(1, 3, 3, 64)


def _other(name, build, value, channel=0, **arguments):
    @_encoding(f"{name}_through_densify")
    def _():
        return build(value(), through=["DENSIFY"], **arguments)

    @_encoding(f"{name}_int8_weight_through_densify_and_dequantize")
    def _():
        values, scale = store.quantized(value(), channel)
        return build(values, scale=scale, through=["DENSIFY", "DEQUANTIZE"], **arguments)


_other("convolution_3x3", _convolution, _scattered_3x3)
_other("depthwise", _convolution, _scattered_depthwise, 3, depthwise=True)
_other("transposed_convolution", _transposed,
       lambda: _scattered(_ROWS, 4 * 16).reshape(_ROWS, 2, 2, 16))
_other("embedding", _embedding, lambda: _scattered(_ROWS, _COLUMNS))


@_encoding("int8_convolution_3x3_through_densify", tolerance=0.02)
def _():
    return _int8_layer(_scattered_3x3(), through=["DENSIFY"], per_channel=True)


@_encoding("int8_depthwise_through_densify", tolerance=0.02)
def _():
    return _int8_layer(_scattered_depthwise(), through=["DENSIFY"], per_channel=True,
                       depthwise=True)


RANDOM = {f"random_{seed}": functools.partial(random_cluster, seed) for seed in range(DRAWN)}
