"""Dense gradients of the data loss on a probe batch: the only file with a backend switch."""

import keras
from keras import ops

from tf_sparsity.convert import plain_twin
from tf_sparsity.kernels import find, is_graph
from tf_sparsity.layers import SparseLayer


def batches(probe_data):
    """An endless iterator of (x, y): the one pair, or an iterable begun again at its end."""
    one = isinstance(probe_data, tuple)
    while True:
        empty = True
        for batch in [probe_data] if one else probe_data:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError("probe_data is one (x, y) batch or an iterable of (x, y) "
                                 f"batches. Received an item of type {type(batch).__name__}")
            empty = False
            yield tuple(batch)
        if empty:
            raise ValueError("probe_data ran out: pass an (x, y) batch or an iterable that can "
                             "be iterated again.")


def gradients(model, x, y):
    """{kernel path: dense gradient}: dL/d(weight), L the compiled loss without penalties.

    Args:
      model: a compiled model; sparse layers are evaluated with their effective weights, in
        evaluation mode (running statistics of BatchNormalization, no dropout).
      x: inputs of one batch.
      y: targets of one batch.

    Returns:
      dict from kernel path to a NumPy array of the kernel's shape; pruned weights have their
      gradient too.

    Raises:
      ValueError: if the model is not compiled with a loss.
    """
    if not model.compiled or model._compile_loss is None:
        raise ValueError("The gradients of a probe batch need a loss: compile the model with one "
                         "before fit.")
    sparse = any(isinstance(layer, SparseLayer) for layer in model._flatten_layers())
    twin = plain_twin(model) if sparse and is_graph(model) else model
    # a loss object of its own, so that the model's loss metrics are not touched
    loss = type(model._compile_loss)(model._compile_loss._user_loss,
                                     model._compile_loss._user_loss_weights)
    variables = twin.trainable_variables
    values = _gradients(twin, loss, variables, x, y)
    by_id = {id(v): g for v, g in zip(variables, values)}
    return {f.kernel.path: by_id[id(f.variable)] for f in find(twin) if id(f.variable) in by_id}


def _gradients(model, loss, variables, x, y):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf
        with tf.GradientTape() as tape:
            value = loss(ops.convert_to_tensor(y), model(x, training=False))
        grads = tape.gradient(value, [v.value for v in variables],
                              unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [ops.convert_to_numpy(g) for g in grads]
    if keras.backend.backend() == "jax":
        import jax
        fixed = [v.value for v in model.non_trainable_variables]

        def value(trainable):
            outputs, _ = model.stateless_call(trainable, fixed, x, training=False)
            return loss(ops.convert_to_tensor(y), outputs)

        return [ops.convert_to_numpy(g) for g in jax.grad(value)([v.value for v in variables])]
    raise NotImplementedError("Probe gradients are implemented for the TensorFlow and JAX "
                              f"backends, not for {keras.backend.backend()}.")
