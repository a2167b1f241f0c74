"""Result files of the recipes that are programs of their own, and what their tables are made with.

A result is a JSON file in recipes/results/, named after the recipe, what it trained and the seed.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from recipes.running import machine
from recipes.running.files import alone, write_json

FOLDER = Path(__file__).parent.parent / "results"
UNFINISHED = Path("runs") / "unfinished"
LOCAL = ("--data-dir", "--out", "--arm")  # where things lie on a machine is no setting


def parser(recipe, doc, epochs):
    """The options that all recipes have."""
    options = argparse.ArgumentParser(prog=f"python -m recipes.{recipe}", description=doc)
    options.add_argument("--seed", type=_from(0), default=0)
    options.add_argument("--epochs", type=_from(1), default=None, help=f"{epochs} if not given")
    options.add_argument("--smoke", action="store_true",
                         help="seconds, on scikit-learn's digits; writes nothing but to --out")
    options.add_argument("--data-dir", default=None, help="where tensorflow-datasets has the data")
    options.add_argument("--out", type=Path, default=None, metavar="FOLDER",
                         help="for the result file; recipes/results if not given")
    return options


def _from(least):
    """What reads an integer that is not below `least`."""
    def read(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"an integer from {least} up. Received: {text}")
        return int(text)

    return read


def command(recipe, argv):
    """The command line that repeats a run, with the environment that changes it."""
    kept, skip = [], False
    for word in argv:
        if skip or word in LOCAL:
            skip = word in LOCAL
        elif not word.startswith(tuple(f"{option}=" for option in LOCAL)):
            kept.append(word)
    return machine.command(f"recipes.{recipe}", *kept)


def kernels(report):
    """One dict for each kernel of a `ts.report`."""
    return [{"name": row.name, "shape": list(row.shape), "size": row.size, "zeros": row.zeros,
             "sparsity": row.sparsity} for row in report.rows]


def compression(report):
    """Weights over non-zero weights, of all kernels. Biases are not counted, as in the papers."""
    size, zeros = report.total("size"), report.total("zeros")
    return size / (size - zeros) if size > zeros else None


def common(recipe, argv, data, seed, settings):
    """What every result says about where it comes from."""
    where = machine.where()
    return {"recipe": recipe, "command": command(recipe, argv), "data": data, "seed": seed,
            "settings": settings, "versions": machine.versions(), "commit": machine.commit(),
            "backend": where["backend"], "devices": where["devices"]}


@contextlib.contextmanager
def unfinished(result, args):
    """A folder for the backups of a run's trainings, which the same run finds again after a kill.

    "The same" is of command, settings, versions, devices and commit. It is removed when the run is
    through. A trial has a new one.
    """
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    text = json.dumps(result, sort_keys=True)
    folder = UNFINISHED / result["recipe"] / hashlib.sha256(text.encode()).hexdigest()[:12]
    if folder.exists():
        print(f"Going on with what is in {folder}", flush=True)
    with alone(folder, result["command"]):
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def write(result, folder, name):
    """Writes `name`.json into `folder`; returns its path."""
    path = Path(folder) / f"{name}.json"
    write_json(path, result)
    return path


def shortened(result, epochs):
    """A sentence for a run that was shorter than the published one."""
    had = result["settings"]["epochs"]
    if had < epochs:
        yield f"This run had {had} epochs, and a schedule for them; the published one had {epochs}."


def finish(result, args, stem, differences):
    """Writes the result of a run that was not a trial, and prints what is to be said of it."""
    if args.out is not None or not args.smoke:
        name = f"{stem}_seed{result['seed']}"
        print(f"Written: {write(result, args.out or FOLDER, name).name}")
    for line in () if args.smoke else differences(result):
        print(line)
    print(f"{result['seconds']:.0f} seconds of training")


def read(recipe, folder=FOLDER):
    """The results of a recipe, in the order of their names."""
    results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    return [result for result in results if result["recipe"] == recipe]


def spread(values, form=".2f"):
    """`mean ± sd`, the sd being that of a sample; `mean` alone for one value."""
    values = list(values)
    mean = format(statistics.fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form}}"


def seeds(results):
    """`3 (0, 1, 2)`: how many seeds, and which."""
    used = sorted(result["seed"] for result in results)
    if not used:
        return "not run"
    return f"{len(used)} ({', '.join(map(str, used))})"


def markdown(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
