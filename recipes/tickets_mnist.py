"""Lottery tickets of LeNet-300-100 on MNIST: python -m recipes.tickets_mnist

Tickets by continuous sparsification (`ts.TicketSearch`, several s0 from one rewind point), tickets
by iterative magnitude pruning with late rewinding (every round is a point of its curve), and
gradual magnitude pruning within one training: test accuracy over the weights that are left. All
trainings are equally long. Nothing is chosen by the test images. One run is one seed; the plot
shows all results in the folder.
"""

import statistics
import sys
import time
from pathlib import Path

import keras

import tf_sparsity as ts
from recipes import data, lenet, results

RECIPE = "tickets_mnist"

# The optimizer, its steps in the learning rate, rounds, final beta and lambda are those of the
# authors of continuous sparsification (lolemacs/continuous-sparsification: main.py), who train
# ResNets for 85 epochs of CIFAR-10; the share of a round is that of Frankle and Carbin 2019.
EPOCHS = 10
BATCH = 100
RATE = 0.1  # of SGD with Nesterov's momentum
MOMENTUM = 0.9
FALLS = (56 / 85, 71 / 85)  # of the run: the rate falls to a tenth
REWIND = 2 / 85  # of the run: the authors rewind to epoch 2
S0 = (-0.1, -0.05, -0.02, -0.01, -0.005, 0.0, 0.005)  # by the weights left in a trial of 4 epochs
ROUNDS = 3
SHARE, PRUNING_ROUNDS = 0.2, 20  # 0.8^20: 1.15 % are left
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)  # of gradual pruning
PRUNING = (0.1, 0.7)  # of the run: gradual pruning begins and ends

SMOKE_EPOCHS = 2
SMOKE = {"s0": (0.02,), "rounds": 2, "pruning_rounds": 2, "sparsities": (0.8,)}

CS, IMP, GMP = "continuous sparsification", "iterative pruning", "gradual pruning"


class Count(keras.callbacks.Callback):
    """Zeros of each kernel after each training, and how long it took."""

    def __init__(self):
        super().__init__()
        self.kernels, self.seconds = [], []

    def on_train_begin(self, logs=None):
        self.started = time.monotonic()

    def on_train_end(self, logs=None):
        self.seconds.append(time.monotonic() - self.started)
        self.kernels.append(results.kernels(ts.report(self.model)))


def compiler(steps):
    """The function that compiles a model for a training of so many steps."""

    def compile(model):
        falls = [round(share * steps) for share in FALLS]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            falls, [RATE, RATE / 10, RATE / 100])
        model.compile(keras.optimizers.SGD(rate, momentum=MOMENTUM, nesterov=True),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=["accuracy"])

    return compile


def case(method, setting, history, kernels, seconds, trainings):
    """One point of a curve; `trainings` is what it took to get there."""
    size, zeros = (sum(kernel[key] for kernel in kernels) for key in ("size", "zeros"))
    return {"method": method, "setting": setting, "error": 1 - history["val_accuracy"][-1],
            "sparsity": zeros / size, "left": 1 - zeros / size, "kernels": kernels,
            "trainings": trainings, "seconds": round(seconds, 1)}


def run(train, test, epochs, seed, s0, rounds, pruning_rounds, sparsities):
    """All cases of a seed, from the same initial weights and the same rewind point."""
    keras.utils.set_random_seed(seed)
    model = lenet.lenet300()
    steps = epochs * -(-len(train[0]) // BATCH)
    compile, rewind_step = compiler(steps), max(1, round(REWIND * steps))
    fit = {"batch_size": BATCH, "epochs": epochs, "verbose": 0, "validation_data": test,
           "validation_batch_size": 500, "validation_freq": [epochs]}
    cases = []

    def add(*args):
        cases.append(case(*args))
        print(f"{cases[-1]['method']}, {cases[-1]['setting']}: {100 * cases[-1]['left']:.2f} % left,"
              f" error {100 * cases[-1]['error']:.2f} %", flush=True)

    count = Count()
    pruning = ts.MagnitudePruning(ts.ConstantSparsity(SHARE, 0), distribution="global")
    search = ts.TicketSearch(pruning, rounds=pruning_rounds, rewind_step=rewind_step, seed=seed)
    ticket = search.fit(model, compile, *train, **fit, callbacks=[count])
    for number, (history, kernels) in enumerate(zip(ticket.histories, count.kernels)):
        name, setting = (IMP, f"round {number}") if number else ("dense", "")
        add(name, setting, history, kernels, sum(count.seconds[:number + 1]), number + 1)

    for start in s0:
        count = Count()
        search = ts.TicketSearch(ts.ContinuousSparsification(s0=start), rounds=rounds, seed=seed)
        found = search.fit(model, compile, *train, **fit, callbacks=[count],
                           rewind_point=ticket.rewind_point)
        add(CS, f"s0 = {start:g}", found.histories[-1], count.kernels[-1], sum(count.seconds),
            rounds + 1)

    for sparsity in sparsities:
        begin, end = (round(share * steps) for share in PRUNING)
        schedule = ts.PolynomialDecay(0.0, sparsity, begin, end)
        sparse = ts.sparsify(model, ts.MagnitudePruning(schedule, distribution="global"))
        compile(sparse)
        keras.utils.set_random_seed(seed)
        count = Count()
        history = sparse.fit(*train, **fit,
                             callbacks=[ts.callbacks.SparsityUpdate(), count]).history
        add(GMP, f"{sparsity:g}", history, count.kernels[-1], sum(count.seconds), 1)
    return cases


def settings(epochs, s0, rounds, pruning_rounds, sparsities):
    return {"model": "lenet300", "batch": BATCH, "epochs": epochs, "optimizer": "SGD, Nesterov",
            "rate": RATE, "momentum": MOMENTUM, "falls": list(FALLS), "rewind": REWIND,
            "s0": list(s0), "rounds": rounds, "share": SHARE, "pruning_rounds": pruning_rounds,
            "sparsities": list(sparsities), "pruning": list(PRUNING)}


def points(runs):
    """{(method, setting): its cases}, of all seeds."""
    found = {}
    for run in runs:
        for entry in run["cases"]:
            found.setdefault((entry["method"], entry["setting"]), []).append((run, entry))
    return found


def table(runs):
    """A row for each point of each curve: ours ± sd, as Markdown."""
    rows = []
    for (method, setting), found in points(runs).items():
        some_runs, some = zip(*found)
        rows.append([
            method, setting,
            results.spread([100 * entry["left"] for entry in some]),
            results.spread([100 * (1 - entry["error"]) for entry in some]),
            some[0]["trainings"],
            results.spread([entry["seconds"] for entry in some], ".0f"),
            ", ".join(str(e) for e in sorted({r["settings"]["epochs"] for r in some_runs})),
            results.seeds(some_runs)])
    return results.markdown(["method", "setting", "weights left %", "test accuracy %",
                             "trainings", "seconds", "epochs of each", "seeds"], rows)


def plot(runs, path):
    """Accuracy over weights left, a line for each method and a bar of one sd for each point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    curves = {}
    for (method, _), found in points(runs).items():
        left, accuracy = ([100 * value for value in values] for values in zip(
            *((entry["left"], 1 - entry["error"]) for _, entry in found)))
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        curves.setdefault(method, []).append(
            (statistics.fmean(left), statistics.fmean(accuracy), spread))
    for method, marker in ((CS, "o"), (IMP, "s"), (GMP, "^")):
        left, accuracy, spread = zip(*sorted(curves[method]))
        axes.errorbar(left, accuracy, spread, marker=marker, capsize=2, label=method)
    ((_, dense, _),) = curves["dense"]
    axes.axhline(dense, color="grey", linewidth=1, linestyle="--", label="dense")
    axes.set(xscale="log", xlabel="weights left, %", ylabel="test accuracy, %",
             title=f"LeNet-300-100 on {runs[0]['data']}, seeds: {results.seeds(runs)}")
    low = min(left for curve in curves.values() for left, _, _ in curve)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick > low / 2]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.legend()
    figure.savefig(path, dpi=120)


def differences(result):
    """One line for each point; there is no published number to differ from."""
    for entry in result["cases"]:
        yield (f"{entry['method']} {entry['setting']}: {100 * entry['left']:.2f} % left, accuracy "
               f"{100 * (1 - entry['error']):.2f} %, {entry['trainings']} trainings")
    yield ("The authors show continuous sparsification on CIFAR-10 and ImageNet only, and Frankle "
           "and Carbin's curves for this network are figures, made with Adam at 1.2e-3 for 50,000 "
           "steps of 60 images and a tenth of the last layer pruned in place of a fifth.")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    args = results.parser(RECIPE, __doc__, EPOCHS).parse_args(argv)
    train, test, name = data.load(args)
    epochs = args.epochs or (SMOKE_EPOCHS if args.smoke else EPOCHS)
    chosen = SMOKE if args.smoke else {"s0": S0, "rounds": ROUNDS, "sparsities": SPARSITIES,
                                       "pruning_rounds": PRUNING_ROUNDS}
    result = results.common(RECIPE, argv, name, args.seed, settings(epochs, **chosen))
    started = time.monotonic()
    result["cases"] = run(train, test, epochs, args.seed, **chosen)
    result["seconds"] = round(time.monotonic() - started, 1)
    results.finish(result, args, f"{RECIPE}_{epochs}epochs", differences)
    if args.out is not None or not args.smoke:
        folder = Path(args.out or results.FOLDER)
        plot(results.read(RECIPE, folder), folder / f"{RECIPE}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
