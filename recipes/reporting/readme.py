"""The results that are kept with the project, and the tables that recipes/README.md shows of them.

The runner's records are in runs/, which is nobody's but the user's; `keep` copies those that are
complete to recipes/results/, as RECIPE/HASH/record.json, and draws their plots.
"""

import importlib
import shutil
import tempfile
from pathlib import Path

from recipes.reporting import findings, plots, results, tables
from recipes.running import configuration as settings
from recipes.running import registry, runner, sweep
from recipes.running.files import replacing, write_json

README = results.FOLDER.parent / "README.md"
MAKER = "recipes/reporting/readme.py"
PLOTS = {"relative_loss.png": plots.loss, "layers.png": plots.layers}


def keep(name, runs_dir, folder=results.FOLDER):
    """Copies the complete records of a recipe, draws what they have come to; returns how many.

    Raises:
      ValueError: if there is no complete run, none that can be plotted with those that are kept, or
        one on other data than the recipe's; nothing is copied then.
    """
    found = tables.records(name, runs_dir)
    if not found:
        raise ValueError(f"There is no complete run of {name} in {runs_dir}.")
    for other in ("digits", "files"):
        runs = [r["digest"] for r in found if r["configuration"].get("data") == other]
        if runs:
            raise ValueError(f"{len(runs)} runs of {name} in {runs_dir} are on data={other}, "
                             f"{runs[0]} for one: their numbers say nothing about the real data. "
                             "Give a runs_dir without them.")
    with tempfile.TemporaryDirectory() as place:
        together = Path(place)
        if (folder / name).exists():
            shutil.copytree(folder / name, together / name)
        _write(found, together / name)
        figures = {file: draw(name, together) for file, draw in PLOTS.items()}
    _write(found, folder / name)
    for file, figure in figures.items():
        with replacing(folder / name / file) as new:
            figure.savefig(new, dpi=plots.DPI)
    return len(found)


def _write(records, folder):
    for record in records:
        write_json(folder / record["digest"] / "record.json", record)


def filled(text, folder=results.FOLDER):
    """`text` with each recipe's table, between its two marks, made from the result files."""
    for name, table in _tables(folder).items():
        begin, end = f"<!-- {name}: made by {MAKER} -->", f"<!-- end of {name} -->"
        if begin not in text:
            raise ValueError(f"{README.name} has no place for the table of {name}: {begin} ... "
                             f"{end}")
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def _tables(folder):
    """{recipe: Markdown}; of the runner's recipes those that have kept results."""
    found = {name: importlib.import_module(f"recipes.{name}").table(results.read(name, folder))
             for name in registry.EXPERIMENTS}
    found["overview"] = overview(folder)
    kept = [name for name in registry.RECIPES if tables.records(name, folder)]
    unknown = set(kept) - {name for name, _ in findings.NETWORKS.values()}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))} has kept results, and no network in "
                         "findings.NETWORKS that would show them beside the published ones.")
    found |= {name: results.markdown(*tables.rows(name, folder)) for name in kept}
    if kept:
        found |= {f"findings, {name}": table for name, table in findings.markdown(folder).items()}
    return found


def overview(folder):
    """What each recipe has come to, in a line for each of its networks, as Markdown."""
    lines = []
    for name in registry.EXPERIMENTS:
        runs, module = results.read(name, folder), importlib.import_module(f"recipes.{name}")
        for *headline, used in module.headlines(runs) if runs else ():
            lines.append([name, *headline, f"`{used[0]['command']}`",
                          results.spread((run["seconds"] for run in used), ".0f"),
                          results.seeds(used)])
    for name in registry.RECIPES:
        for *headline, words, used in findings.headlines(name, folder):
            environment = used[0]["command"].partition("python ")[0]
            swept = set(sweep.Sweep(name, list(words)).grid)
            kind = registry.load(name).Configuration
            seconds, kept = {}, set()
            for record in used:
                row = " ".join(settings.changed(kind, {**record["configuration"], "seed": 0}))
                if row in swept:
                    kept.add(row)
                    seconds[record["seed"]] = seconds.get(record["seed"], 0) + sum(
                        epoch["seconds"] for epoch in record["epochs"])
            command = " ".join([f"{environment}python -m recipes sweep {name}", *words,
                                *getattr(registry.load(name), "NEEDS", ())])
            part = "" if kept == swept else f" ({len(kept)} of its {len(swept)})"
            lines.append([name, *headline, f"`{command}`{part}",
                          results.spread(seconds.values(), ".0f") if seconds else "",
                          results.seeds([{"seed": seed} for seed in seconds])])
    return results.markdown(["recipe", "what", "paper", "published", "ours", "command",
                             "seconds of training", "seeds"], lines)


def show(name, words):
    """Keeps the results of a recipe and writes the tables anew."""
    count = keep(name, settings.options(words, {"runs_dir": runner.RUNS})["runs_dir"])
    print(f"{count} records in {results.FOLDER / name}")
    write()


def write():
    """Writes the tables of README.md anew."""
    text = filled(README.read_text(encoding="utf-8"))
    with replacing(README) as new:
        new.write_text(text, encoding="utf-8")
