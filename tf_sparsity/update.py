"""When updates run: one Updater for a model, driven by the callback or by `ts.update`."""

import contextlib

import keras
from keras import ops

from tf_sparsity import probes
from tf_sparsity.kernels import find
from tf_sparsity.layers import SparseLayer
from tf_sparsity.method import STEP, UPDATED, group_by_method
from tf_sparsity.optimizer import SparseOptimizer


class Updater:
    """Counts a model's steps and runs what is due. Owns no number: clocks are variables.

    Args:
      model: the model, sparsified or compiled with a SparseOptimizer.
      optimizer: the SparseOptimizer, or None.
      manual: True if `ts.update` drives it, and each call is a step.
    """

    def __init__(self, model, optimizer=None, manual=False):
        self.model, self.optimizer, self.manual = model, optimizer, manual
        self.layers = [] if model is None else [
            l for l in model._flatten_layers() if isinstance(l, SparseLayer)]
        for layer in self.layers:
            layer.bound = self
        if optimizer is not None:
            self._build_optimizer()
        self.calls = 0
        self.rebase()

    def _build_optimizer(self):
        """Masks must exist before the first step; a model without variables yet has to wait."""
        scope = contextlib.nullcontext()
        if self.model is not None and keras.backend.backend() == "tensorflow":
            scope = self.model.distribute_strategy.scope()
        with scope:
            if self.model is not None and self.model.built and not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self.optimizer.bind(self)  # creates the masks: a strategy must know them

    def find(self):
        """The kernels of the model, for the optimizer to bind its variables to."""
        return [] if self.model is None else find(self.model)

    @property
    def active(self):
        """Is there anything to update? A SparseOptimizer may not be built yet."""
        return bool(self.layers) or self.optimizer is not None

    def methods(self):
        """Every method in use."""
        methods = [m for layer in self.layers for m in layer.methods.values()]
        if self.optimizer is not None:
            methods.append(self.optimizer.method)
        return [method for method, _ in group_by_method([(m, None) for m in methods])]

    def slots(self):
        """`[(method, Slot)]` of both hosts; paths are those of the whole model."""
        pairs = []
        if self.layers:
            pairs += [(f.method, f.slot) for f in find(self.model) if f.method is not None]
        # A compiled method updates its masks in the optimizer's step, all but the first.
        if self.optimizer is not None and (self.updated < 0
                                           or not self.optimizer.method.compiled):
            pairs += [(self.optimizer.method, slot) for slot in self.optimizer.slots]
        return pairs

    # ---- the clock

    def rebase(self):
        """Reads the stored clocks: `now` counts on from here."""
        clocks = [layer.read_clock() for layer in self.layers]
        if self.optimizer is not None and self.optimizer.built:
            clocks.append(self.optimizer.read_clock())
        self.base = max((c[STEP] for c in clocks), default=0)
        self.updated = min((c[UPDATED] for c in clocks), default=-1)
        self.base_iterations = self.iterations()
        self.calls = 0

    def iterations(self):
        """The optimizer's updates since it was compiled; with `ts.update`, its calls."""
        if self.manual or self.model is None or self.model.optimizer is None:
            return self.calls
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def now(self):
        """The step: optimizer updates over the model's life."""
        if self.optimizer is not None and self.optimizer.built:
            return self.optimizer.read_clock()[STEP]
        return self.base + self.iterations() - self.base_iterations

    def due(self, step):
        """Could any update be due by `step`? Touches no variable."""
        return any(method.due(self.updated, step) for method in self.methods())

    def run(self, probe_batches=None):
        """Runs every update due since the last one, and stores the step."""
        step = self.now()
        for method, slots in group_by_method(self.slots()):
            if method.due(self.updated, step):
                method.update(slots, step, self.probe(method, probe_batches))
        if self.optimizer is not None and self.optimizer.built:
            self.optimizer.project()
        if self.layers or (self.optimizer is not None and self.optimizer.built):
            self.updated = step
            self.store()

    def end_epoch(self, probe_batches=None):
        """`run`, at the end of an epoch of `fit`."""
        if self.optimizer is not None and self.optimizer.method.compiled:
            self.optimizer.method.end_epoch(self.optimizer.slots, self.now())
        self.run(probe_batches)

    def probe(self, method, probe_batches):
        """{path: dense gradient} for a method that needs it: of a probe batch, or of the
        optimizer's last step."""
        if not method.needs_probe:
            return None
        if probe_batches is not None:
            return probes.gradients(self.model, *next(probe_batches))
        return self.optimizer.last_gradients()

    def store(self):
        """Writes the clock into the model's variables."""
        step = self.now()
        for layer in self.layers:
            layer.write_clock(step, self.updated)
        if self.optimizer is not None and self.optimizer.built:
            self.optimizer.write_updated(self.updated)

    # ---- saving: layers and optimizer call these

    def seed_generators(self):
        """Every SeedGenerator of the model, Keras' own too: their states are saved with ours."""
        return [seed for layer in self.model._flatten_layers()
                for seed in layer._seed_generators]

    def before_save(self):
        self.store()

    def seeds_for(self, host):
        """What `host` saves: the first host carries the states of all seed generators."""
        hosts = [*self.layers, self.optimizer]
        if self.model is None or host is not hosts[0]:
            return {}
        return {f"seed:{i:04d}": ops.convert_to_numpy(seed.state)
                for i, seed in enumerate(self.seed_generators())}

    def after_load(self, host):
        """Restores the seed states that came with a weight file."""
        if self.model is None or not host.saved_seeds:
            return
        generators = self.seed_generators()
        if len(generators) != len(host.saved_seeds):
            raise ValueError(
                f"The checkpoint holds the states of {len(host.saved_seeds)} random generators, "
                f"the model has {len(generators)}: it was saved by a model with other layers.")
        for generator, key in zip(generators, sorted(host.saved_seeds)):
            generator.state.assign(host.saved_seeds[key])
        host.saved_seeds = {}


def find_sparse_optimizer(optimizer):
    """The SparseOptimizer inside wrappers such as LossScaleOptimizer, or None."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, SparseOptimizer) else None


def update(model):
    """Runs the updates that are due: in custom loops after each step, or one-shot pruning.

    The first call takes charge of the model and runs what is due at its stored step (for
    `begin_step=0` that prunes it at once). Each later call counts one more step. With a
    `SparseOptimizer` the optimizer counts.

    Args:
      model: a model made by `ts.sparsify`, a model compiled with a `ts.SparseOptimizer`, or, in
        a custom loop without compile, the built `ts.SparseOptimizer` itself.

    Raises:
      TypeError: if `model` is neither.
      ValueError: if nothing in it is sparse, or a weight is NaN.

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.75, 0)))
    ts.update(model)
    assert ts.report(model).sparsity == 0.75
    ```
    """
    if isinstance(model, SparseOptimizer):
        model, optimizer = None, model
    elif isinstance(model, keras.Model):
        optimizer = find_sparse_optimizer(model.optimizer)
    else:
        raise TypeError("ts.update expects a sparsified keras.Model or a ts.SparseOptimizer. "
                        f"Received: {model!r}")
    updater = _bound(model, optimizer)
    if updater is None or not updater.manual or updater.model is not model:
        updater = Updater(model, optimizer, manual=True)
        if not updater.active:
            raise ValueError(f"Model '{model.name}' has no sparse layer and was not compiled "
                             "with ts.SparseOptimizer: there is nothing to update. Call "
                             "ts.sparsify(model, method) first.")
    else:
        updater.calls += 1
    waiting = [m for m in updater.methods() if m.needs_probe]
    if waiting and optimizer is None:
        raise ValueError(f"{type(waiting[0]).__name__} needs the gradients of a batch: use "
                         "ts.callbacks.SparsityUpdate(probe_data=(x, y)) or ts.SparseOptimizer.")
    updater.run()


def _bound(model, optimizer):
    if optimizer is not None and optimizer.bound is not None:
        return optimizer.bound
    for layer in [] if model is None else model._flatten_layers():
        if isinstance(layer, SparseLayer):
            return layer.bound
    return None


