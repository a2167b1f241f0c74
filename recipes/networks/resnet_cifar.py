"""ResNet-20 and its relatives for 32 x 32 images (He et al. 2016, section 4.2)."""

import keras
from keras import layers


def resnet(depth=20, width=16, classes=10, decay=0.0):
    """6n + 2 layers: three stages of n blocks with `width`, 2 and 4 times `width` filters.

    Shortcuts are projections where the shape changes, as in the code of the lottery ticket and of
    the continuous sparsification paper (He et al. pad with zeros). Outputs are logits.

    Args:
      depth: 6 n + 2, such as 20.
      width: filters of the first stage; 16 is the published one (270,896 kernel weights at 20).
      classes: number of outputs.
      decay: L2 penalty of every kernel: decay / 2 times the sum of its squares, in the loss. That
        is the papers' weight decay; `weight_decay` of Keras' SGD stays outside its momentum, and
        would be (1 - momentum) times as strong.

    Raises:
      ValueError: for a depth that is not 6 n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth is 6 n + 2 (8, 14, 20, ...). Received: depth={depth!r}")

    small = {"kernel_regularizer": keras.regularizers.L2(decay / 2)} if decay else {}

    def conv(x, filters, kernel, strides, name):
        x = layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False,
                          kernel_initializer="he_normal", name=name, **small)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)

    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU()(conv(inputs, width, 3, 1, "stem"))
    for stage in range(3):
        filters = width * 2 ** stage
        for block in range((depth - 2) // 6):
            name = f"stage{stage + 1}_block{block + 1}"
            strides = 2 if stage and not block else 1
            y = layers.ReLU()(conv(x, filters, 3, strides, f"{name}_conv1"))
            y = conv(y, filters, 3, 1, f"{name}_conv2")
            if strides > 1:
                x = conv(x, filters, 1, strides, f"{name}_shortcut")
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="classes", **small)(x),
                       name=f"resnet{depth}" + (f"_width{width}" if width != 16 else ""))
