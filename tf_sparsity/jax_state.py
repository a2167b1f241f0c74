"""Keeps a model alive when its first trace on JAX fails with one of our errors."""

import sys

import keras


def give_back():
    """Puts the arrays of the running train step back into the model's variables.

    Keras' JAX trainer takes the arrays out of the variables before it traces the train step,
    and an error inside the trace leaves the model without weights. They are still in the frame
    of the trainer that called us; the user shall be able to correct the call and train on.
    """
    if keras.backend.backend() != "jax":
        return
    frame = sys._getframe()
    while frame is not None:
        model, state = frame.f_locals.get("self"), frame.f_locals.get("state")
        if isinstance(model, keras.Model) and frame.f_code.co_name in ("fit", "train_on_batch"):
            kinds = (model.trainable_variables, model.non_trainable_variables,
                     model.optimizer.variables, model.metrics_variables)
            for variables, arrays in zip(kinds, state):
                for variable, array in zip(variables, arrays):
                    variable._value = array
            return
        frame = frame.f_back
