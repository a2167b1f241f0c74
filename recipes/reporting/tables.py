"""What the runs of a recipe have come to: a row for each configuration, over its seeds."""

import statistics
from pathlib import Path

from recipes.reporting import results
from recipes.running import configuration as settings
from recipes.running import machine, registry, runner

MOST_LAYERS = 6  # that a table shows one by one


def columns(measure):
    return ["technique", "sparsity", "settings", measure.title, "relative loss %",
            "of the layers", "natural", "seconds", "epochs", "where", "seeds"]


def records(name, runs_dir):
    """The complete records of a recipe.

    Raises:
      ValueError: if one has settings that the recipe has no more.
    """
    known = registry.load(name).Configuration.__dataclass_fields__
    found = []
    for path in sorted((Path(runs_dir) / name).glob("*/record.json")):
        record = runner.read_record(path)
        if record["status"] == "complete":
            if gone := sorted(set(record["configuration"]) - set(known)):
                raise ValueError(f"{path} is of another version of {name}, with the setting"
                                 f"{'s' if gone[1:] else ''} {', '.join(gone)}, which this one does "
                                 "not have. Move its folder elsewhere, or give another runs_dir.")
            found.append(record)
    return found


def groups(found):
    """{(technique, sparsity, other settings, place): records that differ in the seed}."""
    by_configuration = {}
    for record in found:
        own = dict(record["configuration"])
        own.pop("seed")
        key = (own.pop("technique"), own.pop("sparsity", 0.0), tuple(own.items()),
               machine.place(record["where"]))
        by_configuration.setdefault(key, []).append(record)
    return by_configuration


def dense_quality(by_configuration, measure):
    """{(settings that dense runs have, place): mean of the measure}."""
    return {(frozenset(own), place): statistics.fmean(r["report"][measure.key] for r in some)
            for (technique, _, own, place), some in by_configuration.items()
            if technique == "dense"}


def relative_loss(key, quality, dense, kind):
    """1 - quality / that of the dense runs with the same settings; None without them.

    Settings that follow from the technique may be those that follow for dense runs instead.
    """
    technique, sparsity, own, place = key
    own = dict(own)
    words = settings.changed(kind, {"technique": technique, "sparsity": sparsity, **own})
    given = {k: own[k] for k in (word.partition("=")[0] for word in words) if k in own}
    usual = settings.usual_values(kind, {**given, "technique": "dense"})
    for wanted in (own, usual):
        for (of_dense, where), value in dense.items():
            if where == place and of_dense <= set(wanted.items()):
                return 1 - quality / value
    return None


def lacking_dense(name, runs_dir):
    """The commands of the dense runs without which sparse ones have no relative loss."""
    by_configuration = groups(records(name, runs_dir))
    kind, measure = registry.load(name).Configuration, registry.measure(name)
    dense, commands = dense_quality(by_configuration, measure), {}
    for key, some in by_configuration.items():
        if relative_loss(key, some[0]["report"][measure.key], dense, kind) is None:
            words = [word for word in changed(key, kind)
                     if kind.__dataclass_fields__[word.partition("=")[0]].metadata["only"] is None]
            command = " ".join(["python -m recipes run", name, "technique=dense", *words,
                                *getattr(registry.load(name), "NEEDS", ())])
            commands[f"{command} ({key[3]})"] = None
    return list(commands)


def met(key, reports):
    """The sparsity of runs: the one asked for, or the mean of what the penalty has led to or the
    controller has reached."""
    technique, sparsity, own, _ = key
    if dict(own).get("reach") in ("penalty", "controller"):
        return statistics.fmean(report["sparsity"] for report in reports)
    return sparsity


def rows(name, runs_dir):
    """`(columns, rows)` of the table; ± is the standard deviation over seeds.

    Raises:
      ValueError: if there is no complete run.
    """
    by_configuration = groups(records(name, runs_dir))
    if not by_configuration:
        raise ValueError(f"There is no complete run of {name} in {runs_dir}. Make some: "
                         f"python -m recipes sweep {name} runs_dir={runs_dir}")
    kind, measure = registry.load(name).Configuration, registry.measure(name)
    order = kind.__dataclass_fields__["technique"].metadata["choices"]
    dense = dense_quality(by_configuration, measure)
    keys = sorted(by_configuration, key=lambda k: (order.index(k[0]), *map(str, k)))
    return columns(measure), [_row(key, by_configuration[key], dense, kind, measure)
                              for key in keys]


def _row(key, some, dense, kind, measure):
    technique, sparsity, own, place = key
    words = " ".join(changed(key, kind))
    reports = [record["report"] for record in some]
    quality = [report[measure.key] for report in reports]
    loss = relative_loss(key, statistics.fmean(quality), dense, kind)
    layers = [statistics.fmean(seeds) for seeds in zip(
        *([kernel["sparsity"] for kernel in report["kernels"]] for report in reports))]
    natural = [report["natural"] for report in reports if report["natural"] is not None]
    trained = [record for record in some if record["epochs"]]
    reached = f"{met(key, reports):.4g}"
    if dict(own).get("reach") == "controller":
        reached += f" of {sparsity:g}"
    return [technique, reached, words,
            results.spread([measure.unit * value for value in quality]),
            "" if loss is None else f"{100 * loss:.2f}",
            " - ".join(_each(layers)),
            results.spread(natural, ".3f") if natural else "",
            results.spread([_seconds(record) for record in trained], ".0f") if trained
            else "ranked", max(len(record["epochs"]) for record in some) or dict(own)["epochs"],
            place,
            results.seeds([{"seed": record["seed"]} for record in some])]


def _each(layers):
    """The sparsity of each layer; of many, of the first, from the least to the most between, and of
    the last."""
    if len(layers) <= MOST_LAYERS:
        return [f"{sparsity:.3f}" for sparsity in layers]
    first, *between, last = layers
    return [f"{first:.3f}", f"({min(between):.3f} to {max(between):.3f})", f"{last:.3f}"]


def changed(key, kind):
    """The settings that differ from the defaults, as a list of words."""
    technique, sparsity, own, _ = key
    followed = {"technique": technique, "sparsity": sparsity}
    return [word for word in settings.changed(kind, {**followed, **dict(own)})
            if word.partition("=")[0] not in followed]


def label(key, name):
    """What a curve is called: everything but the sparsity and the network."""
    technique, _, own, place = key
    words = changed(key, registry.load(name).Configuration)
    network = registry.network(name, dict(own))
    return " ".join([technique, *(w for w in words if w != network), f"({place})"])


def _seconds(record):
    """Of training alone: a run may have had to make the run that it needs."""
    return sum(epoch["seconds"] for epoch in record["epochs"])


def show(name, words):
    """Prints the table as Markdown."""
    options = settings.options(words, {"runs_dir": runner.RUNS})
    print(results.markdown(*rows(name, options["runs_dir"])))
