"""Continuous sparsification (Savarese, Silva and Maire 2020)."""

import math

import keras
from keras import ops

from tf_sparsity.method import Method, Spec, check_flag, check_number
from tf_sparsity.schedule import Ramp


@keras.saving.register_keras_serializable(package="tf_sparsity")
class ContinuousSparsification(Method):
    r"""Learns a deterministic mask by annealing a sigmoid into a step.

    $$ \text{weight} = \theta \odot \sigma(\beta s)\ \text{in training},\quad
       \theta \odot H(s)\ \text{in evaluation},\quad
       \beta_t = \beta_{\text{final}}^{\,t/T},\quad
       R = \lambda \sum \sigma(\beta s) $$

    Args:
      anneal_steps: T, the steps over which beta goes from 1 to `final_beta`; integer >= 1.
      final_beta: the last inverse temperature, >= 1.
      s0: where s starts; positive keeps more, negative prunes more. With `s0=0` the hard mask of
        an untrained model is empty (H(0) = 0).
      scale: lambda >= 0, per weight (the sum is not divided by the number of weights).
      rescale: divide soft and hard mask by sigma(s0), so that training starts at weight = theta.
      frequency: steps between two updates of beta; None is a hundredth of `anneal_steps`.

    Raises:
      ValueError: for arguments outside these ranges.

    Example:

    ```python
    import tf_sparsity as ts
    method = ts.ContinuousSparsification(anneal_steps=1000, s0=0.05)
    assert method.due(-1, 10)
    ```

    Reference: Savarese, Silva and Maire 2020, "Winning the Lottery with Continuous
    Sparsification", arXiv:1912.04427; the defaults are those of the authors' repository.

    Deviations: beta moves every `frequency` steps (the authors: once an epoch).
    """

    needs_update = True
    trainable_state = True
    has_penalty = True

    def __init__(self, anneal_steps, *, final_beta=200.0, s0=0.0, scale=1e-8, rescale=False,
                 frequency=None):
        check_number("anneal_steps", anneal_steps, least=1, whole=True)
        check_number("final_beta", final_beta, least=1)
        check_number("s0", s0)
        check_number("scale", scale, least=0)
        check_flag("rescale", rescale)
        self.ramp = Ramp(0, anneal_steps, frequency=frequency)
        self.anneal_steps, self.frequency = anneal_steps, frequency
        self.final_beta, self.s0 = float(final_beta), float(s0)
        self.scale, self.rescale = float(scale), rescale

    @property
    def preserves_outputs(self):
        """The hard mask is all ones for s0 > 0, and empty otherwise."""
        return self.s0 > 0 and not self.rescale

    def state(self, kernel):
        return {"s": Spec(kernel.shape, keras.initializers.Constant(self.s0),
                          trainable=True, decay=False),
                "beta": Spec((), "ones")}

    def _soft(self, state):
        return ops.sigmoid(state["beta"] * state["s"]) * self._factor

    @property
    def _factor(self):
        return 1.0 + math.exp(-self.s0) if self.rescale else 1.0

    def weight(self, theta, state, *, training, seed=None):
        if training:
            return theta * self._soft(state)
        return theta * self.keep(theta, state) * self._factor

    def keep(self, theta, state):
        return ops.cast(ops.convert_to_tensor(state["s"]) > 0, "float32")

    def penalty(self, theta, state):
        return self.scale * ops.sum(self._soft(state))

    @property
    def last_step(self):
        return self.anneal_steps

    def due(self, prev, step):
        return self.ramp.due(prev, step)

    def update(self, slots, step, probe=None):
        for slot in slots:
            slot.state["beta"].assign(self.final_beta ** self.ramp.value(step))

    def get_config(self):
        return {"anneal_steps": self.anneal_steps, "final_beta": self.final_beta, "s0": self.s0,
                "scale": self.scale, "rescale": self.rescale, "frequency": self.frequency}
