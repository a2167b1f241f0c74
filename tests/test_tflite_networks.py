"""Convolutional networks that XNNPACK can run sparse, those it would compute wrongly, prunable."""

import warnings

import keras
import numpy as np
import pytest
from exports import conv, dense, dense_file, prune, rows
from keras import layers

import tf_sparsity as ts
import tflite_export
from tflite_export import flatbuffer, ports, weights


def mobile(exit_by=layers.GlobalAveragePooling2D):
    """The kinds of layers of a MobileNet; Keras' padding keeps XNNPACK from running it sparse."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((16, 16, 3)),
        layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem"),
        layers.BatchNormalization(), layers.ReLU(6.0),
        layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        layers.Conv2D(64, 1, use_bias=False, name="expand"), layers.BatchNormalization(),
        layers.ReLU(6.0),
        layers.DepthwiseConv2D(3, strides=2, padding="same", name="stride"),
        layers.Conv2D(64, 1, activation="relu", name="project"),
        exit_by(), layers.Dense(10, name="head"),
    ])


@pytest.fixture(scope="module")
def network():
    """(a pruned model, its dense file)"""
    model = prune(mobile(), 0.9)
    return model, tflite_export.convert(model, sparse=False).tflite


def sparse_names(report):
    return sorted(row.shape for row in report.layers if row.runs_sparse)


def test_auto_rewrites_the_graph_so_that_it_runs_sparse(network):
    model, file = network
    report = tflite_export.convert(file).report
    assert sparse_names(report) == [(64, 1, 1, 8), (64, 1, 1, 64)]
    assert {c.generation: c.verdict for c in report.covered} == {
        g: "sparse" for g in ("tflite-runtime 2.14", "litert 1.2", "litert 1.4-2.1", "litert 2.2+")}
    assert "turns the input by 180 degrees" in report.notes
    assert report.difference < 1e-5 and all(outcome.passed for outcome in report.trial)
    # all layers: 8*8*8*27, 8*8*8*9, 8*8*64*8, 4*4*64*9, 4*4*64*64, 10*64; the two 1x1 at a tenth
    dense_, tenth = 8 * 8 * 8 * (27 + 9) + 4 * 4 * 64 * 9 + 640, 8 * 8 * 64 * 8 + 4 * 4 * 64 * 64
    assert report.multiply_adds == dense_ + tenth
    assert report.expected_multiply_adds == pytest.approx(dense_ + 0.1 * tenth, rel=1e-3)
    text = str(report)
    assert "On x86 with AVX the file is as fast as a dense one" in text
    assert "dense int8 is likely to be faster" in text
    assert "Half of the channels of every layer, in int8, would be faster" in text


def test_int8_storage_runs_sparse_too(network):
    _, file = network
    report = tflite_export.convert(file, quantize="int8_weights").report
    assert sparse_names(report) == [(64, 1, 1, 8), (64, 1, 1, 64)]
    assert report.difference < 0.02


def test_speed_stores_sparse_only_what_runs_sparse(network):
    _, file = network
    report = tflite_export.convert(file, sparse="speed").report
    assert [row.runs_sparse for row in report.layers] == [
        row.stored_sparse for row in report.layers]
    assert sparse_names(report) == [(64, 1, 1, 8), (64, 1, 1, 64)]


def test_size_leaves_the_graph_alone_and_is_smallest(network):
    _, file = network
    exported = {s: tflite_export.convert(file, sparse=s) for s in ("size", "auto", "speed")}
    assert exported["size"].report.notes == () and not sparse_names(exported["size"].report)
    sizes = [len(exported[s].tflite) for s in ("size", "auto", "speed")]
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[2] < len(file)
    assert {c.verdict for c in exported["size"].report.covered} == {"dense"}
    assert "padding" in exported["size"].report.covered[0].why


def test_the_app_may_turn_the_picture(network):
    model, file = network
    exported = tflite_export.convert(file, rotate_input=False)
    assert ports.turned(flatbuffer.read(exported.tflite)) == {"input_0"}
    assert exported.report.turned_inputs == ("input_0",)
    # by the name that the app feeds, not by that of the tensor, serving_default_input_0:0
    assert "the app has to turn the inputs ['input_0'] by 180 degrees" in exported.report.notes
    assert tflite_export.compare(model, exported.tflite, rows(16, 16, 3)) < 1e-5
    assert tflite_export.convert(file).report.turned_inputs == ()
    assert exported.report.difference < 1e-5
    pictures = rows(16, 16, 3)
    np.testing.assert_allclose(tflite_export.interpret(exported.tflite, pictures[:, ::-1, ::-1]),
                               model.predict(pictures, verbose=0), atol=1e-5)
    assert "REVERSE_V2" in flatbuffer.operators(tflite_export.convert(file).tflite)
    assert "REVERSE_V2" not in flatbuffer.operators(exported.tflite)


def five_by_five():
    keras.utils.set_random_seed(0)
    return keras.Sequential([
        keras.Input((16, 16, 3)), layers.Conv2D(8, 5, strides=2, padding="same"),
        layers.Conv2D(64, 1), layers.GlobalAveragePooling2D(), layers.Dense(10)])


def spatial():
    model = mobile()
    return keras.Model(model.inputs, model.get_layer("project").output)


def dense_warning(match=""):
    return pytest.warns(tflite_export.ExportWarning,
                        match=f"No 1x1 convolution of this file runs sparse: .*{match}")


def test_a_network_without_pictures_is_not_warned_of_convolutions():
    model = keras.Sequential([keras.Input((64, 16)), layers.Conv1D(64, 1, use_bias=False)])
    model.set_weights([np.eye(16, 64)[None]])
    with warnings.catch_warnings():
        warnings.simplefilter("error", tflite_export.ExportWarning)
        report = tflite_export.convert(model).report
    assert report.is_sparse and "no picture" in report.layers[0].why


@pytest.mark.parametrize(("build", "sparsity", "why", "change"), [
    (mobile, 0.6, "60%.; more than 2/3 are needed", "prune more than 2/3"),
    (lambda: mobile(layers.GlobalMaxPooling2D), 0.9, "features cannot pass through it",
     "by a global average at the end"),
    (spatial, 0.9, "has a height and a width", "end it with global average pooling"),
    (five_by_five, 0.9, "a kernel of 5x5 and stride 2 reads the picture",
     "begin with a 3x3 convolution of stride 2"),
], ids=["zeros", "max_pool", "spatial", "stem"])
def test_a_pruned_network_that_runs_dense_warns(build, sparsity, why, change):
    """Once, and not where it was asked for a smaller file, a dense one, or dense int8 kernels."""
    model = prune(build(), sparsity)
    file = tflite_export.convert(model, sparse=False).tflite
    with dense_warning(why) as warned:
        report = tflite_export.convert(file).report
    assert report.is_sparse and len(warned) == 1
    pointwise = [row for row in report.layers if row.operator == "CONV_2D"
                 and row.shape[1:3] == (1, 1)]
    assert all(change in row.change for row in pointwise if row.stored_sparse)
    assert f"to change it: {pointwise[-1].change}" in str(report)
    tflite_export.convert(file, sparse="size")
    tflite_export.convert(model, quantize="int8",
                          representative_data=np.ones((8, *model.input_shape[1:])))


def test_what_cannot_be_rewritten_is_smaller_only_and_says_why():
    model = prune(mobile(layers.Flatten), 0.9)
    with dense_warning():
        exported = tflite_export.convert(model)
    assert exported.report.is_sparse and not sparse_names(exported.report)
    assert all(c.verdict == "dense" and c.why for c in exported.report.covered)
    assert "No kernel runs this file sparse" in str(exported.report)
    file = tflite_export.convert(model, sparse=False).tflite
    with pytest.warns(tflite_export.ExportWarning, match="Nothing in this file runs sparse: "):
        fast = tflite_export.convert(file, sparse="speed")
    assert fast.tflite == file
    with pytest.warns(tflite_export.ExportWarning, match="not in blocks of 1x4"):  # no picture
        tflite_export.convert(dense_file(dense), sparse="speed")


def test_too_few_zeros_run_dense():
    """XNNPACK wants more than 2/3."""
    with dense_warning("2/3"):
        exported = tflite_export.convert(prune(mobile(), 0.6))
    assert exported.report.is_sparse and not sparse_names(exported.report)
    assert all(c.verdict == "dense" and "2/3" in c.why for c in exported.report.covered)


def leaking():
    """A branch leaves the sparse part beside the global mean: right on every x86 with AVX, and
    wrong on ARM in every release."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(layers.ZeroPadding2D(1)(inputs))
    x = layers.Conv2D(64, 1, activation="relu")(x)
    mean = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1)(x))
    leak = layers.Flatten()(layers.Conv2D(16, 1, name="leaks")(x))
    return keras.Model(inputs, [layers.Dense(4)(mean), layers.Dense(3)(leak)])


def test_wrong_is_refused_with_the_operator_and_a_way_out():
    file = tflite_export.convert(prune(leaking(), 0.9), sparse=False).tflite
    for sparse in ("auto", "size"):
        with pytest.raises(ValueError, match="CONV_2D '.*leaks.*' would be wrong on .*litert 2.2.*"
                                             "sparse=False writes the file dense"):
            tflite_export.convert(file, sparse=sparse)
    assert not tflite_export.convert(file, sparse=False).report.is_sparse


# ---- prunable


def chosen(model, **options):
    runs_sparse = tflite_export.prunable(model, **options)
    return [layer.name for layer in model.layers if runs_sparse(layer)]


def test_prunable_finds_the_1x1_convolutions_that_run_sparse(network):
    model = mobile()
    assert chosen(model) == ["expand", "project"]
    assert chosen(model, sparsity=0.6) == []
    assert chosen(mobile(layers.Flatten)) == []
    assert chosen(model, runtime="tflm") == []
    sparse = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.9, 0)),
                         select=tflite_export.prunable(model))
    ts.update(sparse)
    report = tflite_export.convert(sparse).report
    assert sparse_names(report) == sorted(row.shape for row in report.layers if row.sparsity > 0.5)
    assert sparse_names(report) == [(64, 1, 1, 8), (64, 1, 1, 64)]


def test_prunable_finds_dense_layers_by_pattern():
    model = dense()
    names = [layer.name for layer in model.layers]
    assert chosen(model) == []
    assert chosen(model, pattern="1x4") == chosen(model, pattern="1x16") == names
    assert chosen(model, pattern="1x16", quantize="dynamic") == names
    assert chosen(model, pattern="1x4", quantize="dynamic") == []
    assert chosen(model, pattern="1x4", runtime="tflm") == []


def test_prunable_of_a_model_that_has_zeros():
    """90 % of single zeros are no zero blocks, and those that would come are not beside them."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(128, use_bias=False)])
    kernel = np.random.default_rng(0).normal(size=(64, 128))
    model.set_weights([np.where(np.abs(kernel) < 1.645, 0, kernel)])
    assert not tflite_export.prunable(model)(model.layers[0])
    assert tflite_export.prunable(model, pattern="1x4")(model.layers[0])


def test_prunable_sees_projections_and_cells():
    """All kernels of a layer must run sparse; an embedding is looked up, not multiplied."""
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(200, 32, name="words")(tokens)
    x = layers.MultiHeadAttention(2, 16, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(32), name="both")(x)
    model = keras.Model(tokens, layers.Dense(16, name="classes")(x))
    options = {"pattern": "1x4", "sparsity": 0.95}
    assert chosen(model, **options) == ["attention", "both", "classes"]
    runs_sparse = tflite_export.prunable(model, **options)
    assert runs_sparse(model.get_layer("both").forward_layer)


def test_prunable_of_layers_that_start_at_zero():
    """A scale of 0 and a kernel of 0, as residual branches have them before any training."""
    model = mobile()
    model.layers[5].gamma.assign(np.zeros(64))
    model.get_layer("project").kernel.assign(np.zeros((1, 1, 64, 64)))
    runs_sparse = tflite_export.prunable(model)
    assert [la.name for la in model.layers if runs_sparse(la)] == ["expand", "project"]
    assert not np.any(model.layers[5].gamma) and not np.any(model.get_layer("project").kernel)


def test_prunable_of_separable_convolutions():
    """Their pointwise kernel counts; pruned as it says, all of them run sparse."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(32, 1, activation="relu", name="first"),
        layers.SeparableConv2D(32, 3, padding="same", activation="relu", name="separable"),
        layers.Conv2D(64, 1, activation="relu", name="last"),
        layers.GlobalAveragePooling2D(), layers.Dense(10)])
    runs_sparse = tflite_export.prunable(model)
    assert [la.name for la in model.layers if runs_sparse(la)] == ["first", "separable", "last"]
    sparse = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.9, begin_step=0)),
                         select=runs_sparse)
    ts.update(sparse)
    assert sparse_names(tflite_export.convert(sparse).report) == [
        (32, 1, 1, 16), (32, 1, 1, 32), (64, 1, 1, 32)]


@pytest.mark.parametrize(("activation", "why"), [("tanh", "this activation is not known"),
                                                 ("gelu", "does not run GELU")])
def test_what_the_oldest_release_alone_runs_dense(activation, why):
    """The file runs sparse on the others all the same, and the report says which and why."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(16, 3, strides=2, padding="same", activation=activation),
        layers.Conv2D(64, 1, activation=activation), layers.Conv2D(64, 1, activation=activation),
        layers.GlobalAveragePooling2D(), layers.Dense(10)])
    report = tflite_export.convert(prune(model, 0.8)).report
    oldest, *others = report.covered
    assert (oldest.verdict, {one.verdict for one in others}) == ("dense", {"sparse"})
    assert why in oldest.why
    pointwise = [row for row in report.layers if row.shape[1:3] == (1, 1)]
    assert all(not row.runs_sparse and row.why.startswith("not on tflite-runtime 2.14: ")
               and row.change == "runtime='litert>=2.2'" for row in pointwise)


def test_a_rewrite_that_the_oldest_release_computes_wrongly():
    """Its features go into a tanh, which is outside of that release's clusters; newer ones run it
    sparse, so that a file for those is the way out."""
    keras.utils.set_random_seed(0)
    x = keras.Input((32, 32, 3))
    a = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(x)
    a = layers.Conv2D(64, 1, activation="relu")(a)
    b = layers.Conv2D(64, 1, activation="tanh")(a)
    model = prune(keras.Model(x, [layers.Dense(4)(layers.GlobalAveragePooling2D()(y))
                                  for y in (a, b)]), 0.8)
    with dense_warning("rewritten for it, .* would be wrong on tflite-runtime 2.14"):
        report = tflite_export.convert(model).report
    assert {one.verdict for one in report.covered} == {"dense"}
    pointwise = [row for row in report.layers if row.shape[1:3] == (1, 1)]
    assert {row.change for row in pointwise} == {"runtime='litert>=2.2'"}
    newer = tflite_export.convert(model, runtime="litert>=2.2").report
    assert sparse_names(newer) == [(64, 1, 1, 16), (64, 1, 1, 64)]


def test_prunable_refuses_in_words():
    for options, sentence in (({"quantize": "int8"}, "None, 'dynamic' or 'int8_weights'"),
                              ({"runtime": "arm"}, "runtime must be one of"),
                              ({"pattern": "2:4"}, "'1x16', '2x1' and so on; got '2:4'"),
                              ({"sparsity": 1}, r"must be in \(0, 1\); got 1")):
        with pytest.raises(ValueError, match=sentence):
            tflite_export.prunable(dense(), **options)
    with pytest.raises(ValueError, match="would be wrong on"):
        tflite_export.prunable(leaking())


def test_kernels_of_two_sizes_give_constants_of_one_name():
    """Strides of 3x3 and 5x5 kernels need paddings of 1 and 2: two constants called "padding"."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(32, 1, activation="relu"),
        layers.DepthwiseConv2D(5, strides=2, padding="same"),
        layers.Conv2D(64, 1, activation="relu"),
        layers.GlobalAveragePooling2D(), layers.Dense(10)])
    report = tflite_export.convert(prune(model, 0.9)).report
    assert sparse_names(report) == [(32, 1, 1, 8), (64, 1, 1, 32)]


def test_releases_are_explained_with_short_names():
    """A 3x3 stem of stride 1 cannot be rewritten; the converter's name of it has several parts."""
    with dense_warning("stride 1"):
        report = tflite_export.convert(prune(conv(), 0.9)).report
    for release in report.covered:
        _, name, text = release.why.split("'")
        assert ";" not in name and len(name) <= 48
        assert "stride 1" in text


@pytest.mark.slow
def test_pairs_of_output_channels():
    """pattern="2x1" zeroes both outputs of a pair for an input, as the file's kernel has them."""
    model = mobile()
    select = tflite_export.prunable(model, pattern="2x1")
    assert [layer.name for layer in model.layers if select(layer)] == [
        layer.name for layer in model.layers if tflite_export.prunable(model)(layer)]
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.9, begin_step=0), pattern="2x1")
    sparse = ts.sparsify(model, method, select=select)
    ts.update(sparse)
    exported = tflite_export.convert(sparse)
    assert {c.verdict for c in exported.report.covered} == {"sparse"}
    found = [w for w in weights.find(flatbuffer.read(exported.tflite)) if w.zeros > 0.5]
    assert len(found) >= 2
    for weight in found:
        pairs = weight.value.reshape(len(weight.value) // 2, 2, -1) != 0
        assert (pairs[:, 0] == pairs[:, 1]).all()
