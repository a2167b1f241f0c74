"""When updates run: one Updater for a model, driven by the callback or by `ts.update`."""

import contextlib
import functools

import keras
from keras import ops

from tf_sparsity import probes
from tf_sparsity.kernels import check_is_model, find
from tf_sparsity.layers import SparseLayer
from tf_sparsity.method import STEP, UPDATED, Kernel, group_by_method
from tf_sparsity.optimizer import SparseOptimizer, find_sparse_optimizer, innermost


class Updater:
    """Counts a model's steps and runs what is due. Owns no number: clocks are variables.

    Args:
      model: the model, sparsified or compiled with a SparseOptimizer.
      optimizer: the SparseOptimizer, or None.
      manual: True if `ts.update` drives it, and each call is a step.
      probe_batches: iterator of (x, y) for methods with `needs_probe`, or None.
    """

    def __init__(self, model, optimizer=None, manual=False, probe_batches=None):
        self.model, self.optimizer, self.manual = model, optimizer, manual
        self.probe_batches = probe_batches
        self.layers = [] if model is None else [
            l for l in model._flatten_layers() if isinstance(l, SparseLayer)]
        # Was there nobody to update the model? Then its first trace may have failed already.
        self.took_over = any(host.bound is None for host in self.hosts)
        for layer in self.layers:
            layer.bound = self
        if optimizer is not None:
            self._build_optimizer()
        self.running = False  # is fit under way? Then the optimizer's count says the step
        self.fresh = True  # nothing has run since this took charge, or since weights were loaded
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

    @property
    def trainable_variables(self):
        return [] if self.model is None else self.model.trainable_variables

    @property
    def prefix(self):
        """What Keras puts before the paths of a subclassed model's variables."""
        return "" if self.model is None else f"{self.model.name}/"

    def find(self):
        """The kernels of the model, for the optimizer to bind its variables to."""
        return [] if self.model is None else find(self.model)

    @property
    def active(self):
        """Is there anything to update? A SparseOptimizer may not be built yet."""
        return bool(self.layers) or self.optimizer is not None

    @functools.cached_property  # asked for after every batch
    def methods(self):
        """Every method in use."""
        methods = [m for layer in self.layers for m in layer.methods.values()]
        if self.optimizer is not None:
            methods.append(self.optimizer.method)
        return [method for method, _ in group_by_method([(m, None) for m in methods])]

    def plan(self, last_step):
        """Settles methods that leave the length of the run open; None: it is unknown."""
        for layer in self.layers:
            layer.methods.update({name: method.for_run(last_step)
                                  for name, method in layer.methods.items()})
        self.__dict__.pop("methods", None)

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

    def exclude_from_weight_decay(self):
        """Exempts trained state that must not decay, where the optimizer is known."""
        if self.model is None or not self.model.compiled:
            return
        # By name: TensorFlow builds the variables of a subclassed model in its first step only.
        anywhere = Kernel("", (1, 1), ("in", "out"))
        names = {rf"\b{name}_{key}(:0)?$" for layer in self.layers
                 for name, method in layer.methods.items()
                 for key, spec in method.state(anywhere).items() if not spec.decay}
        if not names:
            return
        optimizer = innermost(self.model.optimizer)
        # Keras replaces earlier exclusions by new ones; ours are added to the user's.
        chosen = set(optimizer.__dict__.get("_exclude_from_weight_decay") or ())
        pattern = optimizer.__dict__.get("_exclude_from_weight_decay_pattern")
        if pattern is not None:
            names = {pattern.pattern, *(n for n in names if n not in pattern.pattern)}
        optimizer.exclude_from_weight_decay(var_names=sorted(names))
        optimizer._exclude_from_weight_decay |= chosen

    # ---- the clock

    def rebase(self):
        """Reads the stored clocks: `now` counts on from here."""
        clocks = [layer.read_clock() for layer in self.layers if layer.built]
        if self.optimizer is not None and self.optimizer.built:
            clocks.append(self.optimizer.read_clock())
        self.base = max((c[STEP] for c in clocks), default=0)
        self.updated = min((c[UPDATED] for c in clocks), default=-1)
        self.counted = self._counting_optimizer()
        self.base_iterations = self.iterations()
        for host in self.hosts:
            self._restore_seeds(host)

    @property
    def hosts(self):
        """What stores clocks and seed states: sparse layers, and a SparseOptimizer."""
        return self.layers + ([] if self.optimizer is None else [self.optimizer])

    def _counting_optimizer(self):
        if self.manual or self.model is None or not self.model.compiled:
            return None
        return self.model.optimizer

    def iterations(self):
        """The optimizer's updates since it was compiled."""
        if self.counted is None:
            return 0
        return int(ops.convert_to_numpy(self.counted.iterations))

    def advance(self):
        """One more step of a custom loop, on layers: a SparseOptimizer counts its own."""
        self.rebase()
        self.base += 1

    def now(self):
        """The step: optimizer updates over the model's life."""
        if self.optimizer is not None and self.optimizer.built:
            return self.optimizer.read_clock()[STEP]
        return self.base + self.iterations() - self.base_iterations

    def due(self, step):
        """Could any update be due by `step`? Touches no variable."""
        return any(method.due(self.updated, step) for method in self.methods)

    def run(self):
        """Runs every update due since the last one, and stores the step."""
        step = self.now()
        if self.due(step) or self.fresh:
            for method, slots in group_by_method(self.slots()):
                if method.due(self.updated, step):
                    method.update(slots, step, self.probe(method, slots, step))
            if self.optimizer is not None and self.optimizer.built:
                self.optimizer.project()
        if all(host.built for host in self.hosts):
            self.fresh, self.updated = False, step
            self.store()

    def end_epoch(self):
        """`run`, at the end of an epoch of `fit`."""
        step = self.now()
        if self.optimizer is not None and self.optimizer.method.compiled:
            self.optimizer.method.end_epoch(self.optimizer.slots, step)
        self.run()
        for method, slots in group_by_method(self.slots()):
            method.end_epoch(slots, step)

    def unmet(self):
        """A sentence for each method that has not reached what it was asked for."""
        step = self.now()
        texts = [method.unmet(slots, step) for method, slots in group_by_method(self.slots())]
        return [text for text in texts if text is not None]

    def read_penalty(self):
        """Mean penalty of the examples since this was last read; None where nothing has one."""
        layers = [layer for layer in self.layers if layer.penalty_sums is not None]
        return sum(layer.read_penalty() for layer in layers) if layers else None

    def check_probe(self):
        """Raises if a method of the sparse layers needs a probe batch and there is none."""
        for layer in self.layers if self.probe_batches is None else []:
            for method in layer.methods.values():
                if method.needs_probe:
                    raise ValueError(
                        f"{type(method).__name__} needs the gradients of a batch: train with "
                        "SparsityUpdate(probe_data=(x, y)), or with ts.SparseOptimizer, which "
                        "sees those of every step.")

    def probe(self, method, slots, step):
        """{path: dense gradient} for a method that needs it: of a probe batch, or of the
        optimizer's last step."""
        if not method.needs_probe:
            return None
        if self.probe_batches is not None:
            gradients = probes.gradients(self.model, [slot.theta for slot in slots],
                                         *next(self.probe_batches))
            return {slot.kernel.path: g for slot, g in zip(slots, gradients)}
        if step == 0:
            raise ValueError(
                f"{type(method).__name__} needs gradients for its update at step 0, and no step "
                "has been made: pass SparsityUpdate(probe_data=(x, y)), or begin_step >= 1.")
        return self.optimizer.last_gradients()

    def store(self):
        """Writes the clock into the model's variables."""
        step = self.now()
        for layer in self.layers:
            if layer.built:
                layer.write_clock(step, self.updated)
        if self.optimizer is not None and self.optimizer.built:
            self.optimizer.write_updated(self.updated)

    # ---- saving: layers and optimizer call these

    def seed_generators(self):
        """Every SeedGenerator of the model, Keras' own too: their states are saved with ours."""
        return [seed for layer in self.model._flatten_layers()
                for seed in layer._seed_generators]

    def before_save(self):
        """Brings the stored clock up to date within an epoch; after fit it is the truth itself."""
        if self.running and self.model.optimizer is self.counted:
            self.store()

    def seeds_for(self, host):
        """What `host` saves: the first host carries the states of all seed generators."""
        if self.model is None or host is not self.hosts[0]:
            return {}
        return {f"seed:{i:04d}": ops.convert_to_numpy(seed.state)
                for i, seed in enumerate(self.seed_generators())}

    def after_load(self):
        """Counts on from the clock that came with a weight file, with its random numbers."""
        self.fresh = True
        self.rebase()

    def _restore_seeds(self, host):
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
    else:
        check_is_model(model, "ts.update", "a sparsified keras.Model or a ts.SparseOptimizer")
        optimizer = find_sparse_optimizer(model)
    updater = _bound(model, optimizer)
    if updater is None or not updater.manual or updater.model is not model:
        updater = Updater(model, optimizer, manual=True)
        if not updater.active:
            raise ValueError(f"Model '{model.name}' has no sparse layer and was not compiled "
                             "with ts.SparseOptimizer: there is nothing to update. Call "
                             "ts.sparsify(model, method) first.")
        updater.plan(None)
        updater.exclude_from_weight_decay()
    else:
        updater.advance()
    updater.check_probe()
    updater.run()


def _bound(model, optimizer):
    if optimizer is not None and optimizer.bound is not None:
        return optimizer.bound
    for layer in [] if model is None else model._flatten_layers():
        if isinstance(layer, SparseLayer):
            return layer.bound
    return None


