"""What the runs of a recipe have come to: a row for each configuration, over its seeds."""

import statistics
from pathlib import Path

from recipes import configuration as settings
from recipes import registry, results, runner
from recipes.files import read_json


def columns(measure):
    return ["technique", "sparsity", "settings", measure.title, "relative loss %",
            "of the layers", "natural", "seconds", "epochs", "where", "seeds"]


def records(name, runs_dir):
    """The complete records of a recipe."""
    found = [read_json(path) for path in sorted((Path(runs_dir) / name).glob("*/record.json"))]
    return [record for record in found if record["status"] == "complete"]


def groups(found):
    """{(technique, sparsity, other settings, backend): records that differ in the seed}."""
    by_configuration = {}
    for record in found:
        own = dict(record["configuration"])
        own.pop("seed")
        key = (own.pop("technique"), own.pop("sparsity", 0.0), tuple(own.items()),
               record["where"]["backend"])
        by_configuration.setdefault(key, []).append(record)
    return by_configuration


def dense_quality(by_configuration, measure):
    """{(settings that dense runs have, backend): mean of the measure}."""
    return {(frozenset(own), backend): statistics.fmean(r["report"][measure.key] for r in some)
            for (technique, _, own, backend), some in by_configuration.items()
            if technique == "dense"}


def relative_loss(key, quality, dense):
    """1 - quality / that of the dense runs with the same settings; None without them."""
    _, _, own, backend = key
    fitting = [value for (settings_of_dense, where), value in dense.items()
               if where == backend and settings_of_dense <= set(own)]
    return 1 - quality / fitting[0] if fitting else None


def table(name, runs_dir):
    """Markdown; ± is the standard deviation over seeds.

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
    rows = [_row(key, by_configuration[key], dense, kind, measure)
            for key in sorted(by_configuration, key=lambda k: (order.index(k[0]), *map(str, k)))]
    return results.markdown(columns(measure), rows)


def _row(key, some, dense, kind, measure):
    technique, sparsity, own, backend = key
    changed = _changed(own, kind)
    reports = [record["report"] for record in some]
    quality = [report[measure.key] for report in reports]
    loss = relative_loss(key, statistics.fmean(quality), dense)
    layers = zip(*([kernel["sparsity"] for kernel in report["kernels"]] for report in reports))
    natural = [report["natural"] for report in reports if report["natural"] is not None]
    trained = [record for record in some if record["epochs"]]
    return [technique, f"{sparsity:g}" if technique != "dense" else "0", changed,
            results.spread([measure.unit * value for value in quality]),
            "" if loss is None else f"{100 * loss:.2f}",
            " - ".join(f"{statistics.fmean(layer):.3f}" for layer in layers),
            results.spread(natural, ".2f") if natural else "",
            results.spread([_seconds(record) for record in trained], ".0f") if trained
            else "ranked", dict(own)["epochs"], backend,
            results.seeds([{"seed": record["seed"]} for record in some])]


def _changed(own, kind):
    """The settings that differ from the defaults, as words."""
    fields = kind.__dataclass_fields__
    return " ".join(f"{k}={v}" for k, v in own if v != fields[k].default)


def label(key, name):
    """What a curve is called: everything but the sparsity."""
    technique, _, own, backend = key
    changed = _changed(own, registry.load(name).Configuration)
    return " ".join(filter(None, [technique, changed, f"({backend})"]))


def _seconds(record):
    """Of training alone: a run may have had to make the run that it needs."""
    return sum(epoch["seconds"] for epoch in record["epochs"])


def show(name, words):
    """Prints the table."""
    given = settings.pairs(words)
    settings.check_keys(given, ["runs_dir"])
    print(table(name, given.get("runs_dir", runner.RUNS)))
