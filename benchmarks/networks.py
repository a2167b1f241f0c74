"""Networks for the benchmarks of exported files: random weights, a share of them zero.

The weights are no trained ones: sizes and times do not depend on their values, and nothing is said
about accuracy.
"""

import keras
import numpy as np
from keras import layers

CNNS = ("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0")
MLP, ENCODER = "MLP 512, 3 x 2048, 10", "Transformer encoder, 4 layers of 256, 64 tokens"
CLASSES = 1000


def build(name, size=224):
    """The dense network; `size` is the side of the picture."""
    if name == MLP:
        return keras.Sequential([keras.Input((512,)),
                                 *(layers.Dense(2048, "relu") for _ in range(3)),
                                 layers.Dense(10, name="classes")])
    if name == ENCODER:
        return _encoder()
    return getattr(keras.applications, name)(
        input_shape=(size, size, 3), weights=None, classes=CLASSES, classifier_activation=None)


def _encoder(tokens=64, width=256, hidden=1024, heads=4, depth=4):
    x = inputs = keras.Input((tokens, width))
    for _ in range(depth):
        attended = layers.MultiHeadAttention(heads, width // heads)(x, x)
        x = layers.LayerNormalization()(x + attended)
        y = layers.Dense(width)(layers.Dense(hidden, "relu")(x))
        x = layers.LayerNormalization()(x + y)
    return keras.Model(inputs, layers.Dense(10, name="classes")(
        layers.GlobalAveragePooling1D()(x)))


def pruned_layers(model):
    """The layers that get zeros: 1x1 convolutions before the global average, dense layers but the
    last, attention."""
    chosen, head, average = [], False, last_average(model)
    for layer in model.layers:
        # what gates channels inside (squeeze-excite) averages as well: the head follows the last
        head = head or layer is average
        pointwise = type(layer) is layers.Conv2D and layer.kernel_size == (1, 1) and not head
        dense = isinstance(layer, layers.Dense) and layer.name not in ("classes", "predictions")
        if pointwise or dense or isinstance(layer, layers.MultiHeadAttention):
            chosen.append(layer)
    return chosen


def last_average(model):
    averages = [l for l in model.layers if isinstance(l, layers.GlobalAveragePooling2D)]
    return averages[-1] if averages else None


def randomize(model, sparsity, block=1, seed=0):
    """Random weights of a size that every layer passes on; in pruned layers the share `sparsity` of
    all blocks of so many inputs is zero, by chance and not by magnitude."""
    draw = np.random.default_rng(seed)
    chosen = {id(l) for l in pruned_layers(model)}
    for layer in model.layers:
        values = []
        for variable in layer.weights:
            shape, name = tuple(variable.shape), variable.path.split("/")[-1]
            if name in ("gamma", "moving_variance", "variance"):
                values.append(np.ones(shape))
            elif len(shape) < 2:
                values.append(draw.normal(0, 0.05, shape))
            else:
                fan = np.prod(shape[:-1]) if "depthwise" not in type(layer).__name__.lower() else (
                    np.prod(shape[:2]))
                kernel = draw.normal(0, np.sqrt(2 / fan), shape)
                if id(layer) in chosen:
                    blocks = block if name == "kernel" else 1  # biases of attention have two axes
                    kernel = _with_zeros(kernel, sparsity, blocks, draw, _inputs(variable))
                values.append(kernel)
        layer.set_weights([value.astype("float32") for value in values])
    return model


def _inputs(variable):
    """The axis of a kernel along which inputs are consecutive: the one before the last of a Conv2D,
    the first of other kernels, whose remaining axes are outputs. The output projection of attention
    has two axes of inputs, of which it is the inner one."""
    if len(variable.shape) == 4:
        return 2
    return 1 if "attention_output" in variable.path else 0


def _with_zeros(kernel, sparsity, block, draw, axis):
    """Zeros in blocks of consecutive inputs."""
    shape = list(kernel.shape)
    shape[axis] //= block
    count = int(np.prod(shape))
    keep = np.ones(count)
    keep[draw.permutation(count)[:round(sparsity * count)]] = 0
    return kernel * np.repeat(keep.reshape(shape), block, axis=axis)
