"""A small MobileNetV2 on CIFAR-10, pruned and shipped: python -m recipes.mobilenet_cifar

Trains a network of inverted residuals, prunes the layers that LiteRT can run sparse to 80 and 90 %
with `ts.MagnitudePruning` in `model.fit`, exports each three ways (float32, int8 storage, dense
int8), and runs every file on all test images in LiteRT's interpreter. With `--arm FOLDER`, where
`tools/arm/setup` has built the emulator, also on the first 500 on emulated ARM. Nothing is chosen
by the test images. One run is one seed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

import tf_sparsity as ts
import tflite_export
from recipes.data import arrays
from recipes.reporting import results
from recipes.running import program, training

RECIPE = "mobilenet_cifar"

# Ours: no paper has this network. Blocks are (filters, stride, how many), as in Sandler et al.
# 2018, arXiv:1801.04381, Table 2, fewer and narrower; the first convolution has stride 2, which
# LiteRT's sparse inference asks for.
STEM, EXPANSION, HEAD = 32, 6, 512
BLOCKS = ((16, 1, 1), (24, 1, 2), (48, 2, 3), (96, 2, 2))
BATCH = 128
EPOCHS = 12  # of the dense training, and half as many for each pruning
RATE = 2e-3  # of Adam; falls to 0 linearly over each training
PRUNING = (0.0, 0.6)  # of a pruning's steps: the schedule begins and ends
SPARSITIES = (0.8, 0.9)
EXPORTS = {"float32": {}, "int8 storage": {"quantize": "int8_weights"},
           "dense int8": {"quantize": "int8", "sparse": False}}
CALIBRATION = 200  # training images that the activations of dense int8 are measured on
ARM_IMAGES = 500
ARM_TOOLS = Path(__file__).parent.parent / "tools" / "arm"


def network(classes=10):
    """Logits of 32 x 32 x 3 pictures."""

    def conv(x, filters, size, strides=1, activation=True):
        x = layers.Conv2D(filters, size, strides, "same", use_bias=False)(x)
        return activate(x, activation)

    def activate(x, activation=True):
        x = layers.BatchNormalization(momentum=0.95)(x)
        return layers.ReLU(6.0)(x) if activation else x

    image = keras.Input((32, 32, 3), name="image")
    x = conv(image, STEM, 3, 2)
    for filters, strides, count in BLOCKS:
        for number in range(count):
            y = conv(x, EXPANSION * x.shape[-1], 1)
            y = layers.DepthwiseConv2D(3, 1 if number else strides, "same", use_bias=False)(y)
            y = conv(activate(y), filters, 1, activation=False)
            x = layers.Add()([x, y]) if x.shape == y.shape else y
    x = layers.GlobalAveragePooling2D()(conv(x, HEAD, 1))
    return keras.Model(image, layers.Dense(classes, name="classes")(x), name="small_mobilenet")


def fit(model, train, test, epochs, seed, folder):
    """Trains in place, or goes on after a kill; returns the seconds."""
    batches = training.Batches(*train, BATCH, seed)
    steps = epochs * len(batches)
    rate = keras.optimizers.schedules.PolynomialDecay(RATE, steps, 0.0)
    model.compile(keras.optimizers.Adam(rate),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  metrics=["accuracy"])
    done = training.fit(model, batches, test, epochs=epochs, folder=folder).epochs
    return sum(entry["seconds"] for entry in done)


def pruned(dense, sparsity, select, train, test, epochs, seed, folder):
    """A sparse copy of the dense model, and the seconds of its training."""
    steps = epochs * -(-len(train[0]) // BATCH)
    begin, end = (round(share * steps) for share in PRUNING)
    schedule = ts.PolynomialDecay(0.0, sparsity, begin, end, frequency=min(100, max(1, end // 10)))
    model = ts.sparsify(dense, ts.MagnitudePruning(schedule), select=select)
    return model, fit(model, train, test, epochs, seed, folder)


def accuracy(logits, classes):
    return float(np.mean(np.argmax(logits, -1) == classes))


def on_arm(folder, tflite, images):
    """The logits of a file on emulated ARM."""
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        (work / "model.tflite").write_bytes(tflite)
        np.save(work / "images.npy", images)
        subprocess.run([ARM_TOOLS / "arm-python", folder, ARM_TOOLS / "classify.py",
                        work / "model.tflite", work / "images.npy", work / "logits.npy"],
                       check=True)
        return np.load(work / "logits.npy")


def exports(model, train, test, arm):
    """One dict for each way to export the model."""
    found = []
    images, classes = test
    for name, options in EXPORTS.items():
        if options.get("quantize") == "int8":
            options = options | {"representative_data": train[0][:CALIBRATION]}
        exported = tflite_export.convert(model, **options)
        logits = tflite_export.interpret(exported.tflite, images)
        entry = {"export": name, "bytes": len(exported.tflite),
                 "accuracy": accuracy(logits, classes), "report": exported.report.to_dict()}
        if arm is not None:
            logits_on_arm = on_arm(arm, exported.tflite, images[:ARM_IMAGES])
            here = logits[:len(logits_on_arm)]
            entry["arm"] = {
                "images": len(logits_on_arm),
                "accuracy": accuracy(logits_on_arm, classes[:len(logits_on_arm)]),
                "other_class": int(np.sum(np.argmax(logits_on_arm, -1) != np.argmax(here, -1))),
                "difference": float(np.abs(logits_on_arm - here).max())}
        print(f"  {name}: {entry['bytes']:,} bytes, accuracy {entry['accuracy']:.4f}", flush=True)
        found.append(entry)
    return found


def run(train, test, epochs, sparsities, seed, arm, folder):
    """A case for the dense model and one for each sparsity."""
    keras.utils.set_random_seed(seed)
    dense = network()
    cases = []

    def add(name, model, seconds):
        plain = ts.strip(model) if model is not dense else model
        report = ts.report(model)
        correct = accuracy(plain.predict(test[0], batch_size=500, verbose=0), test[1])
        print(f"{name}: sparsity {report.sparsity:.4f}, accuracy {correct:.4f}", flush=True)
        cases.append({"model": name, "sparsity": report.sparsity, "accuracy": correct,
                      "kernels": results.kernels(report), "seconds": round(seconds, 1),
                      "exports": exports(plain, train, test, arm)})

    add("dense", dense, fit(dense, train, test, epochs, seed, folder / "dense"))
    select = tflite_export.prunable(dense)
    for sparsity in sparsities:
        add(f"pruned to {sparsity:g}",
            *pruned(dense, sparsity, select, train, test, max(1, epochs // 2), seed,
                    folder / f"{sparsity:g}"))
    return cases


def settings(epochs, sparsities):
    return {"model": "small_mobilenet", "batch": BATCH, "epochs": epochs, "optimizer": "Adam",
            "rate": RATE, "pruning": list(PRUNING), "sparsities": list(sparsities)}


def table(runs):
    """A row for each model and export: ours ± sd, as Markdown."""
    groups = {}
    for result in runs:
        for case in result["cases"]:
            for entry in case["exports"]:
                groups.setdefault((case["model"], entry["export"]), []).append(
                    (result, case, entry))
    rows = []
    for (model, export), found in groups.items():
        some, cases, entries = zip(*found)
        arm = [entry["arm"] for entry in entries if "arm" in entry]
        rows.append([
            model, export, results.spread([case["sparsity"] for case in cases], ".3f"),
            results.spread([entry["bytes"] / 1000 for entry in entries], ".0f"),
            results.spread([100 * case["accuracy"] for case in cases]),
            results.spread([100 * entry["accuracy"] for entry in entries]),
            sum(entry["images"] for entry in arm) if arm else "",
            sum(entry["other_class"] for entry in arm) if arm else "",
            results.seeds(some)])
    return results.markdown(
        ["model", "export", "sparsity of the pruned kernels", "kB", "Keras' test accuracy %",
         "the file's %", "images on emulated ARM", "of another class there", "seeds"], rows)


def headlines(runs):
    """(what, paper, published, ours, its runs): the file of the sparsest network."""
    found = []
    for run in runs:
        case = run["cases"][-1]
        entry = case["exports"][list(EXPORTS).index("int8 storage")]
        found.append((case["model"], 100 * entry["accuracy"], entry["bytes"] / 1000))
    model, accuracies, kilobytes = zip(*found)
    yield ("a small MobileNetV2, exported", "none", "",
           f"{model[0]}, int8 storage: {results.spread(accuracies)} % of the test images, "
           f"{results.spread(kilobytes, '.0f')} kB", runs)


def differences(result):
    yield "There is no published number for this network."
    yield from results.shortened(result, EPOCHS)


def load(args):
    """`train, test, name`: pixels in [-1, 1]."""
    train, test, name = arrays.asked(args, "cifar10")
    return *((2 * x - 1, y) for x, y in (train, test)), name


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = results.parser(RECIPE, __doc__, EPOCHS)
    parser.add_argument("--arm", type=Path, default=None, metavar="FOLDER",
                        help="where tools/arm/setup has built the emulator")
    args = parser.parse_args(argv)
    train, test, name = load(args)
    epochs, sparsities = (args.epochs or (1 if args.smoke else EPOCHS),
                          SPARSITIES[:1] if args.smoke else SPARSITIES)
    result = results.common(RECIPE, argv, name, args.seed, settings(epochs, sparsities))
    with results.unfinished(result, args) as folder:
        result["cases"] = run(train, test, epochs, sparsities, args.seed, args.arm, folder)
        result["seconds"] = round(sum(case["seconds"] for case in result["cases"]), 1)
        results.finish(result, args, f"{RECIPE}_{epochs}epochs", differences)
    return 0


if __name__ == "__main__":
    sys.exit(program.status(main))
