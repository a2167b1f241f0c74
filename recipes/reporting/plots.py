"""Relative loss over sparsity, ours and the published curves beside it; sparsity over layers."""

import statistics
from pathlib import Path

import numpy as np

from recipes.reporting import state_of_sparsity, tables
from recipes.running import configuration as settings
from recipes.running import registry, runner
from recipes.running.files import replacing

LINES, MARKERS = ("-", "--", ":", "-."), "os^Dv*"  # of several curves of a technique
OPTIONS = {"runs_dir": runner.RUNS, "out": None}
DPI = 110
COLUMNS = 4  # of panels
TICKS = (50, 70, 80, 90, 95, 98, 99)  # per cent
LOSSES = (0, 1, 2, 5, 10, 20, 50, 100)  # per cent


def curves(name, runs_dir):
    """{network: {label: [(sparsity, relative loss, sd over seeds)]}} of the complete runs, by
    sparsity; the network is None where a recipe has one.

    Raises:
      ValueError: if there is no sparse run with a dense one to compare it with.
    """
    by_configuration = tables.groups(tables.records(name, runs_dir))
    kind, measure = registry.load(name).Configuration, registry.measure(name)
    dense = tables.dense_quality(by_configuration, measure)
    found = {}
    for key, some in by_configuration.items():
        technique, reports = key[0], [record["report"] for record in some]
        losses = [tables.relative_loss(key, report[measure.key], dense, kind)
                  for report in reports]
        if technique != "dense" and None not in losses:
            spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
            of_network = found.setdefault(registry.network(name, dict(key[2])), {})
            of_network.setdefault(tables.label(key, name), []).append(
                (tables.met(key, reports), statistics.fmean(losses), spread))
    if not found:
        lacking = tables.lacking_dense(name, runs_dir)
        make = ("Make them: " + "; ".join(lacking) if lacking else
                f"Make them: python -m recipes sweep {name} runs_dir={runs_dir}")
        raise ValueError(f"{runs_dir} has no complete run of {name} with a dense one of the same "
                         f"settings. {make}")
    return {network: {label: sorted(points) for label, points in sorted(of_network.items())}
            for network, of_network in sorted(found.items(), key=str)}


def published(network):
    """{technique: [(sparsity, relative loss)]}."""
    base = state_of_sparsity.dense(network)
    return {technique: [(sparsity, 1 - quality / base)
                        for sparsity, quality in state_of_sparsity.best(network, technique)]
            for technique in state_of_sparsity.FILES[network]}


def loss(name, runs_dir):
    """A figure with a panel for each of our networks and for the two of the paper, by per cent of
    the dense quality, over the logarithm of the weights that are left."""
    ours = curves(name, runs_dir)
    panels = _figure(5 * (len(ours) + len(state_of_sparsity.FILES)), 6).subplots(
        1, len(ours) + len(state_of_sparsity.FILES), sharex=True, sharey=True)
    look = _looks(name, [label for of_network in ours.values() for label in of_network])
    for panel, (network, of_network) in zip(panels, ours.items()):
        for label, points in of_network.items():
            sparsities, losses, spreads = zip(*points)
            panel.errorbar([100 * s for s in sparsities], [100 * v for v in losses],
                           [100 * v for v in spreads] if any(spreads) else None, capsize=2,
                           label=label, **look(label))
        panel.set(title=" ".join(filter(None, [f"ours: {name}", network])))
    for panel, network in zip(panels[len(ours):], state_of_sparsity.FILES):
        for technique, points in published(network).items():
            panel.plot(*([100 * v for v in values] for values in zip(*points)), label=technique,
                       **look(technique))
        panel.set(title=f"published: {network}")
    for panel in panels:
        panel.set(xlabel="sparsity, %", yscale="symlog")
        panel.set_xscale("function", functions=(lambda s: -np.log(np.maximum(100 - s, 1e-3)),
                                                lambda x: 100 - np.exp(-x)))
        panel.set_xticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
        panel.set_xticks([], minor=True)
        panel.set_yticks(LOSSES, labels=[f"{loss:g}" for loss in LOSSES])
        panel.axhline(0, color="grey", linewidth=1)
    panels[0].set(ylabel="loss relative to dense, %")
    _legend(panels[0].figure, panels)
    return panels[0].figure


def layers(name, runs_dir):
    """A figure of the sparsity of each kernel, first to last: a panel for each network and sparsity
    asked for, a line for each configuration, the mean over its seeds.

    Raises:
      ValueError: if there is no sparse run.
    """
    panels = {}
    for key, some in tables.groups(tables.records(name, runs_dir)).items():
        if key[0] != "dense":
            place = registry.network(name, dict(key[2])) or "", key[1]
            panels.setdefault(place, []).append((key, [record["report"]["kernels"]
                                                       for record in some]))
    if not panels:
        raise ValueError(f"{runs_dir} has no complete sparse run of {name}. Make them: "
                         f"python -m recipes sweep {name} runs_dir={runs_dir}")
    columns = min(len(panels), COLUMNS)
    look = _looks(name, [tables.label(key, name) for some in panels.values() for key, _ in some])
    rows = -(-len(panels) // columns)
    figure = _figure(4 * columns, 4 * rows + 1)
    for number, place in enumerate(sorted(panels), 1):
        axes = figure.add_subplot(rows, columns, number)
        for key, found in sorted(panels[place], key=lambda pair: tables.label(pair[0], name)):
            means = [100 * statistics.fmean(of_layer) for of_layer in zip(
                *([kernel["sparsity"] for kernel in kernels] for kernels in found))]
            label = tables.label(key, name)
            axes.plot(range(len(means)), means, label=label, **look(label))
        names = [kernel["name"].removesuffix("/kernel") for kernel in found[0]]
        axes.set_xticks(range(len(names)), labels=names, rotation=90, fontsize=7)
        axes.set(title=f"{place[0]} asked: {place[1]:g}".strip(), ylabel="zeros, %", ylim=(-3, 103))
    _legend(figure, figure.axes)
    return figure


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Plots need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _looks(name, labels):
    """The function label -> how its curve is drawn: a colour for each technique, and a line with a
    marker for each of its settings, the same in every panel."""
    order = registry.load(name).Configuration.__dataclass_fields__["technique"].metadata["choices"]
    lines = {}
    for label in sorted(set(labels)):
        of_technique = lines.setdefault(label.split()[0], {})
        row, column = divmod(len(of_technique), len(LINES))
        of_technique[label] = LINES[column], MARKERS[row % len(MARKERS)]

    def look(label):
        technique = label.split()[0]
        line, marker = lines.get(technique, {}).get(label, (LINES[0], MARKERS[0]))
        return {"color": f"C{order.index(technique)}", "linestyle": line, "marker": marker,
                "markersize": 3 if marker == "o" else 5}

    return look


def _legend(figure, panels):
    """One legend below all panels; where all runs were made in one place, it goes without it."""
    found = [pair for panel in panels for pair in zip(*panel.get_legend_handles_labels())]
    places = {label.rpartition(" (")[2] for _, label in found if label.endswith(")")}
    entries = {}
    for handle, label in found:
        if len(places) == 1:
            label = label.rpartition(" (")[0] or label
        entries.setdefault(label, handle)
    figure.legend(entries.values(), entries, loc="outside lower center", fontsize=8, handlelength=4,
                  ncols=max(1, round(figure.get_figwidth() / 3)))


def show(name, words):
    """Draws into a file, and says where it is."""
    options = settings.options(words, OPTIONS)
    path = Path(options["out"] or Path(options["runs_dir"]) / name / "relative_loss.png")
    figure = loss(name, options["runs_dir"])
    with replacing(path) as new:
        figure.savefig(new, dpi=DPI)
    print(f"Written: {path}")
    if lacking := tables.lacking_dense(name, options["runs_dir"]):
        print("Runs without a dense one of the same settings are left out. It takes:\n  "
              + "\n  ".join(lacking))
