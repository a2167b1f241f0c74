"""Dense gradients of the data loss on a probe batch, on TensorFlow and JAX."""

import contextlib

import keras
from keras import ops, tree

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


def gradients(model, variables, x, y):
    """dL/d(weight) of each variable, L the compiled loss without penalties.

    Args:
      model: a compiled model; it is run in evaluation mode (running statistics of
        BatchNormalization, no dropout), and nothing in it is changed.
      variables: trainable variables of the model. For theta of a sparse layer the gradient is
        that with respect to the effective weight, so that pruned weights have theirs too.
      x: inputs of one batch, as the model takes them.
      y: targets of one batch, as the loss takes them.

    Returns:
      list of NumPy arrays in the shapes of `variables`.

    Raises:
      ValueError: if the model is not compiled with a loss.
    """
    if not model.compiled or model._compile_loss is None:
        raise ValueError("The gradients of a probe batch need a loss: compile the model with one "
                         "before fit.")
    # a loss object of its own, so that the model's loss metrics are not touched
    used = model._compile_loss
    loss = type(used)(used._user_loss, used._user_loss_weights, output_names=used.output_names)
    x, y = tree.map_structure(ops.convert_to_tensor, (x, y))
    with _straight_through(model):
        arrays = _gradients(model, loss, variables, x, y)
    return [ops.convert_to_numpy(array) for array in arrays]


@contextlib.contextmanager
def _straight_through(model):
    """Inside, sparse layers hand the gradient of the effective weight on to theta."""
    layers = [l for l in model._flatten_layers() if isinstance(l, SparseLayer)]
    for layer in layers:
        layer.straight_through = True
    try:
        yield
    finally:
        for layer in layers:
            layer.straight_through = False


def _gradients(model, loss, variables, x, y):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=False))
        grads = tape.gradient(value, [v.value for v in variables],
                              unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(g) for g in grads]  # an embedding's are sparse
    if keras.backend.backend() == "jax":
        import jax
        trainable = model.trainable_variables
        fixed = [v.value for v in model.non_trainable_variables]
        mode = {"training": False} if model._call_has_training_arg else {}

        def value(arrays):
            outputs, _ = model.stateless_call(arrays, fixed, x, **mode)
            return loss(y, outputs)

        grads = jax.grad(value)([v.value for v in trainable])
        of = {id(v): g for v, g in zip(trainable, grads)}
        return [of[id(v)] for v in variables]
    raise NotImplementedError("Probe gradients are implemented for the TensorFlow and JAX "
                              f"backends, not for {keras.backend.backend()}.")
