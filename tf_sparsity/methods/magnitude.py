"""Magnitude pruning (Zhu and Gupta 2017)."""

import keras
import numpy as np

from tf_sparsity.method import MaskMethod, check_flag


@keras.saving.register_keras_serializable(package="tf_sparsity")
class MagnitudePruning(MaskMethod):
    r"""Prunes the weights of least magnitude, to the sparsity that a schedule asks for.

    $$ \text{weight} = \theta \odot m, \qquad \text{score} = |\text{weight}| $$

    The mask `m` keeps the highest scores; `m` has exactly the number of zeros that the
    schedule asks for at its last step (rounded half to even, ties kept by lowest index).

    Args:
      schedule: `ts.PolynomialDecay` (eq. 1 of the paper for `power=3`) or `ts.ConstantSparsity`;
        TFMOT's objects of these names are accepted.
      distribution: `"uniform"` (each kernel alike), `"erk"`, `"global"` (one ranking over all
        kernels) or a map `{regex: final sparsity}`; kernels without a match follow the schedule.
      pattern: None, `"N:M"`, `"RxC"` or `"channel"`; a group's score is its mean.
      revive: score |theta| in place of |weight|, so that a pruned weight whose theta grows back
        returns (*The State of Sparsity* did so). Layers only; `SparseOptimizer` refuses it.
      min_keep: weights that every kernel keeps at least.

    Raises:
      ValueError: for a target outside [0, 1), an unknown pattern or distribution, an N:M pattern
        whose schedule does not end at 1 - N/M.

    Example:

    ```python
    import tf_sparsity as ts
    method = ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.9, begin_step=100, end_step=1000))
    assert method.target([], 1000) == []
    ```

    Reference: Zhu and Gupta 2017, "To prune, or not to prune", arXiv:1710.01878, eq. (1).

    Deviations: the last update is always at `end_step`; ties never change the count; the scores
    are those of the effective weight (see `revive`). docs/tfmot.md lists what TFMOT does.
    """

    def __init__(self, schedule, *, distribution="uniform", pattern=None, revive=False,
                 min_keep=1):
        super().__init__(schedule, distribution=distribution, pattern=pattern,
                         min_keep=min_keep)
        check_flag("revive", revive)
        self.revive = revive

    @property
    def regrows(self):
        return self.revive

    @property
    def latent(self):
        return self.revive

    def scores(self, weight, gradient, seed):
        return np.abs(weight)

    def get_config(self):
        return {**super().get_config(), "revive": self.revive}
