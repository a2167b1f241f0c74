"""Continuous sparsification (Savarese, Silva and Maire 2020)."""

import math

import keras
from keras import ops

from tf_sparsity.learned import LearnedMethod
from tf_sparsity.method import Spec, check_flag, check_number
from tf_sparsity.schedule import Ramp


LEAST_RESCALED = -50  # exp(50) is 5e21
LEAST = 1e-20  # of a soft mask that a rank keeps: far from 0 in float32, whatever theta is


@keras.saving.register_keras_serializable(package="tf_sparsity")
class ContinuousSparsification(LearnedMethod):
    r"""Learns a deterministic mask by annealing a sigmoid into a step.

    $$ \text{weight} = \theta \odot \sigma(\beta s)\ \text{in training},\quad
       \theta \odot H(s)\ \text{in evaluation},\quad
       \beta_t = \beta_{\text{final}}^{\,t/T},\quad
       R = \lambda \sum \sigma(\beta s) $$

    Args:
      anneal_steps: T, the steps over which beta goes from 1 to `final_beta`; integer >= 1. None:
        the length of the first `fit`, which is then part of the model's configuration.
      final_beta: the last inverse temperature, >= 1.
      s0: where s starts, any finite number (>= -50 with `rescale`). Positive keeps more, negative
        prunes more: the authors' advice is 0.1 for less sparse and -0.1 for very sparse. With
        `s0=0` the hard mask of an untrained model is empty (H(0) = 0).
      scale: lambda >= 0, per weight (the sum is not divided by the number of weights).
      rescale: divide soft and hard mask by sigma(s0), so that training starts at weight = theta;
        R then sums that soft mask.
      target_sparsity, reach: the sparsity asked for, in [0, 1), and how it is reached, "rank" or
        "controller" (see docs/methods.md); None leaves it to `s0` and `scale`.
      frequency: steps between two updates of beta, and towards `target_sparsity`, >= 1. None: a
        hundredth of `anneal_steps` for beta and 100 for the rank; with the controller, for both, a
        200th of the first `fit` (of `anneal_steps`, if that is more). By epoch, as the authors: the
        steps of an epoch, with `anneal_steps` one epoch shorter than the run.

    Raises:
      TypeError, ValueError: for arguments of another type or outside these ranges; when training
        begins, if `anneal_steps` is None and the number of steps is unknown.

    Example:

    ```python
    import tf_sparsity as ts
    method = ts.ContinuousSparsification(anneal_steps=1000, s0=0.05)
    assert method.due(-1, 10)
    ```

    Reference: Savarese, Silva and Maire 2020, "Winning the Lottery with Continuous
    Sparsification", arXiv:1912.04427; masks, penalty, beta and defaults are those of the authors'
    repository.

    Deviations: beta moves every `frequency` steps (the authors: once an epoch). Evaluation during
    training uses the hard mask (the authors: the soft one until the last round is over).
    """

    needs_update = True

    def __init__(self, anneal_steps=None, *, final_beta=200.0, s0=0.0, scale=1e-8, rescale=False,
                 target_sparsity=None, reach="rank", frequency=None):
        if anneal_steps is not None:
            check_number("anneal_steps", anneal_steps, least=1, whole=True)
        check_number("final_beta", final_beta, least=1)
        check_number("s0", s0)
        check_number("scale", scale, least=0)
        check_flag("rescale", rescale)
        if rescale and s0 < LEAST_RESCALED:
            raise ValueError(f"With rescale=True masks are divided by sigmoid(s0): s0 must be >= "
                             f"{LEAST_RESCALED}. Received: {s0=}")
        super().__init__(scale, None, target_sparsity, reach, frequency)
        self.anneal_steps = anneal_steps
        self.final_beta, self.s0 = float(final_beta), float(s0)
        self.scale, self.rescale = float(scale), rescale
        self.annealing = None if anneal_steps is None else Ramp(0, anneal_steps,
                                                                frequency=frequency)

    @property
    def preserves_outputs(self):
        """The hard mask is all ones for s0 > 0; otherwise empty, or, ranked, the soft one."""
        return self.s0 > 0 and not self.rescale

    def for_run(self, last_step):
        if self.anneal_steps is not None:
            return super().for_run(last_step)
        if last_step is None:
            raise ValueError("ContinuousSparsification(anneal_steps=None) anneals over the first "
                             "fit, whose number of steps is unknown here: give anneal_steps.")
        return self.with_config(anneal_steps=last_step).for_run(last_step)

    def state(self, kernel):
        return {"s": Spec(kernel.shape, keras.initializers.Constant(self.s0),
                          trainable=True, decay=False),
                "beta": Spec((), "ones"), **super().state(kernel)}

    def soft_mask(self, state):
        return ops.sigmoid(state["beta"] * state["s"]) * self._factor

    @property
    def _factor(self):
        return 1.0 + math.exp(-self.s0) if self.rescale else 1.0

    def importance(self, theta, state):
        return ops.convert_to_tensor(state["s"])

    def complexity(self, theta, state):
        return ops.sum(self.soft_mask(state))

    def kept_weight(self, theta, state):
        if not self.ranked:
            return theta * self._factor
        # What a rank keeps of s <= 0 has the weight that it had in training, and is not zero.
        s = ops.convert_to_tensor(state["s"])
        soft = ops.maximum(ops.sigmoid(state["beta"] * s), LEAST)
        return theta * ops.where(s > 0, 1.0, soft) * self._factor

    def weight(self, theta, state, *, training, seed=None):
        return theta * self.soft_mask(state) if training else self.evaluated(theta, state)

    @property
    def last_step(self):
        return self.anneal_steps

    def due(self, prev, step):
        return (self.annealing is not None and self.annealing.due(prev, step)
                or super().due(prev, step))

    def update(self, slots, step, probe=None):
        super().update(slots, step, probe)
        for slot in slots:
            slot.state["beta"].assign(self.final_beta ** self.annealing.value(step))

    def next_round(self, slots):
        """s <- min(beta s, s0) and beta <- 1: what was kept may be lost, what was lost hardly
        comes back."""
        for slot in slots:
            s = ops.convert_to_tensor(slot.state["s"])
            slot.state["s"].assign(ops.minimum(slot.state["beta"] * s, self.s0))
            slot.state["beta"].assign(1.0)

    def watch(self, theta, state):
        undecided = ops.abs(state["beta"] * state["s"]) < 4.0
        return {**super().watch(theta, state), "s": ops.convert_to_tensor(state["s"]),
                "transition_fraction": ops.mean(ops.cast(undecided, "float32"))}

    def get_config(self):
        config = {"anneal_steps": self.anneal_steps, "final_beta": self.final_beta, "s0": self.s0,
                  "scale": self.scale, "rescale": self.rescale, **self.learned_config()}
        del config["ramp"]
        return config
