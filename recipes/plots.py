"""Relative loss over sparsity, ours and the published curves beside it; sparsity over layers."""

import statistics
from pathlib import Path

from recipes import configuration as settings
from recipes import registry, runner, state_of_sparsity, tables
from recipes.files import replacing

LINES = ("-", "--", ":", "-.")  # of several curves of a technique
OPTIONS = {"runs_dir": runner.RUNS, "out": None}
DPI = 110
COLUMNS = 4  # of panels


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
        raise ValueError(f"{runs_dir} has no complete run of {name} with a dense one of the same "
                         f"settings. Make them: python -m recipes sweep {name} "
                         f"runs_dir={runs_dir}")
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
    the dense quality."""
    ours = curves(name, runs_dir)
    panels = _figure(5 * (len(ours) + len(state_of_sparsity.FILES)), 5).subplots(
        1, len(ours) + len(state_of_sparsity.FILES), sharey=True)
    colour = _colours(name)
    for panel, (network, of_network) in zip(panels, ours.items()):
        drawn = []
        for label, points in of_network.items():
            technique = label.split()[0]
            style = LINES[drawn.count(technique) % len(LINES)]
            drawn.append(technique)
            sparsities, losses, spreads = zip(*points)
            panel.errorbar([100 * s for s in sparsities], [100 * v for v in losses],
                           [100 * v for v in spreads], marker="o", capsize=2, label=label,
                           color=colour[technique], linestyle=style)
        panel.set(title=" ".join(filter(None, [f"ours: {name}", network])))
    for panel, network in zip(panels[len(ours):], state_of_sparsity.FILES):
        for technique, points in published(network).items():
            panel.plot(*([100 * v for v in values] for values in zip(*points)), marker="o",
                       label=technique, color=colour[technique])
        panel.set(title=f"published: {network}")
    for panel in panels:
        panel.set(xlabel="sparsity, %", yscale="symlog")
        panel.axhline(0, color="grey", linewidth=1)
        panel.legend(fontsize=7)
    panels[0].set(ylabel="loss relative to dense, %")
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
    columns, colour = min(len(panels), COLUMNS), _colours(name)
    rows = -(-len(panels) // columns)
    figure = _figure(5 * columns, 5 * rows)
    for number, place in enumerate(sorted(panels), 1):
        axes, drawn = figure.add_subplot(rows, columns, number), []
        for key, found in sorted(panels[place], key=lambda pair: tables.label(pair[0], name)):
            means = [100 * statistics.fmean(of_layer) for of_layer in zip(
                *([kernel["sparsity"] for kernel in kernels] for kernels in found))]
            axes.plot(range(len(means)), means, marker="o", label=tables.label(key, name),
                      color=colour[key[0]], linestyle=LINES[drawn.count(key[0]) % len(LINES)])
            drawn.append(key[0])
        names = [kernel["name"].removesuffix("/kernel") for kernel in found[0]]
        axes.set_xticks(range(len(names)), labels=names, rotation=90, fontsize=7)
        axes.set(title=f"{place[0]} asked: {place[1]:g}".strip(), ylabel="zeros, %", ylim=(-3, 103))
        axes.legend(fontsize=6)
    return figure


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Plots need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _colours(name):
    order = registry.load(name).Configuration.__dataclass_fields__["technique"].metadata["choices"]
    return {technique: f"C{i}" for i, technique in enumerate(order)}


def show(name, words):
    """Draws into a file, and says where it is."""
    options = settings.options(words, OPTIONS)
    path = Path(options["out"] or Path(options["runs_dir"]) / name / "relative_loss.png")
    figure = loss(name, options["runs_dir"])
    with replacing(path) as new:
        figure.savefig(new, dpi=DPI)
    print(f"Written: {path}")
