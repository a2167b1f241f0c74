"""Five networks of keras.applications with random weights, 9 of 10 weights of 1x1 kernels zero."""

import numpy as np

NAMES = ("MobileNet", "MobileNetV2", "MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0")
SIZE, CLASSES, ZEROS = 96, 100, 0.9


def randomized(model, zeros=0.0, seed=0):
    """Gives a Keras model random weights under which every layer passes on values of order 1,
    unlike fresh batch norms, with a fraction of zeros in its 1x1 kernels; returns the model."""
    from keras import layers

    draw = np.random.default_rng(seed)
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            gamma, beta, mean, variance = weights
            weights = [gamma, draw.normal(0, 0.2, beta.shape), draw.normal(0, 0.1, mean.shape),
                       draw.uniform(0.5, 1.5, variance.shape)]
        elif isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)):
            kernel, *bias = weights
            fan = kernel.shape[:2] if isinstance(layer, layers.DepthwiseConv2D) else (
                kernel.shape[:-1])
            kernel = draw.normal(0, np.sqrt(2 / np.prod(fan)), kernel.shape)
            if zeros and isinstance(layer, layers.Conv2D) and kernel.shape[:2] == (1, 1):
                kernel *= (draw.random(kernel.shape) >= zeros) / np.sqrt(1 - zeros)
            weights = [kernel, *(draw.normal(0, 0.05, b.shape) for b in bias)]
        layer.set_weights(weights)
    return model


def network(name):
    """The dense .tflite of one of NAMES for one picture, up to its logits."""
    import keras
    import tensorflow as tf

    picture = keras.Input(batch_shape=(1, SIZE, SIZE, 3))
    model = getattr(keras.applications, name)(
        input_tensor=picture, weights=None, classes=CLASSES, classifier_activation=None)
    return tf.lite.TFLiteConverter.from_keras_model(randomized(model, ZEROS)).convert()
