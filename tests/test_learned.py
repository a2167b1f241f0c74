"""A sparsity that is asked for: by rank, exactly, or by a controller of the penalty's coefficient.

The controller is tested on real data: it has to bring models that it has never seen, with Adam and
with SGD, from scales ten times too high or too low, within half a point of the target.
"""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import tf_sparsity as ts
from tf_sparsity import masks
from tf_sparsity.kernels import find

pytestmark = pytest.mark.any_backend

N = 1400  # training examples of the digits
FREQUENCY, STEPS = 12, 2400  # 200 updates
BATCH = 64


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype("float32"), classes[order]


def batches(steps):
    """`steps` batches of the training images, an epoch reshuffled after the other."""
    rng = np.random.default_rng(1)
    order = np.concatenate([rng.permutation(N) for _ in range(steps * BATCH // N + 1)])
    images, classes = digits()
    return images[order[:steps * BATCH]], classes[order[:steps * BATCH]]


def digits_model(method, optimizer, rate, steps, units=(64, 32)):
    """The rate falls linearly to 0: at a constant one the natural sparsity of variational dropout
    swings by a point from update to update, whatever the coefficient is."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)),
                              *(keras.layers.Dense(n, activation="relu") for n in units),
                              keras.layers.Dense(10)])
    model = ts.sparsify(model, method)
    rate = keras.optimizers.schedules.PolynomialDecay(rate, steps, 0.0)
    model.compile(
        keras.optimizers.Adam(rate) if optimizer == "adam" else
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"], steps_per_execution=method.frequency)
    return model


def train(model, steps, **kwargs):
    model.fit(*batches(steps), batch_size=BATCH, shuffle=False, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()], **kwargs)
    return ts.report(model)


METHODS = {
    "vd": lambda scale=1.0, **kwargs: ts.VariationalDropout(N, scale=scale, **kwargs),
    "l0": lambda scale=1.0, **kwargs: ts.L0Regularization(N, scale=scale, **kwargs),
    "cs": lambda scale=1.0, **kwargs: ts.ContinuousSparsification(
        kwargs.pop("steps", STEPS) * 3 // 4, s0=0.1, scale=1e-5 * scale, **kwargs)}
# Variational dropout pulls on theta with up to 1 / |theta|: it needs a smaller rate than the gates.
RATES = {("vd", "adam"): 2e-3, ("vd", "sgd"): 0.03, ("l0", "adam"): 2e-2, ("l0", "sgd"): 0.1,
         ("cs", "adam"): 1e-2, ("cs", "sgd"): 0.1}


def controlled(name, target, optimizer, steps=STEPS, frequency=FREQUENCY, **kwargs):
    if name == "cs":
        kwargs["steps"] = steps
    method = METHODS[name](target_sparsity=target, reach="controller", frequency=frequency,
                           **kwargs)
    model = digits_model(method, optimizer, RATES[name, optimizer], steps)
    return model, train(model, steps)


# ---- the controller -------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_controller_reaches_90_percent(name):
    """The short one: 150 updates. 0.005 is what is promised; 6464 weights of 64-64-32-10."""
    model, report = controlled(name, 0.9, "adam", steps=1200, frequency=8)
    assert report.target == 0.9
    assert abs(report.sparsity - 0.9) <= 0.005
    assert report.sparsity == ts.report(ts.strip(model)).sparsity
    images, classes = digits()
    accuracy = model.evaluate(images[N:], classes[N:], verbose=0)[1]
    assert accuracy > 0.4  # chance is 0.1; such a pace costs L0 much (docs/methods.md)


def test_the_controller_reaches_80_percent_with_sgd():
    assert abs(controlled("cs", 0.8, "sgd", steps=1200, frequency=8)[1].sparsity - 0.8) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("name", METHODS)
def test_the_controller_reaches_every_target(name, target, optimizer):
    assert abs(controlled(name, target, optimizer)[1].sparsity - target) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "frequency"), [(0.1, 12), (10.0, 12), (1.0, 8), (1.0, 20)])
@pytest.mark.parametrize("name", METHODS)
def test_the_controller_finds_the_scale_at_every_frequency(name, scale, frequency):
    _, report = controlled(name, 0.8, "adam", scale=scale, frequency=frequency)
    assert abs(report.sparsity - 0.8) <= 0.005


@pytest.mark.parametrize("name", METHODS)
def test_the_controller_resumes_exactly(name, tmp_path):
    """Its memory is in the model: 4 updates, a file, and 4 more are 8, bit for bit."""
    length = {"steps": 20} if name == "cs" else {}
    method = METHODS[name](target_sparsity=0.8, reach="controller", frequency=4, **length)

    def controllers(model):
        return [ops.convert_to_numpy(f.slot.state["controller"]) for f in find(model)]

    halves = []
    for interrupted in (False, True):
        model = digits_model(method, "adam", 1e-2, 64, units=())
        for epoch in range(2):
            images, classes = batches(16)
            model.fit(images, classes, batch_size=BATCH, shuffle=False, verbose=0,
                      epochs=epoch + 1, initial_epoch=epoch,
                      callbacks=[ts.callbacks.SparsityUpdate()])
            if interrupted and epoch == 0:
                model.save(tmp_path / "half.keras")
                model = keras.saving.load_model(tmp_path / "half.keras")
        halves.append(model)
    whole, resumed = halves
    for a, b in zip(controllers(whole), controllers(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(b).all() and b[1] != 1.0  # it has been at work
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_first_two_updates_of_the_controller_by_hand():
    """Importances -1 ... 1 in 201 steps, target 0.75: the 151st is 0.5, so that q = 0.5, and the
    share 0.03 to both sides is w = 0.06 of them, 0.12. Update 1 only looks. Update 2 has speed 0,
    so e = 0.5 / 0.125 -> 1 (|q| / 4 = 0.125 > w); it is far: held 1 + 0.1 * 1, stroke 1, and
    c = 2.1 scale. Update 3: e agrees with the last one, stroke exp(0.2), held 1.1 + 0.1 * 2.1
    (size is the last c), c = 1.31 + exp(0.2)."""
    method = ts.ContinuousSparsification(100, scale=0.5, target_sparsity=0.75, reach="controller")
    model = ts.sparsify(keras.Sequential([keras.Input((201,)), keras.layers.Dense(1)]), method)
    [found] = find(model)
    found.slot.state["s"].assign(np.linspace(-1, 1, 201)[:, None])
    coefficients = []
    for step in range(3):
        method.update([found.slot], step)
        coefficients.append(float(ops.convert_to_numpy(found.slot.state["coefficient"])))
    np.testing.assert_allclose(coefficients, [0.5, 0.5 * 2.1, 0.5 * (1.31 + np.exp(0.2))],
                               rtol=1e-5)  # float32 between the updates


def test_the_ramp_raises_what_the_controller_asks_for():
    """Where the ramp is 0 nothing is asked for. Its first update only looks, its second finds all
    weights kept and steps by 1 from 1.1, as by hand above."""
    method = ts.VariationalDropout(10, ramp=ts.Ramp(20, 40, frequency=10), target_sparsity=0.5,
                                   reach="controller", frequency=10)
    model = ts.sparsify(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]), method)
    [found] = find(model)
    for step, multiple in ((0, 0), (10, 0), (20, 0), (30, 1.0), (40, 1.1 + 1.0)):
        method.update([found.slot], step)
        coefficient = float(ops.convert_to_numpy(found.slot.state["coefficient"]))
        np.testing.assert_allclose(coefficient, multiple / 10, rtol=1e-6)


def test_the_coefficient_stays_within_its_limit():
    """A target that cannot be met, for nothing trains: 10,000 times the scale, and not further."""
    method = ts.L0Regularization(1, scale=2.0, target_sparsity=0.9, reach="controller")
    model = ts.sparsify(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]), method)
    [found] = find(model)
    for step in range(200):
        method.update([found.slot], step)
    assert float(ops.convert_to_numpy(found.slot.state["coefficient"])) == 2e4


@pytest.mark.parametrize(("make", "text"), [
    (lambda: ts.VariationalDropout(10, scale=0, target_sparsity=0.5, reach="controller"),
     "scale must be > 0"),
    (lambda: ts.L0Regularization(10, target_sparsity=1.0), r"fraction of zeros in \[0, 1\)"),
    (lambda: ts.L0Regularization(10, target_sparsity=-0.1), "target_sparsity must be >= 0"),
    (lambda: ts.L0Regularization(10, target_sparsity=0.5, reach="threshold"),
     'reach is "rank" or "controller"'),
    (lambda: ts.L0Regularization(10, frequency=0), "frequency must be >= 1")])
def test_messages(make, text):
    with pytest.raises(ValueError, match=text):
        make()
    with pytest.raises(TypeError, match="ramp must be a ts.Ramp or None"):
        ts.VariationalDropout(10, ramp=0.5)


# ---- by rank --------------------------------------------------------------------------------


def ranked_model(make, shapes=((10, 6), (6, 5))):
    """A chain of Dense layers d0, d1, ... of these shapes, under one method."""
    inputs = outputs = keras.Input((shapes[0][0],))
    for i, (_, n) in enumerate(shapes):
        outputs = keras.layers.Dense(n, use_bias=False, name=f"d{i}")(outputs)
    return ts.sparsify(keras.Model(inputs, outputs), make())


def learned_values(model, values):
    """Writes one number for each gate into what the method learns, and returns the slots."""
    slots = [f.slot for f in find(model)]
    for slot, value in zip(slots, values):
        name = next(k for k in ("log_sigma2", "log_alpha", "s") if k in slot.state)
        if name == "log_sigma2":  # log alpha = -value
            theta2 = np.square(ops.convert_to_numpy(slot.theta))
            value = np.log(theta2 + 1e-8) - value
        slot.state[name].assign(np.reshape(value, slot.state[name].shape))
    return slots


BY_RANK = {
    "vd": lambda s, **kwargs: ts.VariationalDropout(10, target_sparsity=s, **kwargs),
    "l0": lambda s, **kwargs: ts.L0Regularization(10, target_sparsity=s, **kwargs),
    "cs": lambda s, **kwargs: ts.ContinuousSparsification(10, target_sparsity=s, **kwargs)}


@pytest.mark.parametrize("name", BY_RANK)
def test_rank_keeps_the_most_important_of_all_kernels(name):
    """90 weights of which 0.7 * 90 = 63 go: the lowest 63 of both kernels together. With the
    natural threshold half of them would be zero; and what is kept below it is not zero either."""
    rng = np.random.default_rng(3)
    values = [rng.normal(size=(10, 6)), rng.normal(size=(6, 5)) + 0.5]
    model = ranked_model(lambda: BY_RANK[name](0.7))
    learned_values(model, values)
    ts.update(model)
    kept = np.sort(np.concatenate([v.ravel() for v in values]))[63:]
    for layer, value in zip(model.layers[1:], values):
        weight = ops.convert_to_numpy(layer.kernel)
        np.testing.assert_array_equal(weight != 0, value >= kept[0])
    report = ts.report(model)
    assert report.sparsity == report.target == 0.7
    boundary = model.layers[1].methods["kernel"].boundary
    natural = np.mean(np.concatenate([v.ravel() for v in values]) <= boundary)
    np.testing.assert_allclose(report.natural, natural)
    assert f"requested 0.7000, natural {natural:.4f}" in str(report)


@pytest.mark.parametrize("values", [0.0, 4.6, -4.7, -10.0])
def test_rank_is_exact_among_ties(values):
    """Clamped gates are all equal; the lower index is kept, the count is exact all the same."""
    model = ranked_model(lambda: BY_RANK["l0"](0.7))
    learned_values(model, [np.full(60, values), np.full(30, values)])
    ts.update(model)
    assert sum(row.zeros for row in ts.report(model).rows) == 63
    kept = [ops.convert_to_numpy(f.slot.state["mask"]).ravel() for f in find(model)]
    # 27 stay: the first ones, and the one that the second kernel must keep
    assert [np.flatnonzero(k).tolist() for k in kept] == [list(range(26)), [0]]


def test_rank_leaves_a_weight_in_each_kernel():
    """86 of 90 go, 0.955 * 90 = 85.95. The second kernel has nothing among the best 4; it keeps
    its best one, and the first keeps 3."""
    model = ranked_model(lambda: BY_RANK["cs"](0.955))
    learned_values(model, [np.arange(60) + 100.0, np.arange(30) / 100])
    ts.update(model)
    kept = [ops.convert_to_numpy(f.slot.state["mask"]).ravel() for f in find(model)]
    assert [np.flatnonzero(k).tolist() for k in kept] == [[57, 58, 59], [29]]


@pytest.mark.parametrize(("group", "sizes"), [("in", (6, 5)), ("out", (10, 6))])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.77])
def test_groups_come_as_near_as_whole_groups_can(group, sizes, target):
    """The kept groups are those of highest log alpha; the number of zero weights is the nearest to
    round(90 s) that any cut of the ranking reaches, so within half of the largest group."""
    rng = np.random.default_rng(7)
    model = ranked_model(lambda: BY_RANK["l0"](target, group=group))
    values = [rng.normal(size=60 // sizes[0]), rng.normal(size=30 // sizes[1])]
    learned_values(model, values)
    ts.update(model)
    zeros = sum(row.zeros for row in ts.report(model).rows)
    pairs = sorted((v, n) for value, n in zip(values, sizes) for v in value)
    reachable = np.cumsum([0] + [n for _, n in pairs])
    wanted = masks.count_zeros(90, target)
    assert abs(zeros - wanted) == np.abs(reachable - wanted).min() <= max(sizes) / 2


def test_a_kept_gate_of_zero_computes_with_its_sigmoid():
    """log alpha = -3 has the evaluation gate 0; kept by rank it is sigmoid(-3) instead, while
    log alpha = 1 keeps its gate 0.7773."""
    model = ranked_model(lambda: BY_RANK["l0"](0.5), shapes=((4, 1),))
    learned_values(model, [[-3.0, -4.0, 1.0, -3.5]])
    ts.update(model)
    layer = model.layers[1]
    ratio = ops.convert_to_numpy(layer.kernel) / ops.convert_to_numpy(layer.theta("kernel"))
    np.testing.assert_allclose(ratio[:, 0], [1 / (1 + np.exp(3)), 0, 0.777270, 0], rtol=1e-5)


@pytest.mark.parametrize("name", BY_RANK)
def test_rank_survives_saving(name, tmp_path):
    model = ranked_model(lambda: BY_RANK[name](0.6, frequency=3))
    ts.update(model)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 10)).astype("float32"), rng.normal(size=(40, 5))
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(find(model), find(loaded), strict=True):
        for key in a.slot.state:
            np.testing.assert_array_equal(ops.convert_to_numpy(a.slot.state[key]),
                                          ops.convert_to_numpy(b.slot.state[key]))
    report = ts.report(loaded)
    assert report.sparsity == 0.6 and report.natural == ts.report(model).natural
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_nan_is_an_error_that_names_the_kernel():
    model = ranked_model(lambda: BY_RANK["cs"](0.5))
    learned_values(model, [np.full(60, np.nan), np.zeros(30)])
    with pytest.raises(ValueError, match="d0/kernel contains NaN.*ContinuousSparsification"):
        ts.update(model)


# ---- what ranks and quantiles count -----------------------------------------------------------


def test_quantiles_weigh_groups_by_their_weights():
    """Groups of 3 and of 1 weights: sorted 1 (3), 2, 3, 5 (3), 6; 9 weights. A third of them lies
    up to 1, half (4.5) up to 3, everything up to 6."""
    values = [np.array([1.0, 5.0]), np.array([2.0, 3.0, 6.0])]
    assert masks.quantiles(values, [3, 1], [1 / 3, 0.5, 1.0, 0.0]) == [1.0, 3.0, 6.0, 1.0]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.999, 1.0])
def test_quantiles_are_where_rank_cuts(fraction):
    values = [np.random.default_rng(i).normal(size=(7, 3 + i)) for i in range(3)]
    [at] = masks.quantiles(values, [1, 1, 1], [fraction])
    flat = np.sort(np.concatenate([v.ravel() for v in values]))
    assert at == flat[max(int(np.ceil(fraction * flat.size)) - 1, 0)]
