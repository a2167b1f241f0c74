"""Relative loss over sparsity: ours, and the published curves beside it."""

import statistics
from pathlib import Path

from recipes import configuration as settings
from recipes import registry, runner, state_of_sparsity, tables
from recipes.files import replacing

LINES = ("-", "--", ":", "-.")  # of several curves of a technique
OPTIONS = {"runs_dir": runner.RUNS, "out": None}


def curves(name, runs_dir):
    """{label: [(sparsity, relative loss, sd over seeds)]} of the complete runs, by sparsity.

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
            found.setdefault(tables.label(key, name), []).append(
                (tables.met(key, reports), statistics.fmean(losses), spread))
    if not found:
        raise ValueError(f"{runs_dir} has no complete run of {name} with a dense one of the same "
                         f"settings. Make them: python -m recipes sweep {name} "
                         f"runs_dir={runs_dir}")
    return {label: sorted(points) for label, points in found.items()}


def published(network):
    """{technique: [(sparsity, relative loss)]}."""
    base = state_of_sparsity.dense(network)
    return {technique: [(sparsity, 1 - quality / base)
                        for sparsity, quality in state_of_sparsity.best(network, technique)]
            for technique in state_of_sparsity.FILES[network]}


def draw(name, runs_dir, path):
    """Three panels, ours and the two networks of the paper, by per cent of the dense quality."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Plots need matplotlib: pip install matplotlib") from error
    ours = curves(name, runs_dir)
    figure = Figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 1 + len(state_of_sparsity.FILES), sharey=True)
    order = registry.load(name).Configuration.__dataclass_fields__["technique"].metadata["choices"]
    colour = {technique: f"C{i}" for i, technique in enumerate(order)}
    drawn = []
    for label, points in ours.items():
        technique = label.split()[0]
        style = LINES[drawn.count(technique) % len(LINES)]
        drawn.append(technique)
        sparsities, losses, spreads = zip(*points)
        panels[0].errorbar([100 * s for s in sparsities], [100 * v for v in losses],
                           [100 * v for v in spreads], marker="o", capsize=2, label=label,
                           color=colour[technique], linestyle=style)
    panels[0].set(title=f"ours: {name}", ylabel="loss relative to dense, %")
    for panel, network in zip(panels[1:], state_of_sparsity.FILES):
        for technique, points in published(network).items():
            panel.plot(*([100 * v for v in values] for values in zip(*points)), marker="o",
                       label=technique, color=colour[technique])
        panel.set(title=f"published: {network}")
    for panel in panels:
        panel.set(xlabel="sparsity, %", yscale="symlog")
        panel.axhline(0, color="grey", linewidth=1)
        panel.legend(fontsize=8)
    with replacing(path) as new:
        figure.savefig(new, dpi=110)


def show(name, words):
    """Draws into a file, and says where it is."""
    given = settings.pairs(words)
    settings.check_keys(given, OPTIONS)
    options = OPTIONS | given
    path = Path(options["out"] or Path(options["runs_dir"]) / name / "relative_loss.png")
    draw(name, options["runs_dir"], path)
    print(f"Written: {path}")
