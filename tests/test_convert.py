"""sparsify and strip on whole models: what stays, what is copied, what is refused and how."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tf_sparsity as ts
from tf_sparsity.convert import plain_twin
from tf_sparsity.kernels import find
from tf_sparsity.layers import SparseDense, SparseLayer

pytestmark = pytest.mark.any_backend

METHOD = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
FACTOR = 0.25  # a global of functions below
FLOATS = np.random.default_rng(0).normal(size=4000).astype("float32")


def x(*shape):
    return FLOATS[:2 * np.prod(shape)].reshape(2, *shape)


def outputs(model, inputs):
    """Eager outputs; `predict` compiles, which costs seconds for each model."""
    return [ops.convert_to_numpy(y) for y in keras.tree.flatten(model(inputs, training=False))]


def assert_same_outputs(model, other, inputs):
    for one, two in zip(outputs(model, inputs), outputs(other, inputs), strict=True):
        np.testing.assert_array_equal(one, two)


def sparse_layers(model):
    return [l for l in model._flatten_layers() if isinstance(l, SparseLayer)]


def has_our_classes(model):
    return any(type(l).__module__.startswith("tf_sparsity") for l in model._flatten_layers())


@keras.saving.register_keras_serializable(package="test")
class Block(layers.Layer):
    """A custom layer with a Dense inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs)


class Unregistered(Block):
    """The same, but Keras cannot find it by name."""


class MyDense(layers.Dense):
    """A subclass may compute anything, so it must not be replaced."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training)


class NoConfig(layers.Layer):
    """Keras guesses a configuration from plain arguments, not from an object."""

    def __init__(self, thing, **kwargs):
        super().__init__(**kwargs)
        self.thing = thing

    def call(self, inputs):
        return inputs


class WrongConfig(layers.Layer):
    def __init__(self):
        super().__init__()

    def call(self, inputs):
        return inputs


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs)


# ---- topologies: name -> (model, input)


def sequential():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"),
                             layers.Dense(2)]), x(4)


def deferred_sequential():
    model = keras.Sequential([layers.Dense(3, activation="relu"), layers.Dense(2)])
    model.build((None, 4))
    return model, x(4)


def called_sequential():
    model = keras.Sequential([layers.Dense(3), layers.Dense(2)])
    model(x(4))
    return model, x(4)


def nested():
    """Functional in Sequential in functional, one inner model used twice."""
    inner = keras.Input((3,))
    inner = keras.Model(inner, layers.Dense(3)(layers.Dense(5)(inner)), name="inner")
    middle = keras.Sequential([keras.Input((4,)), layers.Dense(3), inner], name="middle")
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(inner(middle(inputs)))), x(4)


def shared():
    dense = layers.Dense(4)
    inputs = keras.Input((4,))
    step = layers.TimeDistributed(dense)(keras.ops.expand_dims(dense(dense(inputs)), 1))
    return keras.Model(inputs, layers.Flatten()(step)), x(4)


def many_inputs_and_outputs():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((3,), name="b")}
    both = layers.Concatenate()([layers.Dense(3)(inputs["a"]), inputs["b"]])
    return keras.Model(inputs, {"sum": layers.Dense(2, name="sum")(both), "raw": both}), {
        "a": x(4), "b": x(3)}


def operations():
    inputs = keras.Input((4,))
    y = layers.Dense(4)(inputs)
    y = keras.ops.relu(keras.ops.add(y, inputs)) * 2.0 + 1.0
    return keras.Model(inputs, layers.Dense(2)(keras.ops.concatenate([y, inputs[:, 1:]], -1))), x(4)


def statistics():
    normalization = layers.Normalization()
    normalization.adapt(x(6, 6, 2) * 3 + 1)
    model = keras.Sequential([
        keras.Input((6, 6, 2)), normalization, layers.Conv2D(3, 2, padding="same"),
        layers.BatchNormalization(), layers.MaxPooling2D(), layers.DepthwiseConv2D(2),
        layers.GroupNormalization(1), layers.Flatten(), layers.Dense(2)])
    model.layers[2].moving_mean.assign([1.0, 2.0, 3.0])
    model.layers[2].moving_variance.assign([3.0, 2.0, 1.0])
    return model, x(6, 6, 2)


def wrapped():
    inner = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 2), layers.Flatten()])
    return keras.Sequential([
        keras.Input((3, 4, 4, 1)), layers.TimeDistributed(layers.Conv2D(1, 1)),
        layers.TimeDistributed(inner), layers.TimeDistributed(layers.Dense(3)),
        layers.LSTM(2)]), x(3, 4, 4, 1)


def bidirectional(merge_mode="concat", backward=False):
    backward = layers.GRU(3, go_backwards=True, activation="relu") if backward else None
    layer = layers.Bidirectional(layers.GRU(3, implementation=1), merge_mode=merge_mode,
                                 backward_layer=backward)
    inputs = keras.Input((4, 3))
    return keras.Model(inputs, layer(inputs)), x(4, 3)


def attention():
    inputs = keras.Input((4,), dtype="int32")
    y = layers.Embedding(7, 4, mask_zero=True)(inputs)
    y = layers.MultiHeadAttention(2, 3)(y, y, use_causal_mask=True)
    return keras.Model(inputs, layers.SimpleRNN(2)(y)), np.array([[1, 2, 3, 0], [6, 0, 0, 0]])


def scaled(t, by):
    return FACTOR * by * t


def lambdas():
    factor = 0.5

    def local(t):
        return factor * t

    return keras.Sequential([
        keras.Input((4, 3)), layers.Lambda(lambda t: factor * t, output_shape=(4, 3)),
        layers.Lambda(lambda t: FACTOR * t), layers.Lambda(scaled, arguments={"by": 2}),
        layers.Dense(3, activation=lambda t: factor * t), layers.Activation(local),
        layers.LSTM(2, activation=local, recurrent_activation=lambda t: factor * t)]), x(4, 3)


TOPOLOGIES = {
    "sequential": sequential, "deferred": deferred_sequential, "called": called_sequential,
    "nested": nested, "shared": shared, "several": many_inputs_and_outputs,
    "operations": operations, "statistics": statistics, "wrapped": wrapped,
    "attention": attention, "lambdas": lambdas,
    **{f"bidirectional_{mode}": lambda mode=mode: bidirectional(mode)
       for mode in ("sum", "mul", "ave", "concat", None)},
    "bidirectional_backward": lambda: bidirectional(backward=True),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_kernel_is_replaced_and_nothing_else_changes(topology):
    model, inputs = TOPOLOGIES[topology]()
    before = outputs(model, inputs)
    sparse = ts.sparsify(model, METHOD)
    assert all(f.method == METHOD for f in find(sparse))
    assert [f.kernel for f in find(sparse)] == [f.kernel for f in find(model)]
    assert sparse.name == model.name
    assert [l.name for l in sparse.layers] == [l.name for l in model.layers]
    assert [(t.shape, t.dtype) for t in sparse.inputs + sparse.outputs] == [
        (t.shape, t.dtype) for t in model.inputs + model.outputs]
    assert getattr(sparse, "output_names", None) == getattr(model, "output_names", None)
    assert [type(l).__name__ for l in sparse._flatten_layers()] == [
        type(l).__name__ for l in model._flatten_layers()]
    assert_same_outputs(sparse, model, inputs)
    ts.update(sparse)
    assert ts.report(sparse).sparsity > 0.3
    plain = ts.strip(sparse)
    assert not has_our_classes(plain)
    assert [type(l) for l in plain._flatten_layers()] == [
        type(l) for l in model._flatten_layers()]
    assert_same_outputs(plain, sparse, inputs)
    for one, two in zip(find(plain), find(sparse), strict=True):
        kept = ops.convert_to_numpy(two.slot.state["mask"])
        np.testing.assert_array_equal(ops.convert_to_numpy(one.variable) == 0, kept == 0)
    for old, new in zip(before, outputs(model, inputs), strict=True):  # the input is untouched
        np.testing.assert_array_equal(old, new)


def test_predict_is_the_same_before_and_after():
    for make in (operations, attention):
        model, inputs = make()
        sparse = ts.sparsify(model, METHOD)
        dense, sparse = model.predict(inputs, verbose=0), sparse.predict(inputs, verbose=0)
        np.testing.assert_array_equal(dense, sparse)


def test_both_models_can_be_saved_after_sparsify(tmp_path):
    model, inputs = operations()
    sparse = ts.sparsify(model, METHOD)
    for i, one in enumerate((model, sparse, plain_twin(sparse))):
        one.save(tmp_path / f"{i}.keras")
        assert_same_outputs(keras.saving.load_model(tmp_path / f"{i}.keras"), model, inputs)


def test_a_shared_layer_has_one_state_and_one_penalty():
    model, inputs = shared()
    sparse = ts.sparsify(model, ts.ContinuousSparsification(10, s0=1.0, scale=0.5))
    layer, = sparse_layers(sparse)
    sparse(inputs)
    penalty, = sparse.losses
    expected = 0.5 * 16 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(float(penalty), expected, rtol=1e-6)  # a float32 sum of 16
    assert [v.name for v in layer.trainable_variables] == ["kernel", "bias", "kernel_s"]


def test_random_generators_are_copied():
    model = keras.Sequential([keras.Input((50,)), layers.Dropout(0.5), layers.GaussianNoise(1.0),
                              layers.Dense(2)])
    sparse = ts.sparsify(model, METHOD)
    for layer in sparse_layers(sparse):
        layer.bound = True
    for _ in range(2):
        one, two = (ops.convert_to_numpy(m(x(50), training=True)) for m in (model, sparse))
        np.testing.assert_array_equal(one, two)


def test_memory_is_not_shared():
    """JAX donates the buffers of trained variables; a shared one would be gone."""
    model, inputs = sequential()
    before = [ops.convert_to_numpy(w).copy() for w in model.weights]
    sparse = ts.sparsify(model, METHOD)
    sparse.compile("sgd", "mse")
    sparse.fit(inputs, x(2), epochs=2, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    plain = ts.strip(sparse)
    plain.compile("sgd", "mse")
    plain.fit(inputs, x(2), verbose=0)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))
    assert ts.report(sparse).sparsity == pytest.approx(0.5)
    model(inputs), sparse(inputs)


def test_a_compiled_model_stays_compiled_and_the_result_is_not():
    model, inputs = nested()
    model.compile("sgd", "mse")
    model.layers[1].compile("adam", "mse")
    optimizer = model.optimizer
    sparse = ts.sparsify(model, METHOD)
    assert model.compiled and model.layers[1].compiled and model.optimizer is optimizer
    assert not sparse.compiled and not sparse.layers[1].compiled
    model.evaluate(inputs, x(2), verbose=0)


def test_frozen_layers_stay_frozen():
    base = keras.Sequential([keras.Input((4, 3)), layers.Dense(3), layers.LSTM(4)], name="base")
    base.trainable = False
    base.layers[0].trainable = True  # a fine-tuned part of a frozen model
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, layers.Dense(2)(base(inputs)))
    sparse = ts.sparsify(model, METHOD)
    for one, two in ((model, sparse), (model, plain_twin(sparse))):
        assert [(l.name, l.trainable) for l in one._flatten_layers() if l.variables] == [
            (l.name, l.trainable) for l in two._flatten_layers() if l.variables]
        assert [v.name for v in one.trainable_variables] == [
            v.name for v in two.trainable_variables]


def test_a_layer_called_with_training_in_the_graph_predicts():
    """Monte Carlo dropout: `training=True` does not mean that the model is trained."""
    inputs = keras.Input((4, 3))
    y = layers.LSTM(3, dropout=0.5)(layers.Dense(3)(inputs), training=True)
    model = keras.Model(inputs, layers.Dense(2)(y))
    sparse = ts.sparsify(model, METHOD)
    one, two, three = (ops.convert_to_numpy(m(x(4, 3))) for m in (model, sparse, sparse))
    np.testing.assert_array_equal(one, two)
    assert np.abs(three - two).max() > 0
    assert_same_outputs(sparse, model, x(4, 3))


def test_vocabularies_are_copied():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("string layers compute with TensorFlow")
    import tensorflow as tf

    text = layers.TextVectorization(output_mode="multi_hot")
    text.adapt(["a b c", "b d"])
    inputs = keras.Input((1,), dtype="string")
    model = keras.Model(inputs, layers.Dense(2)(text(inputs)))
    sparse = ts.sparsify(model, METHOD)
    assert_same_outputs(sparse, model, tf.constant([["a"], ["d c"]]))


def test_arguments_that_keras_does_not_serialize_survive():
    inputs = keras.Input((4, 3))
    y = layers.LSTM(3, return_sequences=True, implementation=1, use_cudnn=False)(inputs)
    y = layers.MultiHeadAttention(2, 3, flash_attention=True)(y, y)
    model = keras.Model(inputs, layers.GRU(3, implementation=1)(y))
    sparse = ts.sparsify(model, METHOD, select="lstm|query")
    for one in (sparse, plain_twin(sparse)):
        lstm, attention, gru = one.layers[1:]
        assert (lstm.cell.implementation, lstm.use_cudnn) == (1, False)
        assert attention._flash_attention is True and gru.cell.implementation == 1


def test_methods_mix():
    model, inputs = sequential()
    other = ts.RandomPruning(ts.ConstantSparsity(0.25, 0), seed=1)
    names = [l.name for l in model.layers]
    sparse = ts.sparsify(ts.sparsify(model, METHOD, select=names[0]), other, select=names[1])
    assert [f.method for f in find(sparse)] == [METHOD, other]
    assert_same_outputs(sparse, model, inputs)
    ts.update(sparse)
    assert [row.sparsity for row in ts.report(sparse).rows] == pytest.approx([0.5, 2 / 6])
    assert_same_outputs(ts.strip(sparse), sparse, inputs)


def test_methods_mix_inside_a_layer():
    inputs = keras.Input((4, 3))
    y = layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
    model = keras.Model(inputs, layers.MultiHeadAttention(2, 3, name="mha")(y, y))
    other = ts.RandomPruning(ts.ConstantSparsity(0.25, 0), seed=1)
    sparse = ts.sparsify(model, METHOD, select=["recurrent", "query"])
    sparse = ts.sparsify(sparse, other, select=["lstm/kernel", "mha/key"])
    assert {f.kernel.path: f.method for f in find(sparse) if f.method} == {
        "lstm/kernel": other, "lstm/recurrent_kernel": METHOD,
        "mha/query/kernel": METHOD, "mha/key/kernel": other}
    assert_same_outputs(sparse, model, x(4, 3))


def test_masks_and_step_survive_a_second_sparsify():
    model, inputs = sequential()
    names = [l.name for l in model.layers]
    sparse = ts.sparsify(model, METHOD, select=names[0])
    for _ in range(3):
        ts.update(sparse)
    again = ts.sparsify(sparse, METHOD, select=names[1])
    np.testing.assert_array_equal(*[ops.convert_to_numpy(m.layers[0].state["kernel"]["mask"])
                                    for m in (sparse, again)])
    assert [l.read_clock() for l in sparse_layers(again)] == [(2, 2), (2, -1)]


def test_an_overlap_is_refused():
    model, _ = sequential()
    sparse = ts.sparsify(model, METHOD, select=model.layers[0].name)
    with pytest.raises(ValueError, match="Already sparsified: dense.*/kernel. Select other kernels"
                                         r".*ts.strip\(model\)"):
        ts.sparsify(sparse, METHOD)


# ---- what is skipped


def test_custom_layers_are_copied_and_skipped_in_one_warning():
    inputs = keras.Input((4,))
    y = MyDense(4)(Unregistered()(layers.Dense(4)(Block(name="block")(inputs))))
    spectral = layers.SpectralNormalization(layers.Dense(3, name="in_spectral"))
    model = keras.Model(inputs, spectral(Subclassed()(y)))
    with pytest.warns(UserWarning) as caught:
        sparse = ts.sparsify(model, METHOD)
    caught = [w for w in caught if w.category is UserWarning]
    assert len(caught) == 1
    message = str(caught[0].message)
    assert caught[0].filename == __file__
    assert "block/dense" in message and "inside Block 'block', which cannot be rebuilt" in message
    assert "MyDense has no sparse counterpart" in message
    assert "inside Subclassed" in message and "SpectralNormalization" in message
    assert len(sparse_layers(sparse)) == 1
    assert_same_outputs(sparse, model, x(4))
    reasons = {row.name: row.skipped for row in ts.report(sparse).rows}
    assert sum(reason is None for reason in reasons.values()) == 1


@pytest.mark.parametrize("method", [
    ts.VariationalDropout(8), ts.L0Regularization(8), ts.ContinuousSparsification(8)])
def test_a_frozen_layer_is_skipped_by_methods_that_are_trained(method):
    """Its gates could not move: a target would empty the other kernels instead."""
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4)])
    model.get_layer("a").trainable = False
    with pytest.warns(UserWarning, match="Not sparsified: a/kernel: its layer is frozen, and "
                                         f"{type(method).__name__} is trained"):
        sparse = ts.sparsify(model, method)
    assert len(sparse_layers(sparse)) == 1
    both = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)))  # needs no training
    ts.update(both)
    assert [row.zeros for row in ts.report(both).rows] == [8, 8]


def test_a_nested_model_with_a_call_of_its_own_is_not_taken_apart():
    class Doubled(keras.Model):
        """A functional model to Keras, but with a constructor and a call of its own."""

        def __init__(self, units, **kwargs):
            inner = keras.Input((4,))
            super().__init__(inner, layers.Dense(units)(inner), **kwargs)
            self.units = units

        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training, mask=mask)

        def get_config(self):
            return {"units": self.units, "name": self.name}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(Doubled(3)(inputs)))
    with pytest.warns(UserWarning, match="inside Doubled"):
        sparse = ts.sparsify(model, METHOD)
    assert type(sparse.layers[1]) is Doubled
    assert_same_outputs(sparse, model, x(4))


def test_a_pattern_that_a_kernel_cannot_have_skips_it():
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), pattern="2:4")
    model = keras.Sequential([keras.Input((4, 4, 4)), layers.DepthwiseConv2D(2, name="d"),
                              layers.Flatten(), layers.Dense(4)])
    with pytest.warns(UserWarning, match="Not sparsified: d/kernel: "):
        sparse = ts.sparsify(model, method)
    assert len(sparse_layers(sparse)) == 1
    with pytest.raises(ValueError, match="MagnitudePruning can handle none of the selected"):
        ts.sparsify(model, method, select="^d/")


def test_quantized_and_lora_layers_are_skipped_and_keep_their_weights():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="quantized"),
                              layers.Dense(8, name="lora"), layers.Dense(2)])
    model.layers[0].quantize("int8")
    model.layers[1].enable_lora(2)
    model.layers[1].lora_kernel_b.assign(np.ones((2, 8)))
    with pytest.warns(UserWarning, match=r"(?s)quantized \(int8\); sparsify before quantizing.*"
                                         r"LoRA is enabled on it"):
        sparse = ts.sparsify(model, METHOD)
    assert_same_outputs(sparse, model, x(8))


def test_lora_inside_attention_is_merged():
    inputs = keras.Input((4, 3))
    attention = layers.MultiHeadAttention(2, 3, name="mha")
    model = keras.Model(inputs, layers.Dense(2)(attention(inputs, inputs)))
    attention._query_dense.enable_lora(2)
    attention._query_dense.lora_kernel_b.assign(
        np.ones(attention._query_dense.lora_kernel_b.shape))
    with pytest.warns(UserWarning, match="mha/query/kernel: LoRA is enabled"):
        sparse = ts.sparsify(model, METHOD)
    for one, two in zip(outputs(model, x(4, 3)), outputs(sparse, x(4, 3)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)  # W + AB is rounded once


# ---- what is refused


def unbuilt():
    return keras.Sequential([layers.Dense(2)])


def without_kernels():
    return keras.Sequential([keras.Input((4,)), layers.ReLU()])


def with_layer(layer):
    return keras.Sequential([keras.Input((4,)), layers.Dense(2), layer])


class TfKerasModel:
    """Stands for a tf_keras model: the class is recognised by its module."""


TfKerasModel.__module__ = "tf_keras.src.engine.sequential"


@pytest.mark.parametrize("verb", [lambda m: ts.sparsify(m, METHOD), ts.strip],
                         ids=["sparsify", "strip"])
@pytest.mark.parametrize("model, error, message", [
    (TfKerasModel(), TypeError, r"this is a tf_keras \(Keras 2\) model. Rebuild it with `keras`"),
    (3, TypeError, "expects a keras.Model. Received: 3"),
    (layers.Dense(2), TypeError, "expects a keras.Model. Received: <Dense"),
    (Subclassed(name="mine"), ValueError, "'mine' is the subclassed model Subclassed. "
     "ts.SparseOptimizer trains it"),
    (unbuilt(), ValueError, r"is not built.*model.build\(input_shape\) or start it with "
                            r"keras.Input"),
    (with_layer(NoConfig(object(), name="custom")), ValueError,
     r"Layer 'custom' \(NoConfig\) cannot be copied: it has no get_config.*ts.SparseOptimizer"),
    (with_layer(WrongConfig()), ValueError, r"(?s)\(WrongConfig\) cannot be copied: .*"
                                            r"from_config\(get_config\(\)\)"),
])
def test_models_that_are_refused(verb, model, error, message):
    with pytest.raises(error, match=message):
        verb(model)


def test_other_messages():
    model, _ = sequential()
    with pytest.raises(TypeError, match=r"such as ts.MagnitudePruning\(...\). Received: 0.9"):
        ts.sparsify(model, 0.9)
    with pytest.raises(ValueError, match="has no kernel that sparsify can handle .it has no kern"):
        ts.sparsify(without_kernels(), METHOD)
    with pytest.raises(ValueError, match="matches no kernel. The kernels are: dense"):
        ts.sparsify(model, METHOD, select="convolution")
    with pytest.raises(ValueError, match="MyDense has no sparse counterpart; ts.SparseOptimizer"):
        ts.sparsify(keras.Sequential([keras.Input((4,)), MyDense(2)]), METHOD)


@pytest.mark.parametrize("target", [1.0, -0.1, 90, float("nan")])
def test_targets_outside_the_range_are_refused(target):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        ts.MagnitudePruning(ts.ConstantSparsity(target, 0))


def test_strip_of_a_plain_model_is_a_copy():
    model, inputs = statistics()
    plain = ts.strip(model)
    assert plain is not model and not has_our_classes(plain)
    assert_same_outputs(plain, model, inputs)


def test_strip_warns_while_the_schedule_runs():
    model, _ = sequential()
    sparse = ts.sparsify(model, ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.5, 0, 10)))
    ts.update(sparse)
    with pytest.warns(UserWarning, match="schedule at step 0 of 10"):
        ts.strip(sparse)


def test_sparse_layers_written_by_hand():
    model = keras.Sequential([keras.Input((4,)), SparseDense(4, method=METHOD), layers.Dense(2)])
    sparse = ts.sparsify(model, METHOD, select=model.layers[1].name)
    assert len(sparse_layers(sparse)) == 2
    assert_same_outputs(sparse, model, x(4))
