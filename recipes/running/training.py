"""One training that a kill cannot hurt: ordered data, and a backup and a line for each epoch."""

import itertools
import shutil
import sys
import time

import keras
import numpy as np

import tf_sparsity as ts
from recipes.running.files import read_json, write_json

STATISTICS = 100  # batches that batch normalization's means and variances are estimated from


class Batches(keras.utils.PyDataset):
    """Shuffled batches whose order is a function of (seed, epoch) alone.

    Args:
      images, classes: arrays of equal length.
      size: examples of a batch; the last one of an epoch may be smaller.
      seed: integer >= 0.
      augment: a function (images, generator) -> images, or None.
    """

    def __init__(self, images, classes, size, seed, augment=None):
        super().__init__()
        self.images, self.classes, self.size = images, classes, size
        self.seed, self.augment = seed, augment
        self.examples = len(images)
        self.begin(0)

    def begin(self, epoch):
        self.epoch = epoch
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.images))

    def __len__(self):
        return -(-len(self.images) // self.size)

    def __getitem__(self, index):
        chosen = self.order[index * self.size:(index + 1) * self.size]
        images = self.images[chosen]
        if self.augment is not None:
            generator = np.random.default_rng([self.seed, self.epoch, index])
            images = self.augment(images, generator)
        return images, self.classes[chosen]


def for_fit(batches):
    """The arguments of Keras' `fit` for batches, from the epoch that they have begun.

    A PyDataset goes in as it is. Other batches are an endless stream: their `for_fit()` says what
    goes in, among it `steps_per_epoch`.
    """
    if isinstance(batches, keras.utils.PyDataset):
        return {"x": batches, "shuffle": False}
    return batches.for_fit()


class Order(keras.callbacks.Callback):
    """Tells the batches which epoch begins: after a resume it is not the first."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.begin(epoch)


class Backup(keras.callbacks.Callback):
    """keras.callbacks.BackupAndRestore, whose files and metrics change together.

    It writes weights and epoch number one after the other, in place; a kill in between would leave
    the weights of one epoch with the number of another. Here each epoch is saved in a folder of its
    own, and a small file names the folder that is complete.

    Args:
      folder: where backups are kept, until `finish` is called.
      note: a function that is given the metrics of all epochs after each backup, or None.
    """

    def __init__(self, folder, note=None):
        super().__init__()
        self.folder, self.pointer, self.note = folder, folder / "complete.json", note
        self.epochs = []  # the metrics of the epochs so far

    @property
    def complete(self):
        """The number of epochs that are saved."""
        return len(read_json(self.pointer)["epochs"]) if self.pointer.exists() else 0

    def on_train_begin(self, logs=None):
        if not self.pointer.exists():
            return
        complete = read_json(self.pointer)
        self.epochs = complete["epochs"]
        try:
            self._keras(complete["folder"]).on_train_begin()
        except (KeyError, OSError) as error:
            raise ValueError(f"The backup in {self.folder / complete['folder']} is damaged: "
                             f"{error}. Remove {self.folder.parent} to begin anew.") from error
        for generator, state in zip(self._generators(), complete["generators"], strict=True):
            generator.assign(np.array(state, generator.dtype))

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        self.epochs.append({"epoch": epoch + 1, **metrics,
                            "seconds": round(time.monotonic() - self.started, 3)})
        name = f"epoch{epoch + 1}"
        shutil.rmtree(self.folder / name, ignore_errors=True)  # what a kill has left
        self._keras(name).on_epoch_end(epoch)
        generators = [np.asarray(state).tolist() for state in self._generators()]
        write_json(self.pointer, {"folder": name, "epochs": self.epochs, "generators": generators})
        for old in self.folder.glob("epoch*"):
            if old.name != name:
                shutil.rmtree(old)
        if self.note is not None:
            self.note(self.epochs)

    def finish(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def _generators(self):
        """The states of the model's random generators, as variables."""
        return [v for v in self.model.non_trainable_variables if v.name == "seed_generator_state"]

    def _keras(self, name):
        callback = keras.callbacks.BackupAndRestore(str(self.folder / name))
        callback.set_model(self.model)
        return callback


class Progress(keras.callbacks.Callback):
    """A line for each epoch, with an estimate of what remains. Within it, on a terminal a bar, and
    elsewhere a line each minute."""

    WIDTH = 24  # characters
    EVERY, LINES = 0.5, 60.0  # seconds between two bars, between two lines

    def __init__(self, backup):
        super().__init__()
        self.backup = backup

    def on_epoch_begin(self, epoch, logs=None):
        self.now = f"epoch {epoch + 1}/{self.params['epochs']}"
        self.terminal, self.drawn = sys.stdout.isatty(), time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - self.drawn < (self.EVERY if self.terminal else self.LINES):
            return
        self.drawn = time.monotonic()
        done = (batch + 1) / self.params["steps"]
        if self.terminal:
            bar = "#" * round(done * self.WIDTH)
            print(f"\r{self.now}  [{bar:{self.WIDTH}}] {done:4.0%}", end="", flush=True)
        else:
            print(f"{self.now}  {done:.0%} of its steps", flush=True)

    def on_epoch_end(self, epoch, logs=None):
        if sys.stdout.isatty():
            print("\r\033[K", end="")
        seconds = [entry["seconds"] for entry in self.backup.epochs]
        recent = seconds[1:][-3:] or seconds  # the first one compiles
        figures = "  ".join(f"{name} {logs[key]:.4f}" for key, name in
                            (("data_loss", "data loss"), ("loss", "loss"),
                             ("val_accuracy", "validation accuracy"), ("sparsity", "sparsity"))
                            if key in logs)
        left = sum(recent) / len(recent) * (self.params["epochs"] - epoch - 1)
        print(f"{self.now}  {figures}  {seconds[-1]:.1f} s  about {duration(left)} left",
              flush=True)


def duration(seconds):
    """`41 s`, `2 min 05 s` or `3 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def fit(model, batches, validation, *, epochs, folder, note=None, callbacks=()):
    """Trains a compiled model, or goes on where the backup in `folder` stands.

    Args:
      model: compiled; sparsified or dense.
      batches: `Batches`, or others with `begin(epoch)` that `for_fit` takes.
      validation: (images, classes) or a dataset, looked at after each epoch, for the record.
      epochs: of the whole training.
      folder: for the backups.
      note: as in `Backup`.
      callbacks: further ones; they see `sparsity` in their logs.

    Returns:
      The backup: its `epochs` are the metrics, and `finish()` removes it once the result is safe.
    """
    backup = Backup(folder, note)
    update = [ts.callbacks.SparsityUpdate()] if is_sparse(model) else []
    batches.begin(backup.complete)
    model.fit(**for_fit(batches), epochs=epochs, verbose=0, validation_data=validation,
              validation_batch_size=500,
              callbacks=[*update, ts.callbacks.SparsityLogger(), Order(batches), *callbacks, backup,
                         Progress(backup)])
    return backup


def ranked_anew(model, values):
    """Gives a sparsified model the trained values of another one that asks for another sparsity,
    and ranks them: at the step, and with the temperature, at which that training ended."""
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(value)
    for layer in model.layers:
        if isinstance(layer, ts.layers.SparseLayer):
            step, _ = layer.read_clock()
            layer.write_clock(step, -1)  # as if nothing had run: the ranking is due
    ts.update(model)
    return model


def estimate_statistics(model, batches, count=STATISTICS):
    """Batch normalization's means and variances anew, for the network that is evaluated.

    Those of a training with soft masks or noise, or of weights that a rank cuts afterwards, belong
    to another network; with them the one that is left may be no better than chance. Each becomes
    the mean over the first `count` batches. Nothing else changes.

    Args:
      model: sparsified; the layers are its own, not those of a model inside it.
      batches: as for `for_fit`; they begin anew.
      count: at most so many batches.
    """
    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        return
    left = ts.freeze_masks(model)
    norms = [(own, new) for own, new in zip(model.layers, left.layers, strict=True)
             if isinstance(own, keras.layers.BatchNormalization)]
    batches.begin(0)
    stream = (map(batches.__getitem__, range(len(batches)))
              if isinstance(batches, keras.utils.PyDataset) else batches.for_fit()["x"])
    for seen, batch in enumerate(itertools.islice(stream, count)):
        for _, new in norms:
            new.momentum = seen / (seen + 1)  # a running mean over the batches
        left(batch[0], training=True)
    for own, new in norms:
        own.moving_mean.assign(new.moving_mean)
        own.moving_variance.assign(new.moving_variance)


def is_sparse(model):
    """Does it have layers made by `ts.sparsify`?"""
    return any(isinstance(layer, ts.layers.SparseLayer) for layer in model.layers)
