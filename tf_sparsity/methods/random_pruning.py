"""Random pruning: the baseline every comparison needs."""

import random

import keras
import numpy as np

from tf_sparsity.method import MaskMethod, check_number


@keras.saving.register_keras_serializable(package="tf_sparsity")
class RandomPruning(MaskMethod):
    r"""Prunes weights at random, to the sparsity that a schedule asks for.

    $$ \text{weight} = \theta \odot m, \qquad \text{score} \sim U(0, 1) $$

    Args:
      schedule: as in `ts.MagnitudePruning`.
      distribution: as in `ts.MagnitudePruning`; `"erk"` gives the strong static baseline.
      pattern: as in `ts.MagnitudePruning`.
      seed: integer >= 0; None draws one from Python's `random`, which
        `keras.utils.set_random_seed` seeds. The mask depends on the seed, the kernel's path and
        the step alone, so a resumed run draws the same numbers.
      min_keep: weights that every kernel keeps at least.

    Raises:
      ValueError: as `ts.MagnitudePruning`, and for a negative seed.

    Example:

    ```python
    import tf_sparsity as ts
    method = ts.RandomPruning(ts.ConstantSparsity(0.5, 0), distribution="erk", seed=1)
    assert method.seed == 1
    ```

    Reference: Gale, Elsen and Hooker 2019, "The State of Sparsity in Deep Neural Networks",
    arXiv:1902.09574, section 3 (random pruning).
    """

    def __init__(self, schedule, *, distribution="uniform", pattern=None, seed=None, min_keep=1):
        super().__init__(schedule, distribution=distribution, pattern=pattern,
                         min_keep=min_keep)
        if seed is not None:
            check_number("seed", seed, least=0, whole=True)
        self.seed = random.randrange(2**31) if seed is None else seed

    def scores(self, weight, gradient, seed):
        return np.random.default_rng(seed).random(weight.shape, dtype="float32")

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}
