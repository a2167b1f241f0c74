"""The relaxations against closed forms, published test vectors and numerical integration."""

import itertools

import keras
import numpy as np
import oracles
import pytest
from keras import ops

from tf_sparsity import relax

pytestmark = pytest.mark.any_backend


def numpy(function, *arrays, **kwargs):
    arrays = [ops.convert_to_tensor(np.asarray(a, "float32")) for a in arrays]
    return ops.convert_to_numpy(function(*arrays, **kwargs))


# ---- the KL of variational dropout ----------------------------------------------------------


def test_kl_test_vectors():
    """Six decimals, each half a unit of the last one."""
    vectors = {-8: 4.635899, -5: 3.136684, -2: 1.540533, -1: 0.913872, 0: 0.431239, 0.5: 0.280317,
               1: 0.177970, 2: 0.068417, 3: 0.025420, 5: 0.003415, 8: 0.000168}
    got = numpy(relax.log_uniform_kl, list(vectors))
    np.testing.assert_allclose(got, list(vectors.values()), atol=1.1e-6)


def test_kl_is_near_the_exact_one():
    """Greatest error 0.0095 for log alpha in [-8, 8]; the exact values at 0 and 3 are known."""
    np.testing.assert_allclose(oracles.exact_kl(np.array([0.0, 3.0])), [0.426686, 0.024688],
                               atol=5e-7)
    log_alpha = np.linspace(-8, 8, 129)
    error = np.abs(numpy(relax.log_uniform_kl, log_alpha) - oracles.exact_kl(log_alpha))
    assert 0.009 < error.max() <= 0.0095


def test_kl_falls_with_slope_one_half_to_zero():
    log_alpha = np.linspace(-80, 80, 1601)
    got = numpy(relax.log_uniform_kl, log_alpha)
    assert np.all(np.diff(got) <= 0) and got[-1] < 1e-30 and np.isfinite(got).all()
    np.testing.assert_allclose(np.diff(got[:100]) / 0.1, -0.5, rtol=1e-3)  # float32 of 40
    for at in (-1e4, 1e4):  # no overflow on the way
        assert np.isfinite(numpy(relax.log_uniform_kl, at))


def test_kl_slope_in_closed_form():
    """-k1 k3 s (1 - s) - sigmoid(-log alpha) / 2, s = sigmoid(k2 + k3 log alpha)."""
    log_alpha = np.linspace(-8, 8, 33)
    [got] = oracles.gradient(lambda x: ops.sum(relax.log_uniform_kl(x)), log_alpha)
    np.testing.assert_allclose(got, oracles.kl_slope(log_alpha), rtol=2e-5, atol=1e-7)


# ---- hard concrete ----------------------------------------------------------------------------

# log alpha: P(z = 0), P(z != 0), P(z = 1), E[z], gate of evaluation
TABLE = {-4.60517: (0.95287, 0.04713, 0.00202, 0.01312, 0.0),
         -2.39790: (0.68983, 0.31017, 0.01805, 0.10272, 0.0),
         -1.59860: (0.50000, 0.50000, 0.03927, 0.19431, 0.10181),
         0.0: (0.16818, 0.83182, 0.16818, 0.50000, 0.5),
         1.59860: (0.03927, 0.96073, 0.50000, 0.80569, 0.89819),
         2.19720: (0.02197, 0.97803, 0.64534, 0.87846, 0.98000),
         4.60517: (0.00202, 0.99798, 0.95287, 0.98688, 1.0)}


def test_open_probability_and_evaluation_gate():
    """The five decimals of the table; -2.39790 is -log 11, rounded to below it."""
    rows = np.array(list(TABLE.values()))
    np.testing.assert_allclose(numpy(relax.open_probability, list(TABLE)), rows[:, 1], atol=6e-6)
    np.testing.assert_allclose(numpy(relax.hard_concrete, list(TABLE)), rows[:, 4], atol=6e-6)
    vectors = {-3: 0.0, -2: 0.043044, -1: 0.222730, 0: 0.5, 1: 0.777270, 2: 0.956956,
               2.197: 0.979976, 3: 1.0}
    np.testing.assert_allclose(numpy(relax.hard_concrete, list(vectors)), list(vectors.values()),
                               atol=1e-6)


def test_the_gradient_of_the_open_probability():
    """p (1 - p), and 0 where exp(-log alpha) is beyond float32."""
    a = np.array([-1e4, -100.0, -1.6, 0.3, 2.2, 1e4])
    [got] = oracles.gradient(lambda x: ops.sum(relax.open_probability(x)), a)
    p = oracles.sigmoid(np.clip(a, -500, 500) + oracles.BETA * np.log(11))
    np.testing.assert_allclose(got, p * (1 - p), rtol=1e-5, atol=1e-40)
    np.testing.assert_allclose(numpy(relax.open_probability, a), p, rtol=1e-6, atol=1e-40)


def test_the_evaluation_gate_is_exactly_zero_and_one_beyond_log_11():
    at = np.log(11) * np.array([-1 - 1e-6, -1 + 1e-4, 1 - 1e-4, 1 + 1e-6])
    gate = numpy(relax.hard_concrete, at)
    assert gate[0] == 0.0 < gate[1] and gate[2] < 1.0 == gate[3]
    np.testing.assert_array_equal(numpy(relax.hard_concrete, [-1e4, 1e4]), [0.0, 1.0])


def test_symmetry():
    """P0(a) = P1(-a), so P(z != 0)(a) = 1 - P1(-a); gate(a) + gate(-a) = 1; one ulp or two."""
    a = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(numpy(relax.hard_concrete, a) + numpy(relax.hard_concrete, -a), 1,
                               atol=3e-7)
    u = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, 41)
    np.testing.assert_allclose(
        numpy(relax.sample_hard_concrete, a, u) + numpy(relax.sample_hard_concrete, -a, 1 - u), 1,
        atol=3e-6)  # 1 - u is rounded


@pytest.mark.parametrize("log_alpha", TABLE)
def test_sampled_frequencies(log_alpha):
    """400,000 draws: exact zeros, exact ones and the mean, each within 4 standard errors."""
    n = 400_000
    closed, _, full, mean, _ = TABLE[log_alpha]
    u = np.random.default_rng(1).uniform(1e-6, 1 - 1e-6, n)
    z = numpy(relax.sample_hard_concrete, np.full(n, log_alpha), u)
    assert z.min() >= 0 and z.max() <= 1
    for got, expected in (((z == 0).mean(), closed), ((z == 1).mean(), full)):
        assert abs(got - expected) < 4 * np.sqrt(expected * (1 - expected) / n) + 5e-6
    assert abs(z.mean() - mean) < 4 * z.std() / np.sqrt(n) + 5e-6


def test_the_distribution_between_zero_and_one():
    """P(z <= t) = sigmoid(beta logit((t - gamma) / (zeta - gamma)) - log alpha)."""
    n, log_alpha = 400_000, 0.7
    z = numpy(relax.sample_hard_concrete, np.full(n, log_alpha),
              np.random.default_rng(2).uniform(1e-6, 1 - 1e-6, n))
    for t in (0.1, 0.3, 0.5, 0.9):
        s = (t - oracles.GAMMA) / (oracles.ZETA - oracles.GAMMA)
        p = oracles.sigmoid(oracles.BETA * np.log(s / (1 - s)) - log_alpha)
        assert abs((z <= t).mean() - p) < 4 * np.sqrt(p * (1 - p) / n)


def test_other_constants():
    """beta = 1/2, gamma = -1/2, zeta = 2: log(-gamma / zeta) = -log 4, so P(z != 0) at 0 is
    sigmoid(log 2) = 2/3; the gate at 0 is 0.5 * 2.5 - 0.5 = 0.75; at u = 1/2 so is the sample."""
    constants = dict(gamma=-0.5, zeta=2.0)
    np.testing.assert_allclose(numpy(relax.open_probability, 0.0, beta=0.5, **constants), 2 / 3,
                               rtol=1e-6)
    np.testing.assert_allclose(numpy(relax.hard_concrete, 0.0, **constants), 0.75)
    np.testing.assert_allclose(numpy(relax.sample_hard_concrete, 0.0, 0.5, beta=0.5, **constants),
                               0.75)


def test_the_gradient_of_a_sample():
    """(zeta - gamma) s (1 - s) / beta where 0 < z < 1, and 0 where it is clipped."""
    log_alpha = np.full(5, 0.3)
    u = np.array([1e-6, 0.2, 0.5, 0.7, 1 - 1e-6])
    [got] = oracles.gradient(
        lambda a: ops.sum(relax.sample_hard_concrete(
            a, ops.convert_to_tensor(u.astype("float32")))), log_alpha)
    s = oracles.sigmoid((np.log(u / (1 - u)) + 0.3) / oracles.BETA)
    z = s * 1.2 - 0.1
    expected = np.where((z > 0) & (z < 1), 1.2 * s * (1 - s) / oracles.BETA, 0)
    assert (expected == 0).sum() == 2
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_gradient_of_a_sample_at_other_temperatures(beta):
    """As above. 65536^(1 / 0.1) is beyond float32: the smallest u that is drawn must not make the
    gradient NaN, nor must a gate that is far from 0."""
    log_alpha = np.array([0.3, 0.3, -0.2, 4.0, -60.0])
    u = np.array([2.0 ** -17, 0.4, 0.5, 1 - 2.0 ** -17, 0.5])
    [got] = oracles.gradient(
        lambda a: ops.sum(relax.sample_hard_concrete(
            a, ops.convert_to_tensor(u.astype("float32")), beta)), log_alpha)
    s = oracles.sigmoid((np.log(u / (1 - u)) + log_alpha) / beta)
    z = s * 1.2 - 0.1
    expected = np.where((z > 0) & (z < 1), 1.2 * s * (1 - s) / beta, 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)  # float32, steep at 0.1


def test_uniform_numbers_are_those_of_a_row_and_a_column():
    """k = 65536 u - 1/2 is an integer, and two rows differ by one number mod 65536, as do columns;
    so it is for a convolution's kernel, whose rows are places and inputs."""
    for shape in ((40, 30), (3, 2, 7, 30), (9,), (9, 1)):
        u = numpy(lambda: relax.uniform(shape, keras.random.SeedGenerator(3)))
        assert u.shape == shape and u.dtype == np.float32
        k = np.float64(u).reshape(-1, shape[-1]) * 65536 - 0.5
        assert np.all((k == np.round(k)) & (k >= 0) & (k <= 65535))
        assert np.all((k - k[:1]) % 65536 == (k[:, :1] - k[:1, :1]) % 65536)
        assert len(np.unique(k)) > k.size / 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_uniform_numbers_need_more_than_16_bits(dtype):
    """In float16 65,536 is infinite; in bfloat16 the smallest numbers were 0."""
    with pytest.raises(ValueError, match=f"Received: dtype='{dtype}'"):
        relax.uniform((4, 4), 1, dtype)


def test_any_two_uniform_numbers_are_independent():
    """Of 1,600 draws of 2 x 3 numbers, each pair falls into 4 x 4 squares 100 times each: chi
    squared with 15 degrees of freedom, 37.7 at 0.001. Rows and columns are independent as a whole:
    so are the 3 of a row, 25 times in each of 64 cubes (63 degrees, 103.4)."""
    seed = keras.random.SeedGenerator(5)
    draws = np.stack([np.asarray(relax.uniform((2, 3), seed)) for _ in range(1600)])
    fourth = (4 * draws.reshape(-1, 6)).astype(int)

    def chi_squared(*columns):
        index = sum(4 ** i * fourth[:, column] for i, column in enumerate(columns))
        counts, expected = np.bincount(index, minlength=4 ** len(columns)), 1600 / 4 ** len(columns)
        return ((counts - expected) ** 2 / expected).sum()

    assert max(chi_squared(*pair) for pair in itertools.combinations(range(6), 2)) < 37.7
    assert max(chi_squared(0, 1, 2), chi_squared(3, 4, 5)) < 103.4
    corners = draws[:, 0, 0] - draws[:, 0, 1] - draws[:, 1, 0] + draws[:, 1, 1]
    np.testing.assert_array_equal(corners, np.round(corners))  # what is not independent


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x = np.array([-1.0, 2.0])
    hard = lambda v: ops.cast(v > 0, "float32")
    np.testing.assert_array_equal(numpy(lambda v: relax.straight_through(hard(v), 0.3 * v), x),
                                  [0, 1])
    [got] = oracles.gradient(lambda v: ops.sum(relax.straight_through(hard(v), ops.square(v))), x)
    np.testing.assert_allclose(got, 2 * x)
