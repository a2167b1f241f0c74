"""The two networks of the MNIST recipes, without the last softmax: their outputs are logits."""

import keras
from keras import layers


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


def train(model, data, test, *, epochs, batch, optimizer, rate=None, callbacks=(), validate=10):
    """Fits; returns what happened: a list per figure, an entry per `validate` epochs and the last.

    `rate(epoch)` is the learning rate, None the optimizer's own. The test images are looked at for
    the record only; nothing is chosen by them.
    """
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    shown = [e for e in range(1, epochs + 1) if e % validate == 0 or e == epochs]
    rates = [] if rate is None else [keras.callbacks.LearningRateScheduler(rate)]
    history = model.fit(
        *data,
        batch_size=batch,
        epochs=epochs,
        validation_data=test,
        validation_freq=shown,
        validation_batch_size=500,
        callbacks=[*callbacks, *rates],
        verbose=2,
    ).history
    chosen = {name: [history[name][epoch - 1] for epoch in shown]
              for name in ("loss", "data_loss", "sparsity") if name in history}
    chosen["test_error"] = [1 - accuracy for accuracy in history["val_accuracy"]]
    return {"epoch": shown} | {name: [round(v, 5) for v in values]
                               for name, values in chosen.items()}


def error(model, test):
    """The fraction of the test images that get a wrong class."""
    images, classes = test
    return float((model.predict(images, batch_size=500, verbose=0).argmax(-1) != classes).mean())
