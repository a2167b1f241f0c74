"""What the ticket recipes share: the three ways to a sparse network, one result, table and plot."""

import statistics
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import keras

import tf_sparsity as ts
from recipes import results

CS, IMP, GMP = "continuous sparsification", "iterative pruning", "gradual pruning"


class Training(NamedTuple):
    """What is equal in all trainings of a recipe; shares are of the run's steps."""

    name: str  # of the network, in titles
    build: Callable  # () -> the dense network
    batch: int
    rate: float  # of SGD with Nesterov's momentum
    momentum: float
    decay: float  # weight decay, of weights only: the scores of a method have none
    falls: tuple  # shares at which the rate falls to a tenth
    rewind: float
    share: float  # of the weights left, that a round of iterative pruning takes
    pruning: tuple  # shares at which gradual pruning begins and ends


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


def compiler(training, steps):
    """The function that compiles a model for a training of so many steps."""

    def compile(model):
        falls = [round(share * steps) for share in training.falls]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            falls, [training.rate, training.rate / 10, training.rate / 100])
        model.compile(keras.optimizers.SGD(rate, momentum=training.momentum, nesterov=True,
                                           weight_decay=training.decay or None),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=["accuracy"])

    return compile


def case(method, setting, history, kernels, seconds, trainings):
    """One point of a curve; `trainings` is what it took to get there."""
    size, zeros = (sum(kernel[key] for kernel in kernels) for key in ("size", "zeros"))
    return {"method": method, "setting": setting, "error": 1 - history["val_accuracy"][-1],
            "sparsity": zeros / size, "left": 1 - zeros / size, "kernels": kernels,
            "trainings": trainings, "seconds": round(seconds, 1)}


def run(training, train, test, epochs, seed, s0, rounds, pruning_rounds, sparsities):
    """All cases of a seed, from the same initial weights and the same rewind point."""
    keras.utils.set_random_seed(seed)
    model = training.build()
    steps = epochs * -(-len(train[0]) // training.batch)
    compile, rewind_step = compiler(training, steps), max(1, round(training.rewind * steps))
    fit = {"batch_size": training.batch, "epochs": epochs, "verbose": 0, "validation_data": test,
           "validation_batch_size": 500, "validation_freq": [epochs]}
    cases = []

    def add(*args):
        cases.append(case(*args))
        print(f"{cases[-1]['method']}, {cases[-1]['setting']}: {100 * cases[-1]['left']:.2f} % left,"
              f" error {100 * cases[-1]['error']:.2f} %", flush=True)

    count = Count()
    pruning = ts.MagnitudePruning(ts.ConstantSparsity(training.share, 0), distribution="global")
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
        begin, end = (round(share * steps) for share in training.pruning)
        schedule = ts.PolynomialDecay(0.0, sparsity, begin, end)
        sparse = ts.sparsify(model, ts.MagnitudePruning(schedule, distribution="global"))
        compile(sparse)
        keras.utils.set_random_seed(seed)
        count = Count()
        history = sparse.fit(*train, **fit,
                             callbacks=[ts.callbacks.SparsityUpdate(), count]).history
        add(GMP, f"{sparsity:g}", history, count.kernels[-1], sum(count.seconds), 1)
    return cases


def settings(training, epochs, s0, rounds, pruning_rounds, sparsities):
    return {"model": training.build().name, "batch": training.batch, "epochs": epochs,
            "optimizer": "SGD, Nesterov", "rate": training.rate, "momentum": training.momentum,
            "weight_decay": training.decay, "falls": list(training.falls),
            "rewind": training.rewind, "s0": list(s0), "rounds": rounds, "share": training.share,
            "pruning_rounds": pruning_rounds, "sparsities": list(sparsities),
            "pruning": list(training.pruning)}


def points(runs):
    """{(method, setting, epochs of a training): its cases}, of all seeds."""
    found = {}
    for run in runs:
        for entry in run["cases"]:
            key = entry["method"], entry["setting"], run["settings"]["epochs"]
            found.setdefault(key, []).append((run, entry))
    return found


def table(runs):
    """A row for each point of each curve: ours ± sd, as Markdown."""
    rows = []
    for (method, setting, epochs), found in points(runs).items():
        some_runs, some = zip(*found)
        rows.append([
            method, setting,
            results.spread([100 * entry["left"] for entry in some]),
            results.spread([100 * (1 - entry["error"]) for entry in some]),
            some[0]["trainings"],
            results.spread([entry["seconds"] for entry in some], ".0f"),
            epochs, results.seeds(some_runs)])
    return results.markdown(["method", "setting", "weights left %", "test accuracy %",
                             "trainings", "seconds", "epochs of each", "seeds"], rows)


def plot(runs, path, name):
    """Accuracy over weights left of the longest trainings, a line for each method and a bar of one
    sd for each point."""
    from matplotlib.figure import Figure

    longest = max(run["settings"]["epochs"] for run in runs)
    runs = [run for run in runs if run["settings"]["epochs"] == longest]

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    curves = {}
    for (method, *_), found in points(runs).items():
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
             title=f"{name} on {runs[0]['data']}, seeds: {results.seeds(runs)}")
    low = min(left for curve in curves.values() for left, _, _ in curve)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if tick > low / 2]
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.legend()
    figure.savefig(path, dpi=120)


def headlines(runs, network):
    """(what, paper, published, ours, its runs): the sparsest point of each curve."""
    sparsest = {}
    for (method, _, _), found in points(runs).items():
        left = statistics.fmean(entry["left"] for _, entry in found)
        if method not in sparsest or left < sparsest[method][0]:
            accuracy = results.spread(100 * (1 - entry["error"]) for _, entry in found)
            sparsest[method] = left, f"{method} {accuracy} % at {100 * left:.1f} % left"
    yield (f"lottery tickets, {network}", "Savarese et al. 2020", "",
           "; ".join(text for _, text in sparsest.values()), runs)


def points_of(result):
    """A sentence for each point."""
    for entry in result["cases"]:
        yield (f"{entry['method']} {entry['setting']}: {100 * entry['left']:.2f} % left, accuracy "
               f"{100 * (1 - entry['error']):.2f} %, {entry['trainings']} trainings")


def program(recipe, doc, training, full, smoke, data, differences, argv=None):
    """The command line of a recipe.

    Args:
      recipe: its name; doc: what it says of itself.
      training: a `Training`.
      full, smoke: `(epochs, keyword arguments of run)`.
      data: args -> (train, test, name of the data).
      differences: result -> sentences.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = results.parser(recipe, doc, full[0]).parse_args(argv)
    train, test, name = data(args)
    epochs, chosen = smoke if args.smoke else full
    epochs = args.epochs or epochs
    result = results.common(recipe, argv, name, args.seed, settings(training, epochs, **chosen))
    started = time.monotonic()
    result["cases"] = run(training, train, test, epochs, args.seed, **chosen)
    result["seconds"] = round(time.monotonic() - started, 1)
    results.finish(result, args, f"{recipe}_{epochs}epochs", differences)
    if args.out is not None or not args.smoke:
        folder = Path(args.out or results.FOLDER)
        plot(results.read(recipe, folder), folder / f"{recipe}.png", training.name)
    return 0
