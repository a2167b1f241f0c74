"""How a Keras model's inputs and outputs are named in the file.

A .tflite signature maps names to arrays. An input has the name that its `keras.Input` was given,
or is called input_0, input_1, ... by its place. An output keeps its key where the model returns a
dict, and is called output_0, output_1, ... in Keras' order where it does not.
"""

import inspect
import re
from typing import NamedTuple

# What Keras calls an input without a name; the number depends on what was built before.
_KERAS_NAME = re.compile(r"(keras_tensor|input_layer)(_\d+)?")


class Input(NamedTuple):
    """One input of the file."""

    name: str
    shape: tuple  # the batch size included
    dtype: str


class Signature:
    """The inputs of a built Keras model as a flat list, and the model as a function of that list.

    Args:
        model: a built `keras.Model`: Sequential, functional, or subclassed and called once.
        batch_size: the fixed first size of every input.

    Raises:
        TypeError: `model` is not a Keras 3 model.
        ValueError: it is not built, or an input has an unknown size besides its batch.
    """

    def __init__(self, model, batch_size=1):
        import keras

        if not isinstance(model, keras.Model):
            kind = f"{type(model).__module__}.{type(model).__qualname__}"
            raise TypeError(f"tflite_export converts Keras 3 models (keras.Model); got a {kind}.")
        self.model = model
        self._arguments = _arguments(model)
        self.inputs = []
        tensors = keras.tree.flatten(self._arguments)
        names = [
            f"input_{i}" if _KERAS_NAME.fullmatch(tensor.name) else tensor.name
            for i, tensor in enumerate(tensors)
        ]
        for name, tensor in zip(_identifiers(names), tensors):
            if None in tensor.shape[1:]:
                raise ValueError(
                    f"Input {name!r} of model {model.name!r} has shape {tuple(tensor.shape)}, and "
                    "a .tflite file needs every size but the batch fixed: build the model with "
                    "the sizes that the device will use."
                )
            self.inputs.append(Input(name, (batch_size, *tensor.shape[1:]), str(tensor.dtype)))

    def call(self, *flat):
        """The outputs by name, in inference mode, for one array per entry of `self.inputs`."""
        import keras

        arguments = keras.tree.pack_sequence_as(self._arguments, list(flat))
        outputs = self.model(*arguments, training=False)
        if isinstance(outputs, dict) and len(keras.tree.flatten(outputs)) == len(outputs):
            return dict(zip(_identifiers([str(key) for key in outputs]), outputs.values()))
        return {f"output_{i}": output for i, output in enumerate(keras.tree.flatten(outputs))}

    def by_name(self, inputs):
        """`inputs`, nested as the model takes them, by name."""
        import keras

        names = [i.name for i in self.inputs]
        taken = self._arguments[0]
        if isinstance(inputs, dict) and not (
                isinstance(taken, dict) and set(inputs) == set(taken)):
            if set(inputs) == set(names):
                return dict(inputs)
            raise ValueError(f"Model {self.model.name!r} has the inputs {names}; got a dict with "
                             f"the keys {sorted(map(str, inputs))}.")
        flat = keras.tree.flatten(inputs)
        if len(flat) != len(names):
            raise ValueError(
                f"Model {self.model.name!r} has the inputs {names}; got {len(flat)} arrays."
            )
        return dict(zip(names, flat))


def _arguments(model):
    """The positional arguments of the model's call, each a structure of symbolic tensors."""
    import keras

    inputs = getattr(model, "inputs", None)  # absent from subclassed and unbuilt models
    if inputs:
        return [inputs[0] if isinstance(model, keras.Sequential) else model.input]
    # A subclassed model keeps the shapes of its first call only; Keras' own export, too, takes the
    # inputs for floats then.
    config = model.get_build_config() or {}
    shapes = (
        [config["input_shape"]]
        if "input_shape" in config
        else list(config.get("shapes_dict", {}).values())
    )
    if not model.built or not shapes:
        raise ValueError(
            f"Model {model.name!r} was never called, so the shapes of its inputs are unknown: "
            "call it once on a batch, or give it a keras.Input."
        )
    try:
        inspect.signature(model.call).bind(*shapes)
    except TypeError as error:
        raise ValueError(
            f"The shapes of {len(shapes)} arguments of model {model.name!r} are known, and its "
            f"call has more ({error}): give one dict or list argument, and call the model once "
            "with it."
        ) from None
    return keras.tree.map_shape_structure(lambda s: keras.KerasTensor(s, "float32"), shapes)


def _identifiers(names):
    """The names as TensorFlow takes them for arguments, with a number where two become equal."""
    result = []
    for name in names:
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        name = name if name[:1].isalpha() else f"x{name}"
        result.append(name if name not in result else f"{name}_{len(result)}")
    return result
