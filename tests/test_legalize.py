"""Legalizing changes nothing that a file computes, and everything that XNNPACK asks for."""

import json

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from arm import graphs, networks
from arm.builder import Builder
from damage import refusals
from keras import layers

import tflite_export
from tflite_export import flatbuffer
from tflite_export.graph import Graph
from tflite_export.legalize import ROTATED, CannotLegalize, legalize

# Sums of a few hundred float32 products in another order, relative to the greatest output.
TOLERANCE = 1e-5


def run(tflite, *inputs):
    """The outputs of a file in this machine's LiteRT, in the file's order, for any batch size."""
    interpreter = Interpreter(model_content=tflite)
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def pictures(tflite, seed=0):
    """Normal values for each input, of order 1."""
    details = Interpreter(model_content=tflite).get_input_details()
    draw = np.random.default_rng(seed)
    return [draw.standard_normal(d["shape"]).astype(np.float32) for d in details]


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert np.abs(a - e).max() <= TOLERANCE * np.abs(e).max()


def checked(tflite, *, rotated=None, **arguments):
    """The legalized file, which computes what `tflite` does and needs nothing more."""
    legal = legalize(tflite, **arguments)
    inputs = pictures(tflite)
    fed = inputs
    if legal.rotated and not arguments.get("rotate_input", True):
        fed = [value[:, ::-1, ::-1] for value in inputs]
    assert_same(run(legal.tflite, *fed), run(tflite, *inputs))
    assert rotated is None or legal.rotated == rotated
    assert legalize(legal.tflite) == (legal.tflite, (), False)
    return legal


def operators(tflite):
    """[(kind, shapes of its inputs, the operator)] of the main graph"""
    graph = Graph(flatbuffer.read(tflite))
    return [(graph.kind(op), [graph.shape(t) for t in graph.reads(op)], op)
            for op in graph.operators]


def kinds(tflite):
    return [kind for kind, _, _ in operators(tflite)]


def of_kind(tflite, wanted):
    return [(shapes, op) for kind, shapes, op in operators(tflite) if kind == wanted]


# The passes, one by one.


@pytest.mark.parametrize("size", [(32, 32), (33, 33), (32, 33), (31, 46)])
def test_same_padding_of_stride_2(size):
    """An even size is padded after, so it has to be turned; an odd one on both sides."""
    b = Builder()
    tflite = b.finish(b.mean(b.conv(b.conv(b.input(2, *size, 3), 8, 3, 2), 16)))
    even = any(n % 2 == 0 for n in size)
    legal = checked(tflite, rotated=even)
    (shapes, conv), _ = of_kind(legal.tflite, "CONV_2D")
    assert conv.builtinOptions.padding == schema.Padding.VALID
    assert shapes[0] == (2, size[0] + 2, size[1] + 2, 3)
    assert kinds(legal.tflite).count("REVERSE_V2") == 2 * even


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [32, 40, 64])
def test_strided_depthwise(kernel, size):
    b = Builder()
    x = b.conv(b.input(1, size, size, 3), 8, 3, 2)
    x = b.depthwise(b.conv(x, 12, activation="RELU6"), kernel, 2)
    x = b.depthwise(b.conv(x, 12), kernel)
    legal = checked(b.finish(b.dense(b.mean(b.conv(x, 16)), 5)), rotated=True)
    padded = [shapes[0] for shapes, _ in of_kind(legal.tflite, "DEPTHWISE_CONV_2D")]
    assert padded[0] == (1, size // 2 + kernel - 1, size // 2 + kernel - 1, 12)


def test_kernels_are_turned():
    b = Builder()
    kernel = np.arange(3 * 3 * 3, dtype=np.float32).reshape(1, 3, 3, 3)
    x = b.conv(b.input(1, 8, 8, 3), 1, 3, 2, weight=b.constant(kernel))
    legal = checked(b.finish(b.mean(x)), rotated=True)
    graph = Graph(flatbuffer.read(legal.tflite))
    (conv,) = [op for op in graph.operators if graph.kind(op) == "CONV_2D"]
    np.testing.assert_array_equal(graph.constant(graph.reads(conv)[1]), kernel[:, ::-1, ::-1])


def test_a_mixed_network_grows_a_depthwise_kernel():
    """A symmetric stem as PyTorch has it, then SAME as Keras has it: 3x3 becomes 5x5."""
    b = Builder()
    x = b.depthwise(b.conv(b.stem(b.input(1, 32, 32, 3)), 12), 3, 2, "SAME")
    legal = checked(b.finish(b.mean(b.conv(x, 16))), rotated=False)
    (shapes, _), = of_kind(legal.tflite, "DEPTHWISE_CONV_2D")
    assert shapes[1] == (1, 5, 5, 12) and shapes[0] == (1, 20, 20, 12)


def test_a_mixed_network_with_a_kernel_that_cannot_grow_is_refused():
    b = Builder()
    x = b.depthwise(b.conv(b.stem(b.input(1, 32, 32, 3)), 12), 5, 2, "SAME")
    with pytest.raises(CannotLegalize, match="turned by 180 degrees.*Pad them alike"):
        legalize(b.finish(b.mean(b.conv(x, 16))))


def test_what_is_padded_twice_is_refused():
    b = Builder()
    x = b.conv(b.pad(b.input(1, 32, 32, 3)), 8, 3, 2, "SAME")
    with pytest.raises(CannotLegalize, match="padded twice"):
        legalize(b.finish(b.mean(b.conv(x, 16))))


def test_what_is_padded_already_stays():
    b = Builder()
    x = b.depthwise(b.pad(b.conv(b.stem(b.input(1, 32, 32, 3)), 12)), 3, 2, "VALID")
    tflite = b.finish(b.mean(b.conv(x, 16)))
    assert legalize(tflite) == (tflite, (), False)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pictures_of_fewer_channels(channels, symmetric):
    b = Builder()
    image = b.input(2, 28, 28, channels)
    x = b.stem(image) if symmetric else b.conv(image, 16, 3, 2, activation="RELU6")
    legal = checked(b.finish(b.dense(b.mean(b.conv(x, 16)), 3)), rotated=not symmetric)
    (shapes, _), _ = of_kind(legal.tflite, "CONV_2D")
    assert shapes[0][3] == shapes[1][3] == 3
    assert f"{channels} channels become 3" in " ".join(legal.notes)


def test_a_head_of_1x1_convolutions_becomes_dense():
    legal = checked(graphs.CLUSTERS["two_pointwise_layers_as_head"]())
    assert kinds(legal.tflite)[-6:] == [
        "MEAN", "RESHAPE", "FULLY_CONNECTED", "HARD_SWISH", "FULLY_CONNECTED", "RESHAPE"]
    (_, mean), = of_kind(legal.tflite, "MEAN")
    assert not mean.builtinOptions.keepDims
    assert all(len(shapes[0]) == 2 for shapes, _ in of_kind(legal.tflite, "FULLY_CONNECTED"))


@pytest.mark.parametrize("name", [
    "pointwise_head", "pointwise_head_as_output", "two_pointwise_layers_as_output",
    "dense_after_a_mean_of_rank_4", "activation_and_pointwise_head", "reshaped_mean_of_rank_4",
    "pooled_output_of_rank_4", "activation_after_a_mean_of_rank_4"])
def test_no_head_sees_a_mean_of_rank_4(name):
    legal = checked(graphs.CLUSTERS[name]())
    assert not any(mean.builtinOptions.keepDims for _, mean in of_kind(legal.tflite, "MEAN"))
    found = kinds(legal.tflite)
    assert found[found.index("MEAN") + 1] == "RESHAPE"


def test_another_batch_size():
    """What is inserted does not fix it, where the file did not."""
    tflite = graphs.CLUSTERS["pointwise_head_as_output"]()
    pictures = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    expected = run(tflite, pictures)
    assert expected[0].shape == (3, 1, 1, 10)
    assert_same(run(legalize(tflite).tflite, pictures), expected)


def test_a_head_with_operators_that_need_rank_4():
    b = Builder()
    x = b.mean(b.conv(b.stem(b.input(2, 32, 32, 3)), 12), keepdims=True)
    y = b.conv(x, 9)
    y = b.binary("ADD", b.binary("MUL", y, b.constant(np.float32(2))),
                 b.constant(np.linspace(0, 1, 9, dtype=np.float32)))
    y = b.dense(y, 12, keep_num_dims=True)
    checked(b.finish(b.concatenate(y, x), b.unary("LOGISTIC", y)))


def test_a_mean_that_feeds_gate_and_head():
    legal = checked(graphs.CLUSTERS["mean_feeds_the_gate_and_an_output"]())
    keeps = [mean.builtinOptions.keepDims for _, mean in of_kind(legal.tflite, "MEAN")]
    assert sorted(keeps) == [False, False, True]


def test_a_dense_head_is_kept_apart():
    """LiteRT 1.2 counts its weights among those that have to be 2/3 zeros."""
    legal = checked(graphs.CLUSTERS["large_dense_head"]())
    assert kinds(legal.tflite)[-3:] == ["MEAN", "RESHAPE", "FULLY_CONNECTED"]
    shape = Graph(flatbuffer.read(legal.tflite)).constant(
        int(of_kind(legal.tflite, "RESHAPE")[0][1].inputs[1]))
    assert shape.tolist() == [-1, 32]  # any batch size


def test_gates_keep_rank_4():
    """As Keras' EfficientNet: global pooling to rank 2, then Reshape((1, 1, channels))."""
    b = Builder()
    x = b.conv(b.stem(b.input(2, 32, 32, 3)), 24)
    y = b.conv(b.reshape(b.mean(x), 2, 1, 1, 24), 24)
    legal = checked(b.finish(b.mean(b.conv(b.binary("MUL", x, b.unary("LOGISTIC", y)), 8))))
    assert "RESHAPE" not in kinds(legal.tflite)
    assert [m.builtinOptions.keepDims for _, m in of_kind(legal.tflite, "MEAN")] == [True, False]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
@pytest.mark.parametrize("first", [True, False])
def test_scalars_come_first_and_have_rank_4(shape, first):
    b = Builder()
    x = b.conv(b.stem(b.input(1, 32, 32, 3)), 12)
    scalar = b.constant(np.full(shape, 0.3, np.float32))
    x = b.binary("MUL", *((scalar, x) if first else (x, scalar)))
    legal = checked(b.finish(b.mean(b.conv(x, 8))))
    (shapes, _), = of_kind(legal.tflite, "MUL")
    assert shapes == [(1, 1, 1, 1), (1, 16, 16, 12)]


def test_constants_of_each_channel_come_first_and_have_rank_4():
    """Batch normalization after an activation, which the converter cannot fold."""
    legal = checked(graphs.CLUSTERS["scale_of_each_channel"]())
    for kind in ("MUL", "ADD"):
        (shapes, _), = of_kind(legal.tflite, kind)
        assert shapes == [(1, 1, 1, 48), (1, 16, 16, 48)]


def test_a_constant_of_each_picture_is_refused():
    b = Builder()
    x = b.conv(b.stem(b.input(2, 32, 32, 3)), 12)
    x = b.binary("MUL", x, b.constant(np.array([1, 2], np.float32).reshape(2, 1, 1, 1)))
    with pytest.raises(CannotLegalize, match=r"MUL .*\(2, 1, 1, 1\) is neither a scalar nor"):
        legalize(b.finish(b.mean(b.conv(x, 8))))


def test_the_app_may_turn_the_picture():
    b = Builder()
    tflite = b.finish(b.mean(b.conv(b.conv(b.input(1, 32, 32, 3), 8, 3, 2), 16)))
    legal = legalize(tflite, rotate_input=False)
    (picture,) = pictures(tflite)
    assert legal.rotated and "REVERSE_V2" not in kinds(legal.tflite)
    assert_same(run(legal.tflite, picture[:, ::-1, ::-1]), run(tflite, picture))
    assert np.abs(run(legal.tflite, picture)[0] - run(tflite, picture)[0]).max() > 1e-3
    model = flatbuffer.read(legal.tflite)
    (entry,) = [m for m in model.metadata if m.name == ROTATED.encode()]
    assert json.loads(bytes(model.buffers[entry.buffer].data)) == ["input0"]
    assert [m.name for m in flatbuffer.read(legalize(tflite).tflite).metadata] == []


# What may share what.


def test_a_weight_that_something_else_uses_too():
    """One kernel for two convolutions, in one of them as an operand and as an output's summand."""
    b = Builder()
    kernel = b.constant(b.kernel((8, 3, 3, 3)), "shared")
    towers = [b.mean(b.conv(b.conv(b.input(1, 32, 32, 3), 8, 3, 2, weight=kernel), 16))
              for _ in range(2)]
    tflite = b.finish(*towers, b.unary("ABS", kernel))
    legal = checked(tflite, rotated=True)
    stems = [op for shapes, op in of_kind(legal.tflite, "CONV_2D") if shapes[1][1] == 3]
    assert stems[0].inputs[1] == stems[1].inputs[1]
    value = np.abs(Graph(flatbuffer.read(tflite)).constant(kernel))
    np.testing.assert_array_equal(run(legal.tflite, *pictures(tflite))[2], value)


def test_a_buffer_that_two_tensors_share():
    b = Builder()
    kernel = b.constant(b.kernel((8, 3, 3, 3)), "a")
    other = b.tensor((8, 3, 3, 3), name="b")
    b.graph.tensors[other].buffer = b.graph.tensors[kernel].buffer
    x = b.mean(b.conv(b.conv(b.input(1, 32, 32, 3), 8, 3, 2, weight=kernel), 16))
    checked(b.finish(x, b.unary("ABS", other)), rotated=True)


class TwoFunctions(keras.Model):
    """A file with a loop has a main graph and its subgraphs."""

    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(8, 3, strides=2, padding="same")
        self.point, self.head = layers.Conv2D(16, 1), layers.LSTM(4)

    def call(self, inputs):
        x = self.point(self.stem(inputs[0]))
        return keras.ops.mean(x, (1, 2)), self.head(inputs[1])


def test_other_subgraphs_are_left_alone():
    model = TwoFunctions()
    model([np.zeros((1, 16, 16, 3), "float32"), np.zeros((1, 5, 3), "float32")])
    inputs = keras.Input((16, 16, 3)), keras.Input((5, 3))
    tflite = tflite_export.convert(keras.Model(inputs, model(inputs)), sparse=False).tflite
    assert len(flatbuffer.read(tflite).subgraphs) > 1
    legal = checked(tflite, rotated=True)
    before, after = (flatbuffer.read(t).subgraphs[1:] for t in (tflite, legal.tflite))
    assert [len(g.operators) for g in before] == [len(g.operators) for g in after]


def test_signatures_keep_their_names():
    model = keras.Sequential([
        keras.Input((32, 32, 3), name="photo"), layers.Conv2D(8, 3, 2, "same"),
        layers.Conv2D(16, 1), layers.GlobalAveragePooling2D(), layers.Dense(3, name="scores")])
    tflite = tflite_export.convert(model, sparse=False).tflite
    legal = checked(tflite)
    batch = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)
    assert_same([tflite_export.interpret(legal.tflite, batch)], [model.predict(batch, verbose=0)])


# Whole networks.


def inverted_residual(x, filters, stride):
    y = layers.Conv2D(2 * x.shape[-1], 1, use_bias=False)(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, stride, "same", use_bias=False)(y)
    y = layers.Conv2D(filters, 1, use_bias=False)(layers.ReLU(6.0)(layers.BatchNormalization()(y)))
    y = layers.BatchNormalization()(y)
    return layers.Add()([x, y]) if y.shape == x.shape else y


def gate(x):
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = layers.Conv2D(x.shape[-1], 1, activation="hard_sigmoid")(
        layers.Conv2D(4, 1, activation="relu")(y))
    return layers.Multiply()([x, y])


@pytest.mark.parametrize("size", [32, 33, 48])
@pytest.mark.parametrize("head", ["dense", "pointwise", "pooled"])
def test_small_networks_of_keras(size, head):
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 3, 0.1)(inputs)
    x = layers.Conv2D(8, 3, 2, "same", activation="hard_swish")(x)
    x = inverted_residual(inverted_residual(x, 8, 1), 16, 1 if size % 2 else 2)
    x = gate(x)
    x = layers.GlobalAveragePooling2D(keepdims=head == "pointwise")(x)
    if head == "dense":
        x = layers.Dense(10)(x)
    elif head == "pointwise":
        x = layers.Flatten()(layers.Conv2D(10, 1)(layers.Activation("hard_swish")(x)))
    model = networks.randomized(keras.Model(inputs, x))
    tflite = tflite_export.convert(model, sparse=False, batch_size=2).tflite
    checked(tflite, rotated=size % 2 == 0)
    checked(tflite, rotate_input=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NAMES)
def test_networks_of_keras_applications(name):
    tflite = networks.network(name)
    legal = checked(tflite, rotated=True)
    graph = Graph(flatbuffer.read(legal.tflite))
    strided = [op for op in graph.operators if graph.kind(op) in ("CONV_2D", "DEPTHWISE_CONV_2D")
               and op.builtinOptions.strideH == 2]
    assert len(strided) == 5
    assert all(op.builtinOptions.padding == schema.Padding.VALID for op in strided)


# What is refused.


@pytest.mark.parametrize(("name", "words"), [
    ("max_pool_exit", "MAX_POOL_2D 'max_pool_2d.*cannot pass"),
    ("spatial_output", "The output 'conv_2d.*height and a width"),
    ("flattened_output", "RESHAPE .*cannot pass"),
    ("stem_5x5", "CONV_2D .*5x5 and stride 2 reads the picture.*3x3 with stride 2"),
    ("stem_of_stride_one", "CONV_2D .*stride 1 reads the picture"),
    ("strided_pointwise", "1x1 convolution of stride 2 inside"),
    ("dense_3x3_inside", "3x3 convolution of stride 1 inside"),
    ("dilated_depthwise", "DEPTHWISE_CONV_2D .*is dilated"),
    ("depth_multiplier", "several outputs for a channel"),
    ("concatenation_inside", "CONCATENATION .*cannot pass"),
    ("subtraction_inside", "SUB .*cannot pass"),
    ("mean_over_one_axis", "MEAN .*height and width"),
    ("squeeze_excite_of_dense_layers", "MEAN .*by dense layers. Use 1x1"),
    ("only_a_dense_head", "no picture"),
])
def test_what_cannot_run_sparse_is_refused(name, words):
    with pytest.raises(CannotLegalize, match=words):
        legalize(graphs.CLUSTERS[name]())


def test_a_resized_picture_cannot_be_turned():
    b = Builder()
    x = b.conv(b.resize(b.conv(b.input(1, 32, 32, 3), 8, 3, 2), 24, 24), 16)
    with pytest.raises(CannotLegalize, match="RESIZE_BILINEAR .*turned by 180 degrees"):
        legalize(b.finish(b.mean(x)))


def test_quantized_files_are_refused():
    model = keras.Sequential([
        keras.Input((16, 16, 3)), layers.Conv2D(8, 3, 2, "same"), layers.Conv2D(16, 1),
        layers.GlobalAveragePooling2D(), layers.Dense(3)])
    data = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
    int8 = tflite_export.convert(model, quantize="int8", representative_data=data, sparse=False)
    with pytest.raises(CannotLegalize, match="INT8|QUANTIZE"):
        legalize(int8.tflite)
    float16 = tflite_export.convert(model, quantize="float16", sparse=False)
    with pytest.raises(CannotLegalize, match="CONV_2D .*not a dense float32 constant"):
        legalize(float16.tflite)


@pytest.mark.parametrize("tflite", [b"", b"no file at all", bytes(100)])
def test_what_is_no_file_is_refused(tflite):
    with pytest.raises(ValueError, match="Not a .tflite file"):
        legalize(tflite)


def test_damaged_files_are_refused_in_a_sentence():
    """Mutated bytes either stay a file that can be rewritten, or raise ValueError."""
    assert 0 < refusals(legalize, graphs.CLUSTERS["squeeze_excite"](), 150, seed=0) < 150
