"""SparsityUpdate: says when a model's masks and annealed numbers are updated during fit."""

import warnings

import keras

from tf_sparsity import probes
from tf_sparsity.update import Updater, find_sparse_optimizer


class SparsityUpdate(keras.callbacks.Callback):
    """Runs the updates that are due, between steps; needed by every method with `needs_update`.

    List it first: callbacks after it see the sparsity of the step that they log or save. The
    counted steps, the masks and the annealed numbers are variables of the model (or of the
    SparseOptimizer), so that training resumes where it stopped. The states of all random seed
    generators of the model are saved along with them.

    Args:
      probe_data: for methods with `needs_probe`: one (x, y) batch, or an iterable of batches of
        which one is drawn for each update.

    Raises:
      ValueError: when training begins, if the model has nothing sparse in it, a method needs
        probe data and there is none, or (at an update) a weight is NaN.

    Warns:
      UserWarning: before the first step, if the run is too short for a schedule.

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

    def set_model(self, model):
        super().set_model(model)
        # Before any callback loads a checkpoint: a SparseOptimizer's masks must exist by then.
        self.updater = Updater(self.model, find_sparse_optimizer(model.optimizer))

    def on_train_begin(self, logs=None):
        updater = self.updater
        if not updater.active:
            raise ValueError(f"Model '{self.model.name}' has no sparse layer and was not compiled "
                             "with ts.SparseOptimizer, so SparsityUpdate has nothing to update. "
                             "Call ts.sparsify(model, method) and compile its result.")
        for method in updater.methods():
            if method.needs_probe and self.probe_batches is None and updater.optimizer is None:
                raise ValueError(f"{type(method).__name__} needs the gradients of a batch: pass "
                                 "SparsityUpdate(probe_data=(x, y)).")
        self._exclude_from_weight_decay()
        self.epoch_base = None

    def on_epoch_begin(self, epoch, logs=None):
        updater = self.updater
        if self.epoch_base is None:  # other callbacks have loaded their checkpoints by now
            updater.rebase()
            for layer in updater.layers:
                updater.after_load(layer)
            self._warn_if_too_short(epoch)
            updater.run(self.probe_batches)
        self.epoch_base = updater.now()

    def on_train_batch_end(self, batch, logs=None):
        # An upper bound of the step, counted in Python: with gradient accumulation or skipped
        # steps the optimizer has made fewer updates. The model is read only if it says "due".
        if self.updater.due(self.epoch_base + batch + 1):
            self.model  # noqa: B018  on JAX this brings the trained state back
            if self.updater.due(self.updater.now()):
                self.updater.run(self.probe_batches)

    def on_epoch_end(self, epoch, logs=None):
        self.updater.run(self.probe_batches)

    def on_train_end(self, logs=None):
        self.updater.run(self.probe_batches)

    def _exclude_from_weight_decay(self):
        variables = [slot.state[key]
                     for layer in self.updater.layers for method, slot in layer.slots()
                     for key, spec in method.state(slot.kernel).items() if not spec.decay]
        if not variables:
            return
        optimizer = self.model.optimizer
        while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        # Keras replaces the earlier exclusions by the new ones; ours are added to them.
        before = set(optimizer.__dict__.get("_exclude_from_weight_decay") or ())
        pattern = optimizer.__dict__.get("_exclude_from_weight_decay_pattern")
        optimizer.exclude_from_weight_decay(
            var_list=variables, var_names=None if pattern is None else [pattern.pattern])
        optimizer._exclude_from_weight_decay |= before

    def _warn_if_too_short(self, epoch):
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if steps is None or epochs is None:
            return
        accumulate = self.model.optimizer.gradient_accumulation_steps or 1
        end = self.updater.now() + steps * (epochs - epoch) // accumulate
        for method in self.updater.methods():
            last = method.last_step
            if last is not None and self.updater.updated < last and end < last:
                warnings.warn(
                    f"{type(method).__name__} ends its schedule at step {last}, but this run "
                    f"ends at step {end} (now at {self.updater.now()}, {epochs - epoch} epochs "
                    f"of {steps} steps): it will stop before the final sparsity. Train longer, "
                    "or end the schedule earlier.", stacklevel=2)


