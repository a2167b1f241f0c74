"""Sparse variational dropout (Molchanov, Ashukha and Vetrov 2017)."""

import keras
from keras import ops

from tf_sparsity import relax
from tf_sparsity.learned import LearnedMethod
from tf_sparsity.method import Spec, check_flag, check_number

EPSILON = 1e-8
MOST_CLIP = 50  # exp(50) is 5e21


@keras.saving.register_keras_serializable(package="tf_sparsity")
class VariationalDropout(LearnedMethod):
    r"""Learns a dropout rate for each weight; those with a high one are pruned.

    $$ w \sim N(\theta, \sigma^2),\quad \log\alpha = \log\sigma^2 - \log\theta^2,\quad
       R = \frac{\text{scale}}{N}\, r(t) \sum KL(\log\alpha) $$

    In training a layer's output is drawn, not its weights (local reparameterisation):
    `y = linear(x, theta) + sqrt(linear(x**2, sigma**2)) * N(0, 1)`. In evaluation
    weight = theta where log alpha < threshold, else 0.

    Args:
      num_samples: N, the number of training examples, >= 1: the loss that Keras minimises is a mean
        over examples, and so must be the KL's share.
      scale: factor of the KL, >= 0.
      ramp: r(t), a `ts.Ramp`, or None for 1 from the first step on.
      threshold: log alpha from which on a weight is pruned, any finite number; 3 is a dropout rate
        alpha / (1 + alpha) of 0.95. From `clip_log_alpha` on the KL does not push weights across.
      initial_log_sigma2: where log sigma^2 starts, any finite number; -15 to -10 is usual. Lower is
        closer to the dense layer.
      clip_log_alpha: log alpha is kept within this distance of 0 in training, in (0, 50].
      train_clip: compute with a mean of 0 where log alpha is at or above the threshold in training
        as in evaluation; sigma^2 stays. The authors do so for LeNets: what is given up gets no
        gradient of the data through its mean.
      target_sparsity, reach: the sparsity asked for, in [0, 1), and how it is reached, "rank" or
        "controller" (see docs/methods.md); None leaves it to `scale` and `threshold`.
      frequency: steps between two updates towards `target_sparsity`, >= 1. None: 100, and for the
        controller a 200th of the first `fit` (of the ramp, if that is longer).

    Raises:
      TypeError, ValueError: for arguments of another type or outside these ranges.

    Example:

    ```python
    import tf_sparsity as ts
    method = ts.VariationalDropout(num_samples=60000, ramp=ts.Ramp(3000, 12000))
    assert method.last_step == 12000
    ```

    Reference: Molchanov, Ashukha and Vetrov 2017, arXiv:1701.05369, equations 7 (local
    reparameterisation of Kingma et al.), 11 (log alpha from sigma), 14 (KL). Constants, threshold
    and initial values are those of the authors' repository; clipping and recurrent layers are as in
    Gale, Elsen and Hooker 2019, arXiv:1902.09574.

    Deviations: an einsum or dense layer on sequences draws for every position (Gale et al. share
    one draw among the positions of an example). The variance is computed in float32 under a 16-bit
    policy. The authors' convolutions lose the variance of a clipped weight with its mean. On
    TensorFlow the noise is binomial with 17 values (`relax.noise`): mean and variance
    of the output, and so the expected gradients of both, are those of the normal one.
    """

    needs_seed = True
    local_reparameterization = True

    def __init__(self, num_samples, *, scale=1.0, ramp=None, threshold=3.0,
                 initial_log_sigma2=-10.0, clip_log_alpha=8.0, train_clip=False,
                 target_sparsity=None, reach="rank", frequency=None):
        check_number("num_samples", num_samples, least=1)
        check_number("scale", scale, least=0)
        check_number("threshold", threshold)
        check_number("initial_log_sigma2", initial_log_sigma2)
        check_number("clip_log_alpha", clip_log_alpha)
        if not 0 < clip_log_alpha <= MOST_CLIP:
            raise ValueError(f"clip_log_alpha is in (0, {MOST_CLIP}]: sigma^2 is up to exp of it "
                             f"times theta^2, in float32. Received: {clip_log_alpha=}")
        check_flag("train_clip", train_clip)
        super().__init__(scale / num_samples, ramp, target_sparsity, reach, frequency)
        self.num_samples, self.scale = num_samples, float(scale)
        self.threshold = float(threshold)
        self.initial_log_sigma2 = float(initial_log_sigma2)
        self.clip_log_alpha, self.train_clip = float(clip_log_alpha), train_clip

    @property
    def preserves_outputs(self):
        """Some weights are so small that they start above the threshold."""
        return self.ranked

    @property
    def boundary(self):
        return -self.threshold

    def state(self, kernel):
        initial = keras.initializers.Constant(self.initial_log_sigma2)
        return {"log_sigma2": Spec(kernel.shape, initial, trainable=True, decay=False),
                **super().state(kernel)}

    def log_alpha(self, theta, state):
        return state["log_sigma2"] - ops.log(ops.square(theta) + EPSILON)

    def variance(self, theta, state):
        """sigma^2 of training: exp(log sigma^2), with log alpha clipped."""
        # Before exp, which overflows at 89: the gradient of a clipped infinity is NaN.
        log_theta2 = ops.log(ops.square(theta) + EPSILON)
        return ops.exp(ops.clip(state["log_sigma2"], log_theta2 - self.clip_log_alpha,
                                log_theta2 + self.clip_log_alpha))

    def mean(self, theta, state):
        """The mean of a weight in training."""
        if not self.train_clip:
            return theta
        return theta * ops.cast(self.log_alpha(theta, state) < self.threshold, theta.dtype)

    def importance(self, theta, state):
        return -self.log_alpha(theta, state)

    def complexity(self, theta, state):
        log_alpha = ops.clip(self.log_alpha(theta, state), -self.clip_log_alpha,
                             self.clip_log_alpha)
        return ops.sum(relax.log_uniform_kl(log_alpha))

    def weight(self, theta, state, *, training, seed=None):
        if not training:
            return self.evaluated(theta, state)
        noise = relax.noise(ops.shape(theta), seed, theta.dtype)
        return self.mean(theta, state) + ops.sqrt(self.variance(theta, state) + EPSILON) * noise

    def forward(self, linear, x, theta, state, *, training, seed=None):
        if not training:
            return linear(x, self.evaluated(theta, state))
        mean = linear(x, self.mean(theta, state))
        variance = linear.of_squares(x, self.variance(theta, state))
        noise = relax.noise(linear.noise_shape(mean), seed, variance.dtype)
        return mean + ops.cast(ops.sqrt(variance + EPSILON) * noise, mean.dtype)

    def watch(self, theta, state):
        return {**super().watch(theta, state), "threshold": self.threshold,
                "log_alpha": self.log_alpha(theta, state)}

    def get_config(self):
        return {"num_samples": self.num_samples, "scale": self.scale, "threshold": self.threshold,
                "initial_log_sigma2": self.initial_log_sigma2,
                "clip_log_alpha": self.clip_log_alpha, "train_clip": self.train_clip,
                **self.learned_config()}
