"""Interleaved rounds, ratios within a round, and what a result file says about its machine."""

import datetime
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tf_sparsity", "keras", "tensorflow", "tf_keras", "tensorflow-model-optimization",
            "numpy")


def interleave(measures, rounds):
    """Calls every measure once in each round and returns {name: [value of each round]}.

    Whatever else the machine does meets all of them alike, and the ratio of two values of one round
    does not see it. The order turns by one from round to round.

    Args:
      measures: {name: function without arguments}.
      rounds: int, how often.
    """
    names, values = list(measures), {name: [] for name in measures}
    for i in range(rounds):
        for name in names[i % len(names):] + names[:i % len(names)]:
            values[name].append(measures[name]())
    return values


median = statistics.median


def ratio(values, baseline):
    """Median, least and greatest of the ratios of each round."""
    ratios = [v / b for v, b in zip(values, baseline, strict=True)]
    return {"median": median(ratios), "min": min(ratios), "max": max(ratios)}


def document(name, settings, cases):
    """The contents of a result file."""
    return {
        "benchmark": name,
        "command": f"python -m benchmarks {name}",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system(),
                    "load": os.getloadavg()[0]},  # of everything that runs, this program too
        "settings": settings,
        "cases": cases,
    }


def save(result, folder=RESULTS):
    """Writes a result file, numbers with five digits."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['benchmark']}.json"
    path.write_text(json.dumps(_rounded(result), indent=1) + "\n")
    return path


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _version(package):
    try:
        return version(package)
    except ImportError:  # run from a checkout without installing
        return None


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(l.split(":")[1].strip() for l in lines if l.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
