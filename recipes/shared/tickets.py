"""What the ticket recipes share: the three ways to a sparse network, one result, table and plot."""

import statistics
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

import keras

import tf_sparsity as ts
from recipes.reporting import results
from recipes.running import training
from recipes.running.files import replacing

CS, IMP, GMP = "continuous sparsification", "iterative pruning", "gradual pruning"


class Training(NamedTuple):
    """What is equal in all trainings of a recipe; shares are of the run's steps."""

    name: str  # of the network, in titles
    build: Callable  # () -> the dense network
    batch: int
    rate: float  # of SGD with Nesterov's momentum
    momentum: float
    decay: float  # weight decay that the network has in its loss; the scores of a method have none
    falls: tuple  # shares at which the rate falls to a tenth
    rewind: float
    share: float  # of the weights left, that a round of iterative pruning takes
    pruning: tuple  # shares at which gradual pruning begins and ends


class Count(keras.callbacks.Callback):
    """Puts the zeros of each kernel at the end, and the seconds that it took, into the history."""

    def on_train_begin(self, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs):
        if epoch + 1 < self.params["epochs"]:
            return
        logs["seconds of all"] = time.monotonic() - self.started
        for row in ts.report(self.model).rows:
            logs[f"zeros of {row.name}"] = row.zeros


def compiler(same, steps):
    """The function that compiles a model for a training of so many steps."""

    def compile(model):
        falls = [round(share * steps) for share in same.falls]
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            falls, [same.rate, same.rate / 10, same.rate / 100])
        model.compile(keras.optimizers.SGD(rate, momentum=same.momentum, nesterov=True),
                      keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      metrics=["accuracy"])

    return compile


def case(method, setting, histories, rows):
    """One point of a curve: where the trainings that it took have ended."""
    last = {name: values[-1] for name, values in histories[-1].items()}
    kernels = []
    for row in rows:
        zeros = int(last[f"zeros of {row.name}"])
        kernels.append({"name": row.name, "shape": list(row.shape), "size": row.size,
                        "zeros": zeros, "sparsity": zeros / row.size})
    size, zeros = (sum(kernel[key] for kernel in kernels) for key in ("size", "zeros"))
    return {"method": method, "setting": setting, "error": 1 - last["val_accuracy"],
            "sparsity": zeros / size, "left": 1 - zeros / size, "kernels": kernels,
            "trainings": len(histories),
            "seconds": round(sum(history["seconds of all"][-1] for history in histories), 1)}


def run(same, train, test, epochs, seed, folder, s0, rounds, pruning_rounds, sparsities):
    """All cases of a seed, from the same initial weights and the same rewind point. What is
    complete is kept in `folder`."""
    keras.utils.set_random_seed(seed)
    model = same.build()
    rows = ts.report(model).rows
    batches = training.Batches(*train, same.batch, seed)
    steps = epochs * len(batches)
    compile, rewind_step = compiler(same, steps), max(1, round(same.rewind * steps))
    fit = {"batch_size": same.batch, "epochs": epochs, "verbose": 0, "validation_data": test,
           "validation_batch_size": 500, "validation_freq": [epochs], "callbacks": [Count()]}
    cases = []

    def add(*args):
        cases.append(case(*args, rows))
        new = cases[-1]
        print(f"{new['method']}, {new['setting']}: {100 * new['left']:.2f} % left, error "
              f"{100 * new['error']:.2f} %", flush=True)

    pruning = ts.MagnitudePruning(ts.ConstantSparsity(same.share, 0), distribution="global")
    search = ts.TicketSearch(pruning, rounds=pruning_rounds, rewind_step=rewind_step, seed=seed)
    ticket = search.fit(model, compile, *train, **fit, directory=folder / "pruning")
    for number in range(pruning_rounds + 1):
        name, setting = (IMP, f"round {number}") if number else ("dense", "")
        add(name, setting, ticket.histories[:number + 1])

    for start in s0:
        search = ts.TicketSearch(ts.ContinuousSparsification(s0=start), rounds=rounds, seed=seed)
        found = search.fit(model, compile, *train, **fit, rewind_point=ticket.rewind_point,
                           directory=folder / f"s0={start:g}")
        add(CS, f"s0 = {start:g}", found.histories)

    for sparsity in sparsities:
        begin, end = (round(share * steps) for share in same.pruning)
        schedule = ts.PolynomialDecay(0.0, sparsity, begin, end)
        sparse = ts.sparsify(model, ts.MagnitudePruning(schedule, distribution="global"))
        compile(sparse)
        keras.utils.set_random_seed(seed)
        done = training.fit(sparse, batches, test, epochs=epochs, callbacks=[Count()],
                            folder=folder / f"{sparsity:g}").epochs
        seconds = sum(entry["seconds"] for entry in done)
        add(GMP, f"{sparsity:g}", [{name: [value] for name, value in
                                    {**done[-1], "seconds of all": seconds}.items()}])
    return cases


def settings(same, epochs, s0, rounds, pruning_rounds, sparsities):
    return {"model": same.build().name, "batch": same.batch, "epochs": epochs,
            "optimizer": "SGD, Nesterov", "rate": same.rate, "momentum": same.momentum,
            "weight_decay": same.decay, "falls": list(same.falls),
            "rewind": same.rewind, "s0": list(s0), "rounds": rounds, "share": same.share,
            "pruning_rounds": pruning_rounds, "sparsities": list(sparsities),
            "pruning": list(same.pruning)}


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
    with replacing(path) as new:
        figure.savefig(new, dpi=120)


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


def _seconds(cases):
    """Of all trainings: a round of iterative pruning is part of all later ones."""
    of_pruning = [case["seconds"] for case in cases if case["method"] in ("dense", IMP)]
    others = [case["seconds"] for case in cases if case["method"] not in ("dense", IMP)]
    return round(max(of_pruning) + sum(others), 1)


def program(recipe, doc, same, full, smoke, data, differences, argv=None):
    """The command line of a recipe.

    Args:
      recipe: its name; doc: what it says of itself.
      same: a `Training`.
      full, smoke: `(epochs, keyword arguments of run)`.
      data: args -> (train, test, name of the data).
      differences: result -> sentences.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = results.parser(recipe, doc, full[0]).parse_args(argv)
    train, test, name = data(args)
    epochs, chosen = smoke if args.smoke else full
    epochs = args.epochs or epochs
    result = results.common(recipe, argv, name, args.seed, settings(same, epochs, **chosen))
    with results.unfinished(result, args) as folder:
        result["cases"] = run(same, train, test, epochs, args.seed, folder, **chosen)
        result["seconds"] = _seconds(result["cases"])
        results.finish(result, args, f"{recipe}_{epochs}epochs", differences)
    if args.out is not None or not args.smoke:
        folder = Path(args.out or results.FOLDER)
        plot(results.read(recipe, folder), folder / f"{recipe}.png", same.name)
    return 0
