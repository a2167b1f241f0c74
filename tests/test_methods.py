"""Each method against closed forms and integers counted by hand."""

import math

import keras
import numpy as np
import oracles
import pytest
from keras import ops

import tf_sparsity as ts
from tf_sparsity.layers.base import Linear
from tf_sparsity.method import Kernel, Slot

pytestmark = pytest.mark.any_backend

KERNEL = Kernel("dense/kernel", (4, 3), ("in", "out"))


def slot_of(method, theta, path="dense/kernel"):
    """A slot outside any layer: update() is a plain function of slots and step."""
    theta = np.asarray(theta, "float32")
    kernel = Kernel(path, theta.shape, ("in", "out"))
    state = {key: keras.Variable(spec.initializer(spec.shape) if callable(spec.initializer)
                                 else np.full(spec.shape, spec.initializer == "ones", "float32"))
             for key, spec in method.state(kernel).items()}
    return Slot(kernel, keras.Variable(theta), state)


def mask(slot):
    return ops.convert_to_numpy(slot.state["mask"]).astype(int).tolist()


# ---- magnitude ------------------------------------------------------------------------------


def test_magnitude_prunes_the_smallest_of_each_kernel():
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
    a, b = slot_of(method, [[3, -1], [-2, 4]]), slot_of(method, [[10, 20], [30, 40]])
    method.update([a, b], 0)
    assert mask(a) == [[1, 0], [0, 1]] and mask(b) == [[0, 0], [1, 1]]


def test_global_ranks_all_kernels_together_and_leaves_one_weight_each():
    a_theta, b_theta = [[3, -1], [-2, 4]], [[10, 20], [30, 40]]
    for min_keep, expected in [(1, [[0, 0], [0, 1]]), (0, [[0, 0], [0, 0]])]:
        method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), distribution="global",
                                     min_keep=min_keep)
        a, b = slot_of(method, a_theta), slot_of(method, b_theta)
        method.update([a, b], 0)
        assert mask(a) == expected
        assert sum(map(sum, mask(a) + mask(b))) == 4  # the total is exact either way


def test_a_map_scales_with_the_schedule():
    """At half of the schedule (linear) each kernel has half of its final sparsity."""
    method = ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.5, 0, 10, power=1, frequency=5),
                                 distribution={"first": 0.8})
    theta = np.arange(1, 21).reshape(4, 5)
    a, b = slot_of(method, theta, "first/kernel"), slot_of(method, theta, "second/kernel")
    method.update([a, b], 5)
    assert [20 - np.sum(mask(s)) for s in (a, b)] == [8, 5]
    method.update([a, b], 10)
    assert [20 - np.sum(mask(s)) for s in (a, b)] == [16, 10]
    with pytest.raises(ValueError, match="third"):
        ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), distribution={"third": 0.1}).validate(
            [a.kernel])


def test_pruned_weights_stay_pruned_whatever_theta_does():
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
    slot = slot_of(method, [[1, 2], [3, 4]])
    method.update([slot], 0)
    slot.theta.assign([[9, 9], [1, 1]])
    method.update([slot], 100)
    assert mask(slot) == [[0, 0], [1, 1]]


# ---- random ---------------------------------------------------------------------------------


def test_random_masks_depend_on_seed_path_and_step_only():
    def drawn(seed, path="a/kernel", step=0, theta=1.0):
        method = ts.RandomPruning(ts.ConstantSparsity(0.5, 0), seed=seed)
        slot = slot_of(method, np.full((8, 8), theta), path)
        method.update([slot], step)
        return mask(slot)

    first = drawn(1)
    assert np.sum(first) == 32
    assert drawn(1) == first and drawn(1, theta=7.0) == first
    assert drawn(2) != first and drawn(1, path="b/kernel") != first and drawn(1, step=3) != first


def test_random_masks_are_nested_along_the_schedule():
    method = ts.RandomPruning(ts.PolynomialDecay(0.0, 0.9, 0, 10, frequency=1), seed=0)
    slot, previous = slot_of(method, np.ones((10, 10))), np.ones((10, 10))
    for step in range(11):
        method.update([slot], step)
        assert np.all(np.array(mask(slot)) <= previous)
        previous = np.array(mask(slot))
    assert previous.sum() == 10


def test_a_seed_of_none_is_drawn_and_kept():
    keras.utils.set_random_seed(3)
    a = ts.RandomPruning(ts.ConstantSparsity(0.5, 0))
    keras.utils.set_random_seed(3)
    b = ts.RandomPruning(ts.ConstantSparsity(0.5, 0))
    assert a.seed == b.seed and ts.RandomPruning.from_config(a.get_config()) == a


# ---- continuous sparsification --------------------------------------------------------------


def state_of(s, beta):
    return {"s": np.asarray(s, "float32"), "beta": np.float32(beta)}


def test_beta_grows_geometrically_from_one_to_final_beta():
    method = ts.ContinuousSparsification(4, final_beta=200.0, frequency=1)
    slot, betas = slot_of(method, np.ones((2, 2))), []
    for step in range(6):
        method.update([slot], step)
        betas.append(float(slot.state["beta"]))
    np.testing.assert_allclose(betas, [1, 200 ** .25, 200 ** .5, 200 ** .75, 200, 200], rtol=1e-6)
    assert [method.due(t - 1, t) for t in range(6)] == [True] * 5 + [False]


def test_soft_and_hard_mask_by_hand():
    theta = np.array([[2.0, 2.0, 2.0]], "float32")
    method = ts.ContinuousSparsification(10)
    state = state_of([[0.0, 1.0, -1.0]], 3.0)
    sigmoid = 1 / (1 + np.exp(-3 * np.array([[0.0, 1.0, -1.0]])))
    np.testing.assert_allclose(method.weight(theta, state, training=True), 2 * sigmoid, rtol=1e-6)
    np.testing.assert_array_equal(method.weight(theta, state, training=False), [[0.0, 2.0, 0.0]])


def test_with_rescaling_training_starts_at_theta():
    """s = s0, beta = 1: sigmoid(s0) / sigmoid(s0) = 1, to one ulp of float32."""
    theta = np.random.default_rng(0).standard_normal((5, 5)).astype("float32")
    method = ts.ContinuousSparsification(10, s0=-0.3, rescale=True)
    state = state_of(np.full((5, 5), -0.3), 1.0)
    np.testing.assert_allclose(method.weight(theta, state, training=True), theta, rtol=2.4e-7)


def test_soft_is_hard_for_large_beta():
    s = np.random.default_rng(0).uniform(0.1, 1, (6, 6)) * np.sign(np.arange(36).reshape(6, 6) - 17.5)
    method, state = ts.ContinuousSparsification(10, rescale=True, s0=0.2), state_of(s, 200.0)
    theta = np.ones((6, 6), "float32")  # min |s| beta = 20: exp(-20) = 2e-9
    np.testing.assert_allclose(method.weight(theta, state, training=True),
                               method.weight(theta, state, training=False), atol=1e-6)


@pytest.mark.parametrize(("rescale", "factor"), [(False, 1.0), (True, 1 + np.exp(-0.5))])
def test_penalty_of_half_open_gates_is_half_their_number(rescale, factor):
    method = ts.ContinuousSparsification(10, scale=0.1, s0=0.5, rescale=rescale)
    penalty = method.penalty(np.ones((4, 3), "float32"), state_of(np.zeros((4, 3)), 7.0))
    np.testing.assert_allclose(float(penalty), 0.1 * 12 / 2 * factor, rtol=1e-6)


def test_one_weight_gradient_in_closed_form():
    """L = (w m - y)^2 / 2 + lambda m, m = sigmoid(beta s): dL/ds = beta m (1 - m) (w (w m - y) +
    lambda) and dL/dw = m (w m - y)."""
    w, s, beta, y, lam = 1.5, 0.2, 2.0, 0.7, 0.1
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model = ts.sparsify(model, ts.ContinuousSparsification(100, scale=lam))
    layer = model.layers[0]
    model.compile(keras.optimizers.SGD(1.0), loss=lambda t, p: ops.square(p - t) / 2)
    ts.update(model)  # takes charge; beta is then set by hand
    layer.theta("kernel").assign([[w]])
    layer.state["kernel"]["s"].assign([[s]])
    layer.state["kernel"]["beta"].assign(beta)
    model.train_on_batch(np.ones((1, 1)), np.full((1, 1), y))
    m = 1 / (1 + np.exp(-beta * s))
    moved_w = float(ops.convert_to_numpy(layer.theta("kernel"))[0, 0]) - w
    moved_s = float(ops.convert_to_numpy(layer.state["kernel"]["s"])[0, 0]) - s
    np.testing.assert_allclose(moved_w, -m * (w * m - y), rtol=1e-5)
    np.testing.assert_allclose(moved_s, -beta * m * (1 - m) * (w * (w * m - y) + lam), rtol=1e-5)


def test_between_rounds_what_was_kept_starts_again_and_what_was_lost_is_lost():
    """s <- min(beta s, s0), beta <- 1 (Savarese et al.)."""
    method = ts.ContinuousSparsification(10, s0=0.05)
    slot = slot_of(method, np.ones((1, 4)))
    slot.state["s"].assign([[-0.2, -0.0001, 0.0001, 0.3]])
    slot.state["beta"].assign(200.0)
    method.next_round([slot])
    np.testing.assert_allclose(ops.convert_to_numpy(slot.state["s"]), [[-40, -0.02, 0.02, 0.05]],
                               rtol=1e-5)
    assert float(slot.state["beta"]) == 1.0


def test_the_gradient_of_the_mask_vanishes_away_from_zero():
    """beta m (1 - m) at beta = 200: 50 at s = 0, 0.0091 at -0.05, 4.1e-7 at -0.1; at 0.1, where
    float32 rounds m to 1, it is 0."""
    method = ts.ContinuousSparsification(10, scale=1.0)
    [slope] = oracles.gradient(
        lambda s: method.penalty(np.ones(4, "float32"), {"s": s, "beta": np.float32(200)}),
        [0.0, -0.05, -0.1, 0.1])
    np.testing.assert_allclose(slope, [50, 0.00908, 4.12e-7, 0], rtol=1e-3)


# ---- L0 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (1, 3)])
def test_l0_penalty_and_its_gradient(shape):
    """R = sum p (scale |g| + l2 ||theta_g||^2 / 2) / N, p = sigmoid(log alpha + 1.598597):
    dR/dlog alpha = p (1 - p) (scale |g| + l2 ||theta_g||^2 / 2) / N, dR/dtheta = l2 p theta / N."""
    group = {(4, 3): "weight", (4, 1): "in", (1, 3): "out"}[shape]
    method = ts.L0Regularization(20, scale=3.0, l2=0.5, group=group)
    rng = np.random.default_rng(0)
    theta, log_alpha = rng.normal(size=(4, 3)), rng.normal(size=shape)
    axes = tuple(i for i in range(2) if shape[i] == 1)
    size, squares = 12 // np.prod(shape), np.sum(theta ** 2, axis=axes, keepdims=True)
    p = oracles.open_probability(log_alpha)
    price = (3.0 * size + 0.25 * squares) / 20

    def penalty(theta, log_alpha):
        return method.penalty(theta, {"log_alpha": log_alpha})

    np.testing.assert_allclose(
        float(penalty(theta.astype("float32"), log_alpha.astype("float32"))), np.sum(p * price),
        rtol=1e-5)
    d_theta, d_log_alpha = oracles.gradient(penalty, theta, log_alpha)
    np.testing.assert_allclose(d_log_alpha, p * (1 - p) * price, rtol=1e-4)
    np.testing.assert_allclose(d_theta, 0.5 * p * theta / 20, rtol=1e-4)


@pytest.mark.parametrize(("log_alpha", "z"), [(0.5, 1.0), (-3.0, 0.0)])
def test_one_weight_under_a_hard_mask_in_closed_form(log_alpha, z):
    """L = (w z - y)^2 / 2 + c p, a compiled step of SGD: dL/dw = z (w z - y), and straight through
    dL/dlog alpha = 1.2 sigmoid' w (w z - y) + c p (1 - p); a closed gate can open again."""
    w, y, c = 1.5, 0.7, 0.1
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model = ts.sparsify(model, ts.L0Regularization(10, scale=1.0, hard_mask=True))
    layer = model.layers[0]
    layer.theta("kernel").assign([[w]])
    layer.state["kernel"]["log_alpha"].assign([[log_alpha]])
    model.compile(keras.optimizers.SGD(0.1), loss=lambda t, p: ops.square(p - t) / 2)
    model.train_on_batch(np.ones((1, 1)), np.full((1, 1), y))
    s, p = oracles.sigmoid(log_alpha), oracles.open_probability(log_alpha)
    moved = [float(ops.convert_to_numpy(v)[0, 0]) - at for v, at in (
        (layer.theta("kernel"), w), (layer.state["kernel"]["log_alpha"], log_alpha))]
    np.testing.assert_allclose(moved[0], -0.1 * z * (w * z - y), rtol=1e-5)
    np.testing.assert_allclose(
        moved[1], -0.1 * (1.2 * s * (1 - s) * w * (w * z - y) + c * p * (1 - p)), rtol=1e-4)


def test_l0_limits():
    """log alpha -> -infinity: weight 0 and penalty 0; -> infinity: theta and scale n / N."""
    method = ts.L0Regularization(10, scale=3.0)
    theta = np.full((2, 2), 1.5, "float32")
    for at, gate in ((-100.0, 0.0), (100.0, 1.0)):
        state = {"log_alpha": np.full((2, 2), at, "float32")}
        np.testing.assert_array_equal(method.weight(theta, state, training=False), theta * gate)
        np.testing.assert_array_equal(
            method.weight(theta, state, training=True, seed=keras.random.SeedGenerator(0)),
            theta * gate)
        np.testing.assert_allclose(float(method.penalty(theta, state)), 1.2 * gate, rtol=1e-6)


# ---- variational dropout ----------------------------------------------------------------------


def test_kl_gradient_of_one_weight():
    """dR/dlog sigma^2 = c KL'(log alpha), dR/dtheta = -2 theta / (theta^2 + 1e-8) c KL'; both are
    0 where log alpha is clipped."""
    method = ts.VariationalDropout(20, scale=0.5)
    theta = np.array([1.0, -0.3, 0.01, 2.0, 0.001])
    log_sigma2 = np.array([-2.0, -1.0, -5.0, -9.0, -3.0])  # log alpha of the last two: -10.4, 10.8
    d_theta, d_log_sigma2 = oracles.gradient(
        lambda t, s: method.penalty(t, {"log_sigma2": s}), theta, log_sigma2)
    log_alpha = log_sigma2 - np.log(theta ** 2 + 1e-8)
    slope = np.where(np.abs(log_alpha) < 8, oracles.kl_slope(log_alpha), 0) * 0.5 / 20
    assert (slope == 0).sum() == 2
    np.testing.assert_allclose(d_log_sigma2, slope, rtol=1e-4)
    np.testing.assert_allclose(d_theta, -2 * theta / (theta ** 2 + 1e-8) * slope, rtol=1e-4)


def test_weights_at_the_threshold_are_pruned():
    """log alpha < threshold is kept, strictly; theta^2 = 1 up to 1e-8, which float32 drops."""
    method = ts.VariationalDropout(10, threshold=0.5)
    state = {"log_sigma2": np.array([0.5 - 1e-6, 0.5, 0.5 + 1e-6], "float32")}
    np.testing.assert_array_equal(method.weight(np.ones(3, "float32"), state, training=False),
                                  [1, 0, 0])


def test_gradients_of_one_noisy_weight_in_closed_form():
    """y = x theta + |x| sigma eps and L = (y - t)^2 / 2: dL/dtheta = (y - t) x, and
    dL/dlog sigma^2 = (y - t) |x| sigma eps / 2, with eps read off the output."""
    method, linear = ts.VariationalDropout(10), Linear(ops.matmul, "float32")
    theta, log_sigma2, x, t = (np.array([[v]], "float32") for v in (0.5, -2.0, -3.0, 1.0))
    seed, sigma = 7, math.exp(-1.0)  # an integer seed draws the same number each time

    def output(theta, log_sigma2):
        return method.forward(linear, x, theta, {"log_sigma2": log_sigma2}, training=True,
                              seed=seed)

    y = float(ops.convert_to_numpy(output(theta, log_sigma2))[0, 0])
    noise = y - x[0, 0] * theta[0, 0]  # |x| sigma eps
    assert abs(noise) > 1e-3 and abs(noise) < 6 * 3 * sigma
    d_theta, d_log_sigma2 = oracles.gradient(
        lambda a, b: ops.sum((output(a, b) - t) ** 2) / 2, theta, log_sigma2)
    # float32 sums of two numbers of order 1
    np.testing.assert_allclose(d_theta, [[(y - 1) * -3.0]], rtol=1e-5)
    np.testing.assert_allclose(d_log_sigma2, [[(y - 1) * noise / 2]], rtol=1e-4)


def test_what_a_rank_keeps_is_what_training_had():
    """beta s = -8 and 8: kept beyond the natural sparsity, a weight is as small as it was in
    training, and counts as one; the other is whole."""
    method = ts.ContinuousSparsification(10, s0=0.1, target_sparsity=0.5)
    state = {"s": np.array([-0.1, 0.1, -1e4], "float32"), "beta": np.float32(80),
             "mask": np.ones(3, "float32")}
    weight = ops.convert_to_numpy(method.weight(np.full(3, 2.0, "float32"), state,
                                                training=False))
    np.testing.assert_allclose(weight, [2 / (1 + math.exp(8)), 2.0, 2e-20], rtol=1e-5)


def test_train_clip_takes_pruned_means_out_of_training():
    """log alpha = 2 and 4 around the threshold 3: with the same noise, outputs differ by x theta
    of the second weight."""
    theta = np.ones((2, 1), "float32")
    state = {"log_sigma2": np.array([[2.0], [4.0]], "float32")}
    x = np.array([[1.0, 10.0], [3.0, -5.0]], "float32")
    free, clipped = (ts.VariationalDropout(10, train_clip=clip) for clip in (False, True))
    seeds = [keras.random.SeedGenerator(3) for _ in range(2)]
    linear = Linear(ops.matmul, "float32")
    drawn = [ops.convert_to_numpy(m.forward(linear, x, theta, state, training=True, seed=seed))
             for m, seed in zip((free, clipped), seeds)]
    np.testing.assert_allclose(drawn[0] - drawn[1], x[:, 1:], rtol=1e-4)  # float32 of order 100
    np.testing.assert_array_equal(clipped.mean(theta, state), [[1.0], [0.0]])
    np.testing.assert_array_equal(clipped.weight(theta, state, training=False),
                                  free.weight(theta, state, training=False))


def test_variance_is_clipped_with_log_alpha():
    method = ts.VariationalDropout(10, clip_log_alpha=2.0)
    theta = np.full(3, 3.0, "float32")
    state = {"log_sigma2": np.array([-np.inf, 1.0, 50.0], "float32")}
    np.testing.assert_allclose(method.variance(theta, state),
                               [9 * np.exp(-2), np.exp(1.0), 9 * np.exp(2)], rtol=1e-5)


def test_the_gradient_of_the_variance_in_closed_form():
    """sigma^2 = exp(log sigma^2) within the clip: d/dlog sigma^2 is sigma^2, d/dtheta 0. Beyond it
    sigma^2 = (theta^2 + 1e-8) exp(+-2): 0 and 2 theta exp(+-2). exp(90) is beyond float32."""
    method = ts.VariationalDropout(10, clip_log_alpha=2.0)
    theta = np.array([3.0, -3.0, 0.5, 0.0, 3.0])
    log_sigma2 = np.array([1.0, -90.0, 90.0, 90.0, 3e38])
    d_theta, d_log_sigma2 = oracles.gradient(
        lambda t, s: ops.sum(method.variance(t, {"log_sigma2": s})), theta, log_sigma2)
    np.testing.assert_allclose(d_log_sigma2, [np.exp(1), 0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(
        d_theta, [0, -6 * np.exp(-2), np.exp(2), 0, 6 * np.exp(2)], rtol=1e-5)


def test_a_log_variance_of_90_still_trains():
    """One compiled step: weight, variance and loss stay finite."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model = ts.sparsify(model, ts.VariationalDropout(10))
    model.layers[0].state["kernel"]["log_sigma2"].assign(np.full((2, 3), 90.0))
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    loss = model.train_on_batch(np.ones((4, 2)), np.ones((4, 3)))
    assert np.isfinite(loss)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_a_weight_of_zero_is_finite_and_pruned():
    """theta = 0: log alpha = -10 + 8 log 10 = 8.4, with the 1e-8 that the authors' code lacks in
    places."""
    method = ts.VariationalDropout(10)
    state = {"log_sigma2": np.full(1, -10.0, "float32")}
    zero = np.zeros(1, "float32")
    np.testing.assert_allclose(method.log_alpha(zero, state), [8.4207], atol=1e-4)
    assert np.isfinite(float(method.penalty(zero, state)))
    np.testing.assert_array_equal(method.weight(zero, state, training=False), [0.0])


def test_the_coefficient_warms_up():
    """scale / N times the ramp: cubic, at 5 of 10 steps 1 - 1/8."""
    method = ts.VariationalDropout(50, scale=2.0, ramp=ts.Ramp(0, 10, power=3, frequency=5))
    slot, values = slot_of(method, np.ones((2, 2))), []
    for step in (0, 5, 10, 15):
        method.update([slot], step)
        values.append(float(slot.state["coefficient"]))
    np.testing.assert_allclose(values, [0, 0.035, 0.04, 0.04], rtol=1e-6)
    theta = np.ones((2, 2), "float32")
    np.testing.assert_allclose(
        float(method.penalty(theta, slot.state)), 4 * 0.04 * oracles.kl(-10.0 + 2.0), rtol=1e-5)


@pytest.mark.parametrize("arguments, said", [
    ({"gamma": -0.005, "zeta": 1.005}, "no gate could ever close. Take gamma further from 0"),
    ({"gamma": -200.0}, "log alpha = 5.20, and .* no gate could ever open. Take gamma nearer to 0"),
    ({"initial_keep": 0.999}, "initial_keep is in"),
    ({"initial_keep": 0.001}, "initial_keep is in")])
def test_l0_refuses_what_the_clamp_of_log_alpha_forbids(arguments, said):
    with pytest.raises(ValueError, match=said):
        ts.L0Regularization(10, **arguments)


CONSTRUCTORS = {
    "vd": lambda **kwargs: ts.VariationalDropout(**{"num_samples": 10, **kwargs}),
    "l0": lambda **kwargs: ts.L0Regularization(**{"num_samples": 10, **kwargs}),
    "cs": lambda **kwargs: ts.ContinuousSparsification(10, **kwargs)}
NUMBERS = {
    "vd": ("num_samples", "scale", "threshold", "initial_log_sigma2", "clip_log_alpha",
           "target_sparsity"),
    "l0": ("num_samples", "scale", "initial_keep", "l2", "beta", "gamma", "zeta",
           "target_sparsity"),
    "cs": ("final_beta", "s0", "scale", "target_sparsity")}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e39], ids=str)
@pytest.mark.parametrize(("name", "argument"), [(n, a) for n in NUMBERS for a in NUMBERS[n]])
def test_numbers_are_finite(name, argument, value):
    with pytest.raises(ValueError, match=rf"{argument} must be a finite number, in float32 too. "
                       rf"Received: {argument}={value!r}".replace("+", r"\+")):
        CONSTRUCTORS[name](**{argument: value})


@pytest.mark.parametrize("clip", [0.0, -1.0, 51.0, 1000.0])
def test_log_alpha_is_clipped_within_what_float32_holds(clip):
    with pytest.raises(ValueError, match=rf"clip_log_alpha is in \(0, 50\].*={clip}"):
        ts.VariationalDropout(10, clip_log_alpha=clip)
    method = ts.VariationalDropout(10, clip_log_alpha=50)
    variance = method.variance(np.float32(1e3), {"log_sigma2": np.float32(90)})
    assert np.isfinite(ops.convert_to_numpy(variance))


@pytest.mark.parametrize("make", [
    lambda whole, real: ts.VariationalDropout(whole(10), target_sparsity=real(0.5),
                                              frequency=whole(3)),
    lambda whole, real: ts.L0Regularization(whole(10), scale=real(0.5)),
    lambda whole, real: ts.ContinuousSparsification(whole(10), s0=real(0.5)),
    lambda whole, real: ts.MagnitudePruning(ts.ConstantSparsity(real(0.5), whole(0)),
                                            distribution={"a": real(0.25)}, min_keep=whole(2)),
    lambda whole, real: ts.RandomPruning(ts.ConstantSparsity(real(0.5), whole(0)),
                                         seed=whole(3))])
def test_numpy_s_numbers_make_an_equal_method(make):
    ours, same = make(np.int64, np.float32), make(int, float)
    assert ours == same and hash(ours) == hash(same)


def test_a_mask_is_not_divided_by_zero():
    with pytest.raises(ValueError, match="s0 must be >= -50. Received: s0=-1000.0"):
        ts.ContinuousSparsification(10, s0=-1000.0, rescale=True)
    assert ts.ContinuousSparsification(10, s0=-1000.0)._factor == 1
