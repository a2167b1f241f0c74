"""Sparse variational dropout on MNIST: python -m recipes.variational_dropout_mnist [--model lenet5]

Trains LeNet-300-100 or LeNet-5-Caffe with `ts.VariationalDropout` and says how many weights are
left at which test error, for the authors' threshold and for two others that Gale et al. tried.
Nothing is chosen by the test images.
"""

import statistics
import sys

import keras

import tf_sparsity as ts
from recipes.data import arrays
from recipes.networks import lenet
from recipes.reporting import results
from recipes.running import program

RECIPE = "variational_dropout_mnist"

# The authors' repository, bayesgroup/variational-dropout-sparsifies-dnn: experiments/lenet/*.py,
# nets/layers.py and nets/optpolicy.py.
BATCH = 100
EPOCHS = 200
RATE = 1e-3  # of Adam
WARM_UP = (5 / 200, 20 / 200)  # of the run: the KL's coefficient rises linearly from 0 to 1
THRESHOLD = 3.0
LOG_SIGMA2 = -10.0
TRAIN_CLIP = True  # the authors; Gale et al. do not

# Thresholds of Gale, Elsen and Hooker 2019 (arXiv:1902.09574) on these networks. Any can be tried
# on a trained model.
THRESHOLDS = {"lenet300": (3.0, 2.0, 0.1), "lenet5": (3.0, 2.0)}

# Test error, sparsity of each kernel, compression. "paper": the table in the authors' README.
# "Gale et al.": their TensorFlow code, by threshold; the compression is 1 / (1 - sparsity).
PUBLISHED = {
    ("lenet300", 3.0): {
        "paper": (0.0192, (0.989, 0.972, 0.620), 68),
        "Gale et al.": (0.0158, None, 1 / (1 - 0.9752)),
    },
    ("lenet300", 2.0): {"Gale et al.": (0.0160, None, 1 / (1 - 0.9850))},
    ("lenet300", 0.1): {"Gale et al.": (0.0187, None, 1 / (1 - 0.9910))},
    ("lenet5", 3.0): {
        "paper": (0.0075, (0.67, 0.98, 0.998, 0.95), 280),
        "Gale et al.": (0.0074, None, 1 / (1 - 0.9929)),
    },
    ("lenet5", 2.0): {"Gale et al.": (0.0075, None, 1 / (1 - 0.9950))},
}
NAMES = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5-Caffe"}

SMOKE_EPOCHS = 2


def rate(model, epochs):
    """The learning rate of an epoch: to 0 linearly, for LeNet-300-100 in the second half only."""
    flat = 0.5 if model == "lenet300" else 0.0
    return lambda epoch: RATE * min(1.0, (1 - epoch / epochs) / (1 - flat))


def method(num_samples, steps, warm_up, train_clip, threshold=THRESHOLD):
    ramp = ts.Ramp(*(round(share * steps) for share in warm_up))
    return ts.VariationalDropout(num_samples, ramp=ramp, threshold=threshold,
                                 initial_log_sigma2=LOG_SIGMA2, train_clip=train_clip)


def run(model_name, train, test, epochs, seed, warm_up, train_clip, folder):
    """Trains once; returns what is specific to this recipe in a result."""
    keras.utils.set_random_seed(seed)
    steps = epochs * -(-len(train[0]) // BATCH)
    model = ts.sparsify(lenet.MODELS[model_name](),
                        method(len(train[0]), steps, warm_up, train_clip))
    history, seconds = lenet.train(
        model, train, test, epochs=epochs, batch=BATCH, seed=seed, folder=folder,
        optimizer=keras.optimizers.Adam(RATE), rate=rate(model_name, epochs))
    evaluated = []
    for threshold in THRESHOLDS[model_name]:
        other = ts.sparsify(lenet.MODELS[model_name](),
                            method(len(train[0]), steps, warm_up, train_clip, threshold))
        other.set_weights(model.get_weights())
        report = ts.report(other)
        evaluated.append({
            "threshold": threshold,
            "error": lenet.error(other, test),
            "sparsity": report.sparsity,
            "compression": results.compression(report),
            "kernels": results.kernels(report),
        })
    return {"model": model_name, "thresholds": evaluated, "seconds": seconds, "history": history}


def settings(epochs, warm_up, train_clip):
    return {"batch": BATCH, "epochs": epochs, "optimizer": "Adam", "rate": RATE,
            "warm_up": list(warm_up), "threshold": THRESHOLD, "initial_log_sigma2": LOG_SIGMA2,
            "train_clip": train_clip}


def table(runs):
    """Published | ours ± sd, as Markdown; per cent for errors, weights over weights left."""
    rows = []
    for (model, threshold), sources in PUBLISHED.items():
        published = [_published(sources.get(name)) for name in ("paper", "Gale et al.")]
        layers = sources["paper"][1] if "paper" in sources else ()
        groups = {}
        for run in runs:
            if run["model"] == model:
                clip = "yes" if run["settings"].get("train_clip", False) else "no"
                epochs = run["settings"]["epochs"]
                warm_up = " to ".join(f"{share * epochs:g}" for share in run["settings"]["warm_up"])
                groups.setdefault((epochs, clip, warm_up), []).append(run)
        for (epochs, clip, warm_up), chosen in sorted(groups.items()) or [(("", "", ""), [])]:
            rows.append([NAMES[model], threshold, *published[0], _layers(layers), *published[1],
                         *_ours(chosen, threshold), clip, warm_up, epochs, results.seeds(chosen)])
    return results.markdown(
        ["network", "threshold", "paper: error %", "compression", "sparsity of the layers %",
         "Gale et al.: error %", "compression", "ours: error %", "compression",
         "sparsity of the layers %", "means clipped", "warm-up, epochs", "epochs", "seeds"], rows)


def _layers(sparsities):
    return " - ".join(f"{100 * sparsity:.1f}" for sparsity in sparsities)


def _ours(runs, threshold):
    ours = [e for run in runs for e in run["thresholds"] if e["threshold"] == threshold]
    if not ours:
        return ["", "", ""]
    layers = zip(*([kernel["sparsity"] for kernel in e["kernels"]] for e in ours))
    return [results.spread(100 * e["error"] for e in ours),
            results.spread([e["compression"] for e in ours], ".0f") + "x",
            _layers(statistics.fmean(layer) for layer in layers)]


def _published(entry):
    return ["", ""] if entry is None else [f"{100 * entry[0]:.2f}", f"{entry[2]:.0f}x"]


def headlines(runs):
    """(what, paper, published, ours, its runs) of each network: the longest runs at the authors'
    threshold, trained as they train."""
    for model, name in NAMES.items():
        of_model = [run for run in runs if run["model"] == model]
        if not of_model:
            continue
        order = [(run["settings"]["epochs"], run["settings"].get("train_clip", False),
                  tuple(run["settings"]["warm_up"]) == WARM_UP) for run in of_model]
        used = [run for run, place in zip(of_model, order) if place == max(order)]
        published = "; ".join(
            f"{source}: {compression:.0f}x at {100 * error:.2f} %"
            for source, (error, _, compression) in PUBLISHED[model, THRESHOLD].items())
        error, compression, _ = _ours(used, THRESHOLD)
        yield (f"sparse variational dropout, {name}", "Molchanov et al. 2017", published,
               f"{compression} at {error} %, {max(order)[0]} epochs", used)


def differences(result):
    """Sentences: where the numbers differ from the published ones, and the likely reason."""
    for ours in result["thresholds"]:
        sources = PUBLISHED[result["model"], ours["threshold"]]
        for source, (error, _, compression) in sources.items():
            yield (f"threshold {ours['threshold']}: error {100 * ours['error']:.2f} % "
                   f"({source}: {100 * error:.2f} %), compression {ours['compression']:.0f}x "
                   f"({source}: {compression:.0f}x)")
    yield CLIPPED if result["settings"]["train_clip"] else FREE
    yield from results.shortened(result, EPOCHS)


FREE = (
    "Likely reasons: the authors zero the mean of a weight above the threshold in training too; "
    "here, as in Gale et al., training knows no threshold, and many pruned weights settle between "
    "0.1 and 3."
)
CLIPPED = (
    "Likely reasons: the initial weights (Keras' Glorot uniform; the authors' framework has its "
    "own), and one seed of theirs. Gale et al. do not zero the means of pruned weights in training."
)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = results.parser(RECIPE, __doc__, EPOCHS)
    parser.add_argument("--model", choices=list(NAMES), default="lenet300")
    parser.add_argument("--train-clip", choices=("yes", "no"),
                        default="yes" if TRAIN_CLIP else "no",
                        help="zero the means of pruned weights in training too, as the authors do")
    parser.add_argument("--warm-up", type=float, nargs=2, default=WARM_UP, metavar=("FROM", "TO"),
                        help="the shares of the run between which the coefficient of the KL rises "
                             "from 0 to 1")
    args = parser.parse_args(argv)
    begin, end = args.warm_up
    if not 0 <= begin < end <= 1:
        parser.error(f"--warm-up takes two shares of the run, 0 <= FROM < TO <= 1. Received: "
                     f"{begin:g} {end:g}")
    clip = args.train_clip == "yes"
    train, test, name = arrays.asked(args)
    epochs = args.epochs or (SMOKE_EPOCHS if args.smoke else EPOCHS)
    result = results.common(RECIPE, argv, name, args.seed, settings(epochs, args.warm_up, clip))
    other = "" if tuple(args.warm_up) == WARM_UP else "_warmup{:g}-{:g}".format(*args.warm_up)
    clipped = "_clipped" if clip else ""
    with results.unfinished(result, args) as folder:
        result |= run(args.model, train, test, epochs, args.seed, args.warm_up, clip, folder)
        results.finish(result, args, f"{RECIPE}_{args.model}{clipped}{other}_{epochs}epochs",
                       differences)
    return 0


if __name__ == "__main__":
    sys.exit(program.status(main))
