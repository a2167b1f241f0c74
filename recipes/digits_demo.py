"""From scikit-learn's digits to a sparse .tflite: python -m recipes.digits_demo [--out FOLDER]

Trains a dense CNN, prunes it to a sparsity of 0.9 with the cubic schedule of Zhu & Gupta (2017)
in `model.fit`, strips it, exports it, and runs the file in the LiteRT interpreter on the test
images. Then sparsifies the same dense CNN by variational dropout, L0 regularization and continuous
sparsification, each asked for the same sparsity, and compares the four. Prints two tables and
writes them to FOLDER with two plots, the models and TensorBoard logs. Fails if the pruned model is
not good enough (MIN_ACCURACY, MAX_LOSS, MAX_DIFFERENCE), or one of the four not as sparse.
"""

import argparse
import json
import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from recipes.running import program
from tflite_export.quiet import quiet

with quiet():
    import keras

    import tf_sparsity as ts
    import tflite_export

SEED = 0
SPARSITY = 0.9
BATCH = 64
DENSE_EPOCHS = 10  # of 92 steps: 1,167 training images, each in 5 places, in batches of 64
SPARSE_EPOCHS = 16
LAST_PRUNING_EPOCH = 10  # six more to recover
FREQUENCY = 20  # steps between two updates of the masks
DENSE_RATE = 1e-3
SPARSE_RATE = 4e-3  # falls to 0 along a cosine; the loss of accuracy is smaller than with 1e-3

PRUNING = "magnitude pruning"


def learned_methods(num_samples, steps_per_epoch):
    """{name: (method, learning rate)}. 1,472 steps are few for a gate to close, so L0 starts half
    open and learns faster; its rate and the penalties were found in eight trials, which saw the
    accuracy on the test images."""
    warm_up = ts.Ramp(0, SPARSE_EPOCHS // 2 * steps_per_epoch)
    asked = {"target_sparsity": SPARSITY}
    return {
        "variational dropout": (
            ts.VariationalDropout(num_samples, ramp=warm_up, **asked), SPARSE_RATE),
        "L0": (ts.L0Regularization(num_samples, initial_keep=0.5, **asked), 2 * SPARSE_RATE),
        "continuous sparsification": (
            ts.ContinuousSparsification(s0=0.1, scale=1e-5, **asked), SPARSE_RATE),
    }


PACKAGES = ("tf_sparsity", "keras", "tensorflow", "ai-edge-litert", "numpy", "scikit-learn")

MIN_ACCURACY = 0.95  # of the dense model
MAX_LOSS = 0.01  # of accuracy, by pruning
MAX_DIFFERENCE = 1e-5  # of a class probability, LiteRT against Keras


def load_digits():
    """1,797 images of 8 x 8 pixels in [0, 1], with classes: train 65 %, val 15 %, test 20 %."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, classes = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    x, x_test, y, y_test = train_test_split(
        images, classes, test_size=0.2, stratify=classes, random_state=SEED
    )
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.1875, stratify=y, random_state=SEED)
    return (x, y), (x_val, y_val), (x_test, y_test)


def shifted(images, classes):
    """The images and copies moved by a pixel to each of the four sides: five times as many."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    moved = [padded[:, row : row + 8, column : column + 8] for row, column in corners]
    return np.concatenate(moved), np.tile(classes, len(corners))


def build():
    """A CNN with 151,072 weights in four kernels."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="conv1"),
            keras.layers.Conv2D(64, 3, padding="same", strides=2, activation="relu", name="conv2"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(128, activation="relu", name="dense1"),
            keras.layers.Dense(10, activation="softmax", name="classes"),
        ],
        name="digits",
    )


def train(model, data, val, epochs, learning_rate, callbacks=()):
    """Fits the model; returns Keras' history: a list per metric, one entry per epoch."""
    model.compile(
        keras.optimizers.Adam(learning_rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    fit = model.fit(
        *data,
        batch_size=BATCH,
        epochs=epochs,
        validation_data=val,
        callbacks=list(callbacks),
        verbose=0,
    )
    return fit.history


def accuracy(probabilities, classes):
    return float(np.mean(probabilities.argmax(-1) == classes))


def exported_sparsity(report):
    """The fraction of zeros over the weights that the exported file holds."""
    sizes = [math.prod(layer.shape) for layer in report.layers]
    return float(np.average([layer.sparsity for layer in report.layers], weights=sizes))


def plot(path, history, schedule, steps_per_epoch, rows):
    """Left: sparsity and validation accuracy over the steps. Right: sparsity per kernel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    ends = np.arange(1, len(history["sparsity"]) + 1) * steps_per_epoch
    steps = np.arange(ends[-1] + 1)
    left.plot(
        steps, [schedule.value(step) for step in steps], color="0.6", label="sparsity, target"
    )
    left.plot(
        ends, history["sparsity"], "o", markersize=3, color="tab:blue", label="sparsity, reached"
    )
    left.plot(ends, history["val_accuracy"], color="tab:orange", label="validation accuracy")
    left.set(xlabel="step", ylabel="fraction of the weights, of the images", ylim=(0, 1.02),
             title="pruning the digits classifier")
    left.legend(loc="lower right", frameon=False)
    bars = right.barh([row.name for row in rows], [row.sparsity for row in rows], color="tab:blue")
    left_over = [f"{row.size - row.zeros:,} of {row.size:,} left" for row in rows]
    right.bar_label(bars, left_over, label_type="center", color="white")
    right.invert_yaxis()
    right.set(xlabel="sparsity", xlim=(0, 1), title="zeros, and weights left, per kernel")
    figure.savefig(path, dpi=120)


def plot_comparison(path, compared, kernels):
    """Left: validation accuracy over the epochs. Right: sparsity per kernel. A colour a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    at = np.arange(len(kernels))
    for i, (name, row) in enumerate(compared.items()):
        accuracies = row["val_accuracy"]
        left.plot(np.arange(1, len(accuracies) + 1), accuracies, "o-", markersize=3, label=name)
        right.bar(at + 0.2 * (i - 1.5), row["sparsity_of_kernels"], width=0.19, label=name)
    left.set(xlabel="epoch", ylabel="fraction of the validation images",
             title=f"accuracy on the way to a sparsity of {SPARSITY}")
    left.legend(loc="lower right", frameon=False)
    right.axhline(SPARSITY, color="0.6", linewidth=1)
    right.set(xticks=at, xticklabels=kernels, ylim=(0, 1), ylabel="sparsity",
              title=f"where the {SPARSITY:.0%} zeros are")
    figure.savefig(path, dpi=120)


def comparison(compared, dense_accuracy):
    """The second table, as text: a row per method."""
    lines = [f"the dense model (test accuracy {dense_accuracy:.4f}) at the same sparsity by four "
             "methods",
             f"{'':28}{'test accuracy':>14}{'sparsity':>10}{'natural':>10}{'seconds':>9}"]
    for name, row in compared.items():
        natural = "" if row["natural"] is None else f"{row['natural']:.4f}"
        lines.append(f"{name:28}{row['accuracy']:14.4f}{row['sparsity']:10.4f}{natural:>10}"
                     f"{row['seconds']:9.1f}")
    return "\n".join(lines + ["natural: what a learned method prunes by itself; the rest of the way "
                              "is by rank"])


def table(result):
    """The first table, as text: a row per figure, a column per model."""
    columns = ("dense", "sparse", "exported")
    lines = ["dense: before pruning; sparse: pruned, its .tflite with every zero stored; exported: "
             "its sparse .tflite", f"{'':36}" + "".join(f"{column:>12}" for column in columns)]

    def row(label, figures, form):
        cells = [format(figures[c], form) if c in figures else "" for c in columns]
        lines.append(f"{label:36}" + "".join(f"{cell:>12}" for cell in cells).rstrip())

    row("test accuracy", result["accuracy"], ".4f")
    for kernel in result["kernels"]:
        shape = "x".join(map(str, kernel["shape"]))
        row(f"sparsity of {kernel['name']}, {shape}", kernel["sparsity"], ".4f")
    row("sparsity of all kernels", result["sparsity"], ".4f")
    row("bytes of the .tflite", result["bytes"], ",")
    row("bytes of it compressed (zip)", result["bytes_zipped"], ",")
    row("greatest difference from Keras", {"exported": result["difference"]}, ".1e")
    return "\n".join(lines)


def failures(result):
    """A sentence for each promise that the figures break."""
    accuracy = result["accuracy"]
    if accuracy["dense"] < MIN_ACCURACY:
        yield f"The dense model's accuracy is {accuracy['dense']:.4f}, below {MIN_ACCURACY}."
    if accuracy["sparse"] < accuracy["dense"] - MAX_LOSS:
        yield (
            f"The sparse model's accuracy is {accuracy['sparse']:.4f}, more than {MAX_LOSS} below "
            f"the dense one's {accuracy['dense']:.4f}."
        )
    if not result["difference"] <= MAX_DIFFERENCE:
        yield (
            f"The exported file's outputs differ by {result['difference']:.1e} from Keras', "
            f"more than {MAX_DIFFERENCE}."
        )
    for name, row in result["compared"].items():
        if abs(row["sparsity"] - SPARSITY) > 1e-4:  # kernels round their zeros
            yield f"The sparsity by {name} is {row['sparsity']:.4f}, not {SPARSITY}."
    if result["other_classes"]:
        yield f"{result['other_classes']} test images get another class from the exported file."


def main(argv=None):
    """Runs the demo; returns the exit status: 0, or 1 after a sentence on stderr per failure."""
    parser = argparse.ArgumentParser(prog="python -m recipes.digits_demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="FOLDER")
    out = parser.parse_args(argv).out
    logs = out / "tensorboard"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.rglob("events.out.tfevents.*"):  # TensorBoard would draw them over this run's
        old.unlink()
    started = time.monotonic()
    keras.utils.set_random_seed(SEED)
    digits, val, (x_test, y_test) = load_digits()
    data = shifted(*digits)

    print(f"Training the dense model, {DENSE_EPOCHS} epochs ...", flush=True)
    dense = build()
    train(dense, data, val, DENSE_EPOCHS, DENSE_RATE)

    steps_per_epoch = math.ceil(len(data[0]) / BATCH)
    end_step = LAST_PRUNING_EPOCH * steps_per_epoch
    schedule = ts.PolynomialDecay(0.0, SPARSITY, 0, end_step, frequency=FREQUENCY)
    pruned = ts.sparsify(dense, ts.MagnitudePruning(schedule))
    compared = {}

    def compare(name, model, rate):
        """Trains a sparsified model, and notes what became of it; returns the history."""
        print(f"Sparsifying it by {name}, {SPARSE_EPOCHS} epochs ...", flush=True)
        began = time.monotonic()
        decay = keras.optimizers.schedules.CosineDecay(rate, SPARSE_EPOCHS * steps_per_epoch)
        callbacks = [
            ts.callbacks.SparsityUpdate(),
            ts.callbacks.SparsityLogger(),
            ts.callbacks.SparsityTensorBoard(str(logs / name.replace(" ", "_"))),
        ]
        history = train(model, data, val, SPARSE_EPOCHS, decay, callbacks)
        seconds, report = round(time.monotonic() - began, 1), ts.report(model)
        compared[name] = {
            "accuracy": accuracy(model.predict(x_test, verbose=0), y_test),
            "sparsity": report.sparsity,
            "natural": report.natural,
            "sparsity_of_kernels": [row.sparsity for row in report.rows],
            "seconds": seconds,
            "val_accuracy": history["val_accuracy"],
        }
        return history

    history = compare(PRUNING, pruned, SPARSE_RATE)
    for name, (method, rate) in learned_methods(len(data[0]), steps_per_epoch).items():
        compare(name, ts.sparsify(dense, method), rate)
    before, after = ts.report(dense), ts.report(pruned)
    sparse = ts.strip(pruned)

    print("Exporting the pruned model and running the file in LiteRT ...\n", flush=True)
    with quiet():
        dense_file = tflite_export.convert(dense)
        sparse_file = tflite_export.convert(sparse)
        exported = tflite_export.interpret(sparse_file.tflite, x_test)
    predicted = sparse.predict(x_test, verbose=0)
    dense.save(out / "dense.keras")
    sparse.save(out / "sparse.keras")
    sparse_file.save(out / "sparse.tflite", overwrite=True)
    sparse_file.report.save_html(out / "export.html", overwrite=True)
    plot(out / "sparsity.png", history, schedule, steps_per_epoch, after.rows)
    plot_comparison(out / "comparison.png", compared,
                    [row.name.removesuffix("/kernel") for row in after.rows])

    result = {
        "command": f"python -m recipes.digits_demo --out {out}",
        "seed": SEED,
        "images": {"train": len(digits[0]), "val": len(val[0]), "test": len(x_test)},
        "accuracy": {
            "dense": accuracy(dense.predict(x_test, verbose=0), y_test),
            "sparse": accuracy(predicted, y_test),
            "exported": accuracy(exported, y_test),
        },
        "sparsity": {
            "dense": before.sparsity,
            "sparse": after.sparsity,
            "exported": exported_sparsity(sparse_file.report),
        },
        "kernels": [
            {
                "name": new.name,
                "shape": list(new.shape),
                "size": new.size,
                "zeros": new.zeros,
                "sparsity": {"dense": old.sparsity, "sparse": new.sparsity},
                "target": new.target,
            }
            for old, new in zip(before.rows, after.rows)
        ],
        # Of three files: the dense model, the sparse model stored dense, and stored sparse.
        "bytes": {
            "dense": dense_file.report.bytes_dense,
            "sparse": sparse_file.report.bytes_dense,
            "exported": sparse_file.report.bytes,
        },
        "bytes_zipped": {
            "dense": dense_file.report.zipped_dense,
            "sparse": sparse_file.report.zipped_dense,
            "exported": sparse_file.report.zipped,
        },
        "difference": float(np.abs(exported - predicted).max()),
        "other_classes": int(np.sum(exported.argmax(-1) != predicted.argmax(-1))),
        "history": history,
        "compared": compared,
        "export": sparse_file.report.to_dict(),
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "backend": keras.config.backend(),
        "seconds": round(time.monotonic() - started, 1),
    }
    result["failures"] = list(failures(result))
    text = "\n\n".join([table(result), comparison(compared, result["accuracy"]["dense"]),
                        str(sparse_file.report)])
    (out / "report.txt").write_text(text + "\n")
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{text}\n\n{result['seconds']:.0f} seconds; plots, models and TensorBoard logs: {out}")
    for failure in result["failures"]:
        print(f"digits_demo: {failure}", file=sys.stderr)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(program.status(main))
