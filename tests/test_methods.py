"""Each method against closed forms and integers counted by hand."""

import keras
import numpy as np
import pytest
from keras import ops

import tf_sparsity as ts
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
