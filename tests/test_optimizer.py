"""SparseOptimizer: the optimizer host on models of every kind, with everything Keras' optimizers do.

The two backends run all of it but what says otherwise. Hand-computed numbers are in NumPy here.
"""

import re

import keras
import numpy as np
import pytest
from keras import ops

import tf_sparsity as ts
from tf_sparsity.optimizer import ELEMENTWISE, innermost

pytestmark = pytest.mark.any_backend
TENSORFLOW = keras.backend.backend() == "tensorflow"
tensorflow_only = pytest.mark.skipif(not TENSORFLOW, reason="says something about TensorFlow")

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(32, 3)).astype("float32")
TOKENS = np.random.default_rng(2).integers(0, 11, size=(32, 5))
SEQUENCES = np.random.default_rng(3).normal(size=(32, 5, 6)).astype("float32")


def rising(final=0.75, begin=0, end=6, frequency=2):
    return ts.PolynomialDecay(0.25, final, begin, end, frequency=frequency)


def magnitude(**kwargs):
    return ts.MagnitudePruning(rising(), **kwargs)


def half(begin=0):
    return ts.MagnitudePruning(ts.ConstantSparsity(0.5, begin))


def mlp(seed=0, dropout=0.0):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((6,)), keras.layers.Dense(8, "tanh", name="hidden")]
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    return keras.Sequential([*layers, keras.layers.Dense(3, name="out")])


class CustomDense(keras.layers.Layer):
    """Its array is called 'w', which the default selection does not know."""

    def __init__(self, units, array="w", **kwargs):
        super().__init__(**kwargs)
        self.units, self.array = units, array

    def build(self, shape):
        self.w = self.add_weight((shape[-1], self.units), name=self.array)
        self.b = self.add_weight((self.units,), initializer="zeros", name="b")
        self.scale = self.add_weight((1, self.units), initializer="ones", name="scale")

    def call(self, x):
        return (x @ self.w + self.b) * self.scale


class Subclassed(keras.Model):
    def __init__(self, array="kernel"):
        super().__init__()
        self.first = keras.layers.Dense(8, "tanh")
        self.own = CustomDense(3, array)

    def call(self, x):
        return self.own(self.first(x))


def built(model, x):
    model(x[:1])
    return model


def functional():
    x = keras.Input((6,))
    y = keras.layers.Dense(8, name="a")(x)
    return keras.Model(x, keras.layers.Dense(3, name="b")(keras.layers.PReLU()(y)))


def nested():
    x = keras.Input((6,))
    return keras.Model(x, keras.layers.Dense(3)(keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(7)], name="inner")(x)))


def attention():
    x = keras.Input((5, 6))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    return keras.Model(x, keras.layers.Dense(3)(y[:, 0]))


MODELS = {  # name: (model, input, number of sparse arrays)
    "subclassed": (Subclassed, X, 2),
    "subclassed built": (lambda: built(Subclassed(), X), X, 2),
    "functional": (functional, X, 2),
    "nested": (nested, X, 2),
    "attention": (attention, SEQUENCES, 5),
    "lstm": (lambda: keras.Sequential([keras.Input((5, 6)), keras.layers.LSTM(4),
                                       keras.layers.Dense(3)]), SEQUENCES, 3),
    "embedding": (lambda: keras.Sequential([keras.Input((5,), dtype="int32"),
                                            keras.layers.Embedding(11, 4),
                                            keras.layers.GlobalAveragePooling1D(),
                                            keras.layers.Dense(3)]), TOKENS, 2),
}


class AlwaysSparse(keras.callbacks.Callback):
    """After every step: the zeros of each array are those of its mask, and their count is due."""

    def __init__(self, schedule=None, numbers=None):
        super().__init__()
        self.schedule, self.numbers, self.steps = schedule or rising(), numbers, []

    def on_train_batch_end(self, batch, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def on_test_begin(self, logs=None):
        self.check()

    def on_train_end(self, logs=None):
        self.check()

    def check(self):
        optimizer = unwrapped(self.model.optimizer)
        step, updated = optimizer.read_clock()
        self.steps.append(step)
        last = max([s for s in range(step + 1) if self.schedule.due(s - 1, s)], default=-1)
        assert optimizer.slots and updated >= last
        for slot in optimizer.slots:
            theta, mask = numpy(slot.theta), numpy(slot.state["mask"])
            np.testing.assert_array_equal(theta[mask == 0], 0)
            count = round(theta.size * self.schedule.value(last))
            assert (mask == 0).sum() == count, (slot.kernel.path, step, updated)
            inner = innermost(optimizer)
            if inner.use_ema:
                average = inner._model_variables_moving_average[
                    inner._get_variable_index(slot.theta)]
                np.testing.assert_array_equal(numpy(average)[mask == 0], 0)


def unwrapped(optimizer):
    while not isinstance(optimizer, ts.SparseOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def numpy(x):
    return np.array(ops.convert_to_numpy(x))


def train(model, optimizer, x=X, epochs=2, *, update=True, callbacks=(), batch_size=8, fit=None,
          **compiling):
    model.compile(optimizer, "mse", **compiling)
    callbacks = [ts.callbacks.SparsityUpdate()] * update + list(callbacks)
    model.fit(x, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0,
              callbacks=callbacks, **fit or {})
    return model


def weights(model):
    return [numpy(w) for w in model.weights]


def assert_equal(a, b, rtol=0.0, atol=0.0):
    assert len(a) == len(b)
    for one, other in zip(a, b):
        if rtol or atol:
            np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(one, other)


def sgd(method=None, **kwargs):
    select = kwargs.pop("select", None)
    return ts.SparseOptimizer(keras.optimizers.SGD(0.05, momentum=0.9, **kwargs),
                              method or magnitude(), select=select)


# ---- models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inner", [lambda: keras.optimizers.SGD(0.05, momentum=0.9),
                                   lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)],
                         ids=["momentum", "adamw"])
def test_weights_are_zero_after_every_step(name, inner):
    make, x, arrays = MODELS[name]
    schedule = rising(begin=1)
    optimizer = ts.SparseOptimizer(inner(), ts.MagnitudePruning(schedule))
    check = AlwaysSparse(schedule)
    model = train(make(), optimizer, x, callbacks=[check])
    assert len(optimizer.slots) == arrays
    assert optimizer.read_clock() == (8, 8)
    assert check.steps[:4] == [1, 2, 3, 4]
    kernels = [w for w in model.trainable_variables if len(w.shape) > 1 and w.name != "scale"
               and not (name == "functional" and w.name == "alpha")]
    assert {id(s.theta) for s in optimizer.slots} <= {id(w) for w in kernels}


def test_default_selection_takes_kernels_and_embeddings_only():
    x = keras.Input((4, 6))
    y = keras.layers.Dense(8, name="dense")(x)
    y = keras.layers.PReLU(name="slope")(y)
    y = keras.layers.LayerNormalization(axis=(1, 2), name="norm")(y)
    model = keras.Model(x, CustomDense(3, name="own")(y))
    model.compile(sgd(), "mse")
    ts.update(model)
    assert [s.kernel.path for s in model.optimizer.slots] == ["dense/kernel"]


def test_selection_by_regex_predicate_and_exclusion():
    def paths(select, make=Subclassed):
        keras.backend.clear_session()  # names count from one
        model = built(make(), X)
        model.compile(sgd(half(), select=select), "mse")
        ts.update(model)
        return [s.kernel.path for s in model.optimizer.slots]

    assert paths("w$", lambda: Subclassed("w")) == ["custom_dense/w"]
    assert paths(lambda layer: isinstance(layer, CustomDense)) == ["custom_dense/kernel"]
    assert paths(["a/", "b/"], functional) == ["a/kernel", "b/kernel"]
    assert paths(ts.exclude("^a/"), functional) == ["b/kernel"]
    assert paths(ts.exclude(last=True), functional) == ["a/kernel"]
    with pytest.raises(ValueError, match="matches no kernel"):
        paths("nothing")
    with pytest.raises(ValueError, match="leaves no kernel"):
        paths(lambda layer: False)


def test_regex_selects_an_array_of_any_name():
    schedule = rising(begin=1)
    optimizer = sgd(ts.MagnitudePruning(schedule), select="w$")
    train(Subclassed("w"), optimizer, callbacks=[AlwaysSparse(schedule)])
    assert [s.kernel.shape for s in optimizer.slots] == [(8, 3)]


def test_a_predicate_needs_the_layers():
    model = mlp()
    optimizer = sgd(half(), select=lambda layer: True)
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="predicate on layers, but the layers of these variables"):
        ts.update(optimizer)


def test_what_only_layers_can_host_is_refused():
    inner = keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match=r"revive=True\) scores the weights behind the mask.*"
                                         r"ts\.sparsify"):
        ts.SparseOptimizer(inner, ts.MagnitudePruning(rising(), revive=True))
    with pytest.raises(ValueError, match="learns its sparsity with trainable state.*"
                                         r"ts\.layers\.SparseDense"):
        ts.SparseOptimizer(inner, ts.ContinuousSparsification(10))
    with pytest.raises(ValueError, match="Could not interpret optimizer identifier"):
        ts.SparseOptimizer(ts.SparseOptimizer, magnitude())


def test_layers_that_are_sparse_already_are_left_alone():
    model = ts.sparsify(mlp(), half(begin=3), select="hidden")
    optimizer = sgd(half(begin=2))
    model.compile(optimizer, "mse")
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model  # noqa: B018
            hidden, out = model.get_layer("hidden"), model.get_layer("out")
            seen[batch + 1] = ((numpy(hidden.state["kernel"]["mask"]) == 0).mean(),
                               (numpy(out.kernel) == 0).mean())

    model.fit(X, Y, batch_size=8, verbose=0, callbacks=[ts.callbacks.SparsityUpdate(), Look()])
    assert seen == {1: (0, 0), 2: (0, 0.5), 3: (0.5, 0.5), 4: (0.5, 0.5)}
    assert [s.kernel.path for s in optimizer.slots] == ["out/kernel"]
    assert np.count_nonzero(numpy(model.get_layer("hidden").theta("kernel"))) == 48


# ---- what Keras' optimizers do


@pytest.mark.parametrize("arguments", [
    {"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"clipvalue": 0.01}, {"weight_decay": 0.1},
    {"use_ema": True, "ema_momentum": 0.9},
    {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    {"loss_scale_factor": 64.0}, {"nesterov": True},
], ids=str)
def test_arguments_of_the_inner_optimizer(arguments):
    model = train(mlp(), sgd(**arguments), callbacks=[AlwaysSparse()])
    assert ts.report(model).sparsity == 0.75


@pytest.mark.parametrize("compiling", [
    {"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False},
], ids=str)
def test_compiled_and_eager(compiling):
    check = AlwaysSparse()
    train(mlp(), sgd(), callbacks=[check], **compiling)
    assert check.steps[-1] == 8


def test_steps_per_execution():
    def run(steps, **kwargs):
        class Counts(keras.callbacks.Callback):
            seen = []

            def on_train_batch_end(self, batch, logs=None):
                self.seen.append((batch + 1, (numpy(self.model.layers[0].kernel) == 0).mean()))

        counts = Counts()
        counts.seen = []
        model = train(mlp(), sgd(), callbacks=[counts], epochs=3, steps_per_execution=steps)
        return model, counts.seen

    model, seen = run(3)  # 4 steps an epoch: executions of 3 and 1
    assert model.optimizer.read_clock() == (12, 12)
    assert [batch for batch, _ in seen] == [3, 6] * 3  # Keras counts the fourth step as 4 to 6
    assert seen[-1][1] == 0.75
    np.testing.assert_array_equal(numpy(model.layers[0].kernel) == 0,
                                  numpy(model.optimizer.slots[0].state["mask"]) == 0)


def test_gradient_accumulation_counts_updates():
    check = AlwaysSparse(rising(end=3, frequency=1))
    method = ts.MagnitudePruning(rising(end=3, frequency=1))
    model = train(mlp(), sgd(method, gradient_accumulation_steps=3), epochs=3, callbacks=[check])
    assert check.steps[:7] == [0, 0, 1, 1, 1, 1, 2]  # 4 batches an epoch, then its end
    assert model.optimizer.read_clock() == (4, 4)
    assert ts.report(model).sparsity == 0.75


def test_a_short_run_under_accumulation_is_noticed():
    with pytest.warns(UserWarning, match="ends its schedule at step 6, but this run ends at step 4"):
        train(mlp(), sgd(gradient_accumulation_steps=2))


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_loss_scaling(place):
    def wrap(optimizer):
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0,
                                                   dynamic_growth_steps=3)

    plain = keras.optimizers.SGD(0.05, momentum=0.9)
    if place == "inside":
        optimizer = ts.SparseOptimizer(wrap(plain), magnitude())
    else:
        optimizer = wrap(ts.SparseOptimizer(plain, magnitude()))
    check = AlwaysSparse()
    model = train(mlp(), optimizer, callbacks=[check])
    assert check.steps[-1] == 8
    # powers of two scale exactly: what is trained is what is trained without scaling
    assert_equal(weights(model), weights(train(mlp(), sgd())), rtol=1e-6)


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_skipped_steps_do_not_count(place):
    scaled = keras.optimizers.LossScaleOptimizer
    optimizer = (ts.SparseOptimizer(scaled(keras.optimizers.SGD(0.1)), half(begin=3))
                 if place == "inside" else
                 scaled(ts.SparseOptimizer(keras.optimizers.SGD(0.1), half(begin=3))))
    x = X.copy()
    x[8:16] = np.inf  # the second batch of each epoch
    steps = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(unwrapped(self.model.optimizer).read_clock())

    model = train(mlp(), optimizer, x, epochs=1, callbacks=[Look()])
    assert [s for s, _ in steps] == [1, 1, 2, 3]
    assert steps[-1] == (3, 3)
    assert all(np.isfinite(w).all() for w in weights(model))
    assert ts.report(model).sparsity == 0.5


def test_mixed_float16_is_wrapped_by_compile():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = mlp()
        train(model, sgd(), callbacks=[AlwaysSparse()])
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        with pytest.raises(ValueError, match="The loss would be scaled twice"):
            mlp().compile(ts.SparseOptimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
                                             magnitude()), "mse")
        model = mlp()
        train(model, ts.SparseOptimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), magnitude()),
              callbacks=[AlwaysSparse()], auto_scale_loss=False)
    finally:
        keras.config.set_dtype_policy("float32")


def test_learning_rates():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.0])
    model = train(mlp(), ts.SparseOptimizer(keras.optimizers.SGD(schedule), half()), epochs=1)
    once = train(mlp(), ts.SparseOptimizer(keras.optimizers.SGD(0.1), half()), epochs=1,
                 fit={"steps_per_epoch": 3})
    assert_equal(weights(model), weights(once))

    optimizer = sgd()
    rates = []
    train(mlp(), optimizer, epochs=3, callbacks=[
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: rates.append(float(optimizer.learning_rate)))])
    np.testing.assert_allclose(rates, [0.025, 0.0125, 0.00625])
    np.testing.assert_allclose(float(optimizer.inner_optimizer.learning_rate), 0.00625)

    optimizer = sgd()
    train(mlp(), optimizer, epochs=3, callbacks=[keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.1, patience=1, min_delta=1e9)])
    np.testing.assert_allclose(float(optimizer.learning_rate), 0.0005, rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_averaged_weights_end_sparse_and_can_be_swapped_in(scaled):
    optimizer = sgd(use_ema=True, ema_momentum=0.5)
    compiled = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model = train(mlp(), compiled, epochs=3, callbacks=[swap, AlwaysSparse()],
                  fit={"validation_data": (X, Y)})
    inner = innermost(optimizer)
    for slot in optimizer.slots:
        average = numpy(inner._model_variables_moving_average[
            inner._get_variable_index(slot.theta)])
        assert (average == 0).mean() == 0.75
        np.testing.assert_array_equal(numpy(slot.theta), average)
    assert ts.report(model).sparsity == 0.75


@pytest.mark.parametrize("name", [
    "Adadelta", "Adafactor", "Adagrad", "Adamax", "Ftrl", "Lamb", "Lion", "Muon", "Nadam",
    "RMSprop"])
def test_every_optimizer_of_keras(name):
    inner = getattr(keras.optimizers, name)(0.01)
    model = train(mlp(), ts.SparseOptimizer(inner, half()), epochs=1,
                  callbacks=[AlwaysSparse(half().schedule)])
    # Ftrl makes zeros of its own: weights whose gradients are 0, before a pruned unit
    assert ts.report(model).sparsity == 0.5 or name == "Ftrl"


def test_decay_exclusions_reach_the_inner_optimizer():
    inner = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["bias"])
    gates = ts.ContinuousSparsification(8, s0=0.1, scale=0.0)
    model = ts.sparsify(mlp(), gates, select="hidden")
    train(model, ts.SparseOptimizer(inner, half()))
    decayed = {v.name for v in model.trainable_variables if inner._use_weight_decay(v)}
    assert decayed == {"kernel"}
    assert (numpy(model.get_layer("out").kernel) == 0).mean() == 0.5


# ---- numbers


def test_three_momentum_steps_by_hand():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(3, 4, 5)).astype("float32"), rng.normal(size=(3, 4, 2)).astype("float32")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, use_bias=False)])
    w = numpy(model.weights[0]).astype("float64")
    optimizer = ts.SparseOptimizer(keras.optimizers.SGD(0.1, momentum=0.9),
                                   ts.MagnitudePruning(ts.ConstantSparsity(0.4, begin_step=2)))
    model.compile(optimizer, "mse")
    model.fit(x.reshape(12, 5), y.reshape(12, 2), batch_size=4, shuffle=False, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()])

    mask, velocity = np.ones_like(w), np.zeros_like(w)
    for step in range(3):
        gradient = 2 * x[step].T @ (x[step] @ w - y[step]) / y[step].size
        velocity = 0.9 * velocity - 0.1 * mask * gradient
        w = mask * (w + velocity)
        if step + 1 == 2:  # the update after two steps: the 4 of 10 of least magnitude
            mask[np.unravel_index(np.argsort(np.abs(w), axis=None)[:4], w.shape)] = 0
            w = mask * w
    np.testing.assert_array_equal(numpy(model.weights[0]) == 0, mask == 0)
    np.testing.assert_allclose(numpy(model.weights[0]), w, rtol=2e-5, atol=1e-6)


INNER = {
    "sgd": lambda **k: keras.optimizers.SGD(0.1, **k),
    "momentum": lambda **k: keras.optimizers.SGD(0.05, momentum=0.9, **k),
    "adam": lambda **k: keras.optimizers.Adam(0.01, **k),
    "adamw": lambda **k: keras.optimizers.AdamW(0.01, weight_decay=0.1, **k),
}


ALIKE = [(inner, method, clip) for inner in INNER
         for method, clip in [(magnitude(), {}), (ts.RandomPruning(rising(), seed=3),
                                                  {"clipnorm": 0.05})]]
ALIKE += [("momentum", magnitude(distribution="global"), {"global_clipnorm": 0.05}),
          ("momentum", magnitude(pattern="1x4"), {"clipvalue": 0.01})]


@pytest.mark.parametrize("inner, method, clip", ALIKE, ids=lambda value: (
    type(value).__name__ if isinstance(value, ts.Method) else str(value)))
def test_both_hosts_train_alike(inner, method, clip):
    on_layers = ts.sparsify(mlp(), method)
    train(on_layers, INNER[inner](**clip), epochs=3)
    on_optimizer = train(mlp(), ts.SparseOptimizer(INNER[inner](**clip), method), epochs=3)
    stripped = ts.strip(on_layers)
    for one, other in zip(weights(stripped), weights(on_optimizer)):
        np.testing.assert_array_equal(one == 0, other == 0)
    # XLA and Grappler fuse `theta * mask` into what follows: a few ulp per step
    assert_equal(weights(stripped), weights(on_optimizer), rtol=2e-5, atol=2e-7)


def steps_by_hand(inner, method, dense_gradients=False):
    """An array after twelve steps, its masks rising; the method may pass gradients as they are."""
    rng = np.random.default_rng(0)
    kernel = keras.Variable(rng.normal(size=(6, 5)).astype("float32"), name="kernel")
    method.dense_gradients = dense_gradients
    optimizer = ts.SparseOptimizer(inner, method)
    optimizer.build([kernel])
    ts.update(optimizer)
    for _ in range(12):
        optimizer.apply([ops.convert_to_tensor(rng.normal(size=(6, 5)).astype("float32"))])
        ts.update(optimizer)
    return optimizer, numpy(kernel)


@pytest.mark.parametrize("cls", sorted(ELEMENTWISE, key=lambda c: c.__name__))
def test_gradients_are_left_as_they_are_only_where_no_kept_weight_sees_it(cls, monkeypatch):
    options = {"clipvalue": 0.5, "weight_decay": 0.1, "use_ema": True}
    optimizer, left = steps_by_hand(cls(0.05, **options), magnitude())
    assert not optimizer._masks_gradients()
    monkeypatch.setattr(ts.SparseOptimizer, "_masks_gradients", lambda self: True)
    _, masked = steps_by_hand(cls(0.05, **options), magnitude())
    assert_equal([left], [masked])
    assert (left == 0).sum() == 22


@pytest.mark.parametrize("inner, method", [
    (keras.optimizers.SGD(0.05, clipnorm=0.1), magnitude()),
    (keras.optimizers.Adam(0.05, global_clipnorm=0.1), magnitude()),
    (keras.optimizers.Adafactor(0.05), magnitude()), (keras.optimizers.Lamb(0.05), magnitude())])
def test_gradients_are_masked_where_a_kept_weight_would_see_it(inner, method):
    config = keras.saving.serialize_keras_object(inner)
    optimizer, masked = steps_by_hand(inner, method)
    assert optimizer._masks_gradients()
    again = keras.saving.deserialize_keras_object(config)
    _, left = steps_by_hand(again, method, dense_gradients=True)
    assert np.abs(masked - left).max() > 1e-4


@pytest.mark.parametrize("inner", INNER)
def test_sparsity_zero_is_plain_training(inner):
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.0, 0, frequency=1))
    sparse = train(mlp(dropout=0.2), ts.SparseOptimizer(INNER[inner](), method))
    plain = train(mlp(dropout=0.2), INNER[inner](), update=False)
    assert_equal(weights(sparse), weights(plain))


# ---- saving and resuming


def test_configuration_round_trip():
    for select in [None, "kernel", ["hidden", "out"], ts.exclude("hidden", last=False, first=False)]:
        optimizer = ts.SparseOptimizer(
            keras.optimizers.AdamW(0.02, weight_decay=0.3, clipnorm=2.0, use_ema=True),
            magnitude(distribution="erk", min_keep=2), select=select, name="mine")
        config = keras.saving.serialize_keras_object(optimizer)
        copy = keras.saving.deserialize_keras_object(config)
        assert keras.saving.serialize_keras_object(copy) == config
        assert (copy.method, copy.select, copy.name) == (optimizer.method, select, "mine")
        assert copy.inner_optimizer.get_config() == optimizer.inner_optimizer.get_config()


def test_configuration_of_an_unbound_predicate():
    optimizer = sgd(select=lambda layer: True)
    with pytest.raises(ValueError, match="cannot be saved.*select by regular expression"):
        optimizer.get_config()
    train(mlp(), optimizer)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert copy.layout == optimizer.layout


@pytest.mark.parametrize("select", [None, lambda layer: layer.name == "hidden"],
                         ids=["all", "predicate"])
@pytest.mark.parametrize("scaled", [False, True])
def test_keras_file(tmp_path, select, scaled):
    optimizer = sgd(half(begin=3), select=select)
    model = train(mlp(), keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    reloaded = unwrapped(loaded.optimizer)
    assert_equal(weights(loaded), weights(model))
    assert_equal([numpy(v) for v in loaded.optimizer.variables],
                 [numpy(v) for v in model.optimizer.variables])
    assert reloaded.read_clock() == optimizer.read_clock() == (8, 8)
    assert reloaded.layout == optimizer.layout
    assert ts.report(loaded).sparsity == ts.report(model).sparsity


def shuffled(epochs_done):
    """Data in an order that depends on the epoch only."""
    class Data(keras.utils.PyDataset):
        epoch = epochs_done

        def __len__(self):
            return 4

        def __getitem__(self, i):
            order = np.random.default_rng(self.epoch).permutation(32)[8 * i:8 * i + 8]
            return X[order], Y[order]

        def on_epoch_end(self):
            self.epoch += 1

    return Data()


def fit_shuffled(model, begin, end, callbacks=()):
    for epoch in range(begin, end):
        model.fit(shuffled(epoch), initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0,
                  callbacks=[ts.callbacks.SparsityUpdate(), *callbacks])


@pytest.mark.filterwarnings("ignore:MagnitudePruning ends its schedule")
@pytest.mark.parametrize("scaled", [False, True])
def test_two_epochs_are_one_and_reload_and_one(tmp_path, scaled):
    def compiled():
        model = mlp(dropout=0.4)
        optimizer = ts.SparseOptimizer(keras.optimizers.Adam(0.01), magnitude())
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer,
                      "mse")
        return model

    whole = compiled()
    fit_shuffled(whole, 0, 2)
    first = compiled()
    fit_shuffled(first, 0, 1)
    first.save(tmp_path / "m.keras")
    keras.utils.set_random_seed(77)
    second = keras.saving.load_model(tmp_path / "m.keras")
    fit_shuffled(second, 1, 2)
    assert_equal(weights(second), weights(whole))
    assert_equal([numpy(v) for v in second.optimizer.variables],
                 [numpy(v) for v in whole.optimizer.variables])


def test_backup_and_restore_in_a_fresh_process(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("power cut")

    def fit(seed, *more):
        model = mlp(seed, dropout=0.4)
        model.compile(sgd(), "mse")
        model.fit(X, Y, batch_size=8, epochs=4, shuffle=False, verbose=0,
                  callbacks=[ts.callbacks.SparsityUpdate(), *more])
        return model

    whole = fit(0)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(0, keras.callbacks.BackupAndRestore(tmp_path / "backup"), Stop())
    resumed = fit(99, keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert_equal(weights(resumed), weights(whole))
    assert resumed.optimizer.read_clock() == (16, 16)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("name", ["{epoch}-{batch}.keras", "{epoch}-{batch}.weights.h5"])
def test_checkpoints_hold_the_zeros_of_their_step(tmp_path, name):
    optimizer = sgd()
    train(mlp(), optimizer, callbacks=[keras.callbacks.ModelCheckpoint(
        str(tmp_path / name), save_freq=1, save_weights_only=name.endswith("h5"))])
    schedule = rising()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file in files:
        epoch, batch = map(int, re.match(r"(\d)-(\d)", file.name).groups())
        step = 4 * (epoch - 1) + batch
        last = max(s for s in range(step + 1) if s == 0 or schedule.due(s - 1, s))
        if file.suffix == ".keras":
            model = keras.saving.load_model(file)
        else:
            model = mlp(9)
            model.compile(sgd(), "mse")
            with pytest.warns(UserWarning, match="masks and its step are not loaded"):
                model.load_weights(file)  # the optimizer is not built yet
        for kernel in (model.get_layer("hidden").kernel, model.get_layer("out").kernel):
            kernel = numpy(kernel)
            assert (kernel == 0).sum() == round(kernel.size * schedule.value(last)), file.name


def test_inner_variables_are_saved_once(tmp_path):
    model = train(mlp(), sgd())
    model.save(tmp_path / "m.keras")
    import h5py
    import zipfile
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as file:
        own, inner = file["optimizer/vars"], file["optimizer/inner_optimizer/vars"]
        assert len(own) == 2 + 1 + 2  # Keras' counter and rate, our clock, two masks
        assert len(inner) == 2 + 4


def test_weight_files_bring_the_masks_once_bound(tmp_path):
    model = train(mlp(), sgd())
    model.save_weights(tmp_path / "m.weights.h5")
    other = mlp(3)
    other.compile(sgd(), "mse")
    other.optimizer.build(other.trainable_variables)
    with pytest.warns(UserWarning, match="masks and its step are not loaded. Call ts.update"):
        other.load_weights(tmp_path / "m.weights.h5")
    ts.update(other)
    other.load_weights(tmp_path / "m.weights.h5")
    assert other.optimizer.read_clock() == (8, 8)
    ts.update(other)
    assert_equal(weights(other), weights(model))


def test_recompiling_continues_the_schedule():
    model, optimizer = mlp(), sgd(ts.MagnitudePruning(rising(end=8)))
    with pytest.warns(UserWarning, match="this run ends at step 4"):
        train(model, optimizer, epochs=1)
    assert optimizer.read_clock() == (4, 4)
    check = AlwaysSparse(rising(end=8))
    train(model, optimizer, epochs=1, callbacks=[check])
    assert check.steps[0] == 5 and optimizer.read_clock() == (8, 8)
    assert ts.report(model).sparsity == 0.75


# ---- the callback, custom loops


MISSING = r"nothing updates them\. Pass callbacks=\[ts\.callbacks\.SparsityUpdate\(\)\]"


@pytest.mark.parametrize("make", [mlp, Subclassed], ids=["built", "unbuilt"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("compiling", [{}, {"run_eagerly": True}, {"steps_per_execution": 2}],
                         ids=str)
def test_without_the_callback(make, scaled, compiling):
    def compiled():
        keras.utils.set_random_seed(0)
        model, optimizer = make(), sgd()
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer,
                      "mse", **compiling)
        return model

    def fit(model, callbacks):
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)

    model, right = compiled(), compiled()
    with pytest.raises(ValueError, match=MISSING):
        fit(model, [])
    with pytest.raises(ValueError, match=MISSING):
        model.train_on_batch(X, Y)
    assert all(np.isfinite(w).all() for w in weights(model))
    fit(model, [ts.callbacks.SparsityUpdate()])
    if make is mlp:
        fit(right, [ts.callbacks.SparsityUpdate()])
        assert_equal(weights(model), weights(right))
    assert ts.report(model).sparsity == 0.75
    masks = [numpy(s.state["mask"]) for s in
             unwrapped(model.optimizer).slots]
    fit(model, [])  # a later fit trains under frozen masks
    assert_equal(masks, [numpy(s.state["mask"]) for s in
                         unwrapped(model.optimizer).slots])
    assert unwrapped(model.optimizer).read_clock()[0] == 16


def test_the_first_update_of_an_unbuilt_model():
    """JAX builds it before the first step; TensorFlow in it, so the update at step 0 runs at 1."""
    seen = []
    model = Subclassed()
    train(model, sgd(half()), epochs=1, callbacks=[keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(
            bool(model.weights) and ts.report(model).sparsity),
        on_epoch_end=lambda epoch, logs: seen.append(ts.report(model).sparsity))])
    assert seen == [0 if TENSORFLOW else 0.5, 0.5]


def test_a_second_fit_does_not_retrace():
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([keras.Input((6,)), Traced(), keras.layers.Dense(3)])
    traces.clear()
    train(model, sgd())
    first = len(traces)
    for _ in range(2):
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0,
                  callbacks=[ts.callbacks.SparsityUpdate()])
    assert first > 0 and len(traces) == first


def test_one_shot():
    model = mlp()
    model.compile(sgd(half()), "mse")
    before = numpy(model.get_layer("hidden").kernel)
    ts.update(model)
    after = numpy(model.get_layer("hidden").kernel)
    np.testing.assert_array_equal(after, np.where(
        np.abs(before) > np.sort(np.abs(before), axis=None)[before.size // 2 - 1], before, 0))
    assert ts.report(model).sparsity == 0.5
    assert model.optimizer.read_clock() == (0, 0)


@tensorflow_only
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "tf.function"])
@pytest.mark.parametrize("raw", [False, True], ids=["keras variables", "tf variables"])
def test_custom_loop_on_tensorflow(compiled, raw):
    import tensorflow as tf

    model, right = mlp(), train(mlp(), sgd())
    optimizer = sgd()
    optimizer.build(model.trainable_variables)
    variables = [v.value if raw else v for v in model.trainable_variables]

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        optimizer.apply(tape.gradient(loss, [v.value for v in model.trainable_variables]),
                        variables)

    if compiled:
        step = tf.function(step)
    with pytest.raises(ValueError, match="in a custom loop call ts.update"):
        step(X[:8], Y[:8])
    if compiled:
        step = tf.function(step.python_function)
    ts.update(optimizer)
    for i in range(8):
        part = slice(8 * (i % 4), 8 * (i % 4) + 8)
        step(X[part], Y[part])
        ts.update(optimizer)
    assert optimizer.read_clock() == (8, 8)
    assert_equal(weights(model), weights(right), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="stateless_apply is JAX's")
@pytest.mark.parametrize("scaled", ["", "inside", "outside"])
def test_custom_loop_on_jax(scaled):
    """`stateless_apply` in a jitted step; variables get their arrays back where updates are due."""
    import jax

    model, right = mlp(), train(mlp(), sgd())
    optimizer = sgd()
    if scaled == "inside":
        optimizer = ts.SparseOptimizer(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
            magnitude())
    sparse = optimizer
    if scaled == "outside":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    ts.update(sparse)  # before the variables are read: it adds the masks to them

    def loss(trainable, x, y):
        outputs, _ = model.stateless_call(trainable, [], x, training=True)
        return ops.mean(ops.square(outputs - y))

    @jax.jit
    def step(trainable, state, x, y):
        with keras.StatelessScope(list(zip(optimizer.variables, state))):
            grads = jax.grad(lambda t: optimizer.scale_loss(loss(t, x, y)))(trainable)
        return optimizer.stateless_apply(state, grads, trainable)

    def due_next(step):
        return sparse.method.due(step - 1, step)

    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in optimizer.variables]
    for i in range(8):
        part = slice(8 * (i % 4), 8 * (i % 4) + 8)
        trainable, state = step(trainable, state, X[part], Y[part])
        for variable, array in zip(model.trainable_variables + optimizer.variables,
                                   list(trainable) + list(state)):
            variable.assign(array)
        ts.update(sparse)
        trainable = [v.value for v in model.trainable_variables]
        state = [v.value for v in optimizer.variables]
    assert sparse.read_clock() == (8, 8)
    assert_equal(weights(model), weights(right), rtol=1e-5, atol=1e-6)


def test_another_model_needs_another_optimizer():
    optimizer = sgd()
    train(mlp(), optimizer)
    with pytest.raises(ValueError, match="built for other variables.*new ts.SparseOptimizer"):
        train(mlp(), optimizer)


@pytest.mark.skipif(TENSORFLOW, reason="JAX gives the memory of a model's variables away")
def test_no_two_variables_share_memory(tmp_path):
    model = train(mlp(dropout=0.2), sgd(use_ema=True))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    ts.update(loaded)
    for one in (model, loaded):
        memory = [v.value.unsafe_buffer_pointer() for v in one.variables + one.optimizer.variables]
        assert len(set(memory)) == len(memory) > 15
    model.fit(X, Y, verbose=0)  # plain Keras fails here: its averages are still the weights


# ---- growth


@keras.saving.register_keras_serializable(package="test")
class Growing(ts.MaskMethod):
    """Keeps what has the largest gradient: nothing but gradients decides, so all may return."""

    needs_probe = True
    regrows = True
    seen = []

    def scores(self, weight, gradient, seed):
        self.seen.append(gradient)
        return np.abs(gradient)


def linear():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, use_bias=False)])


def linear_gradient(w, x, y):
    return 2 * x.T @ (x @ w - y) / y.size


SCALED = {
    "": lambda method: ts.SparseOptimizer(keras.optimizers.SGD(0.1), method),
    "factor": lambda method: ts.SparseOptimizer(
        keras.optimizers.SGD(0.1, loss_scale_factor=32.0), method),
    "inside": lambda method: ts.SparseOptimizer(keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1)), method),
    "outside": lambda method: keras.optimizers.LossScaleOptimizer(
        ts.SparseOptimizer(keras.optimizers.SGD(0.1), method)),
}


@pytest.mark.parametrize("scaled", SCALED)
def test_growth_sees_the_dense_gradient_of_the_last_step(scaled):
    model = linear()
    method = Growing(ts.ConstantSparsity(0.5, begin_step=1, frequency=1))
    optimizer = SCALED[scaled](method)
    kernels = [numpy(model.weights[0])]
    method.seen.clear()
    train(model, optimizer, epochs=1, callbacks=[keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: kernels.append(numpy(model.weights[0])))])
    assert len(method.seen) == 4
    for i, gradient in enumerate(method.seen):
        part = slice(8 * i, 8 * i + 8)
        expected = linear_gradient(kernels[i], X[part], Y[part])
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
        assert (kernels[i + 1] == 0).sum() >= 9
    mask = numpy(unwrapped(optimizer).slots[0].state["mask"])
    assert mask.sum() == 9
    smallest_kept = np.abs(gradient)[mask == 1].min()
    assert (np.abs(gradient)[mask == 0] <= smallest_kept).all()


def test_growth_by_the_gradient_of_probe_data():
    model = linear()
    method = Growing(ts.ConstantSparsity(0.5, begin_step=0, frequency=2))
    optimizer = ts.SparseOptimizer(keras.optimizers.SGD(0.1), method)
    method.seen.clear()
    start = numpy(model.weights[0])
    model.compile(optimizer, "mse")
    model.fit(X, Y, batch_size=16, shuffle=False, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(probe_data=(X[:5], Y[:5]))])
    assert len(method.seen) == 2
    np.testing.assert_allclose(method.seen[0], linear_gradient(start, X[:5], Y[:5]),
                               rtol=1e-4, atol=1e-6)


def test_growth_before_the_first_step_needs_probe_data():
    with pytest.raises(ValueError, match=r"at step 0.*SparsityUpdate\(probe_data=\(x, y\)\), or "
                                         "begin_step >= 1"):
        train(linear(), ts.SparseOptimizer(keras.optimizers.SGD(0.1),
                                           Growing(ts.ConstantSparsity(0.5, 0))))


def test_growth_in_layers_needs_probe_data():
    model = ts.sparsify(linear(), Growing(ts.ConstantSparsity(0.5, 1, frequency=1)))
    message = r"Growing needs the gradients of a batch.*SparsityUpdate\(probe_data=\(x, y\)\)"
    with pytest.raises(ValueError, match=message):
        train(model, "sgd")
    with pytest.raises(ValueError, match=message):
        ts.update(model)
    model.compile("sgd", "mse")
    model.fit(X, Y, batch_size=8, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(probe_data=(X, Y))])
    assert ts.report(model).sparsity == 0.5


@tensorflow_only
def test_sparse_gradients_of_an_embedding_are_seen():
    model = MODELS["embedding"][0]()
    optimizer = ts.SparseOptimizer(keras.optimizers.SGD(0.1),
                                   Growing(ts.ConstantSparsity(0.5, 1, frequency=1)))
    train(model, optimizer, TOKENS, epochs=1)
    gradient = numpy(optimizer.slots[0].state["gradient"])
    used = np.isin(np.arange(11), TOKENS[24:])
    assert gradient.shape == (11, 4) and (gradient[~used] == 0).all() and gradient[used].any(axis=1).all()
