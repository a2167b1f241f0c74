"""Dense gradients of a probe batch, against closed forms in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

import tf_sparsity as ts
from tf_sparsity import probes

pytestmark = pytest.mark.any_backend

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.normal(size=(16, 3)).astype("float32")


def numpy(x):
    return np.array(ops.convert_to_numpy(x))


def half(**kwargs):
    return ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), **kwargs)


def linear(x, *layers):
    return keras.Sequential([keras.Input(x.shape[1:]), *layers,
                             keras.layers.Dense(3, use_bias=False, name="linear")])


def mse_gradient(w, x, y):
    return 2 * x.T @ (x @ w - y) / y.size


@pytest.mark.parametrize("host", ["plain", "layers", "optimizer"])
def test_linear_model_with_pruned_weights(host):
    model = linear(X)
    if host == "layers":
        model = ts.sparsify(model, half())
    model.compile(ts.SparseOptimizer("sgd", half()) if host == "optimizer" else "sgd", "mse")
    if host != "plain":
        ts.update(model)
    weight = numpy(model.layers[0].kernel)
    assert (weight == 0).sum() == (0 if host == "plain" else 9)
    gradient, = probes.gradients(model, model.trainable_variables[:1], X, Y)
    np.testing.assert_allclose(gradient, mse_gradient(weight, X, Y), rtol=1e-4, atol=1e-6)
    assert np.all(gradient != 0)  # pruned weights have theirs


def test_theta_behind_the_mask_does_not_matter():
    model = ts.sparsify(linear(X), half(revive=True))
    model.compile("sgd", "mse")
    ts.update(model)
    weight, theta = numpy(model.layers[0].kernel), model.layers[0].theta("kernel")
    assert np.all(numpy(theta) != 0)
    gradient, = probes.gradients(model, [theta], X, Y)
    np.testing.assert_allclose(gradient, mse_gradient(weight, X, Y), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("host", ["layers", "optimizer"])
def test_running_statistics_and_no_dropout(host):
    norm = keras.layers.BatchNormalization(epsilon=0.5)
    model = linear(X, norm, keras.layers.Dropout(0.5))
    if host == "layers":
        model = ts.sparsify(model, half())
        norm = model.layers[0]
    mean, variance = np.arange(6, dtype="float32"), np.arange(1, 7, dtype="float32")
    norm.moving_mean.assign(mean)
    norm.moving_variance.assign(variance)
    model.compile(ts.SparseOptimizer("sgd", half()) if host == "optimizer" else "sgd", "mse")
    ts.update(model)
    last = model.get_layer("linear")
    theta = last.theta("kernel") if host == "layers" else last.kernel
    before = [numpy(v) for v in model.variables]
    gradient, gamma = probes.gradients(model, [theta, norm.gamma], X, Y)
    x = (X - mean) / np.sqrt(variance + 0.5)
    w = numpy(last.kernel)
    np.testing.assert_allclose(gradient, mse_gradient(w, x, Y), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gamma, (x * (2 * (x @ w - Y) @ w.T)).sum(0) / Y.size,
                               rtol=1e-4, atol=1e-5)
    for old, variable in zip(before, model.variables):
        np.testing.assert_array_equal(old, numpy(variable))


@pytest.mark.parametrize("names", [False, True], ids=["lists", "dicts"])
def test_several_inputs_and_outputs(names):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    ya = keras.layers.Dense(3, use_bias=False, name="ya")(a)
    yb = keras.layers.Dense(3, use_bias=False, name="yb")(b)
    model = keras.Model({"a": a, "b": b} if names else [a, b],
                        {"ya": ya, "yb": yb} if names else [ya, yb])
    model = ts.sparsify(model, half())
    model.compile("sgd", loss={"ya": "mse", "yb": "mse"} if names else ["mse", "mse"],
                  loss_weights={"ya": 1.0, "yb": 3.0} if names else [1.0, 3.0])
    ts.update(model)
    x = {"a": X, "b": X[::-1]} if names else [X, X[::-1]]
    y = {"ya": Y, "yb": Y} if names else [Y, Y]
    layers = [model.get_layer("ya"), model.get_layer("yb")]
    grads = probes.gradients(model, [layer.theta("kernel") for layer in layers], x, y)
    np.testing.assert_allclose(grads[0], mse_gradient(numpy(layers[0].kernel), X, Y),
                               rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], 3 * mse_gradient(numpy(layers[1].kernel), X[::-1], Y),
                               rtol=1e-4, atol=1e-6)


def test_penalties_and_metrics_stay_out():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(
        3, use_bias=False, kernel_regularizer=keras.regularizers.L2(10.0))])
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(X, Y, verbose=0)
    before = {k: float(v) for k, v in model.get_metrics_result().items()}
    weight = numpy(model.weights[0])
    gradient, = probes.gradients(model, model.trainable_variables, X, Y)
    np.testing.assert_allclose(gradient, mse_gradient(weight, X, Y), rtol=1e-4, atol=1e-6)
    assert {k: float(v) for k, v in model.get_metrics_result().items()} == before
    assert not model._compile_loss.metrics
    np.testing.assert_array_equal(numpy(model.weights[0]), weight)


def test_sparse_layers_inside_a_subclassed_model():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = ts.layers.SparseDense(3, use_bias=False, method=half())

        def call(self, x):
            return self.inner(x)

    model = Model()
    model(X)
    model.compile("sgd", "mse")
    ts.update(model)
    gradient, = probes.gradients(model, model.trainable_variables, X, Y)
    np.testing.assert_allclose(gradient, mse_gradient(numpy(model.inner.kernel), X, Y),
                               rtol=1e-4, atol=1e-6)
    assert np.all(gradient != 0)


@pytest.mark.parametrize("make", [
    lambda: keras.layers.LSTM(4), lambda: keras.layers.SeparableConv1D(4, 2),
    lambda: keras.layers.Embedding(6, 2),
], ids=["recurrent", "separable", "embedding"])
def test_the_gradients_are_those_of_the_plain_twin(make):
    layer = make()
    embedding = isinstance(layer, keras.layers.Embedding)
    x = np.arange(30).reshape(6, 5) % 4 if embedding else X[:, :5].reshape(4, 5, 4)
    y = np.ones((len(x), 3), "float32")
    model = ts.sparsify(keras.Sequential([
        keras.Input(x.shape[1:], dtype="int32" if embedding else None), layer,
        keras.layers.Flatten(), keras.layers.Dense(3)]), half())
    model.compile("sgd", "mse")
    ts.update(model)
    twin = ts.strip(model)
    twin.compile("sgd", "mse")
    assert len(model.trainable_variables) == len(twin.trainable_variables)
    for one, other, variable in zip(
            probes.gradients(model, model.trainable_variables, x, y),
            probes.gradients(twin, twin.trainable_variables, x, y), twin.trainable_variables):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7, err_msg=variable.path)
        assert np.any(other != 0)


def test_a_loss_is_needed():
    with pytest.raises(ValueError, match="need a loss: compile the model with one"):
        probes.gradients(linear(X), [], X, Y)


# ---- probe data


def test_one_batch_is_drawn_again_and_again():
    stream = probes.batches((X, Y))
    for _ in range(3):
        x, y = next(stream)
        assert x is X and y is Y


def test_an_iterable_is_drawn_from_once_per_update_and_begun_again():
    drawn = []

    class Data:
        def __iter__(self):
            for i in range(2):
                drawn.append(i)
                yield X[i:i + 4], Y[i:i + 4]

    stream = probes.batches(Data())
    assert not drawn
    assert [next(stream)[0][0, 0] for _ in range(3)] == [X[0, 0], X[1, 0], X[0, 0]]
    assert drawn == [0, 1, 0]


@keras.saving.register_keras_serializable(package="test")
class ByGradient(ts.MaskMethod):
    needs_probe = True
    seen: list = []

    def scores(self, weight, gradient, seed):
        self.seen.append((weight, gradient))
        return np.abs(gradient)


def test_each_update_draws_one_batch():
    method = ByGradient(ts.PolynomialDecay(0.25, 0.5, 0, 4, frequency=2))
    model = ts.sparsify(linear(X), method)
    model.compile("sgd", "mse")
    parts = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:12], Y[8:12])]
    ByGradient.seen.clear()
    model.fit(X, Y, batch_size=4, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(probe_data=parts)])
    assert len(ByGradient.seen) == 3  # at steps 0, 2 and 4
    for (weight, gradient), part in zip(ByGradient.seen, parts):
        np.testing.assert_allclose(gradient, mse_gradient(weight, *part), rtol=1e-4, atol=1e-6)
    assert [(weight == 0).sum() for weight, _ in ByGradient.seen] == [0, 4, 8]
    assert (numpy(model.layers[0].kernel) == 0).sum() == 9


@pytest.mark.parametrize("data, message", [
    ([X], "Received an item of type ndarray"), ((X, Y, Y), "Received an item of type tuple"),
    ([(X, Y, Y)], "Received an item of type tuple"),
    ([], "ran out"), (iter([]), "ran out"),
], ids=["array", "weights", "batch with weights", "empty", "used up"])
def test_what_is_no_probe_data(data, message):
    with pytest.raises(ValueError, match=message):
        next(probes.batches(data))


def test_a_generator_that_ran_out():
    stream = probes.batches(iter([(X, Y)]))
    next(stream)
    with pytest.raises(ValueError, match="an iterable that can be iterated again"):
        next(stream)
