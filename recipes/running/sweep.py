"""Many runs of a recipe, driven by keras-tuner: its oracles choose, its chief hands out trials.

A trial is a run, in the folder of its configuration: what is complete is not run again, and a
killed trial goes on from its backup, whoever gets it next.
"""

import dataclasses
import itertools
import os
import shlex
import time
from pathlib import Path

from recipes.running import configuration as settings
from recipes.running import registry, runner, training
from recipes.running.files import read_json, write_json

TUNERS = ("grid", "random", "bayesian", "hyperband")
FACTOR = 3  # of Hyperband: a third of the trials goes on with three times the epochs
SEARCHED = 20  # trials of a search, unless told otherwise
NEVER = 10**9  # keras-tuner 1.4 keeps its lock when too many failures in a row make it raise


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sweep is run; where `grid` is chosen by nothing, others choose by held-out images."""

    tuner: str = settings.setting("grid", "which configurations, in which order", choices=TUNERS)
    trials: int = settings.setting(0, "at most so many; 0: all of a grid, 20 of a search; not of "
                                   "hyperband", least=0)
    workers: int = settings.setting(1, "processes on this machine", least=0)
    restarts: int = settings.setting(2, "of a worker that dies in a trial, until the trial fails",
                                     least=0)
    chief: str = settings.setting("", "HOST:PORT of the chief, for workers of several machines")
    sweep_seed: int = settings.setting(0, "of the search", least=0)


def split(words):
    """`(Options, {key: text} of the recipe, words of the runner)`."""
    names = {field.name for field in dataclasses.fields(Options)}
    given = settings.pairs(words)
    own = settings.parse(Options, [f"{k}={v}" for k, v in given.items() if k in names])
    runners = [f"{k}={v}" for k, v in given.items() if k in runner.OPTIONS]
    return own, {k: v for k, v in given.items() if k not in names | set(runner.OPTIONS)}, runners


class Sweep:
    """What is to be run.

    Args:
      name: of the recipe.
      words: `key=value` of the sweep, the runner and the recipe; a value of the recipe may be a
        list, `sparsity=0.5,0.9`, or a range for a search, `scale=0.01..10`.
    """

    def __init__(self, name, words):
        self.name, self.words = name, list(words)
        self.module = registry.load(name)
        self.options, self.given, runners = split(words)
        self.run_options, _ = runner.split(runners)
        settings.check_keys(self.given, [*self.module.Configuration.__dataclass_fields__,
                                         *runner.OPTIONS, *Options.__dataclass_fields__])
        if self.options.tuner == "hyperband" and self.options.trials:
            raise ValueError("tuner=hyperband has as many trials as its largest number of epochs "
                             f"asks for. Leave trials={self.options.trials} out, or give epochs.")
        self.searches = self.options.tuner != "grid"
        self.space = self._space() if self.searches else None
        self.grid = None if self.searches else self._grid()
        measure = registry.measure(name).key
        holdout = self.given.get("holdout", "0")
        if not holdout.isdecimal():
            raise ValueError("A sweep has one holdout, for its runs are compared by what is held "
                             f"out. Received: holdout={holdout}")
        held_out = int(holdout) > 0
        if self.searches and not held_out:
            raise ValueError(
                f"tuner={self.options.tuner} chooses settings by {measure}; choose them by images "
                "that are not the test images: give holdout=5000 (training images).")
        self.objective = f"holdout_{measure}" if held_out else measure

    @property
    def total(self):
        """How many trials it has at most; None where that follows from what they come to."""
        if self.options.tuner == "hyperband":
            return None
        return (self.options.trials or SEARCHED) if self.searches else len(self.grid)

    @property
    def folder(self):
        """Of keras-tuner's state: named by what is swept, not by who sweeps it."""
        what = {"recipe": self.name, "given": self.given, "tuner": self.options.tuner,
                "trials": self.options.trials, "seed": self.options.sweep_seed}
        return (Path(self.run_options["runs_dir"]) / self.name / "sweeps"
                / settings.short_hash([what, self.grid]))

    def _grid(self):
        """The `key=value` words of every configuration, in order, each once."""
        kind, found, used = self.module.Configuration, {}, set()
        asked = self.given["technique"].split(",") if "technique" in self.given else None
        for technique in asked or ():
            if technique not in self._techniques():
                raise ValueError(f"The grid of {self.name} has no technique={technique}. "
                                 f"{settings.nearest(technique, self._techniques())}")
        for seed in self.given.get("seed", "0").split(","):  # every cell before its next seed
            given = {**self.given, "seed": seed} if "seed" in self.given else self.given
            for block in self.module.GRID:
                for technique in block["technique"]:
                    if asked is not None and technique not in asked:
                        continue
                    choices = _choices({**block, "technique": (technique,)}, given, kind)
                    used |= set(choices)
                    for values in itertools.product(*choices.values()):
                        words = [f"{key}={value}" for key, value in zip(choices, values)]
                        found[" ".join(settings.words(settings.parse(kind, words)))] = None
        unused = [f"{key}={text}" for key, text in self.given.items() if key not in used]
        if unused:
            raise ValueError(f"No technique of this sweep has {', '.join(unused)}; the grid of "
                             f"{self.name} has {', '.join(self._techniques())}.")
        return list(found)[:self.options.trials or len(found)]

    def _techniques(self):
        return dict.fromkeys(t for block in self.module.GRID for t in block["technique"])

    def _space(self):
        """{key: list of values, or (low, high)} of a search."""
        kind = self.module.Configuration
        fields = kind.__dataclass_fields__
        space = {key: _values(fields[key], text) for key, text in self.given.items()}
        if all(len(values) == 1 for values in space.values()):
            raise ValueError(f"tuner={self.options.tuner} needs something to search: give a list "
                             "or a range, technique=magnitude,l0 or scale=0.01..10.")
        techniques = [[f"technique={name}"] for name in space.get("technique", ())] or [[]]
        for technique in techniques:
            settings.parse(kind, technique)
            for key, values in space.items():
                for value in values if key != "technique" else ():
                    settings.parse(kind, [*technique, f"{key}={value}"])
        return space


def _choices(block, given, kind):
    """{key: values as text} of a block of the grid, with what was given in their place."""
    technique, = block["technique"]
    chosen = {key: [str(value) for value in values] for key, values in block.items()}
    for key, text in given.items():
        only = kind.__dataclass_fields__[key].metadata["only"]
        if key != "technique" and (only is None or technique in only):
            chosen[key] = text.split(",")
    return chosen


def _values(field, text):
    low, dots, high = text.partition("..")
    if not dots:
        return text.split(",")
    if field.type is str:
        raise ValueError(f"{field.name}={text}: a range is of numbers. Give values: "
                         f"{field.name}=A,B")
    try:
        ends = field.type(low), field.type(high)
    except ValueError:
        ends = None
    if ends is None or not ends[0] < ends[1]:
        raise ValueError(f"{field.name}={text}: a range is of two numbers, low..high.")
    return ends


# ---- keras-tuner


def keras_tuner():
    try:
        import keras_tuner
    except ImportError as error:
        raise ValueError("A sweep is driven by keras-tuner, which is not installed: "
                         "pip install keras-tuner") from error
    return keras_tuner


def tuner(sweep, progress=None):
    """The keras-tuner Tuner of a sweep: alone, chief or worker, as its environment says."""
    kt = keras_tuner()

    class Runs(kt.Tuner):
        """Its trials are runs."""

        def run_trial(self, trial, **_):
            words = trial_words(sweep, trial.hyperparameters.values)
            try:
                configured = settings.parse(sweep.module.Configuration, words)
                record = runner.run(sweep.name, configured, sweep.run_options)
            except ValueError as error:  # a sentence, of a configuration that cannot be run
                print(f"{sweep.name} {' '.join(words)}: {error}", flush=True)
                raise kt.errors.FailedTrialError(str(error)) from None
            return {sweep.objective: record["report"][sweep.objective]}

        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            if progress:
                progress.say()

    return Runs(_oracle(kt, sweep), directory=str(sweep.folder), project_name="tuner")


def trial_words(sweep, values):
    """The `key=value` words of a trial's hyperparameters."""
    if not sweep.searches:
        return values["configuration"].split()
    fixed = {key: value[0] for key, value in sweep.space.items() if len(value) == 1}
    # keras-tuner's messages carry 32-bit floats: six digits are what was meant
    chosen = {key: f"{value:.6g}" if isinstance(value, float) else value
              for key, value in values.items() if not key.startswith("tuner/")}
    if "tuner/epochs" in values:
        chosen["epochs"] = values["tuner/epochs"]
    return [f"{key}={value}" for key, value in {**fixed, **chosen}.items()]


def _oracle(kt, sweep):
    common = {"objective": kt.Objective(sweep.objective, "max"),
              "max_consecutive_failed_trials": NEVER}
    if not sweep.searches:
        return _each_once(kt)(sweep.grid, **common)
    common |= {"hyperparameters": _hyperparameters(kt, sweep), "seed": sweep.options.sweep_seed + 1}
    if sweep.options.tuner == "hyperband":
        return kt.oracles.HyperbandOracle(max_epochs=_epochs(sweep), factor=FACTOR, **common)
    oracle = {"random": kt.oracles.RandomSearchOracle,
              "bayesian": kt.oracles.BayesianOptimizationOracle}[sweep.options.tuner]
    return oracle(max_trials=sweep.total, **common)


def _epochs(sweep):
    fixed = [f"{key}={values[0]}" for key, values in sweep.space.items()
             if len(values) == 1 or key == "technique"]  # all have the first one's epochs
    return settings.parse(sweep.module.Configuration, fixed).epochs


def _each_once(kt):
    class EachOnce(kt.Oracle):
        """Every configuration of a list, in its order, once. (keras-tuner's GridSearch forgets
        where it was when it is loaded again.)"""

        def __init__(self, grid, **kwargs):
            super().__init__(**kwargs)
            self.grid = grid

        def populate_space(self, trial_id):
            if int(trial_id) >= len(self.grid):
                return {"status": "STOPPED"}
            return {"status": "RUNNING", "values": {"configuration": self.grid[int(trial_id)]}}

    return EachOnce


def _hyperparameters(kt, sweep):
    space = kt.HyperParameters()
    fields = sweep.module.Configuration.__dataclass_fields__
    for key, values in sweep.space.items():
        kind = fields[key].type
        if isinstance(values, tuple):
            low, high = values
            sampling = "log" if low > 0 and high / low >= 100 else "linear"
            (space.Int if kind is int else space.Float)(key, low, high, sampling=sampling)
        elif len(values) > 1:
            space.Choice(key, [kind(value) for value in values])
    return space


# ---- what came of it


def trials(sweep):
    """[{"trial", "status", "words", "message"}] by number, from keras-tuner's files.

    Its chief gets no messages; what the launcher has to say is in a file of its own.
    """
    found, said = [], failures(sweep)
    for path in sorted((sweep.folder / "tuner").glob("trial_*/trial.json")):
        try:
            state = read_json(path)
        except ValueError:
            continue  # the chief is writing it
        found.append({"trial": state["trial_id"], "status": state["status"],
                      "words": trial_words(sweep, state["hyperparameters"]["values"]),
                      "message": state["message"] or said.get(state["trial_id"])})
    return found


def failures(sweep):
    """{trial: why the launcher has failed it}."""
    path = sweep.folder / "failures.json"
    return read_json(path) if path.exists() else {}


def note_failure(sweep, trial, why):
    write_json(sweep.folder / "failures.json", {**failures(sweep), trial: why})


def summary(sweep):
    """Writes and returns what came of every trial: its configuration, status and figures."""
    rows = []
    for trial in trials(sweep):
        configured = settings.parse(sweep.module.Configuration, trial["words"])
        digest = settings.digest(sweep.name, configured)
        path = Path(sweep.run_options["runs_dir"]) / sweep.name / digest / "record.json"
        report = (runner.read_record(path).get("report") or {}) if path.exists() else {}
        measure = registry.measure(sweep.name).key
        rows.append({**trial, "run": digest, **{key: report.get(key) for key in
                     (measure, f"holdout_{measure}", "sparsity")}})
    write_json(sweep.folder / "summary.json", {"recipe": sweep.name, "words": sweep.words,
                                               "trials": rows})
    return rows


def say(sweep):
    """Prints the summary, of a search by what it chooses by, the best first; returns the number of
    trials that failed."""
    rows, by = summary(sweep), sweep.objective
    done = [row for row in rows if row["status"] == "COMPLETED"]
    if sweep.searches:
        rows.sort(key=lambda row: -1 if row[by] is None else row[by], reverse=True)
    for row in rows:
        if row[by] is not None:
            figures = f"{by} {row[by]:.4f}  sparsity {row['sparsity']:.4f}"
        else:
            figures = f"{row['status'].lower()}: {_last_line(row['message'])}"
        print(f"  {row['run']}  {figures}  {' '.join(_with_technique(sweep, row['words']))}")
    if sweep.searches and done:
        places = [f"{key}={value}" for key, value in sweep.run_options.items()
                  if value != runner.OPTIONS[key]]
        best = shlex.join([*rows[0]["words"], *places])
        print(f"The best: python -m recipes run {sweep.name} {best}")
    failed = len(rows) - len(done)
    print(f"{sweep.name}: {len(done)} trials complete, {failed} not; "
          f"{sweep.folder / 'summary.json'}", flush=True)
    if failed:
        print(f"To try those again, if they failed for another reason than their settings, remove "
              f"{sweep.folder} and give the command again: complete runs are not repeated.",
              flush=True)
    return failed


def _with_technique(sweep, words):
    """The words of a trial, and its technique where that is the default."""
    if any(word.startswith("technique=") for word in words):
        return words
    return [f"technique={sweep.module.Configuration.technique}", *words]


class Progress:
    """Says how many trials are over, and how long the others may take, when one more is."""

    def __init__(self, sweep):
        self.sweep, self.begun = sweep, time.monotonic()
        self.before = self.over = self._count()  # of an earlier session

    def say(self):
        over = self._count()
        if over == self.over:
            return
        self.over, total = over, self.sweep.total
        line = f"{self.sweep.name}: {over} trials over"
        if total:
            each = (time.monotonic() - self.begun) / (over - self.before)
            line = (f"{self.sweep.name}: {over} of {total} trials over, about "
                    f"{training.duration(each * (total - over))} left")
        print(line, flush=True)

    def _count(self):
        return sum(trial["status"] not in ("RUNNING", "IDLE") for trial in trials(self.sweep))


def _last_line(message):
    return (message or "see the worker's log, or its machine's").strip().splitlines()[-1]


def run(name, words):
    """Runs a sweep in this process, or by workers; returns the number of trials that failed."""
    sweep = Sweep(name, words)
    keras_tuner()  # or the pip line
    role = os.environ.get("KERASTUNER_TUNER_ID")  # set by the launcher, or by hand
    if role is None and (sweep.options.workers > 1 or sweep.options.chief):
        from recipes.running import workers

        workers.launch(sweep)
    else:
        tuner(sweep, None if role else Progress(sweep)).search(verbose=0)
    elsewhere = sweep.options.chief or role is not None and role != "chief"
    return 0 if elsewhere else say(sweep)
