"""L0 regularization with gates on units, on MNIST: python -m recipes.l0_mnist [--model lenet5]

Trains LeNet-300-100 or LeNet-5-Caffe with `ts.L0Regularization`, one gate for each input unit of a
dense layer and each output channel of a convolution, and says which units are left (784-300-100 and
20-50-800-500 before) at which test error. Nothing is chosen by the test images.
"""

import sys

import keras
import numpy as np

import tf_sparsity as ts
from recipes.data import arrays
from recipes.networks import lenet
from recipes.reporting import results
from recipes.running import program

RECIPE = "l0_mnist"

# The authors' repository, AMLab-Amsterdam/L0_regularization: train_lenet5.py, models.py. It has no
# script for LeNet-300-100; models.py has its initial values, and its decay times N.
BATCH = 100
EPOCHS = 200
RATE = 1e-3  # of Adam, constant
# Of the weights of all steps, to evaluate with: the default of models.py for LeNet-300-100.
# train_lenet5.py has the option and does not pass it on; Tang et al. 2018, who say that they follow
# the paper, average.
AVERAGE = 0.999
DECAY = 5e-4  # train_lenet5.py
# lambda; 1 in train_lenet5.py. 0.1 is ours, and leaves LeNet-5-Caffe the units of the paper's.
SCALE = {"lenet300": 0.1, "lenet5": 1.0}
INITIAL_KEEP = {"lenet300": {"dense1": 0.8}, "lenet5": {}}  # 0.5 elsewhere
GROUPS = {
    "lenet300": {"dense1": "in", "dense2": "in", "classes": "in"},
    "lenet5": {"conv1": "out", "conv2": "out", "dense1": "in", "classes": "in"},
}

# The units left and the test error of Louizos, Welling and Kingma 2018 (arXiv:1712.01312), as other
# papers repeat them; the authors' repository has no results. LeNet-300-100: table 2 of Evci et al.
# 2020 (arXiv:1911.11134). LeNet-5-Caffe: table 1 of Tang, Adhikari and Lin 2018 (arXiv:1811.03060),
# the second being "sep", a lambda for each layer. They do not repeat lambda.
PUBLISHED = {
    "lenet300": (("266-88-33", 0.016, "Evci et al. 2020"),),
    "lenet5": (("20-25-45-462", 0.009, "Tang et al. 2018"),
               ("9-18-65-25", 0.010, "Tang et al. 2018")),
}
# Before pruning
SIZES = {"lenet300": 266_200, "lenet5": 430_500}
NAMES = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5-Caffe"}

SMOKE_EPOCHS = 2


def usual_l2(model_name, num_samples):
    """The authors multiply the decay of LeNet-300-100 by the number of examples, for which their
    penalty is divided by it, and not that of LeNet-5-Caffe."""
    return DECAY * num_samples if model_name == "lenet300" else DECAY


def sparse(model_name, num_samples, scale, l2):
    """The network with its gates."""
    model = lenet.MODELS[model_name]()
    for layer, group in GROUPS[model_name].items():
        keep = INITIAL_KEEP[model_name].get(layer, 0.5)
        method = ts.L0Regularization(num_samples, scale=scale, group=group, initial_keep=keep,
                                     l2=l2)
        model = ts.sparsify(model, method, select=f"^{layer}/")
    return model


def units(model_name, model):
    """For each layer, which of its gated units are left, as booleans."""
    plain = ts.strip(model)
    return {layer: np.asarray(plain.get_layer(layer).kernel).any(
                axis=1 if group == "in" else (0, 1, 2))
            for layer, group in GROUPS[model_name].items()}


def weights_left(model_name, left):
    """Weights between units that are left: what a network without the others has."""
    counts = [int(mask.sum()) for mask in left.values()]
    if model_name == "lenet5":  # inputs of the dense layer whose channel is gone are gone as well
        inputs = left["dense1"].reshape(-1, len(left["conv2"]))[:, left["conv2"]]
        counts[2] = int(inputs.sum())
    return weights_between(model_name, counts)


def weights_between(model_name, counts):
    """The weights of a network with so many units in its layers, as in `PUBLISHED`."""
    if model_name == "lenet300":
        inputs, first, second = counts
        return inputs * first + first * second + second * 10
    first, second, inputs, hidden = counts
    return 25 * first + 25 * first * second + inputs * hidden + hidden * 10


def _published(model_name, left):
    """`10.0x`: the compression of a network written `266-88-33`."""
    weights = weights_between(model_name, [int(count) for count in left.split("-")])
    return f"{SIZES[model_name] / weights:.1f}x"


def run(model_name, train, test, epochs, seed, scale, l2, folder):
    """Trains once; returns what is specific to this recipe in a result."""
    keras.utils.set_random_seed(seed)
    model = sparse(model_name, len(train[0]), scale, l2)
    optimizer = keras.optimizers.Adam(RATE, use_ema=True, ema_momentum=AVERAGE)
    history, seconds = lenet.train(model, train, test, epochs=epochs, batch=BATCH, seed=seed,
                                   optimizer=optimizer, folder=folder)
    report = ts.report(model)
    left = units(model_name, model)
    weights = weights_left(model_name, left)
    return {
        "model": model_name,
        "error": lenet.error(model, test),
        "architecture": "-".join(str(int(mask.sum())) for mask in left.values()),
        "weights_left": weights,
        "compression": report.total("size") / weights if weights else None,
        "sparsity": report.sparsity,
        "kernels": results.kernels(report),
        "seconds": seconds,
        "history": history,
    }


def settings(model_name, epochs, scale, l2):
    return {"batch": BATCH, "epochs": epochs, "optimizer": "Adam", "rate": RATE,
            "average": AVERAGE, "scale": scale, "l2": l2, "groups": GROUPS[model_name],
            "initial_keep": {"": 0.5, **INITIAL_KEEP[model_name]}}


def table(runs):
    """Published | ours ± sd, as Markdown; per cent for errors."""
    kinds = {}
    for run in runs:
        key = run["model"], *(run["settings"][name] for name in ("scale", "l2", "epochs"))
        kinds.setdefault(key, []).append(run)
    rows = []
    for (model, scale, decay, epochs), ours in sorted(kinds.items()):
        rows.append([
            NAMES[model], f"{scale:g}/N", f"{decay:g}/N",
            "; ".join(f"{left} ({paper})" for left, _, paper in PUBLISHED[model]),
            "; ".join(f"{100 * error:.1f}" for _, error, _ in PUBLISHED[model]),
            "; ".join(_published(model, left) for left, _, _ in PUBLISHED[model]),
            ", ".join(run["architecture"] for run in ours),
            results.spread(100 * run["error"] for run in ours),
            results.spread([run["compression"] for run in ours], ".1f") + "x", epochs,
            results.seeds(ours)])
    return results.markdown(
        ["network", "lambda", "L2", "published: units left (as repeated by)", "error %",
         "compression", "ours: units left", "error %", "compression", "epochs", "seeds"], rows)


def headlines(runs):
    """(what, paper, published, ours, its runs) of each network and lambda: the longest runs, of
    those the ones with the most L2."""
    for model, name in NAMES.items():
        of_model = [run for run in runs if run["model"] == model]

        def longest(run):
            return run["settings"]["epochs"], run["settings"]["l2"]

        most = max(map(longest, of_model), default=None)
        by_lambda = {}
        for run in of_model:
            if longest(run) == most:
                by_lambda.setdefault(run["settings"]["scale"], []).append(run)
        for scale, used in sorted(by_lambda.items()):
            yield (f"L0, {name}, lambda {scale:g}/N", "Louizos et al. 2018",
                   "; ".join(f"{left} at {100 * error:.1f} % (as {paper} repeat it)"
                             for left, error, paper in PUBLISHED[model]),
                   ", ".join(run["architecture"] for run in used) + " at "
                   + results.spread(100 * run["error"] for run in used) + f" %, {most[0]} epochs",
                   used)


def differences(result):
    """Sentences: where the numbers differ from the published ones, and the likely reason."""
    for left, error, paper in PUBLISHED[result["model"]]:
        yield (f"units left: {result['architecture']} ({paper} repeat: {left}), error "
               f"{100 * result['error']:.2f} % ({100 * error:.1f} %)")
    yield WHY
    yield from results.shortened(result, EPOCHS)


WHY = (
    "Likely reasons: lambda, which the papers that repeat the numbers do not say, and which may be "
    "another one for each layer; Keras' initial weights, not He's; biases have no gate and no "
    "decay; the published error may be the best of all epochs, as the authors' script prints it, "
    "and ours is that of the last."
)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = results.parser(RECIPE, __doc__, EPOCHS)
    parser.add_argument("--model", choices=list(NAMES), default="lenet300")
    parser.add_argument("--scale", type=float, default=None, help=f"lambda; by default {SCALE}")
    parser.add_argument("--l2", type=float, default=None,
                        help="times N; by default 0.0005 N of LeNet-300-100, 0.0005 of LeNet-5-"
                             "Caffe, the authors'")
    args = parser.parse_args(argv)
    train, test, name = arrays.asked(args)
    epochs = args.epochs or (SMOKE_EPOCHS if args.smoke else EPOCHS)
    scale = SCALE[args.model] if args.scale is None else args.scale
    l2 = usual_l2(args.model, len(train[0])) if args.l2 is None else args.l2
    stem = f"{RECIPE}_{args.model}_scale{scale:g}" + (f"_l2-{l2:g}" if args.l2 is not None else "")
    result = results.common(RECIPE, argv, name, args.seed, settings(args.model, epochs, scale, l2))
    with results.unfinished(result, args) as folder:
        result |= run(args.model, train, test, epochs, args.seed, scale, l2, folder)
        results.finish(result, args, f"{stem}_{epochs}epochs", differences)
    return 0


if __name__ == "__main__":
    sys.exit(program.status(main))
