"""ResNet-50 v1.5 for ImageNet, as The State of Sparsity trains it.

He et al. 2016 (arXiv:1512.03385, table 1) with the stride of a block in its 3 x 3 convolution:
that is what "v1.5" means. Padding, initial weights and normalization are those of the paper's code,
google-research/google-research, state_of_sparsity/sparse_rn50.
"""

import keras
from keras import layers

# Blocks of the four stages, by depth: three convolutions in each, the stem and the last layer. The
# first two are ours, for trials; the others are those of He et al.
BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3)}
WIDTH = 64  # filters of the first stage
EXPANSION = 4  # outputs of a block, in multiples of its filters
MOMENTUM, EPSILON = 0.9, 1e-5  # of batch normalization
DEVIATION = 0.01  # of the last layer's initial weights


def resnet(depth=50, width=WIDTH, picture=224, classes=1000, decay=0.0, synchronized=False):
    """The network, from normalized pictures to logits.

    ResNet-50 has 25,502,912 weights in 53 convolutions and the last layer, and 54,120 parameters
    besides: scales and offsets of the normalization, and the last layer's bias.

    Args:
      depth: layers, a key of `BLOCKS`.
      width: filters of the first stage, at least 1; the others have 2, 4 and 8 times as many.
      picture: height and width of the input, at least 32.
      classes: number of outputs.
      decay: L2 penalty of every kernel: decay / 2 times the sum of its squares, in the loss. There
        is none of biases and of batch normalization.
      synchronized: normalize a batch that several devices share by all of it, as
        `keras.layers.BatchNormalization`; for TensorFlow's MirroredStrategy.

    Raises:
      ValueError: for another depth.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth is one of {', '.join(map(str, BLOCKS))}. Received: depth={depth}")
    keep_small = {"kernel_regularizer": keras.regularizers.L2(decay / 2)} if decay else {}

    def conv(x, filters, kernel, strides, name, scale="ones"):
        if strides > 1 and kernel > 1:  # symmetric; "same" would pad more below and to the right
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_padding")(x)
        x = layers.Conv2D(
            filters, kernel, strides, padding="valid" if strides > 1 else "same", use_bias=False,
            kernel_initializer="lecun_normal", **keep_small, name=name)(x)
        return layers.BatchNormalization(
            momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=scale, synchronized=synchronized,
            name=f"{name}_bn")(x)

    def block(x, filters, strides, name):
        shortcut = x
        if x.shape[-1] != EXPANSION * filters or strides > 1:
            shortcut = conv(x, EXPANSION * filters, 1, strides, f"{name}_shortcut")
        x = layers.ReLU()(conv(x, filters, 1, 1, f"{name}_conv1"))
        x = layers.ReLU()(conv(x, filters, 3, strides, f"{name}_conv2"))
        # With a scale of 0 every block begins as its shortcut
        x = conv(x, EXPANSION * filters, 1, 1, f"{name}_conv3", scale="zeros")
        return layers.ReLU()(layers.Add()([shortcut, x]))

    inputs = keras.Input((picture, picture, 3), name="image")
    x = layers.ReLU()(conv(inputs, width, 7, 2, "stem"))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for stage, blocks in enumerate(BLOCKS[depth]):
        for i in range(blocks):
            x = block(x, width * 2 ** stage, 2 if stage and not i else 1,
                      f"stage{stage + 1}_block{i + 1}")
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(classes, kernel_initializer=keras.initializers.RandomNormal(stddev=DEVIATION),
                     **keep_small, name="classes")(x)
    return keras.Model(inputs, x,
                       name=f"resnet{depth}" + (f"_width{width}" if width != WIDTH else ""))
