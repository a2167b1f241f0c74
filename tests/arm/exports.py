"""Files of `tflite_export.convert` itself: a small network of each kind, every quantization."""

import keras
import numpy as np
from keras import layers

import tflite_export

SEED, ZEROS, CALIBRATION = 0, 0.9, 32  # rows
MODES = (None, "dynamic", "int8", "int8_weights", "float16")
RUNTIMES = ("litert", "litert>=2.2")


def mobile():
    """Sparse in XNNPACK: a stem of stride 2, inverted residuals, a global average."""
    picture = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu6")(picture)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x)
    x = layers.Conv2D(32, 1)(x)
    y = layers.Conv2D(64, 1, activation="relu6")(x)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu6")(y)
    x = layers.Add()([x, layers.Conv2D(32, 1)(y)])
    return keras.Model(picture, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def plain_cnn():
    """Sparse in size only: convolutions of 3x3 and max-pooling."""
    return keras.Sequential([
        keras.Input((16, 16, 3)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(64, 3, activation="relu"), layers.DepthwiseConv2D(5),
        layers.GlobalAveragePooling2D(), layers.Dense(10)])


def mlp():
    return keras.Sequential([keras.Input((256,)), layers.Dense(128, "relu"),
                             layers.Dense(64, "relu"), layers.Dense(10)])


def encoder():
    x = inputs = keras.Input((16, 64))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(4, 16)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(64)(layers.Dense(256, "relu")(x)))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def lstm():
    steps = keras.Input((6, 32))
    return keras.Model(steps, layers.Dense(10)(layers.LSTM(64)(steps)))


# The blocks of zeros that each is tried with.
NETWORKS = {mobile: (1,), plain_cnn: (1,), mlp: (1, 4, 16), encoder: (1, 4, 16), lstm: (1, 4, 16)}
# An LSTM's loop cannot be calibrated.
SKIPPED = {(lstm, "int8")}


def pruned(build, block):
    """A model with zeros in blocks of consecutive inputs in every kernel."""
    keras.utils.set_random_seed(SEED)
    model, draw = build(), np.random.default_rng(SEED)
    for layer in model._flatten_layers(include_self=False):
        for variable in layer.trainable_variables if not layer._layers else ():
            if len(variable.shape) < 2:
                continue
            kernel = keras.ops.convert_to_numpy(variable)
            rows = kernel.T.reshape(-1, block).copy()
            rows[draw.permutation(len(rows))[:round(ZEROS * len(rows))]] = 0
            variable.assign(rows.reshape(kernel.T.shape).T / np.sqrt(1 - ZEROS))
    return model


def files():
    """{name: bytes} of what `convert` writes"""
    written, draw = {}, np.random.default_rng(SEED)
    for build, blocks in NETWORKS.items():
        for block in blocks:
            model = pruned(build, block)
            some = draw.standard_normal((CALIBRATION, *model.input_shape[1:])).astype(np.float32)
            for mode in MODES:
                if (build, mode) in SKIPPED:
                    continue
                for runtime in RUNTIMES:
                    name = f"{build.__name__}/1x{block}/{mode or 'float32'}/{runtime}"
                    tflite = tflite_export.convert(
                        model, quantize=mode, runtime=runtime,
                        representative_data=some if mode == "int8" else None).tflite
                    if tflite not in written.values():
                        written[name] = tflite
    return written
