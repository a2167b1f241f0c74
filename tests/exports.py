"""Small models for the tests of the exporter, pruned by hand, and their dense files."""

import functools

import keras
import numpy as np
from keras import layers

import tflite_export


def prune(model, sparsity, block=1):
    """Zeroes the weights of least magnitude of every kernel, in blocks of consecutive inputs."""
    for layer in model._flatten_layers(include_self=False):
        for variable in layer.trainable_variables if not layer._layers else ():
            if len(variable.shape) >= 2:
                array = keras.ops.convert_to_numpy(variable).copy()
                groups = array.T.reshape(-1, block)
                order = np.argsort(np.abs(groups).sum(1), kind="stable")
                groups[order[: round(sparsity * len(order))]] = 0
                variable.assign(groups.reshape(array.T.shape).T)
    return model


def dense():
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(10, "softmax")]
    )


def conv():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3),
            layers.Conv2D(32, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
        ]
    )
    rng = np.random.default_rng(0)
    for variable in model.layers[1].variables:  # folded into the kernel by the converter
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def wide():
    """A convolution and a Dense large enough for every mode of quantization."""
    return keras.Sequential(
        [
            keras.Input((4, 4, 16)),
            layers.Conv2D(128, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(64, "relu"),
        ]
    )


def recurrent():
    inputs = keras.Input((5, 8))
    return keras.Model(inputs, layers.Dense(3)(layers.Bidirectional(layers.LSTM(8))(inputs)))


def attention():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(tokens)
    return keras.Model(tokens, layers.Dense(3)(layers.MultiHeadAttention(2, 4)(x, x)))


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return {"sum": self.dense(inputs["a"] + inputs["b"]), "first": inputs["a"]}


@keras.saving.register_keras_serializable(package="exports")
class Scaled(layers.Layer):
    """A custom layer; `custom_functions` has a custom activation."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def call(self, x):
        return self.factor * (x @ self.kernel)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def subclassed():
    model = Subclassed()
    model({"a": np.ones((1, 4)), "b": np.ones((1, 4))})
    return model


def several():
    """Names out of the alphabet's order, more than ten outputs: both are traps of signatures."""
    inputs = [keras.Input((size,), name=name) for name, size in (("c", 3), ("a b", 4), ("b", 5))]
    x = layers.Concatenate()(inputs)
    return keras.Model(inputs, [layers.Dense(i + 1, name=f"out{9 - i}")(x) for i in range(12)])


def rows(*shape):
    return np.random.default_rng(1).normal(size=(7, *shape)).astype("float32")


INPUTS = {
    dense: lambda: rows(64),
    conv: lambda: rows(8, 8, 3),
    wide: lambda: rows(4, 4, 16),
    recurrent: lambda: rows(5, 8),
    attention: lambda: np.random.default_rng(1).integers(0, 20, (7, 6)),
    subclassed: lambda: {"b": rows(4), "a": rows(4) + 1},
    several: lambda: [rows(3), rows(4), rows(5)],
}


@functools.cache
def dense_file(build, sparsity=0.9, block=1):
    """The bytes of a pruned model's dense float32 file. Converting costs seconds: it is kept."""
    keras.utils.set_random_seed(0)
    return tflite_export.convert(prune(build(), sparsity, block), sparse=False).tflite
