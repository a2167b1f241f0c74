"""The recipes that `python -m recipes` runs. Each is a module with

- a docstring whose first line says what it is;
- `Configuration`, a frozen dataclass of `configuration.setting`s, `technique`, `seed` and `epochs`
  among them;
- `run(configuration, run)`, which says what data it `run.reads`, trains, and returns the final
  report, a dict for JSON;
- `GRID`, {setting: values} of the published experiments, and `DIFFERENCES`, what says how runs
  differ from the paper's;
- `own_data(configuration, data_dir)`, a `fingerprint` of data that its users give, None of other
  data: a complete run is not taken for one on another such data;
- `MEASURE`, what its runs are compared by, where that is not `ACCURACY`;
- `ENDS`, the paths of its first and its last kernel, where these are not the first and the last of
  a report;
- `NEEDS`, the words that a command must have beside settings, such as where the data is;
- `NETWORK`, the setting that says which network is trained, where there are several: each has its
  own panel in plots.
"""

import dataclasses
import importlib

from recipes.running.configuration import nearest

RECIPES = ("sos_lenet_mnist", "sos_resnet20_cifar", "sos_resnet50_imagenet",
           "sos_transformer_wmt14", "sos_transformer_multi30k")
PARTS = ("Configuration", "run", "GRID", "DIFFERENCES")  # that each must have
# Programs of their own, python -m recipes.NAME --help; the experiments have a table in README.md.
EXPERIMENTS = ("variational_dropout_mnist", "l0_mnist", "matched_mnist", "tickets_mnist",
               "tickets_cifar_narrow_short", "mobilenet_cifar")
PROGRAMS = ("digits_demo", *EXPERIMENTS)


class Difference:
    """A sentence about runs, of those whose settings are among the given ones, or of all.

    Args:
      sentence: what is different.
      among: {setting: its values}.
    """

    def __init__(self, sentence, **among):
        self.sentence, self.among = sentence, among

    def holds(self, configuration):
        return all(getattr(configuration, name) in values for name, values in self.among.items())


@dataclasses.dataclass(frozen=True)
class Measure:
    """What runs are compared by; more is better.

    Attributes:
      key: of the number in a final report; "holdout_" is put before it for held-out data.
      title: heading of a column.
      unit: what the number is multiplied by for that column.
    """

    key: str
    title: str
    unit: float = 1


ACCURACY = Measure("accuracy", "test accuracy %", 100)


def load(name):
    """The module of a recipe."""
    if name in PROGRAMS:
        raise ValueError(f"{name} is a program of its own: python -m recipes.{name} --help")
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}. {nearest(name, RECIPES)}")
    module = importlib.import_module(f"recipes.{name}")
    lacking = [part for part in PARTS if not hasattr(module, part)]
    if lacking:
        raise ValueError(f"recipes/{name}.py has no {', '.join(lacking)}: see the first lines of "
                         "recipes/running/registry.py.")
    return module


def measure(name):
    """The `Measure` of a recipe."""
    return getattr(load(name), "MEASURE", ACCURACY)


def network(name, configuration):
    """Which of a recipe's networks a configuration, a dict, trains: a word, or None for the only
    one."""
    setting = getattr(load(name), "NETWORK", None)
    return setting and f"{setting}={configuration[setting]}"


def first_line(module):
    return module.__doc__.strip().splitlines()[0]
