"""L0 regularization with hard-concrete gates (Louizos, Welling and Kingma 2018)."""

import math

import keras
from keras import ops

from tf_sparsity import relax
from tf_sparsity.learned import LearnedMethod
from tf_sparsity.method import Spec, check_flag, check_number

SPREAD = 0.01  # standard deviation of log alpha at the start
LOG_ALPHA_RANGE = (math.log(1e-2), math.log(1e2))
GROUPS = {"weight": "any axis", "in": "an input axis", "out": "an output axis",
          "head": "an axis of heads"}


@keras.saving.register_keras_serializable(package="tf_sparsity")
class ClipLogAlpha(keras.constraints.Constraint):
    """Keeps log alpha in [log 0.01, log 100] after each step, as the authors do."""

    def __call__(self, w):
        return ops.clip(w, *LOG_ALPHA_RANGE)


@keras.saving.register_keras_serializable(package="tf_sparsity")
class L0Regularization(LearnedMethod):
    r"""Learns random gates on weights or groups of weights; the expected number open is penalised.

    $$ \text{weight} = \theta \odot z,\quad z \sim \text{HardConcrete}(\log\alpha),\quad
       R = \frac1N \sum_g P(z_g \ne 0) \Big(\text{scale}\cdot r(t)\,|g| +
           \frac{\text{l2}}{2}\,\lVert\theta_g\rVert^2\Big) $$

    In evaluation z = clip(sigmoid(log alpha) (zeta - gamma) + gamma, 0, 1), which is 0 for
    log alpha <= log(-gamma / zeta) = -2.398.

    Args:
      num_samples: N, the number of training examples, >= 1.
      scale: lambda, the price of a weight, >= 0.
      ramp: r(t), a `ts.Ramp`, or None for 1 from the first step on.
      group: what a gate is for: "weight", "in" (an input unit), "out" (an output unit or channel)
        or "head" (of an attention projection).
      initial_keep: sigmoid(log alpha) at the start, in [0.0099, 0.9901], for log alpha is clamped
        to [log 0.01, log 100]; log alpha ~ N(its logit, 0.01^2).
      l2: weight decay through the gates, >= 0: a weight pays it as far as its gate is open.
      hard_mask: compute with the gate 0 or 1 in training as in evaluation, and let the gradient
        pass as if it were `sigmoid(log alpha) (zeta - gamma) + gamma` (straight-through). Without
        it training and evaluation differ: see docs/methods.md.
      beta, gamma, zeta: temperature > 0 and the interval (gamma < 0, zeta > 1) that the sigmoid is
        stretched to, with -gamma / zeta in (0.01, 100): a gate must be able to close, and to open.
      target_sparsity, reach: the sparsity asked for, in [0, 1), and how it is reached, "rank" or
        "controller" (see docs/methods.md; take `hard_mask=True` with it); None leaves it to
        `scale`.
      frequency: steps between two updates towards `target_sparsity`, >= 1. None: 100, and for the
        controller a 200th of the first `fit` (of the ramp, if that is longer).

    Raises:
      TypeError, ValueError: for arguments of another type or outside these ranges.

    Example:

    ```python
    import tf_sparsity as ts
    method = ts.L0Regularization(num_samples=60000, scale=0.1, group="in")
    assert not method.needs_update
    ```

    Reference: Louizos, Welling and Kingma 2018, arXiv:1712.01312, equations 9 to 13, and the
    authors' repository for the clamp of log alpha, the initial values and L2 through the gates.
    `initial_keep=0.9` is that of Gale, Elsen and Hooker 2019, arXiv:1902.09574.

    Deviations: one draw of the gates for each step (the authors also draw one for each example);
    embeddings draw for each looked-up position, as Gale et al. (with `group="out"`, once). Gates
    are independent along a kernel's last axis, across it, and in pairs (`relax.uniform`). A bias
    has no gate. With `reach="rank"` a group that is kept although its gate is 0 computes with
    sigmoid(log alpha), which is near the mean of its gate in training.
    """

    def __init__(self, num_samples, *, scale=1.0, ramp=None, group="weight", initial_keep=0.9,
                 l2=0.0, hard_mask=False, beta=relax.BETA, gamma=relax.GAMMA, zeta=relax.ZETA,
                 target_sparsity=None, reach="rank", frequency=None):
        check_number("num_samples", num_samples, least=1)
        check_number("scale", scale, least=0)
        check_number("l2", l2, least=0)
        if group not in GROUPS:
            raise ValueError(f"group is one of {', '.join(map(repr, GROUPS))}. "
                             f"Received: group={group!r}")
        check_number("initial_keep", initial_keep)
        if not 0 < initial_keep < 1:
            raise ValueError(f"initial_keep is in (0, 1). Received: {initial_keep=}")
        check_flag("hard_mask", hard_mask)
        for name, value in (("beta", beta), ("gamma", gamma), ("zeta", zeta)):
            check_number(name, value)
        if not (beta > 0 and gamma < 0 and zeta > 1):
            raise ValueError("The hard concrete distribution needs beta > 0, gamma < 0 and "
                             f"zeta > 1. Received: {beta=}, {gamma=}, {zeta=}")
        (low, high), closed = LOG_ALPHA_RANGE, math.log(-gamma) - math.log(zeta)
        if not low < closed < high:
            never, way = ("close", "further from") if closed <= low else ("open", "nearer to")
            raise ValueError(f"With {gamma=} and {zeta=} a gate of evaluation is 0 up to log alpha "
                             f"= {closed:.2f}, and log alpha is clamped to [{low:.2f}, {high:.2f}]:"
                             f" no gate could ever {never}. Take gamma {way} 0.")
        if not low <= math.log(initial_keep / (1 - initial_keep)) <= high:
            raise ValueError("log alpha is clamped to [log 0.01, log 100], so that initial_keep is "
                             f"in [0.0099, 0.9901]. Received: {initial_keep=}")
        super().__init__(scale / num_samples, ramp, target_sparsity, reach, frequency)
        self.num_samples, self.scale, self.group = num_samples, float(scale), group
        self.initial_keep, self.l2, self.hard_mask = float(initial_keep), float(l2), hard_mask
        self.beta, self.gamma, self.zeta = float(beta), float(gamma), float(zeta)

    @property
    def needs_seed(self):
        """The hard mask is not random."""
        return not self.hard_mask

    @property
    def preserves_outputs(self):
        """Only a hard mask has gates of exactly 1; all are open unless they start at 0."""
        return self.hard_mask and self._start > self.boundary + 10 * SPREAD

    @property
    def _start(self):
        return math.log(self.initial_keep / (1 - self.initial_keep))

    @property
    def boundary(self):
        """log alpha at and below which the gate of evaluation is 0."""
        return math.log(-self.gamma / self.zeta)

    def unsupported(self, kernel):
        if not any(self._gated(kernel)):
            what = GROUPS[self.group].split(" ", 1)[1]
            return f'it has no {what} for gates of group="{self.group}"'
        return None

    def _gates(self, kernel):
        """Shape of log alpha: that of the kernel, with 1 along the axes that a gate spans."""
        return tuple(n if own else 1 for n, own in zip(kernel.shape, self._gated(kernel)))

    def _gated(self, kernel):
        """For each axis, whether gates differ along it."""
        if self.group == "weight":
            return [True] * len(kernel.shape)
        if self.group == "head":
            return [role.endswith(":head") for role in kernel.axes]
        # a batch axis of an einsum belongs to inputs and outputs alike
        sides = {"in": ("in", "vocab", "batch"), "out": ("out", "batch")}[self.group]
        return [role.split(":")[0] in sides for role in kernel.axes]

    def state(self, kernel):
        return {"log_alpha": Spec(self._gates(kernel),
                                  keras.initializers.RandomNormal(self._start, SPREAD),
                                  trainable=True, decay=False, constraint=ClipLogAlpha()),
                **super().state(kernel)}

    def importance(self, theta, state):
        return ops.convert_to_tensor(state["log_alpha"])

    def natural(self, theta, state):
        keep = ops.cast(self.gate(state["log_alpha"], training=False) > 0, "float32")
        return ops.broadcast_to(keep, ops.shape(theta))

    def open_probability(self, state):
        """P(z != 0) of each gate."""
        return relax.open_probability(state["log_alpha"], self.beta, self.gamma, self.zeta)

    def complexity(self, theta, state):
        """The expected number of weights behind an open gate."""
        gates = self.open_probability(state)
        return math.prod(theta.shape) / math.prod(gates.shape) * ops.sum(gates)

    def penalty(self, theta, state):
        penalty = super().penalty(theta, state)
        if self.l2:
            decay = ops.sum(self.open_probability(state) * ops.square(theta))
            penalty += self.l2 / (2 * self.num_samples) * decay
        return penalty

    def gate(self, log_alpha, training, seed=None):
        """z, of log alpha's shape."""
        log_alpha = ops.convert_to_tensor(log_alpha)
        if self.hard_mask:
            hard = ops.cast(log_alpha > self.boundary, log_alpha.dtype)
            if not training:
                return hard
            return relax.straight_through(hard, relax.stretched(log_alpha, self.gamma, self.zeta))
        if not training:
            return relax.hard_concrete(log_alpha, self.gamma, self.zeta)
        u = relax.uniform(ops.shape(log_alpha), seed, log_alpha.dtype)
        return relax.sample_hard_concrete(log_alpha, u, self.beta, self.gamma, self.zeta)

    def kept_weight(self, theta, state):
        gate = self.gate(state["log_alpha"], training=False)
        if not self.ranked:
            return theta * gate
        closed = 1.0 if self.hard_mask else ops.sigmoid(state["log_alpha"])
        return theta * ops.where(gate > 0, gate, closed)

    def weight(self, theta, state, *, training, seed=None):
        if training:
            return theta * self.gate(state["log_alpha"], True, seed)
        return self.evaluated(theta, state)

    def forward(self, linear, x, theta, state, *, training, seed=None):
        log_alpha = state["log_alpha"]
        if training and linear.one_hot and log_alpha.shape[0] == theta.shape[0]:
            # A look-up is linear in the gates of its rows: each position draws its own.
            gate = self.gate(linear.function(x, ops.convert_to_tensor(log_alpha)), True, seed)
            return linear(x, theta) * ops.cast(gate, linear.dtype)
        return super().forward(linear, x, theta, state, training=training, seed=seed)

    def watch(self, theta, state):
        return {**super().watch(theta, state),
                "expected_l0": ops.mean(self.open_probability(state)),
                "log_alpha": ops.convert_to_tensor(state["log_alpha"])}

    def get_config(self):
        return {"num_samples": self.num_samples, "scale": self.scale, "group": self.group,
                "initial_keep": self.initial_keep, "l2": self.l2, "hard_mask": self.hard_mask,
                "beta": self.beta, "gamma": self.gamma, "zeta": self.zeta,
                **self.learned_config()}
