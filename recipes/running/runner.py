"""Runs a recipe once: a folder for each configuration, a record of everything, no work twice.

A run lives in RUNS/recipe/hash, where hash names its configuration. `record.json` says all about
it: configuration, seed, versions, command, where it ran, the metrics of each epoch, the final
report, seconds and peak memory. The same command again finds the record and does nothing; after an
interruption it goes on from the backup of the last complete epoch.
"""

import gc
import time
from pathlib import Path

from recipes.running import configuration as settings
from recipes.running import eventlog, machine, registry, training
from recipes.running.files import alone, read_json, replacing, write_json

RUNS = "runs"
# Where things lie on a machine, and what is written beside the record, is no setting of a run.
OPTIONS = {"runs_dir": RUNS, "data_dir": None, "tensorboard": "yes"}


def split(words):
    """`(options, words of the configuration)`."""
    given = settings.pairs(words)
    options = OPTIONS | {key: given[key] for key in OPTIONS if key in given}
    if options["tensorboard"] not in ("yes", "no"):
        raise ValueError("tensorboard is yes or no. Received: "
                         f"tensorboard={options['tensorboard']}")
    if not options["runs_dir"] or Path(options["runs_dir"]).is_file():
        raise ValueError("runs_dir is a folder, which need not exist. Received: "
                         f"runs_dir={options['runs_dir']}")
    return options, [f"{key}={value}" for key, value in given.items() if key not in OPTIONS]


def parse(name, words):
    """`(options, configuration)` of a recipe's command line; an unknown key names all that fit."""
    kind = registry.load(name).Configuration
    options, words = split(words)
    known = [*kind.__dataclass_fields__, *OPTIONS]
    settings.check_keys(settings.pairs(words), known)
    return options, settings.parse(kind, words)


def read_record(path):
    """What a run says of itself.

    Raises:
      ValueError: if the file is damaged.
    """
    record = read_json(path)
    wanted = ("status",) + ("configuration", "where", "epochs", "report") * (
        record.get("status") == "complete")
    lacking = [key for key in wanted if key not in record]
    if lacking:
        raise ValueError(f"{path} is no record of a run: it has no {', '.join(lacking)}. Remove "
                         "its folder; the run is made anew then.")
    return record


def run(name, configuration, options=None, callbacks=()):
    """The record of a configuration: of a run now, or of the run that was complete before.

    Args:
      name: of the recipe.
      configuration: an instance of its `Configuration`.
      options: {"runs_dir", "data_dir", "tensorboard"}, those of `OPTIONS` where left out.
      callbacks: further Keras callbacks for the training.

    Raises:
      ValueError: if an interrupted run was begun on another backend, other devices, versions or
        data: its numbers would be of two; if a complete one is of another text of the user's.
    """
    this = Run(name, configuration, OPTIONS | (options or {}), callbacks)
    with alone(this.folder, this.title):
        if this.complete:
            this.check_data()
            print(f"{this.title}: complete on {machine.place(this.result()['where'])}, "
                  f"{this.folder}{this.made_with}", flush=True)
        else:
            this.execute()
        return read_record(this.path)


class Run:
    """What a recipe sees of its run.

    Attributes:
      folder: where everything of it lies.
      options: {"runs_dir", "data_dir", "tensorboard"}.
      configuration: what is asked for.
    """

    def __init__(self, name, configuration, options, callbacks=()):
        self.recipe, self.configuration, self.options = name, configuration, options
        self.callbacks = list(callbacks)
        self.digest = settings.digest(name, configuration)
        self.folder = Path(options["runs_dir"]) / name / self.digest
        self.path = self.folder / "record.json"
        self.backup = None
        self.record = None

    @property
    def title(self):
        return " ".join([self.recipe, *settings.words(self.configuration)])

    @property
    def complete(self):
        return self.path.exists() and read_record(self.path)["status"] == "complete"

    @property
    def made_with(self):
        """`, made at commit ...` where the code has been, or may have been, another one since; else
        nothing."""
        commits = self.result().get("commits", ())
        same = set(commits) <= {machine.commit()} and not str(commits[-1:]).count("-dirty")
        return "" if same else f", made at commit {commits[-1]}"

    def check_data(self):
        """Raises if the complete run is of other data than its user gives now."""
        own_data = getattr(registry.load(self.recipe), "own_data", None)
        folder, then = self.options["data_dir"], self.result().get("data")
        now = own_data(self.configuration, folder) if own_data and folder and then else None
        if now not in (None, then):
            raise ValueError(f"{self.folder} holds the run of these settings on other data "
                             f"({then}, in {folder} is {now}). Give another runs_dir.")

    def execute(self):
        module = registry.load(self.recipe)
        gc.collect()  # what a sweep's last run has left
        machine.forget_peak()
        self._begin(module)
        print(f"{self.title}: {'going on' if self.record['sessions'] > 1 else 'begins'} in "
              f"{self.folder}", flush=True)
        started, before = time.monotonic(), self.record["seconds"]
        self.elapsed = lambda: round(before + time.monotonic() - started, 3)
        try:
            report = module.run(self.configuration, self)
        except ValueError:
            if self.record["sessions"] == 1 and not self.record["epochs"]:
                self.path.unlink()  # refused: there is no run to go on with
            raise
        self._save(status="complete", report=report)
        eventlog.finish(self)
        if self.backup is not None:
            self.backup.finish()
        measure = registry.measure(self.recipe).key
        print(f"{self.title}: {measure} {report[measure]:.4f}, sparsity "
              f"{report['sparsity']:.4f}, {training.duration(self.record['seconds'])}", flush=True)

    def _begin(self, module):
        """The record as it is before training; a resumed run keeps what it has."""
        now = {"versions": machine.versions(), "where": machine.where()}
        self.record = read_record(self.path) if self.path.exists() else None
        # A kill may have come after a backup and before its note
        if self.record is not None and (self.record["epochs"]
                                        or training.Backup(self.folder / "backup").complete):
            self._check_same(now)
            self.record["sessions"] += 1
            self.record.setdefault("commits", []).append(machine.commit())
        else:
            for left in self.folder.glob("*.npz"):
                left.unlink()  # of a run that began on who knows what
            self.record = {
                "recipe": self.recipe, "digest": self.digest, "status": "running",
                "configuration": settings.values(self.configuration),
                "seed": self.configuration.seed, "command": self.command(),
                "differences": [said.sentence for said in module.DIFFERENCES
                                if said.holds(self.configuration)],
                **now, "commits": [machine.commit()],
                "tensorboard": eventlog.status(self.options), "sessions": 1, "seconds": 0.0,
                "peak_memory": {"process": 0, "device": None}, "epochs": [], "report": None}
        write_json(self.path, self.record)

    def _check_same(self, now):
        then, here = ({"backend": of["where"]["backend"],
                       "devices": ", ".join(of["where"]["devices"]), **of["versions"],
                       **dict.fromkeys(machine.ENVIRONMENT), **of["where"]["environment"]}
                      for of in (self.record, now))
        changed = [f"{name} {then[name]} (now {here[name]})" for name in then
                   if then[name] != here[name]]
        if changed:
            raise ValueError(
                f"{self.folder} holds an interrupted run of {', '.join(changed)}. To go on, use "
                "what it began with (KERAS_BACKEND for the backend, variables of the environment "
                "by their names, ONEDNN_MAX_CPU_ISA= for none); to begin anew, remove the folder "
                "or give another runs_dir.")

    def _save(self, **changes):
        peak, now = self.record["peak_memory"], machine.peak_memory()
        self.record.update(
            seconds=self.elapsed(),
            peak_memory={key: max(peak[key] or 0, now[key] or 0) or None for key in now}, **changes)
        write_json(self.path, self.record)

    def command(self):
        """The command line that repeats the run, with the environment that changes it."""
        return machine.command("recipes", "run", self.recipe, *settings.words(self.configuration),
                               *getattr(registry.load(self.recipe), "NEEDS", ()))

    # ---- for recipes

    def reads(self, data):
        """Notes what data the run is of, a `fingerprint`.

        Raises:
          ValueError: if the run has begun on other data.
        """
        then = self.record.setdefault("data", data)
        if then != data:
            raise ValueError(f"{self.folder} holds an interrupted run on other data ({then}, now "
                             f"{data}). Give the data_dir that it began with, or another runs_dir.")

    def fit(self, model, batches, validation, epochs):
        """Trains the compiled model, or goes on with it; its metrics go into the record."""
        log = eventlog.callbacks(self)
        self.backup = training.fit(model, batches, validation, epochs=epochs,
                                   folder=self.folder / "backup", note=self._note,
                                   callbacks=[*self.callbacks, *log])
        self._note(self.backup.epochs)

    def _note(self, epochs):
        self._save(epochs=epochs)

    def of(self, configuration):
        """Another run of this recipe, which this one needs; it is made if it is not there.

        Raises:
          ValueError: if it was made on another backend, kind of device, or data: the numbers of
            this one would be of two.
        """
        found = run(self.recipe, configuration, self.options)
        then, here = ([machine.place(of["where"]), of.get("data")] for of in (found, self.record))
        if then[0] != here[0] or None not in (then[1], here[1]) and then[1] != here[1]:
            raise ValueError(f"{self.title} needs the run {found['digest']}, which was made on "
                             f"{then[0]} and the data {then[1]}; here are {here[0]} and {here[1]}. "
                             "Use what it was made with, or give another runs_dir.")
        return Run(self.recipe, configuration, self.options)

    def result(self):
        """The record on disk."""
        return read_record(self.path)

    def keep(self, name, write):
        """Writes a file of the run, whole, by `write(path)`."""
        with replacing(self.folder / name) as path:
            write(path)

