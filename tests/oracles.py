"""The learned methods in NumPy, written from the papers, and gradients on either backend."""

import keras
import numpy as np
from keras import ops

K1, K2, K3 = 0.63576, 1.87320, 1.48695  # Molchanov et al., equation 14
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # Louizos et al., section 4


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def kl(log_alpha):
    """The approximation: k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2."""
    log_alpha = np.asarray(log_alpha, "float64")
    return K1 - K1 * sigmoid(K2 + K3 * log_alpha) + np.log1p(np.exp(-log_alpha)) / 2


def kl_slope(log_alpha):
    s = sigmoid(K2 + K3 * np.asarray(log_alpha))
    return -K1 * K3 * s * (1 - s) - sigmoid(-np.asarray(log_alpha)) / 2


def exact_kl(log_alpha):
    """KL(N(1, alpha) || log-uniform) = (Euler's gamma + log 2) / 2 - log(alpha) / 2 +
    E log |1 + sqrt(alpha) e|, 0 for alpha -> infinity.

    With u = 1 + sqrt(alpha) e = +-exp(t) the integrand t exp(t) [N(exp t) + N(-exp t)] is smooth
    and falls off at both ends, where the trapezoidal rule is exact up to rounding.
    """
    a = np.exp(np.asarray(log_alpha, "float64") / 2)[..., None]
    t, width = np.linspace(-40, 9, 49001, retstep=True)
    density = sum(np.exp(-((sign * np.exp(t) - 1) / a) ** 2 / 2) for sign in (1, -1))
    mean_log = (t * np.exp(t) * density / (a * np.sqrt(2 * np.pi))).sum(-1) * width
    return (np.euler_gamma + np.log(2)) / 2 - np.log(a[..., 0]) + mean_log


def open_probability(log_alpha):
    return sigmoid(np.asarray(log_alpha) - BETA * np.log(-GAMMA / ZETA))


def evaluation_gate(log_alpha):
    return np.clip(sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)


def evaluated(kind, theta, learned):
    """The weight of evaluation; `learned` is log sigma^2, log alpha or s."""
    if kind == "vd":
        return theta * (learned - np.log(theta ** 2 + 1e-8) < 3)
    return theta * (evaluation_gate(learned) if kind == "l0" else learned > 0)


def gradient(function, *arrays):
    """d function / d each array, as NumPy arrays."""
    arrays = [ops.convert_to_tensor(np.asarray(a, "float32")) for a in arrays]
    if keras.backend.backend() == "jax":
        import jax

        grads = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = function(*arrays)
        grads = tape.gradient(value, arrays, unconnected_gradients="zero")
    return [ops.convert_to_numpy(g) for g in grads]
