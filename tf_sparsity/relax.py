"""Relaxations of a mask: the hard-concrete gate, the KL of variational dropout, noise.

Pure `keras.ops` on float32 (or float64) tensors; methods import what they need.
"""

import math

import keras
from keras import ops


# The constants of Louizos, Welling and Kingma 2018, section 4.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
LEVELS = 2 ** 16  # of a uniform number


def sample_hard_concrete(log_alpha, u, beta=BETA, gamma=GAMMA, zeta=ZETA):
    r"""A sampled gate in [0, 1] with exact zeros and ones.

    $$ s = \sigma\big((\log u - \log(1-u) + \log\alpha)/\beta\big),\quad
       z = \min(1, \max(0, s(\zeta-\gamma)+\gamma)) $$

    Args:
      log_alpha: tensor.
      u: tensor of its shape, uniform in (0, 1). No gradient goes to it.
      beta: temperature > 0; gamma < 0 and zeta > 1 are where the sigmoid is stretched to.

    Example:

    ```python
    import numpy as np
    from tf_sparsity import relax
    z = relax.sample_hard_concrete(np.zeros(3, "float32"), np.array([0.05, 0.5, 0.95], "float32"))
    assert np.asarray(z).round(6).tolist() == [0.0, 0.5, 1.0]
    ```

    Reference: Louizos, Welling and Kingma 2018, arXiv:1712.01312, equations 10 and 11.
    """
    # Its gradient needs nothing but z. XLA, left to differentiate it, computes all of it twice.
    @ops.custom_gradient
    def gate(log_alpha):
        odds = (1.0 - u) / u * ops.exp(-log_alpha)  # of a closed gate, to the power of beta
        power = odds * ops.sqrt(odds) if beta == BETA else ops.power(odds, 1 / beta)
        z = ops.clip((zeta - gamma) / (1.0 + power) + gamma, 0.0, 1.0)

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            slope = (z - gamma) * (zeta - z) * (1 / (beta * (zeta - gamma)))
            return ops.where(ops.logical_and(z > 0, z < 1), upstream * slope, 0.0)

        return z, gradient

    return gate(_tensor(log_alpha))


def hard_concrete(log_alpha, gamma=GAMMA, zeta=ZETA):
    r"""The gate of evaluation, `min(1, max(0, sigmoid(log_alpha) (zeta - gamma) + gamma))`.

    Exactly 0 for log_alpha <= log(-gamma / zeta), -2.3979 with the published constants, and exactly
    1 for log_alpha >= log((1 - gamma) / (zeta - 1)), 2.3979.

    Args:
      log_alpha: tensor, any finite number.
      gamma, zeta: the interval that the sigmoid is stretched to, gamma < 0 and zeta > 1.

    Example:

    ```python
    import numpy as np
    from tf_sparsity import relax
    gate = relax.hard_concrete(np.array([-3.0, -1.0, 0.0, 3.0], "float32"))
    assert np.asarray(gate).round(5).tolist() == [0.0, np.float32(0.22273), 0.5, 1.0]
    ```

    Reference: Louizos, Welling and Kingma 2018, arXiv:1712.01312, equation 13.
    """
    return ops.clip(stretched(log_alpha, gamma, zeta), 0.0, 1.0)


def stretched(log_alpha, gamma=GAMMA, zeta=ZETA):
    r"""`hard_concrete` before it is clipped, in (gamma, zeta).

    $$ \sigma(\log\alpha)(\zeta - \gamma) + \gamma $$

    Args: those of `hard_concrete`.

    Example:

    ```python
    import numpy as np
    from tf_sparsity import relax
    assert np.allclose(relax.stretched(np.array([-20.0, 0.0, 20.0], "float32")), [-0.1, 0.5, 1.1])
    ```

    Reference: Louizos, Welling and Kingma 2018, arXiv:1712.01312, the inside of equation 13.
    """
    # The difference first: no compiler can contract it with the product, so that a compiled gate
    # has the bits of an eager one, and a gate next to 0 has all its digits.
    return (ops.sigmoid(log_alpha) - gamma / (gamma - zeta)) * (zeta - gamma)


def open_probability(log_alpha, beta=BETA, gamma=GAMMA, zeta=ZETA):
    r"""P(z != 0) of a sampled gate, $\sigma(\log\alpha - \beta\log(-\gamma/\zeta))$.

    Args:
      log_alpha: tensor, any finite number.
      beta: temperature > 0.
      gamma, zeta: the interval that the sigmoid is stretched to, gamma < 0 and zeta > 1.

    Example:

    ```python
    import numpy as np
    from tf_sparsity import relax
    p = relax.open_probability(np.array([-1.598597, 0.0, 2.197225], "float32"))
    assert np.allclose(p, [0.5, 0.83182, 0.97803], atol=1e-5)
    ```

    Reference: Louizos, Welling and Kingma 2018, arXiv:1712.01312, equation 12.
    """
    # As a function of exp(-log alpha), which XLA then computes once for this and the sampled gate.
    @ops.custom_gradient
    def probability(log_alpha):
        p = 1.0 / (1.0 + (-gamma / zeta) ** beta * ops.exp(-log_alpha))

        def gradient(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            return upstream * p * (1.0 - p)

        return p, gradient

    return probability(_tensor(log_alpha))


def log_uniform_kl(log_alpha):
    r"""KL(q || log-uniform prior) of one weight q = N(theta, alpha theta^2), approximated.

    $$ KL \approx k_1 - k_1\sigma(k_2 + k_3\log\alpha) + \tfrac12\log(1 + \alpha^{-1}),\quad
       k = (0.63576, 1.87320, 1.48695) $$

    Falls from infinity (slope -1/2) to 0. The greatest error for log alpha in [-8, 8] is 0.0095.

    Args:
      log_alpha: tensor, any finite number.

    Example:

    ```python
    import numpy as np
    from tf_sparsity import relax
    kl = relax.log_uniform_kl(np.array([-8.0, 0.0, 3.0], "float32"))
    assert np.asarray(kl).round(4).tolist() == [np.float32(v) for v in (4.6359, 0.4312, 0.0254)]
    ```

    Reference: Molchanov, Ashukha and Vetrov 2017, arXiv:1701.05369, equation 14 (there the
    negative of it).
    """
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    return k1 * ops.sigmoid(-k2 - k3 * log_alpha) + 0.5 * ops.softplus(-log_alpha)


def straight_through(hard, soft):
    """The value of `hard` with the gradient of `soft`.

    Args:
      hard: tensor, such as a mask of zeros and ones.
      soft: tensor of its shape, what the gradient shall go through.

    Example:

    ```python
    import numpy as np
    from tf_sparsity import relax
    hard, soft = np.array([0.0, 1.0], "float32"), np.array([0.25, 0.75], "float32")
    assert np.asarray(relax.straight_through(hard, soft)).tolist() == [0.0, 1.0]
    ```

    Up to rounding: computed is (hard - soft) + soft.
    """
    return ops.stop_gradient(hard - soft) + soft


def noise(shape, seed, dtype="float32"):
    """Random numbers of mean 0 and variance 1 from the layer's own SeedGenerator.

    Normal ones; on TensorFlow's CPU those cost as much as the convolution that they are added to,
    so there it is the number of ones among 16 random bits, less 8, halved: binomial, with the
    moments 0, 1, 0 and 2.875 (normal: 3), at a quarter of the time.

    Args:
      shape: of the numbers, a tuple of integers or a tensor.
      seed: a `keras.random.SeedGenerator`, or an integer, which gives the same numbers each time.
      dtype: of the numbers, a float.

    Example:

    ```python
    import keras
    import numpy as np
    from tf_sparsity import relax
    e = np.asarray(relax.noise((100, 100), keras.random.SeedGenerator(0)))
    assert abs(e.mean()) < 0.05 and abs(e.var() - 1) < 0.1
    ```
    """
    if keras.backend.backend() != "tensorflow":
        return keras.random.normal(shape, dtype=dtype, seed=seed)
    import tensorflow as tf
    ones = tf.raw_ops.PopulationCount(x=_random_bits(shape, seed))
    return tf.cast(ones, dtype) / 2 - 4


def uniform(shape, seed, dtype="float32"):
    r"""Random numbers in (0, 1), never 0 or 1, at the price of one row and one column of them.

    $$ u_{ij} = (a_i + b_j) \bmod 1 $$

    with j along the last axis and i along all others; a and b are independent and uniform, of 16
    bits. So each u is uniform, the numbers of a row are independent of each other, those of a
    column are, and any two are: whatever depends on one row or column alone, or on the first two
    moments, is as with independent numbers. Not independent are the four corners of a rectangle.

    Args:
      shape: of the numbers, a tuple that is not empty.
      seed: that of `noise`.
      dtype: "float32" or "float64"; shorter ones do not have 65,536.

    Raises:
      ValueError: for another dtype.

    Example:

    ```python
    import keras
    import numpy as np
    from tf_sparsity import relax
    u = np.asarray(relax.uniform((100, 100), keras.random.SeedGenerator(0)))
    assert 0 < u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
    ```
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is 'float32' or 'float64'. Received: {dtype=}. Cast the numbers.")
    *rows, columns = shape
    count = math.prod(rows)
    draws = ops.floor(keras.random.uniform((count + columns,), 0, LEVELS, dtype, seed))
    u = ops.reshape(draws[:count], (*rows, 1)) + (draws[count:] + 0.5)
    return ops.where(u < LEVELS, u, u - LEVELS) * (1 / LEVELS)


def _tensor(x):
    """A tensor of it, for a custom gradient takes no variables; a variable is read without a copy."""
    return ops.reshape(x, ops.shape(x))


def _random_bits(shape, seed):
    """uint16 tensor for TensorFlow: two numbers from each word that its generator makes."""
    import tensorflow as tf
    if not isinstance(seed, keras.random.SeedGenerator):
        seed = keras.random.SeedGenerator(seed)
    count = tf.reduce_prod(tf.convert_to_tensor(shape, "int32")) if shape else 1
    words = tf.random.stateless_uniform([(count + 1) // 2], tf.cast(seed.next(), "int32"), None,
                                        None, tf.uint32)
    numbers = tf.reshape(tf.bitcast(words, tf.uint16), [-1])[:count]
    return tf.reshape(numbers, shape)
