"""Every method x every promise. A new method enters by adding a row to METHODS.

The model has a convolution, a running BatchNormalization, Dropout and a Dense layer; its data
comes shuffled by (seed, epoch). All of it runs on the TensorFlow and the JAX backend.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import tf_sparsity as ts

# Runs cut short are the subject of several tests; tests/test_update.py tests the warning itself.
pytestmark = [pytest.mark.filterwarnings("ignore:.*ends its schedule at step:UserWarning"),
              pytest.mark.filterwarnings("ignore:.*schedule at step:UserWarning"),
              # nor is a controller's: 12 steps are too few for it
              pytest.mark.filterwarnings("ignore:.*was asked for a sparsity of:UserWarning")]

STEPS, EPOCHS = 6, 2  # steps per epoch; epochs of a full run
END = 10  # where every schedule ends, inside the second epoch


def cubic(final=0.75):
    return ts.PolynomialDecay(0.0, final, begin_step=1, end_step=END, frequency=4)


# name -> (constructor, the same with every argument away from its default)
METHODS = {
    "MagnitudePruning": (
        lambda final=0.75: ts.MagnitudePruning(cubic(final)),
        lambda: ts.MagnitudePruning(ts.ConstantSparsity(0.3, 2, 7, 5), distribution={"conv": 0.2},
                                    pattern="2x2", revive=True, min_keep=3)),
    "MagnitudePruning global": (
        lambda final=0.75: ts.MagnitudePruning(cubic(final), distribution="global"), None),
    "MagnitudePruning erk": (
        lambda final=0.75: ts.MagnitudePruning(cubic(final), distribution="erk"), None),
    "MagnitudePruning 1:4": (
        lambda final=0.75: ts.MagnitudePruning(cubic(), pattern="1:4"), None),
    "MagnitudePruning channel": (
        lambda final=0.75: ts.MagnitudePruning(cubic(final), pattern="channel"), None),
    "MagnitudePruning revive": (
        lambda final=0.75: ts.MagnitudePruning(cubic(final), revive=True), None),
    "RandomPruning": (
        lambda final=0.75: ts.RandomPruning(cubic(final), seed=3),
        lambda: ts.RandomPruning(ts.PolynomialDecay(0.1, 0.4, 3, 9, 2.0, 4), distribution="erk",
                                 pattern="channel", seed=5, min_keep=0)),
    "FixedMask": (lambda final=None: ts.FixedMask(), lambda: ts.FixedMask()),
    "ContinuousSparsification": (
        lambda final=None: ts.ContinuousSparsification(END, s0=0.01, scale=1e-3),
        lambda: ts.ContinuousSparsification(50, final_beta=100.0, s0=-0.1, scale=0.5, rescale=True,
                                            target_sparsity=0.3, reach="controller",
                                            frequency=7)),
    "ContinuousSparsification s0=0": (
        lambda final=None: ts.ContinuousSparsification(END, scale=1e-4), None),
    "ContinuousSparsification over the run": (
        lambda final=None: ts.ContinuousSparsification(s0=0.01, scale=1e-3), None),
    "ContinuousSparsification rank": (
        lambda final=None: ts.ContinuousSparsification(END, s0=0.01, scale=1e-3,
                                                       target_sparsity=0.75, frequency=4), None),
    "VariationalDropout": (
        lambda final=None: ts.VariationalDropout(48, scale=0.1),
        lambda: ts.VariationalDropout(50, scale=0.5, ramp=ts.Ramp(2, 9), threshold=2.0,
                                      initial_log_sigma2=-8.0, clip_log_alpha=10.0, train_clip=True,
                                      target_sparsity=0.3, reach="controller", frequency=7)),
    "VariationalDropout ramp": (
        lambda final=None: ts.VariationalDropout(48, ramp=ts.Ramp(0, END, power=3)), None),
    "VariationalDropout rank": (
        lambda final=None: ts.VariationalDropout(48, target_sparsity=0.75, frequency=4), None),
    "VariationalDropout controller": (
        lambda final=None: ts.VariationalDropout(48, target_sparsity=0.75, reach="controller",
                                                 frequency=2), None),
    "L0Regularization": (
        lambda final=None: ts.L0Regularization(48, scale=0.1),
        lambda: ts.L0Regularization(50, scale=0.5, ramp=ts.Ramp(2, 9), group="out",
                                    initial_keep=0.5, l2=0.1, hard_mask=True, beta=0.5, gamma=-0.2,
                                    zeta=1.3, target_sparsity=0.3, reach="controller",
                                    frequency=7)),
    "L0Regularization l2": (
        lambda final=None: ts.L0Regularization(48, scale=0.0, l2=0.5), None),
    "L0Regularization hard": (
        lambda final=None: ts.L0Regularization(48, initial_keep=0.1, hard_mask=True), None),
    "L0Regularization out": (
        lambda final=None: ts.L0Regularization(48, group="out", ramp=ts.Ramp(0, END)), None),
    "L0Regularization rank": (
        lambda final=None: ts.L0Regularization(48, target_sparsity=0.75, frequency=4), None),
    "L0Regularization in, rank": (
        lambda final=None: ts.L0Regularization(48, group="in", target_sparsity=0.75), None),
    "L0Regularization controller": (
        lambda final=None: ts.L0Regularization(48, ramp=ts.Ramp(0, END), target_sparsity=0.75,
                                               reach="controller"), None),
    "ContinuousSparsification controller": (
        lambda final=None: ts.ContinuousSparsification(
            END, s0=0.01, scale=1e-3, target_sparsity=0.75, reach="controller"), None),
}
# Fixed sparsity, so there is no such thing as sparsity 0.
ALWAYS_SPARSE = {"MagnitudePruning 1:4"}
MASKS = [name for name in METHODS if name.split()[0] in ("MagnitudePruning", "RandomPruning")]
LEARNED = [name for name in METHODS if name not in MASKS]
RANKED = [name for name in METHODS if "rank" in name]
BOTH_HOSTS = [name for name in MASKS if "revive" not in name]

# Options that other rows have too, with another method or another number: left to `make test-slow`.
VARIANTS = {"MagnitudePruning erk", "MagnitudePruning channel", "ContinuousSparsification s0=0",
            "ContinuousSparsification over the run", "ContinuousSparsification controller",
            "VariationalDropout ramp", "VariationalDropout rank", "L0Regularization l2",
            "L0Regularization hard", "L0Regularization in, rank", "L0Regularization controller"}


def row(name, *more):
    return pytest.param(name, *more, marks=[pytest.mark.slow] if name in VARIANTS else [])


every_method = pytest.mark.parametrize("name", [row(name) for name in METHODS])
# On a host: layers for all, the optimizer for the mask methods that it accepts.
every_host = pytest.mark.parametrize(
    ("name", "host"), [row(name, "layers") for name in METHODS]
    + [row(name, "optimizer") for name in BOTH_HOSTS])


def method_of(name, **kwargs):
    return METHODS[name][0](**kwargs)


def dense_model(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((6, 6, 4)), layers.Conv2D(4, 3, activation="relu", name="conv"),
        layers.BatchNormalization(), layers.Dropout(0.25), layers.Flatten(),
        layers.Dense(5, name="dense")])


class Shuffled(keras.utils.PyDataset):
    """48 examples in batches of 8, in an order that depends on (seed, epoch) alone."""

    def __init__(self, epoch=0):
        super().__init__()
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((48, 6, 6, 4)).astype("float32")
        self.y = rng.integers(0, 5, 48)
        self.epoch = epoch

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        order = np.random.default_rng([0, self.epoch]).permutation(48)[8 * index:8 * index + 8]
        return self.x[order], self.y[order]

    def on_epoch_end(self):
        self.epoch += 1


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def adam():
    return keras.optimizers.Adam(0.02)


def make(name, host, **kwargs):
    """An untrained, uncompiled model, and the optimizer to compile it with."""
    method = method_of(name, **kwargs)
    if host == "layers":
        return ts.sparsify(dense_model(), method), adam()
    return dense_model(), ts.SparseOptimizer(adam(), method)


def fit(model, optimizer=None, epochs=EPOCHS, initial_epoch=0, callbacks=(), **compile_args):
    if optimizer is not None:
        model.compile(optimizer, loss(), **compile_args)
    return model.fit(Shuffled(initial_epoch), epochs=epochs, initial_epoch=initial_epoch,
                     verbose=0, shuffle=False,
                     callbacks=[ts.callbacks.SparsityUpdate(), *callbacks])


def trained(name, host="layers", **kwargs):
    model, optimizer = make(name, host)
    fit(model, optimizer, **kwargs)
    return model


def arrays(model):
    """Every number of a model and its optimizer but the learning rate's."""
    return [ops.convert_to_numpy(v) for v in model.variables + model.optimizer.variables]


def greatest_difference(a, b):
    assert [x.shape for x in a] == [x.shape for x in b]
    return max(float(np.abs(x.astype("float64") - y.astype("float64")).max())
               for x, y in zip(a, b) if x.size)


def kernels(model):
    """The stored arrays of the plain model, kernels only."""
    return [ops.convert_to_numpy(v) for v in model.trainable_variables if v.name == "kernel"]


# ---- the promises ---------------------------------------------------------------------------


def test_every_public_method_has_a_row():
    public = {n for n in ts.__all__ if inspect.isclass(getattr(ts, n))
              and issubclass(getattr(ts, n), ts.Method)}
    abstract = {"Method", "MaskMethod"}
    # TFMOT's engine is TensorFlow only; tests/test_tfmot.py makes these promises for it.
    assert public - abstract - {"TFMOTPruning"} == {name for name in METHODS if " " not in name}
    assert not VARIANTS - {name for name in METHODS if " " in name}


@every_method
def test_config_round_trip(name):
    constructor = METHODS[name][1]
    if constructor is None:
        pytest.skip("a variant of a row above, whose every argument is tested there")
    method = constructor()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method))
    assert again == method and again.get_config() == method.get_config()
    # every constructor argument is in the configuration, and none has its default
    parameters = list(inspect.signature(type(method)).parameters.values())
    assert set(method.get_config()) == {p.name for p in parameters}
    for p in parameters:
        assert method.get_config()[p.name] != p.default, p.name


@every_method
@pytest.mark.parametrize("policy", [pytest.param("float32", marks=pytest.mark.slow),
                                    "mixed_bfloat16", "mixed_float16"])
def test_precision(name, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = trained(name)
    finally:
        keras.config.set_dtype_policy("float32")
    for layer in (model.get_layer("conv"), model.get_layer("dense")):
        assert layer.kernel.dtype == layer.theta("kernel").dtype  # both float32
        assert all(keras.backend.standardize_dtype(v.dtype) == "float32"
                   for v in layer.state["kernel"].values())
        assert layer.compute_dtype == policy.removeprefix("mixed_")
    assert all(np.isfinite(a).all() for a in arrays(model))
    if name in MASKS:
        assert sum(row.zeros for row in ts.report(model).rows) == sum(
            expected_zeros(name, [(3, 3, 4, 4), (64, 5)]) or [348])


@every_host
def test_evaluation_is_deterministic(name, host):
    model = trained(name, host, epochs=1)
    x = Shuffled().x
    np.testing.assert_array_equal(model.predict(x, verbose=0), model.predict(x, verbose=0))


@every_method
def test_gradients_of_weight_and_penalty(name):
    """Against central differences of step 1e-3 in float32: rounding of the sums of 60 numbers of
    size 1 gives about 60 * 6e-8 / 2e-3 = 2e-3; the curvature's share is below 1e-5."""
    method = method_of(name)
    rng = np.random.default_rng(0)
    # float32, away from 0, where log alpha bends too much for a difference
    theta = (rng.uniform(0.3, 2.0, (12, 5)) * rng.choice([-1, 1], (12, 5))).astype("float32")
    kernel = ts.method.Kernel("dense/kernel", (12, 5), ("in", "out"))
    state = {key: rng.uniform(0.2, 0.8, spec.shape).astype("float32")
             for key, spec in method.state(kernel).items()}
    if "mask" in state:
        state["mask"] = state["mask"].round()
    direction = rng.standard_normal((12, 5)).astype("float32")

    def objective(theta, state):
        weight = method.weight(theta, state, training=True, seed=7)  # the same draw each time
        total = ops.sum(weight * direction)
        return total + factor * method.penalty(theta, state) if method.has_penalty else total

    # a penalty of about 10, so that rounding its sum does not drown the difference
    factor = 10 / float(method.penalty(theta, state)) if method.has_penalty else 0.0

    trainable = [k for k, spec in method.state(kernel).items() if spec.trainable]
    got = gradient(lambda *a: objective(a[0], {**state, **dict(zip(trainable, a[1:]))}),
                   [theta, *(state[k] for k in trainable)])
    if name.endswith("hard"):  # straight-through: the gradient of another function, by design
        del got[1], trainable[0]
    for which, g in zip(["theta", *trainable], got):
        for index in [(0, 0), (3, 2), (11, 4)]:
            index = tuple(i % n for i, n in zip(index, g.shape))  # gates of groups: (12, 1)
            values = []
            for sign in (1, -1):
                arguments = {"theta": theta.copy(), **{k: v.copy() for k, v in state.items()}}
                arguments[which][index] += sign * 1e-3
                values.append(float(objective(arguments.pop("theta"), arguments)))
            np.testing.assert_allclose(g[index], (values[0] - values[1]) / 2e-3, atol=5e-3)


def gradient(function, arguments):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf
        arguments = [tf.convert_to_tensor(a) for a in arguments]
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = function(*arguments)
        return [np.zeros(a.shape) if g is None else g.numpy()
                for a, g in zip(arguments, tape.gradient(value, arguments))]
    import jax
    return [np.asarray(g) for g in jax.grad(function, tuple(range(len(arguments))))(*arguments)]


@every_host
def test_compiled_is_eager(name, host):
    """Fusing changes the order of sums: 12 steps of Adam at 0.02 may differ by 1e-4. Masks are
    equal, for the scores of kept and pruned weights are further apart than that."""
    model, optimizer = make(name, host)
    # False leaves TensorFlow its graph, and JAX nothing compiled at all
    fit(model, optimizer, epochs=1, jit_compile=keras.backend.backend() == "jax")
    eager, optimizer = make(name, host)
    fit(eager, optimizer, epochs=1, run_eagerly=True)
    for a, b in zip(ts.strip(model).get_weights() if host == "layers" else model.get_weights(),
                    ts.strip(eager).get_weights() if host == "layers" else eager.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-4)


class CountTraces(layers.Layer):
    """Python runs in `call` only when the step is traced."""

    traces = 0

    def call(self, x):
        self.traces += 1
        return x


@every_host
def test_a_second_fit_does_not_retrace(name, host):
    method = method_of(name)
    inputs = keras.Input((6,))
    count = CountTraces(name="count")
    model = keras.Model(inputs, layers.Dense(4)(count(layers.Dense(8)(inputs))))
    optimizer = adam()
    if host == "layers":
        model = ts.sparsify(model, method)
    else:
        optimizer = ts.SparseOptimizer(optimizer, method)
    model.compile(optimizer, "mse")
    x, y = np.ones((8, 6), "float32"), np.ones((8, 4), "float32")
    update = ts.callbacks.SparsityUpdate()
    model.fit(x, y, epochs=END + 1, verbose=0, callbacks=[update])
    first = model.get_layer("count").traces
    model.fit(x, y, epochs=2, verbose=0, callbacks=[update])
    model.fit(x, y, epochs=2, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    assert first > 0 and model.get_layer("count").traces == first


def expected_zeros(name, shapes):
    """Zeros of each kernel at 0.75, counted by hand from the shapes; None: only the total is."""
    conv, dense = (int(np.prod(s)) for s in shapes)
    if "global" in name:
        return None
    if "erk" in name:
        # conv: 3+3+4+4 = 14 of 144 weights; dense: 64+5 = 69 of 320. density = eps * raw,
        # eps = 0.25 * 464 / (14 + 69) = 116/83: conv 19.566 kept of 144, dense 96.43 of 320.
        return [144 - 20, 320 - 96]
    if "channel" in name:
        return [3 * 36, 4 * 64]  # 3 of 4 filters; 3.75 of 5 units, rounded
    return [3 * conv // 4, 3 * dense // 4]


@pytest.mark.parametrize(("name", "host"), [(n, "layers") for n in MASKS]
                         + [(n, "optimizer") for n in BOTH_HOSTS])
def test_exact_sparsity_at_the_end_of_the_schedule(name, host):
    model = trained(name, host)
    rows = ts.report(model).rows
    zeros = [row.zeros for row in rows]
    assert [row.shape for row in rows] == [(3, 3, 4, 4), (64, 5)]
    expected = expected_zeros(name, [row.shape for row in rows])
    assert sum(zeros) == 348 if expected is None else zeros == expected


@pytest.mark.parametrize(("name", "host"), [
    (n, h) for n in MASKS for h in ("layers", "optimizer")
    if n not in ALWAYS_SPARSE and (h == "layers" or n in BOTH_HOSTS)])
def test_sparsity_zero_is_plain_training(name, host):
    plain = dense_model()
    plain.compile(adam(), loss())
    plain.fit(Shuffled(), epochs=EPOCHS, verbose=0, shuffle=False)
    model, optimizer = make(name, host, final=0.0)
    fit(model, optimizer)
    got = (ts.strip(model) if host == "layers" else model).get_weights()
    assert greatest_difference(got, plain.get_weights()) == 0.0


def test_continuous_sparsification_with_open_gates_is_plain_training():
    """sigmoid(beta s) with s = 100 is 1.0 in float32, and its gradient 0.0: only the order of
    the compiled sums may differ."""
    plain = dense_model()
    plain.compile(adam(), loss())
    plain.fit(Shuffled(), epochs=EPOCHS, verbose=0, shuffle=False)
    model = ts.sparsify(dense_model(), ts.ContinuousSparsification(END, s0=100.0, scale=0.0))
    fit(model, adam())
    assert greatest_difference(ts.strip(model).get_weights(), plain.get_weights()) < 1e-5


def test_l0_with_open_gates_is_plain_training():
    """A hard mask of ones, and a price of 0; log alpha starts too far up to close a gate."""
    plain = dense_model()
    plain.compile(adam(), loss())
    plain.fit(Shuffled(), epochs=EPOCHS, verbose=0, shuffle=False)
    model = ts.sparsify(dense_model(), ts.L0Regularization(48, scale=0.0, hard_mask=True,
                                                           initial_keep=0.98))
    fit(model, adam())
    assert ts.report(model).sparsity == 0.0
    assert greatest_difference(ts.strip(model).get_weights(), plain.get_weights()) < 1e-5


def test_variational_dropout_without_variance_is_the_plain_model():
    """sigma^2 is the larger of exp(-60) and exp(-50) theta^2: what is left of the noise is
    sqrt(1e-8) times a number below 8, once after each of two layers with weights of size 1."""
    plain, x = keras.Sequential([
        keras.Input((6,)), keras.layers.Dense(8), keras.layers.Dense(5)]), np.ones((4, 6))
    method = ts.VariationalDropout(48, initial_log_sigma2=-60.0, clip_log_alpha=50.0)
    model = ts.sparsify(plain, method)
    difference = np.abs(np.asarray(model(x, training=True)) - np.asarray(plain(x)))
    assert 0 < difference.max() < 0.01


@every_method
def test_strip_is_the_model_bit_for_bit(name):
    model = trained(name)
    plain = ts.strip(model)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    x = Shuffled().x
    np.testing.assert_array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))


@every_host
def test_report_counts_the_zeros_of_the_stored_arrays(name, host):
    model = trained(name, host)
    stored = kernels(ts.strip(model) if host == "layers" else model)
    assert [r.zeros for r in ts.report(model).rows] == [int((k == 0).sum()) for k in stored]


@every_host
def test_keras_file_round_trip(name, host, tmp_path):
    model = trained(name, host, epochs=1)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    # the states of Keras' own seed generators come back when SparsityUpdate begins to train
    got, expected = ([ops.convert_to_numpy(v) for v in m.weights + m.optimizer.variables]
                     for m in (again, model))
    assert greatest_difference(got, expected) == 0.0
    x = Shuffled().x
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    if method_of(name).last_step is None:  # a constant coefficient has no schedule
        assert ts.report(again).step == STEPS
        return
    with pytest.warns(UserWarning, match=f"schedule at step {STEPS} of {END}"):
        assert ts.report(again).step == STEPS


@every_host
def test_two_epochs_are_one_and_reload_and_one(name, host, tmp_path):
    if name.endswith("over the run"):
        pytest.skip("it anneals over the first fit, here one epoch; tests/test_update.py tests it")
    straight = trained(name, host)
    first = trained(name, host, epochs=1)
    first.save(tmp_path / "m.keras")
    keras.backend.clear_session()
    keras.utils.set_random_seed(99)  # what a new process starts with does not matter
    resumed = keras.saving.load_model(tmp_path / "m.keras")
    fit(resumed, epochs=2, initial_epoch=1)
    assert greatest_difference(arrays(straight), arrays(resumed)) == 0.0


@every_host
def test_recompiling_in_the_middle_continues_the_schedule(name, host):
    model, optimizer = make(name, host)
    fit(model, optimizer, epochs=1)
    if host == "layers":
        optimizer = adam()  # a fresh one, whose iterations start at 0
    fit(model, optimizer, epochs=2, initial_epoch=1)
    report = ts.report(model)  # a schedule that started over would warn here
    assert report.step == 2 * STEPS
    if name in MASKS and "global" not in name:
        expected = expected_zeros(name, [row.shape for row in report.rows])
        assert [row.zeros for row in report.rows] == expected


@pytest.mark.parametrize("name", RANKED)
def test_exact_sparsity_by_rank(name):
    """348 of 464 weights; with a gate for each input, whose groups have 36 or 5 weights, the
    nearest number: 9 groups of 36 are 324, and 5 of 5 are 25: 349 (8 and 12 are 348)."""
    report = ts.report(trained(name))
    assert report.target == 0.75
    zeros = sum(row.zeros for row in report.rows)
    assert zeros == 348 if ", rank" not in name else abs(zeros - 348) <= 18


@every_method
def test_a_shared_layer_pays_its_penalty_once(name):
    inputs = keras.Input((6,))
    shared = layers.Dense(6, name="shared")
    model = ts.sparsify(keras.Model(inputs, shared(shared(shared(inputs)))), method_of(name))
    model(np.ones((1, 6), "float32"))
    layer = model.get_layer("shared")
    if not method_of(name).has_penalty:
        assert model.losses == []
    else:
        penalty = method_of(name).penalty(layer.theta("kernel"), layer.state["kernel"])
        np.testing.assert_allclose([float(v) for v in model.losses], [float(penalty)])
        # in evaluate too: loss of perfect predictions is the penalty alone
        model.compile("sgd", "mse")
        x = np.ones((4, 6), "float32")
        value = model.evaluate(x, model.predict(x, verbose=0), verbose=0)
        np.testing.assert_allclose(value, float(penalty), rtol=1e-5)


@pytest.mark.parametrize("name", [row(name) for name in BOTH_HOSTS])
@pytest.mark.parametrize("optimizer", [
    lambda: keras.optimizers.SGD(0.05, momentum=0.9), adam,
    lambda: keras.optimizers.SGD(0.05, clipnorm=0.1)], ids=["momentum", "adam", "clipnorm"])
def test_layer_host_is_optimizer_host(name, optimizer):
    """The two graphs sum in the same order up to fusion: 1e-6 over 12 steps."""
    in_layers = ts.sparsify(dense_model(), method_of(name))
    fit(in_layers, optimizer())
    in_optimizer = dense_model()
    fit(in_optimizer, ts.SparseOptimizer(optimizer(), method_of(name)))
    a, b = ts.strip(in_layers).get_weights(), in_optimizer.get_weights()
    for x, y in zip(kernels(ts.strip(in_layers)), kernels(in_optimizer)):
        np.testing.assert_array_equal(x == 0, y == 0)
    assert greatest_difference(a, b) < 1e-6


@every_host
def test_steps_per_execution(name, host):
    """Updates fall on the next execution's end, and the last one is made: the same count."""
    model, optimizer = make(name, host)
    fit(model, optimizer, steps_per_execution=3)
    report = ts.report(model)
    assert report.step == EPOCHS * STEPS
    if name in MASKS and "global" not in name:
        expected = expected_zeros(name, [row.shape for row in report.rows])
        assert [row.zeros for row in report.rows] == expected


@every_host
def test_training_without_the_callback_raises_and_then_trains(name, host):
    model, optimizer = make(name, host)
    model.compile(optimizer, loss())
    if not method_of(name).needs_update:
        model.fit(Shuffled(), verbose=0)
        return
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(ValueError, match=r"callbacks=\[ts.callbacks.SparsityUpdate\(\)\]"):
        model.fit(Shuffled(), verbose=0)
    assert greatest_difference(before, model.get_weights()) == 0.0
    fit(model)
    if name in MASKS:
        assert ts.report(model).sparsity > 0.7


@every_method
def test_sparsify_preserves_outputs_where_it_says_so(name):
    model = dense_model()
    sparse = ts.sparsify(model, method_of(name))
    x = Shuffled().x
    difference = np.abs(model.predict(x, verbose=0) - sparse.predict(x, verbose=0)).max()
    assert difference == 0.0 if method_of(name).preserves_outputs else difference > 0.0


@pytest.mark.parametrize(("make_it", "text"), [
    (lambda: ts.MagnitudePruning("cubic"), "schedule.*cubic"),
    (lambda: ts.MagnitudePruning(ts.ConstantSparsity(1.0, 0)), r"\[0, 1\).*1\.0"),
    (lambda: ts.MagnitudePruning(cubic(), distribution="even"), "uniform.*even|even.*uniform"),
    (lambda: ts.MagnitudePruning(cubic(), pattern="4"), "Unknown pattern"),
    (lambda: ts.MagnitudePruning(cubic(), pattern="2:4"), r"1 - 2/4"),
    (lambda: ts.MagnitudePruning(cubic(), min_keep=-1), "min_keep must be >= 0. .*min_keep=-1"),
    (lambda: ts.MagnitudePruning(cubic(), revive="no"), "revive must be True or False. .*'no'"),
    (lambda: ts.RandomPruning(cubic(), seed=-1), "seed must be >= 0. .*seed=-1"),
    (lambda: ts.RandomPruning(cubic(), seed=1.5), "seed must be an integer. .*seed=1.5"),
    (lambda: ts.ContinuousSparsification(0), "anneal_steps must be >= 1. .*anneal_steps=0"),
    (lambda: ts.ContinuousSparsification("10"), "anneal_steps must be an integer. .*'10'"),
    (lambda: ts.ContinuousSparsification(10, final_beta=0.5), "final_beta must be >= 1. .*=0.5"),
    (lambda: ts.ContinuousSparsification(10, s0="a"), "s0 must be a number. .*'a'"),
    (lambda: ts.ContinuousSparsification(10, scale=-1.0), "scale must be >= 0. .*scale=-1.0"),
    (lambda: ts.ContinuousSparsification(10, rescale=1), "rescale must be True or False. .*=1"),
])
def test_documented_errors(make_it, text):
    with pytest.raises((ValueError, TypeError), match=text):
        make_it()
