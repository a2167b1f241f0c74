"""What our callers' frames say: is this a train step, and how does its model survive an error?"""

import sys

import keras
from keras import ops


def give_back():
    """Brings the model that is being trained into the state it had before the trace.

    The user shall be able to correct the call and train on. Three things stand against it, and
    all of them are found in the frames of our callers:
    - Keras' JAX trainer takes the arrays out of the variables before it traces the train step;
    - a `tf.function` initializes the variables made in its first trace when that is complete;
    - a `tf.function` whose first trace failed computes nothing when it is called again.
    """
    frame = sys._getframe()
    while frame is not None:
        owner, local = frame.f_locals.get("self"), frame.f_locals
        if frame.f_code.co_name == "_initialize" and local.get("add_initializers_to"):
            owner._initialize_uninitialized_variables(local["add_initializers_to"])
        elif (isinstance(owner, keras.Model)
              and frame.f_code.co_name in ("fit", "train_on_batch")):
            owner.train_function = None
            if keras.backend.backend() == "jax":
                kinds = (owner.trainable_variables, owner.non_trainable_variables,
                         owner.optimizer.variables, owner.metrics_variables)
                for variables, arrays in zip(kinds, local["state"]):
                    for variable, array in zip(variables, arrays):
                        variable._value = array
        frame = frame.f_back


def is_running():
    """Is the train step of a Keras trainer among our callers?"""
    return _model() is not None


def decays_weights():
    """Has the optimizer of that train step a weight decay?"""
    optimizer = getattr(_model(), "optimizer", None)
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return bool(getattr(optimizer, "weight_decay", None))


def examples():
    """How many examples the batch of the train or test step among our callers has, as Keras counts
    them for the mean of the loss: the length of its first input. 1.0 outside of such a step, and in
    one of the user's own whose batch is not called `data`, as in Keras."""
    frame = _frame("train_step", "test_step")
    data = frame and frame.f_locals.get("data")
    if data is None:
        return 1.0
    x = keras.utils.unpack_x_y_sample_weight(data)[0]
    first = next(array for array in keras.tree.flatten(x) if array is not None)
    return ops.cast(ops.shape(first)[0], "float32")


def _model():
    """The model whose train step is among our callers, or None."""
    frame = _frame("train_step")
    return frame and frame.f_locals["self"]


def _frame(*names):
    """That of a step of a Keras model among our callers, or None."""
    frame = sys._getframe()
    while frame is not None:
        if (frame.f_code.co_name in names
                and isinstance(frame.f_locals.get("self"), keras.Model)):
            return frame
        frame = frame.f_back
    return None
