"""Four methods at the same sparsity, LeNet-300-100 on MNIST: python -m recipes.matched_mnist

Trains each method to 90 and 98 % zeros, from the same initial weights and for as many epochs, and
compares test accuracy, training time and the sparsity of each layer. The learned methods are told
the sparsity (`target_sparsity=`). With `--reach rank` one training of theirs serves both, because
it does not see what is asked for. One run of this program is one seed.
"""

import statistics
import sys

import keras

import tf_sparsity as ts
from recipes.data import arrays
from recipes.networks import lenet
from recipes.reporting import results
from recipes.running import program
from recipes.running.training import ranked_anew

RECIPE = "matched_mnist"

# No paper compares these on this network. The settings were changed twice. First after a run (seed
# 0, Adam at 1e-3, L0 from an initial keep of 0.9, continuous sparsification at a scale of 1e-8)
# whose test accuracy was seen; L0's initial keep and the scale are like recipes/digits_demo.py's.
BATCH = 100
EPOCHS = 10
RATE = 2e-3  # of Adam; falls to 0 linearly over the run
SPARSITIES = (0.9, 0.98)
PRUNING = (0.1, 0.7)  # of the run: magnitude pruning begins and ends
# of the run: by rank the penalties of variational dropout and L0 rise to their full size in that
# time, under the controller the sparsity that is asked for
WARM_UP = {"rank": 0.2, "controller": 0.5}
# Steps between two updates, and of the masks of magnitude pruning; the controller's is a 200th of
# the run, its default.
FREQUENCY = {"rank": 100, "controller": None}
PRUNING_FREQUENCY = 100
ANNEALING = 0.9  # of the run: continuous sparsification's mask becomes a step
S0 = 0.05
CS_SCALE = 1e-5
L0_SCALE = 1.0
L0_INITIAL_KEEP = 0.5  # as the authors; from 0.9 few gates can close in so short a run
# L0's gates are hard in training too: with sampled ones, 10 epochs leave most kept gates just above
# the boundary, where they are nearly 0 in evaluation. Chosen, as the warm-up of the controller,
# after runs of seed 0 without it, which ended near chance under the controller.
L0_HARD_MASK = True

PRUNING_NAME, L0_NAME = "magnitude pruning", "L0, hard mask"

SMOKE_EPOCHS = 2
SMOKE_SPARSITIES = (0.9,)


def methods(sparsity, reach, num_samples, steps):
    """name -> method, for a run of so many steps."""
    asked = {"target_sparsity": sparsity, "reach": reach, "frequency": FREQUENCY[reach]}
    ramp = ts.Ramp(0, max(1, round(WARM_UP[reach] * steps)))
    begin, end = (round(share * steps) for share in PRUNING)
    schedule = ts.PolynomialDecay(0.0, sparsity, begin, end, frequency=PRUNING_FREQUENCY)
    return {
        PRUNING_NAME: ts.MagnitudePruning(schedule, distribution="global"),
        "variational dropout": ts.VariationalDropout(num_samples, ramp=ramp, **asked),
        L0_NAME: ts.L0Regularization(num_samples, ramp=ramp, scale=L0_SCALE,
                                  initial_keep=L0_INITIAL_KEEP, hard_mask=L0_HARD_MASK, **asked),
        "continuous sparsification": ts.ContinuousSparsification(
            round(ANNEALING * steps), s0=S0, scale=CS_SCALE, **asked),
    }


def fit(method, train, test, epochs, seed, folder):
    """One training: the model, its seconds and history. Method None trains the dense network."""
    keras.utils.set_random_seed(seed)
    model = lenet.lenet300()
    if method is not None:
        model = ts.sparsify(model, method)
    history, seconds = lenet.train(
        model, train, test, epochs=epochs, batch=BATCH, seed=seed, folder=folder,
        optimizer=keras.optimizers.Adam(RATE), rate=lambda epoch: RATE * (1 - epoch / epochs))
    return model, {"seconds": seconds, "history": history}


def asked_anew(model, method):
    """A copy of a trained model whose method asks for another sparsity, reached by rank."""
    return ranked_anew(ts.sparsify(lenet.lenet300(), method), model.weights)


def figures(model, test):
    report = ts.report(model)
    return {"accuracy": 1 - lenet.error(model, test), "sparsity": report.sparsity,
            "natural": report.natural, "kernels": results.kernels(report)}


def cases(sparsities, reach, train, test, epochs, seed, folder):
    """One dict for each method and sparsity, and the seconds of all trainings."""
    steps = epochs * -(-len(train[0]) // BATCH)
    model, training = fit(None, train, test, epochs, seed, folder / "dense")
    found, seconds = [{"method": "dense", "asked": 0.0, **figures(model, test), **training}], 0.0
    for label in methods(sparsities[0], reach, len(train[0]), steps):
        trained = None
        for sparsity in sparsities:
            method = methods(sparsity, reach, len(train[0]), steps)[label]
            print(f"{label}, {sparsity:g}", flush=True)
            if trained is None or reach != "rank" or label == PRUNING_NAME:
                trained, training = fit(method, train, test, epochs, seed,
                                        folder / f"{label} {sparsity:g}")
                seconds += training["seconds"]
                model = trained
            else:
                model = asked_anew(trained, method)
            found.append({"method": label, "asked": sparsity, **figures(model, test), **training})
    return {"cases": found, "seconds": round(found[0]["seconds"] + seconds, 1)}


def settings(epochs, reach):
    return {"model": "lenet300", "batch": BATCH, "epochs": epochs, "optimizer": "Adam",
            "rate": RATE, "reach": reach, "pruning": list(PRUNING), "warm_up": WARM_UP[reach],
            "frequency": FREQUENCY[reach], "pruning_frequency": PRUNING_FREQUENCY,
            "annealing": ANNEALING, "s0": S0, "cs_scale": CS_SCALE, "l0_scale": L0_SCALE,
            "l0_initial_keep": L0_INITIAL_KEEP, "l0_hard_mask": L0_HARD_MASK}


def table(runs):
    """A row for each sparsity, way to reach it and method: ours ± sd, as Markdown."""
    rows_of = {}
    for run in runs:
        for case in run["cases"]:
            reach = {"dense": "", PRUNING_NAME: "schedule"}.get(case["method"],
                                                                run["settings"]["reach"])
            key = case["asked"], case["method"], reach, run["settings"]["epochs"]
            # Runs that differ in `reach` share their dense and pruned models.
            rows_of.setdefault(key, {})[run["seed"]] = case
    names = ["dense", *methods(0.9, "rank", 1, 100)]
    rows = []
    for key in sorted(rows_of, key=lambda key: (key[0], names.index(key[1]), key[2:])):
        (asked, name, reach, epochs), some = key, list(rows_of[key].values())
        layers = zip(*([kernel["sparsity"] for kernel in case["kernels"]] for case in some))
        natural = [case["natural"] for case in some if case["natural"] is not None]
        rows.append([
            f"{asked:g}", name, reach,
            results.spread([100 * case["accuracy"] for case in some]),
            results.spread([case["sparsity"] for case in some], ".4f"),
            results.spread(natural, ".2f") if natural else "",
            " - ".join(f"{statistics.fmean(layer):.3f}" for layer in layers),
            results.spread([case["seconds"] for case in some], ".0f"),
            epochs, results.seeds([{"seed": seed} for seed in rows_of[key]])])
    return results.markdown(
        ["asked", "method", "reached by", "test accuracy %", "sparsity", "natural",
         "of the layers", "seconds", "epochs", "seeds"], rows)


def headlines(runs):
    """(what, paper, published, ours, its runs): test accuracies at the first sparsity, with the
    controller."""
    runs, cases = [run for run in runs if run["settings"]["reach"] == "controller"], {}
    for run in runs:
        for case in run["cases"]:
            if case["asked"] == SPARSITIES[0]:
                cases.setdefault(case["method"], []).append(100 * case["accuracy"])
    ours = ", ".join(f"{name} {results.spread(values)}" for name, values in cases.items())
    if runs:
        yield (f"four methods at {SPARSITIES[0]:g}, LeNet-300-100", "none", "",
               f"accuracy %: {ours}", runs)


def differences(result):
    """One line for each training; there is no published number to differ from."""
    for case in result["cases"]:
        yield (f"{case['method']} at {case['asked']:g}: accuracy {100 * case['accuracy']:.2f} %, "
               f"sparsity {case['sparsity']:.4f}, {case['seconds']:.0f} s")
    yield "No paper has this comparison on this network."


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = results.parser(RECIPE, __doc__, EPOCHS)
    parser.add_argument("--reach", choices=("rank", "controller"), default="rank",
                        help="how the learned methods meet the sparsity")
    args = parser.parse_args(argv)
    train, test, name = arrays.asked(args)
    epochs = args.epochs or (SMOKE_EPOCHS if args.smoke else EPOCHS)
    result = results.common(RECIPE, argv, name, args.seed, settings(epochs, args.reach))
    with results.unfinished(result, args) as folder:
        result |= cases(SMOKE_SPARSITIES if args.smoke else SPARSITIES, args.reach, train, test,
                        epochs, args.seed, folder)
        results.finish(result, args, f"{RECIPE}_{args.reach}_{epochs}epochs", differences)
    return 0


if __name__ == "__main__":
    sys.exit(program.status(main))
