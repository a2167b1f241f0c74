"""SparsityUpdate: says when a model's masks and annealed numbers are updated during fit.
SparsityLogger and SparsityTensorBoard show what comes of it."""

import sys
import warnings

import keras

from tf_sparsity import probes
from tf_sparsity.optimizer import find_sparse_optimizer, innermost
from tf_sparsity.report import sparsity
from tf_sparsity.tensorboard import SparsityTensorBoard
from tf_sparsity.update import Updater

__all__ = ["SparsityLogger", "SparsityTensorBoard", "SparsityUpdate"]


class SparsityUpdate(keras.callbacks.Callback):
    """Runs the updates that are due, between steps; needed by every method with `needs_update`.

    List it first: callbacks after it see the sparsity of the step that they log or save. The
    counted steps, the masks and the annealed numbers are variables of the model (or of the
    SparseOptimizer), so that training resumes where it stopped. The states of all random seed
    generators of the model are saved along with them.

    With a method that has a penalty it puts `data_loss` (and `val_data_loss`) into `logs`: the
    epoch's loss without the mean of that penalty over its examples, as Keras takes the mean of the
    loss. Both are sums in float32: `data_loss` is exact to about a millionth of the penalty. In a
    `train_step` of your own the batch must be called `data`, as in Keras; where it is not, batches
    of all sizes count alike.

    Args:
      probe_data: for methods with `needs_probe`: one (x, y) batch, or an iterable of batches of
        which one is drawn for each update.

    Raises:
      ValueError: when training begins, if the model has nothing sparse in it, a method needs
        probe data and there is none, or (at an update) a weight is NaN.

    Warns:
      UserWarning: before the first step, if the run is too short for a schedule; after the last
        one, if a controller has missed the sparsity it was asked for (see docs/methods.md).

    Example:

    ```python
    import keras
    import numpy as np
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, begin_step=1)))
    model.compile("sgd", "mse")
    model.fit(np.ones((16, 8)), np.ones((16, 4)), batch_size=4, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()])
    assert ts.report(model).sparsity == 0.5
    ```
    """

    def __init__(self, probe_data=None):
        super().__init__()
        self.probe_batches = None if probe_data is None else probes.batches(probe_data)
        self.updater = None
        self.penalties = {}

    def set_model(self, model):
        super().set_model(model)
        # Before any callback loads a checkpoint: a SparseOptimizer's masks must exist by then.
        self.updater = Updater(self.model, find_sparse_optimizer(model),
                               probe_batches=self.probe_batches)

    def on_train_begin(self, logs=None):
        updater = self.updater
        if not updater.active:
            raise ValueError(f"Model '{self.model.name}' has no sparse layer and was not compiled "
                             "with ts.SparseOptimizer, so SparsityUpdate has nothing to update. "
                             "Call ts.sparsify(model, method) and compile its result.")
        updater.check_probe()
        if updater.took_over:  # a train function whose trace failed cannot be traced again
            self.model.make_train_function(force=True)
        updater.exclude_from_weight_decay()
        self.epoch_base = None

    def on_epoch_begin(self, epoch, logs=None):
        updater = self.updater
        updater.rebase()  # other callbacks may have loaded a checkpoint
        if self.epoch_base is None:
            end = self._last_step(epoch)
            updater.plan(end)
            if end is not None:
                self._warn_if_too_short(epoch, end)
            updater.run()
        updater.running = True
        self.epoch_base = updater.now()
        updater.read_penalty()
        self.penalties = {}

    def on_test_begin(self, logs=None):
        self.penalties["data_loss"] = self.updater.read_penalty()

    def on_test_end(self, logs=None):
        self.penalties["val_data_loss"] = self.updater.read_penalty()

    def on_train_batch_end(self, batch, logs=None):
        # An upper bound of the step, counted in Python: with gradient accumulation or skipped
        # steps the optimizer has made fewer updates. The model is read only if it says "due".
        if self.updater.due(self.epoch_base + batch + 1):
            self.model  # noqa: B018  on JAX this brings the trained state back
            if self.updater.due(self.updater.now()):
                self.updater.run()

    def on_epoch_end(self, epoch, logs=None):
        self.updater.end_epoch()
        if not self.penalties:  # no validation, which keeps sums of its own
            self.penalties["data_loss"] = self.updater.read_penalty()
        for name, penalty in self.penalties.items():
            if penalty is not None and logs is not None:
                logs[name] = logs[name.replace("data_loss", "loss")] - penalty

    def on_train_end(self, logs=None):
        self.updater.end_epoch()  # an average of the weights may have taken their place by now
        self.updater.running = False
        for text in self.updater.unmet():
            warnings.warn(text, stacklevel=2)

    def _last_step(self, epoch):
        """The step at which this fit will end, None where the number of steps is unknown."""
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if steps is None or epochs is None:
            return None
        accumulate = innermost(self.model.optimizer).gradient_accumulation_steps or 1
        return self.updater.now() + steps * (epochs - epoch) // accumulate

    def _warn_if_too_short(self, epoch, end):
        steps, epochs = self.params["steps"], self.params["epochs"]
        for method in self.updater.methods:
            last = method.last_step
            if last is not None and self.updater.updated < last and end < last:
                warnings.warn(
                    f"{type(method).__name__} ends its schedule at step {last}, but this run "
                    f"ends at step {end} (now at {self.updater.now()}, {epochs - epoch} epochs "
                    f"of {steps} steps). It will not be complete, unless another fit goes on: "
                    "train longer, or end it earlier.", stacklevel=2)


class SparsityLogger(keras.callbacks.Callback):
    """Puts `sparsity`, the fraction of zeros that `ts.report` gives, into `logs`.

    The progress bar, History, CSVLogger, `EarlyStopping(monitor="sparsity", mode="max")` and
    file names such as `"{epoch}-{sparsity:.3f}.keras"` then see it. List it after
    `SparsityUpdate` and before the callbacks that read `logs`.

    The zeros are counted at the end of each epoch and after each update of the masks; the batches
    in between repeat the last number.

    Warns:
      UserWarning: when training begins, if it finds another order of callbacks.

    Example:

    ```python
    import keras
    import numpy as np
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, begin_step=1)))
    model.compile("sgd", "mse")
    history = model.fit(np.ones((16, 8)), np.ones((16, 4)), batch_size=4, verbose=0,
                        callbacks=[ts.callbacks.SparsityUpdate(), ts.callbacks.SparsityLogger()])
    assert history.history["sparsity"] == [0.5]
    ```

    Deviations: TFMOT logs sparsity to TensorBoard only, where no other callback sees it.
    """

    READERS = (keras.callbacks.CSVLogger, keras.callbacks.EarlyStopping, keras.callbacks.History,
               keras.callbacks.ModelCheckpoint, keras.callbacks.ProgbarLogger,
               keras.callbacks.ReduceLROnPlateau, keras.callbacks.RemoteMonitor,
               keras.callbacks.TensorBoard)

    def on_train_begin(self, logs=None):
        callbacks = _siblings()
        self._warn_about_order(callbacks)
        updates = [c.updater for c in callbacks if isinstance(c, SparsityUpdate)]
        self.updater = updates[0] if updates else None
        self.sparsity = None

    def on_epoch_begin(self, epoch, logs=None):
        if self.sparsity is None:  # checkpoints are loaded, and begin_step=0 has pruned
            self._count()

    def on_train_batch_end(self, batch, logs=None):
        if self._updated() != self.counted_at:
            self._count()
        logs["sparsity"] = self.sparsity

    def on_epoch_end(self, epoch, logs=None):
        self._count()
        logs["sparsity"] = self.sparsity

    def _updated(self):
        """The step of the last update, a Python number: reading it touches no variable."""
        return None if self.updater is None else self.updater.updated

    def _count(self):
        self.counted_at, self.sparsity = self._updated(), sparsity(self.model)

    def _warn_about_order(self, callbacks):
        at = next((i for i, c in enumerate(callbacks) if c is self), 0)
        wrong = [c for c in callbacks[:at] if isinstance(c, self.READERS)]
        wrong += [c for c in callbacks[at:] if isinstance(c, SparsityUpdate)]
        if wrong:
            order = ", ".join(type(c).__name__ for c in callbacks
                              if c is self or c in wrong or isinstance(c, SparsityUpdate))
            warnings.warn(
                f"The callbacks are listed as {order}, so that some of them see no sparsity, or "
                "that of an earlier step. List SparsityUpdate, then SparsityLogger, then those "
                "that read logs, such as CSVLogger and EarlyStopping.", stacklevel=2)


def _siblings():
    """The callbacks of this fit in their order. Keras hands no callback the list that it is in;
    the CallbackList is the caller, a frame above."""
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return caller.callbacks
        frame = frame.f_back
    return []
