"""ts.report: zeros, targets, FLOPs and bytes against integers worked out by hand."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tf_sparsity as ts

HALF = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))


def flops(*stack, shape):
    """{kernel name: FLOPs} of a model of `stack`."""
    model = keras.Sequential([keras.Input(shape), *stack])
    return by_name(model)


def by_name(model, field="flops"):
    return {row.name: getattr(row, field) for row in ts.report(model).rows}


# ---- FLOPs: two for each multiply-add


def test_dense_flops():
    assert flops(layers.Dense(5, name="a"), shape=(3,)) == {"a/kernel": 2 * 3 * 5}
    assert flops(layers.Dense(5, name="a"), shape=(7, 2, 3)) == {"a/kernel": 2 * 14 * 3 * 5}


def test_einsum_flops():
    layer = layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 5), name="a")
    assert flops(layer, shape=(6, 3)) == {"a/kernel": 2 * 6 * 3 * 4 * 5}
    # b is in the input, the kernel and the output: every position has weights of its own.
    layer = layers.EinsumDense("abc,bcd->abd", output_shape=(6, 4), name="a")
    assert flops(layer, shape=(6, 3)) == {"a/kernel": 2 * 6 * 3 * 4}
    layer = layers.EinsumDense("...x,xy->...y", output_shape=4, name="a")
    assert flops(layer, shape=(6, 5, 3)) == {"a/kernel": 2 * 30 * 3 * 4}
    layer = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), name="a")
    assert flops(layer, shape=(None, 3)) == {"a/kernel": None}


@pytest.mark.parametrize("layer, shape, expected", [
    # valid: (9 - 3) // 2 + 1 = 4 positions
    (layers.Conv1D(5, 3, strides=2, name="a"), (9, 2), {"a/kernel": 2 * 4 * 3 * 2 * 5}),
    # same: 8 x 6 positions; each output sees 4 / 2 input channels
    (layers.Conv2D(6, 3, padding="same", groups=2, name="a"), (8, 6, 4),
     {"a/kernel": 2 * 48 * 9 * 2 * 6}),
    (layers.Conv3D(2, 2, name="a"), (3, 4, 5, 1), {"a/kernel": 2 * (2 * 3 * 4) * 8 * 2}),
    (layers.DepthwiseConv1D(3, depth_multiplier=2, name="a"), (6, 5),
     {"a/kernel": 2 * 4 * 3 * 5 * 2}),
    (layers.DepthwiseConv2D(3, depth_multiplier=2, name="a"), (5, 6, 4),
     {"a/kernel": 2 * 12 * 9 * 4 * 2}),
    (layers.SeparableConv1D(7, 3, name="a"), (6, 5),
     {"a/depthwise_kernel": 2 * 4 * 3 * 5, "a/pointwise_kernel": 2 * 4 * 5 * 7}),
    (layers.SeparableConv2D(7, 3, depth_multiplier=2, strides=2, name="a"), (7, 9, 4),
     {"a/depthwise_kernel": 2 * 12 * 9 * 4 * 2, "a/pointwise_kernel": 2 * 12 * 8 * 7}),
    # each of the 5 (15) inputs meets the whole window
    (layers.Conv1DTranspose(3, 4, strides=2, name="a"), (5, 2), {"a/kernel": 2 * 5 * 4 * 3 * 2}),
    (layers.Conv2DTranspose(3, 2, strides=2, name="a"), (5, 3, 2),
     {"a/kernel": 2 * 15 * 4 * 3 * 2}),
    (layers.Conv3DTranspose(3, 2, name="a"), (2, 2, 2, 4), {"a/kernel": 2 * 8 * 8 * 3 * 4}),
    (layers.Embedding(10, 4, name="a"), (6,), {"a/embeddings": 0}),
    (layers.LSTM(3, name="a"), (7, 2),
     {"a/kernel": 2 * 7 * 2 * 12, "a/recurrent_kernel": 2 * 7 * 3 * 12}),
    (layers.GRU(3, return_sequences=True, name="a"), (7, 2),
     {"a/kernel": 2 * 7 * 2 * 9, "a/recurrent_kernel": 2 * 7 * 3 * 9}),
    (layers.SimpleRNN(3, name="a"), (7, 2),
     {"a/kernel": 2 * 7 * 2 * 3, "a/recurrent_kernel": 2 * 7 * 3 * 3}),
    (layers.TimeDistributed(layers.Conv2D(2, 3, name="c"), name="a"), (5, 6, 4, 3),
     {"a/c/kernel": 2 * 5 * (4 * 2) * 9 * 3 * 2}),
    (layers.TimeDistributed(layers.TimeDistributed(layers.Dense(2, name="d"), name="b"),
                            name="a"), (5, 6, 3), {"a/b/d/kernel": 2 * 30 * 3 * 2}),
], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("sparsified", [False, True])
def test_flops_of_one_example(layer, shape, expected, sparsified):
    layer = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), layer])
    if sparsified:
        model = ts.sparsify(model, HALF)
    assert by_name(model) == expected


def test_channels_first_flops():
    # Only the shapes are needed: TensorFlow cannot run this on a CPU.
    layer = layers.Conv2D(5, 3, data_format="channels_first", name="a")
    assert flops(layer, shape=(2, 8, 6)) == {"a/kernel": 2 * (6 * 4) * 9 * 2 * 5}
    layer = layers.SeparableConv2D(5, 3, data_format="channels_first", name="a")
    assert flops(layer, shape=(2, 8, 6)) == {
        "a/depthwise_kernel": 2 * 24 * 9 * 2, "a/pointwise_kernel": 2 * 24 * 2 * 5}


def test_transposed_channels_first_flops():
    layer = layers.Conv2DTranspose(5, 3, data_format="channels_first", name="a")
    assert flops(layer, shape=(2, 4, 3)) == {"a/kernel": 2 * 12 * 9 * 5 * 2}


def test_bidirectional_flops():
    found = flops(layers.Bidirectional(layers.LSTM(3, name="r"), name="a"), shape=(7, 2))
    assert sorted(found.values()) == 2 * [2 * 7 * 2 * 12] + 2 * [2 * 7 * 3 * 12]


@pytest.mark.parametrize("sparsified", [False, True])
def test_attention_flops(sparsified):
    query, value = keras.Input((5, 8)), keras.Input((7, 6))
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=3, value_dim=4, name="a")
    model = keras.Model([query, value], attention(query, value))
    if sparsified:
        model = ts.sparsify(model, HALF)
    assert by_name(model) == {
        "a/query/kernel": 2 * 5 * 8 * 2 * 3, "a/key/kernel": 2 * 7 * 6 * 2 * 3,
        "a/value/kernel": 2 * 7 * 6 * 2 * 4, "a/attention_output/kernel": 2 * 5 * 2 * 4 * 8}


def test_attention_with_a_key_of_its_own():
    inputs = [keras.Input((5, 8)), keras.Input((7, 8)), keras.Input((7, 9))]
    out = layers.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2,
                                     name="a")(inputs[0], inputs[1], key=inputs[2])
    assert by_name(keras.Model(inputs, out)) == {
        "a/query/kernel": 2 * 5 * 8 * 4 * 3, "a/key/kernel": 2 * 7 * 9 * 2 * 3,
        "a/value/kernel": 2 * 7 * 8 * 2 * 3, "a/attention_output/kernel": 2 * 5 * 4 * 3 * 8}


@pytest.mark.parametrize("sparsified", [False, True])
def test_a_tied_table_is_a_look_up_and_a_product(sparsified):
    table = layers.ReversibleEmbedding(10, 4, name="a")
    ids = keras.Input((6,), dtype="int32")
    model = keras.Model(ids, table(table(ids), reverse=True))
    if sparsified:
        model = ts.sparsify(model, HALF)
    assert by_name(model) == {"a/embeddings": 2 * 6 * 10 * 4}


def test_a_shared_layer_and_a_shared_model_pay_for_each_call():
    dense = layers.Dense(3, name="d")
    inner = keras.Sequential([keras.Input((3,)), dense], name="inner")
    a, b = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([a, b], inner(inner(a)) + inner(b))
    assert by_name(model) == {"inner/d/kernel": 3 * 2 * 3 * 3}
    shared = layers.Dense(3, name="d")
    model = keras.Model([a, b], shared(a) + shared(b))
    shared(keras.Input((3,)))  # a call outside the model is none of its business
    assert by_name(model) == {"d/kernel": 2 * 2 * 3 * 3}


def test_unknown_flops_are_none():
    class Twice(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(3, 3), name="kernel")

        def call(self, x):
            return x @ self.kernel @ self.kernel

    assert flops(layers.Dense(4, name="a"), shape=(None, 3)) == {"a/kernel": None}
    assert flops(layers.Conv2D(4, 3, name="a"), shape=(None, 8, 3)) == {"a/kernel": None}
    model = keras.Sequential([keras.Input((3,)), Twice(name="a"), layers.Dense(2, name="b")])
    result = ts.report(model)
    assert by_name(model) == {"a/kernel": None, "b/kernel": 12}
    assert result.total("flops") is None and result.total("size") == 15
    assert " ?" in str(result)


# ---- zeros, sparsity, bytes


def small():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="a"),
                              layers.Dense(2, name="b")])
    for layer in model.layers:
        shape = layer.kernel.shape
        layer.kernel.assign(np.arange(1, 1 + np.prod(shape)).reshape(shape))
    return model


def on_host(host, method=HALF, select=None):
    model = small()
    if host == "optimizer":
        model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.0), method, select=select), "mse")
    else:
        model = ts.sparsify(model, method, select=select)
        model.compile(keras.optimizers.SGD(0.0), "mse")
    ts.update(model)
    return model


@pytest.mark.any_backend
@pytest.mark.parametrize("host", ["layer", "optimizer"])
def test_a_sparsified_model(host):
    result = ts.report(on_host(host, select="a/"))
    a, b = result.rows
    assert a._asdict() == {
        "name": "a/kernel", "shape": (4, 8), "size": 32, "zeros": 16, "sparsity": 0.5,
        "target": 0.5, "skipped": None, "flops": 64, "flops_effective": 32,
        "bytes": 128, "bytes_sparse": 16 * 4 + 4}
    assert b._asdict() == {
        "name": "b/kernel", "shape": (8, 2), "size": 16, "zeros": 0, "sparsity": 0.0,
        "target": None, "skipped": "not selected", "flops": 32, "flops_effective": 32,
        "bytes": 64, "bytes_sparse": 16 * 4 + 2}
    assert (result.sparsity, result.target, result.step) == (0.5, 0.5, 0)
    assert result.to_dict()["total"] == {"size": 48, "zeros": 16, "flops": 96,
                                         "flops_effective": 64, "bytes": 192, "bytes_sparse": 134}


@pytest.mark.any_backend
def test_to_dict_is_json():
    result = ts.report(on_host("layer", ts.MagnitudePruning(ts.ConstantSparsity(0.6, 0),
                                                            distribution="erk")))
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


@pytest.mark.any_backend
def test_the_mask_is_counted_not_the_weights():
    model = on_host("layer")
    model.layers[0].theta("kernel").assign(np.zeros((4, 8)))  # zero, but not pruned
    assert by_name(model, "zeros") == {"a/kernel": 16, "b/kernel": 8}


@pytest.mark.any_backend
@pytest.mark.parametrize("method", [
    HALF, ts.RandomPruning(ts.ConstantSparsity(0.3, 0), seed=1),
    ts.MagnitudePruning(ts.ConstantSparsity(0.6, 0), distribution="global")])
def test_the_count_is_that_of_the_stripped_model(method):
    model = ts.sparsify(small(), method)
    ts.update(model)
    stripped = ts.strip(model)
    assert by_name(model, "zeros") == {
        f"{layer.name}/kernel": layer.kernel.shape[0] * layer.kernel.shape[1]
        - np.count_nonzero(layer.get_weights()[0]) for layer in stripped.layers}
    assert ts.report(stripped).sparsity == ts.report(model).sparsity
    assert {row.skipped for row in ts.report(stripped).rows} == {"not selected"}


@pytest.mark.any_backend
def test_global_pruning_has_a_target_for_all_and_none_for_one():
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), distribution="global")
    result = ts.report(on_host("layer", method))
    assert result.target == 0.5 and {row.target for row in result.rows} == {None}
    assert result.sparsity == 0.5


@pytest.mark.any_backend
def test_one_target_of_all_kernels_is_not_rounded():
    """0.8 + 0.8 + 0.8, over 3, is 0.8000000000000002 in floats."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, [keras.layers.Dense(10)(inputs) for _ in range(3)])
    sparse = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.8, 0)))
    assert (0.8 + 0.8 + 0.8) / 3 != 0.8
    assert ts.report(sparse).target == 0.8
    ranked = ts.sparsify(model, ts.VariationalDropout(8, target_sparsity=0.5))
    assert type(ts.report(ranked).natural) is float


def test_the_global_target_is_weighted_by_size():
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), distribution={"a/": 0.25})
    assert ts.report(on_host("layer", method)).target == (32 * 0.25 + 16 * 0.5) / 48


@pytest.mark.any_backend
def test_a_method_without_target():
    model = ts.sparsify(small(), ts.ContinuousSparsification(anneal_steps=10, s0=-0.1))
    result = ts.report(model)
    assert result.target is None and result.sparsity == 1.0


@pytest.mark.any_backend
def test_natural_and_requested_sparsity():
    """s0 = 0.1 > 0: nothing is pruned by itself; 36 of 48 weights when 0.75 is asked for."""
    model = ts.sparsify(small(), ts.ContinuousSparsification(10, s0=0.1, target_sparsity=0.75))
    ts.update(model)
    result = ts.report(model)
    assert (result.sparsity, result.target, result.natural) == (0.75, 0.75, 0.0)
    assert "Sparsity 0.7500 at step 0 (requested 0.7500, natural 0.0000)" in str(result)
    assert result.to_dict()["natural"] == 0.0
    assert [row.target for row in result.rows] == [None, None]  # one ranking over all kernels

    asked = ts.ContinuousSparsification(10, s0=0.1, target_sparsity=0.75, reach="controller")
    result = ts.report(ts.sparsify(small(), asked))
    assert (result.sparsity, result.target, result.natural) == (0.0, 0.75, None)


@pytest.mark.any_backend
def test_mixed_methods_share_one_report():
    model = ts.sparsify(small(), HALF, select="a/")
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.25, 0)), select="b/")
    ts.update(model)
    assert by_name(model, "zeros") == {"a/kernel": 16, "b/kernel": 4}
    assert ts.report(model).sparsity == 20 / 48


@pytest.mark.any_backend
def test_bytes_are_those_of_the_dtype():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="bfloat16", name="a")])
    row, = ts.report(model).rows
    assert row.bytes == 24 and row.bytes_sparse == np.count_nonzero(
        keras.ops.convert_to_numpy(model.layers[0].kernel).astype("float32")) * 2 + 2


# ---- what it reads


@pytest.mark.any_backend
def test_a_pattern_that_does_not_fit_is_the_reason():
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), pattern="2:4")
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(8, 4, name="e")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="d")(x))
    with pytest.warns(UserWarning, match="Not sparsified: e/embeddings"):
        sparse = ts.sparsify(model, method)
    e, d = ts.report(sparse).rows
    assert d.skipped is None and e.skipped == method.unsupported(
        ts.method.Kernel("e/embeddings", (8, 4), ("vocab", "out")))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, name="d")

    def call(self, x):
        return self.dense(x)


@pytest.mark.any_backend
def test_a_subclassed_model():
    model = Subclassed()
    with pytest.raises(ValueError, match="not built.*Call it once on a batch"):
        ts.report(model)
    model(np.ones((1, 4), "float32"))
    model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.1), HALF), "mse")
    row, = ts.report(model).rows
    assert row.skipped == "ts.SparseOptimizer makes its masks when training starts"
    ts.update(model)
    row, = ts.report(model).rows
    assert (row.zeros, row.target, row.flops, row.skipped) == (8, 0.5, None, None)


@pytest.mark.any_backend
def test_arrays_that_only_a_pattern_selects():
    class Scale(layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(4, 4), name="table", initializer="ones")

        def call(self, x):
            return x @ self.table

    model = keras.Sequential([keras.Input((4,)), Scale(name="s"), layers.Dense(2, name="d")])
    model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.1), HALF, select="table"), "mse")
    ts.update(model)
    result = ts.report(model)
    assert result.sparsity == 0.5
    assert [(row.zeros, row.skipped) for row in result.rows] == [(0, "not selected"), (8, None)]


@pytest.mark.any_backend
def test_a_quantized_and_a_lora_kernel_are_counted():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, name="q"),
                              layers.Dense(4, name="l")])
    model.layers[0].quantize("int8")
    model.layers[1].enable_lora(1)
    q, l = (row for row in ts.report(model).rows if row.name in ("q/kernel", "l/kernel"))
    assert (q.size, q.bytes, q.flops) == (32, 32, None) and q.skipped.startswith("it is quantized")
    assert l.flops == 64 and l.skipped.startswith("LoRA")


@pytest.mark.any_backend
def test_an_unbuilt_model_says_what_to_do():
    with pytest.raises(ValueError, match=r"not built.*model.build\(input_shape\)"):
        ts.report(keras.Sequential([layers.Dense(2)]))


@pytest.mark.any_backend
def test_what_is_no_keras_3_model():
    foreign = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})
    with pytest.raises(TypeError, match=r"Keras 3 models; this is a tf_keras \(Keras 2\) model"):
        ts.report(type("Mine", (foreign,), {})())
    with pytest.raises(TypeError, match="expects a keras.Model. Received: 3"):
        ts.report(3)


@pytest.mark.any_backend
@pytest.mark.filterwarnings("ignore:MagnitudePruning ends its schedule")
@pytest.mark.parametrize("host", ["layer", "optimizer"])
def test_a_schedule_that_is_not_complete_is_a_warning(host):
    method = ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.5, 0, 6, frequency=2))
    model = on_host(host, method)
    fit = dict(batch_size=4, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    model.fit(np.ones((12, 4)), np.ones((12, 2)), **fit)
    with pytest.warns(UserWarning, match="schedule at step 3 of 6") as caught:
        assert ts.report(model).step == 3
    found, = (w for w in caught if w.category is UserWarning)
    assert found.filename == __file__
    model.fit(np.ones((12, 4)), np.ones((12, 2)), **fit)
    assert ts.report(model).sparsity == 0.5


# ---- the table


def test_the_table():
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(8, 3, name="conv"),
                              layers.Flatten(), layers.Dense(10, name="head")])
    model = ts.sparsify(model, HALF, select=ts.exclude(first=True))
    ts.update(model)
    # 30 x 30 positions x 27 x 8 x 2 = 388,800; 7200 x 10 x 2 = 144,000, of which half
    assert str(ts.report(model)) == """\
Sparsity 0.5000 at step 0
kernel              shape    parameters   zeros  sparsity  target   FLOPs  effective   bytes  sparse
----------------------------------------------------------------------------------------------------
conv/kernel         3x3x3x8         216       0    0.0000       -  388.8k     388.8k     864     891
head/kernel         7200x10      72,000  36,000    0.5000  0.5000  144.0k      72.0k  288.0k  153.0k
----------------------------------------------------------------------------------------------------
sparsified kernels               72,000  36,000    0.5000  0.5000  144.0k      72.0k  288.0k  153.0k
all kernels                      72,216  36,000    0.4985       -  532.8k     460.8k  288.9k  153.9k
dense: conv/kernel (not selected)"""


def test_the_table_of_a_large_model_fits_into_a_line():
    names = [f"block{i}_conv_expand" for i in range(9)]
    model = keras.Sequential([keras.Input((7, 7, 512))] + [
        layers.Conv2D(512, 3, padding="same", name=n, kernel_initializer="zeros") for n in names])
    lines = str(ts.report(model)).splitlines()
    assert max(map(len, lines)) <= 120
    # 9 kernels of 9 x 512 x 512 weights, at 49 positions
    total, = (line for line in lines if line.startswith("all kernels"))
    assert total.split() == ["all", "kernels", "21,233,664", "21,233,664", "1.0000", "-",
                             "2.1G", "0", "84.9M", "2.7M"]


def test_an_empty_report():
    model = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    result = ts.report(model)
    assert (result.sparsity, result.rows, result.total("size")) == (0.0, [], 0)
    assert str(result)


def test_the_optimizer_host_is_counted_in_its_arrays():
    """Dense weights put over the pruned ones are reported as what they are."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
    model.compile(ts.SparseOptimizer("sgd", method), "mse")
    dense = model.get_weights()
    ts.update(model)
    assert ts.report(model).rows[0].zeros == 16
    model.set_weights(dense)
    assert ts.report(model).rows[0].zeros == 0
