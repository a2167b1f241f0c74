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
from tf_sparsity import learned, masks
from tf_sparsity.kernels import find

pytestmark = pytest.mark.any_backend

N = 1400  # training examples of the digits
STEPS, BATCH = 2400, 64


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
        metrics=["accuracy"], steps_per_execution=method.for_run(steps).interval)
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


CASES = [(name, ramped) for name in METHODS for ramped in (False, True)
         if (name, ramped) != ("cs", True)]  # it has no ramp


def controlled(name, target, optimizer, ramped=False, steps=STEPS, **kwargs):
    """A model trained with a controller, at its default frequency: 200 updates in a run. The ramp
    is the one that docs/methods.md advises, over half of the run."""
    if name == "cs":
        kwargs["steps"] = steps
    if ramped:
        kwargs["ramp"] = ts.Ramp(0, steps // 2)
    method = METHODS[name](target_sparsity=target, reach="controller", **kwargs)
    model = digits_model(method, optimizer, RATES[name, optimizer], steps)
    return model, train(model, steps)


# ---- the controller -------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_controller_reaches_90_percent(name):
    """The short one: 200 updates of 6 steps. 0.005 is what is promised; 6464 weights of
    64-64-32-10."""
    model, report = controlled(name, 0.9, "adam", ramped=name != "cs", steps=1200)
    assert report.target == 0.9
    assert abs(report.sparsity - 0.9) <= 0.005
    assert report.sparsity == ts.report(ts.strip(model)).sparsity
    images, classes = digits()
    accuracy = model.evaluate(images[N:], classes[N:], verbose=0)[1]
    assert accuracy > 0.7  # chance is 0.1


def test_the_controller_reaches_80_percent_with_sgd():
    assert abs(controlled("cs", 0.8, "sgd", steps=1200)[1].sparsity - 0.8) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("name", "ramped"), CASES)
def test_the_controller_reaches_every_target(name, ramped, target):
    assert abs(controlled(name, target, "adam", ramped)[1].sparsity - target) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
@pytest.mark.parametrize(("name", "ramped"), CASES)
def test_the_controller_reaches_every_target_with_sgd(name, ramped, target):
    """0.95 is beyond variational dropout at this rate, whose loss is infinite on the way."""
    assert abs(controlled(name, target, "sgd", ramped)[1].sparsity - target) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "frequency"), [(0.1, 12), (10.0, 12), (1.0, 8), (1.0, 20)])
@pytest.mark.parametrize(("name", "ramped"), CASES)
def test_the_controller_finds_the_scale_at_every_frequency(name, ramped, scale, frequency):
    _, report = controlled(name, 0.8, "adam", ramped, scale=scale, frequency=frequency)
    assert abs(report.sparsity - 0.8) <= 0.005


@pytest.mark.filterwarnings("ignore:.*was asked for a sparsity of")  # too short to reach it
@pytest.mark.parametrize("name", METHODS)
def test_the_controller_resumes_exactly(name, tmp_path):
    """Its memory is in the model: 4 updates, a file, and 4 more are 8, bit for bit."""
    schedule = {"steps": 20} if name == "cs" else {"ramp": ts.Ramp(0, 15)}
    method = METHODS[name](target_sparsity=0.8, reach="controller", frequency=4, **schedule)

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


def gates(method, values):
    """A slot of a Dense kernel whose s is `values`."""
    model = ts.sparsify(keras.Sequential([keras.Input((len(values),)), keras.layers.Dense(1)]),
                        method)
    [found] = find(model)
    found.slot.state["s"].assign(np.asarray(values)[:, None])
    return found.slot


def remembered(slot, name):
    return float(ops.convert_to_numpy(slot.state["controller"])[list(learned.START).index(name)])


def test_the_first_two_updates_of_the_controller_by_hand():
    """Importances -1 ... 1 in 201 steps, target 0.75: the 151st is 0.5, so that q = 0.5, and the
    share 0.015 to both sides is w = 0.03 of them, 0.06. Update 1 only looks. Update 2 has speed 0,
    so e = 0.5 / 0.125 -> 1 (|q| / 4 = 0.125 > w); it is far: held 1 + 0.1 * 1, stroke 1, and
    c = 2.1 scale. Update 3: e agrees with the last one, stroke exp(0.2), held 1.1 + 0.1 * 2.1
    (size is the last c), c = 1.31 + exp(0.2)."""
    method = ts.ContinuousSparsification(100, scale=0.5, target_sparsity=0.75, reach="controller",
                                         frequency=1)
    slot = gates(method, np.linspace(-1, 1, 201))
    coefficients = []
    for step in range(3):
        method.update([slot], step)
        coefficients.append(float(ops.convert_to_numpy(slot.state["coefficient"])))
    np.testing.assert_allclose(coefficients, [0.5, 0.5 * 2.1, 0.5 * (1.31 + np.exp(0.2))],
                               rtol=1e-5)  # float32 between the updates


def test_near_the_target_the_held_part_waits_while_the_error_says_it_is_on_its_way():
    """Importances -1 ... 1 in 2001 steps of 0.001, target 0.5, around 0.015 of them w = 0.06. They
    rest at q = 0.02: e = q / w = 1/3, and the held part rises by 0.4 q / w of the size 1 to 17/15.
    Then they fall by 0.015: q = 0.005, v = 0.3 * -0.015, and e = (0.005 - 5 * 0.0045) / 0.06 < 0:
    the held part stays."""
    method = ts.ContinuousSparsification(100, target_sparsity=0.5, reach="controller", frequency=1)
    slot = gates(method, np.linspace(-1, 1, 2001) + 0.02)
    held = []
    for step, move in enumerate((0.0, 0.0, -0.015)):
        slot.state["s"].assign(slot.state["s"] + move)
        method.update([slot], step)
        held.append(remembered(slot, "held"))
    np.testing.assert_allclose(held, [1, 17 / 15, 17 / 15], rtol=1e-4)
    np.testing.assert_allclose(remembered(slot, "error"), -0.0175 / 0.06, rtol=1e-3)


def test_the_spread_is_taken_from_the_gates_that_there_are():
    """Target 0.99 of importances 0.001 apart: no rank is beyond the last, so that the share around
    it is 0.005 instead of 0.015, and w = 0.02. At rest at q = 0.01, e = 0.5."""
    method = ts.ContinuousSparsification(100, target_sparsity=0.99, reach="controller", frequency=1)
    slot = gates(method, np.linspace(-1, 1, 2001) - 0.98 + 0.01)
    for step in range(2):
        method.update([slot], step)
    np.testing.assert_allclose(remembered(slot, "error"), 0.5, atol=0.05)  # importances 0.001 apart


def test_far_from_the_target_the_error_is_relative_to_the_distance():
    """Target 0.75 of -1 ... 1: q = 0.5, then all fall by 0.11. q = 0.39, v = 0.3 * -0.11, and ten
    updates on q + 10 v = 0.06, over |q| / 4 = 0.0975, which is more than w = 0.06."""
    method = ts.ContinuousSparsification(100, target_sparsity=0.75, reach="controller", frequency=1)
    slot = gates(method, np.linspace(-1, 1, 2001))
    for step, move in enumerate((0.0, -0.11)):
        slot.state["s"].assign(slot.state["s"] + move)
        method.update([slot], step)
    np.testing.assert_allclose(remembered(slot, "error"), 0.06 / 0.0975, atol=0.02)


def test_the_speed_is_that_of_an_interval_whatever_the_time_between_two_looks():
    """Everything falls by 0.001 a step, at 12 steps by 0.012; the speed follows by 0.3 of the
    difference. The look at 24 is missed: in 24 steps twice as far, and as fast."""
    method = ts.ContinuousSparsification(1000, target_sparsity=0.5, reach="controller",
                                         frequency=12)
    slot = gates(method, np.linspace(-1, 1, 201))
    speeds, last = [], 0
    for step in (0, 12, 36, 48):
        slot.state["s"].assign(slot.state["s"] - 0.001 * (step - last))
        method.update([slot], step)
        speeds.append(remembered(slot, "speed"))
        last = step
    np.testing.assert_allclose(speeds, -0.012 * (1 - 0.7 ** np.arange(4)), atol=1e-6)


def test_the_rise_of_the_target_is_no_speed():
    """Under a ramp the rank rises through gates that stand still: q rises, the speed is 0. The
    error looks ahead: what is asked for 10 updates later is 0.1 * 0.8 further on, at q + 0.16.
    q is below the boundary, and that is above it: the error has its sign."""
    method = ts.L0Regularization(10, ramp=ts.Ramp(0, 100), target_sparsity=0.8, reach="controller",
                                 frequency=1)
    model = ts.sparsify(keras.Sequential([keras.Input((2003,)), keras.layers.Dense(1)]), method)
    [found] = find(model)
    slot = found.slot
    values = method.boundary + np.linspace(-0.6, 1.4, 2003)
    slot.state["log_alpha"].assign(values[:, None])
    for step in range(10, 30):  # 0.232 of the gates at the end, q = -0.6 + 2 * 0.232
        method.update([slot], step)
    assert remembered(slot, "distance") == pytest.approx(-0.136, abs=2e-3)
    assert remembered(slot, "speed") == pytest.approx(0, abs=1e-3)
    # w = 0.06 and |q| / 4 = 0.034; importances are 0.001 apart
    assert remembered(slot, "error") == pytest.approx((-0.136 + 0.16) / 0.06, abs=0.04)


def test_a_controller_looks_at_its_own_steps_only():
    """Neither the ramp's grid nor that of beta adds a look."""
    ramp = ts.Ramp(0, 60, frequency=7)
    method = ts.L0Regularization(10, ramp=ramp, target_sparsity=0.5, reach="controller",
                                 frequency=12)
    assert [step for step in range(100) if method.due(step - 1, step)] == list(range(0, 100, 12))
    by_rank = ts.L0Regularization(10, ramp=ramp, target_sparsity=0.5, frequency=12)
    assert by_rank.due(6, 7) and by_rank.due(11, 12)

    method = ts.ContinuousSparsification(50, target_sparsity=0.5, reach="controller", frequency=12)
    assert method.due(48, 50)  # beta becomes the final one
    slot = gates(method, np.linspace(-1, 1, 201))
    looks = {}
    for step in (0, 12, 50, 60):
        method.update([slot], step)
        looks[step] = remembered(slot, "step")
    assert looks == {0: 0, 12: 12, 50: 50, 60: 60}  # 24, 36 and 48 were missed
    method.update([slot], 71)
    assert remembered(slot, "step") == 60


@pytest.mark.parametrize(("method", "run", "frequency"), [
    (ts.L0Regularization(10, target_sparsity=0.5, reach="controller"), 2400, 12),
    (ts.L0Regularization(10, target_sparsity=0.5, reach="controller"), 150, 1),
    (ts.L0Regularization(10, target_sparsity=0.5, reach="controller"), None, None),
    (ts.L0Regularization(10, target_sparsity=0.5, reach="controller", frequency=30), 2400, 30),
    (ts.L0Regularization(10, target_sparsity=0.5), 2400, None),
    (ts.L0Regularization(10, ramp=ts.Ramp(0, 9)), 2400, None),
    # an epoch of a longer training: as long as the ramp, or the annealing, at least
    (ts.VariationalDropout(10, ramp=ts.Ramp(0, 4000), target_sparsity=0.5, reach="controller"),
     300, 20),
    (ts.ContinuousSparsification(4000, target_sparsity=0.5, reach="controller"), 300, 20),
    (ts.ContinuousSparsification(target_sparsity=0.5, reach="controller"), 2400, 12)])
def test_the_default_frequency_makes_200_updates_of_a_run(method, run, frequency):
    if run is None or method.frequency == frequency:
        assert method.for_run(run) is method and method.interval == (frequency or 100)
    else:
        settled = method.for_run(run)
        assert settled.frequency == frequency and settled.for_run(10 * run) is settled
        config = {**method.get_config(), "frequency": frequency}
        if isinstance(method, ts.ContinuousSparsification):
            config["anneal_steps"] = method.anneal_steps or run
        assert settled.get_config() == config


def small_run(method, epochs=2):
    """(model, method as it is then) after `epochs` of 100 steps in which nothing learns."""
    model = ts.sparsify(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]), method)
    model.compile(keras.optimizers.SGD(0.0), "mse", steps_per_execution=2)
    model.fit(np.zeros((100, 8)), np.zeros((100, 4)), batch_size=1, epochs=epochs, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()])
    return model, model.layers[0].methods["kernel"]


def test_a_controller_that_misses_warns():
    """Nothing learns: all gates stay open. 400 steps, so every 2."""
    method = ts.L0Regularization(10, ramp=ts.Ramp(0, 300), target_sparsity=0.75,
                                 reach="controller")
    with pytest.warns(UserWarning, match="asked for a sparsity of 0.75 and ends with 0.0000 at "
                      r"step 400.*200 updates.*a smaller frequency \(it is 2\), train longer"):
        _, settled = small_run(method, epochs=4)
    assert settled.frequency == 2


def test_a_run_that_stops_before_the_end_of_the_ramp_does_not_warn_of_its_sparsity():
    with pytest.warns(UserWarning, match="ends its schedule at step 300") as caught:
        small_run(ts.L0Regularization(10, ramp=ts.Ramp(0, 300), target_sparsity=0.75,
                                      reach="controller"))
    assert not any("asked for a sparsity" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(("more", "met"), [(0.0049, True), (-0.0049, True), (0.0051, False),
                                           (-0.0051, False)])
def test_what_counts_as_reached(more, met):
    """100 of 201 gates are at most 0. Half a point, and not more."""
    method = ts.ContinuousSparsification(10, target_sparsity=100 / 201 + more, reach="controller",
                                         frequency=1)
    slot = gates(method, np.linspace(-1, 1, 201) + 1e-3)
    text = method.unmet([slot], 10)
    assert (text is None) == met
    assert met or "frequency" not in text  # 1 is the smallest
    assert method.unmet([slot], 9) is None  # beta still rises
    assert ts.ContinuousSparsification(10, target_sparsity=0.1).unmet([slot], 10) is None


@pytest.mark.parametrize(("target", "met"), [(0.26, True), (0.49, True), (0.51, False)])
def test_groups_are_reached_to_one_group(target, met):
    """One of 4 inputs is closed: no more than a quarter away."""
    method = ts.L0Regularization(10, group="in", target_sparsity=target, reach="controller")
    model = ts.sparsify(keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)]), method)
    [found] = find(model)
    found.slot.state["log_alpha"].assign([[-4.0], [1.0], [1.0], [1.0]])
    assert (method.unmet([found.slot], 10) is None) == met


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
    method = ts.L0Regularization(1, scale=2.0, target_sparsity=0.9, reach="controller",
                                 frequency=1)
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
    (lambda: ts.L0Regularization(10, reach="controller"), "give target_sparsity"),
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
