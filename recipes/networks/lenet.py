"""The two networks of the MNIST recipes, without the last softmax: their outputs are logits."""

import keras
from keras import layers

from recipes.running import training


def lenet300():
    """LeNet-300-100 (LeCun et al. 1998): 784-300-100-10, 266,200 weights in three kernels."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Flatten(name="flatten"),
            layers.Dense(300, activation="relu", name="dense1"),
            layers.Dense(100, activation="relu", name="dense2"),
            layers.Dense(10, name="classes"),
        ],
        name="lenet300",
    )


def lenet5():
    """LeNet-5 as Caffe has it: 20-50-500-10, 430,500 weights in four kernels.

    Caffe's own has no activation after the convolutions; here they have relu, as in both papers'
    code.
    """
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(20, 5, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(50, 5, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(500, activation="relu", name="dense1"),
            layers.Dense(10, name="classes"),
        ],
        name="lenet5",
    )


MODELS = {"lenet300": lenet300, "lenet5": lenet5}


def train(model, data, test, *, epochs, batch, seed, optimizer, folder, rate=None, validate=10):
    """Trains, or goes on after a kill; returns what happened: (a list per figure with an entry per
    `validate` epochs and the last, seconds).

    `rate(epoch)` is the learning rate, None the optimizer's own. The test images are looked at for
    the record only; nothing is chosen by them.
    """
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    rates = [] if rate is None else [keras.callbacks.LearningRateScheduler(rate)]
    done = training.fit(model, training.Batches(*data, batch, seed), test, epochs=epochs,
                        folder=folder, callbacks=rates).epochs
    shown = [entry for entry in done if entry["epoch"] % validate == 0 or entry is done[-1]]
    history = {"epoch": [entry["epoch"] for entry in shown]}
    for name in ("loss", "data_loss", "sparsity"):
        if name in shown[-1]:
            history[name] = [round(entry[name], 5) for entry in shown]
    history["test_error"] = [round(1 - entry["val_accuracy"], 5) for entry in shown]
    return history, round(sum(entry["seconds"] for entry in done), 1)


def error(model, test):
    """The fraction of the test images that get a wrong class."""
    images, classes = test
    return float((model.predict(images, batch_size=500, verbose=0).argmax(-1) != classes).mean())
