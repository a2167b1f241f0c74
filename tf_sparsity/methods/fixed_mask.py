"""A mask that stays as it is."""

import keras
from keras import ops

from tf_sparsity.method import Method, Spec


@keras.saving.register_keras_serializable(package="tf_sparsity")
class FixedMask(Method):
    r"""Computes with weight = theta * mask under a mask that nothing changes.

    $$ \text{weight} = \theta \odot m $$

    The mask begins with ones; whoever knows a better one assigns it to the layer's state, as
    `ts.freeze_masks` and `ts.TicketSearch` do. Needs no callback. Pruned weights get no gradient.

    Example:

    ```python
    import keras
    import numpy as np
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model = ts.sparsify(model, ts.FixedMask())
    model.layers[0].state["kernel"]["mask"].assign(np.eye(4, 2))
    assert ts.report(model).sparsity == 0.75
    ```

    Reference: the retraining of Han et al. 2015, "Learning both Weights and Connections for
    Efficient Neural Networks", arXiv:1506.02626.
    """

    def state(self, kernel):
        return {"mask": Spec(kernel.shape, "ones")}

    def weight(self, theta, state, *, training, seed=None):
        return theta * ops.convert_to_tensor(state["mask"])

    def keep(self, theta, state):
        return ops.convert_to_tensor(state["mask"])

    def get_config(self):
        return {}
