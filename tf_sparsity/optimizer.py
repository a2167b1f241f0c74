"""SparseOptimizer: the optimizer host. Masks are optimizer state, applied in the compiled step."""

import warnings

import keras
import numpy as np
from keras import ops

from tf_sparsity import selection, train_step
from tf_sparsity.method import STEP, Kernel, MaskMethod, Slot, Spec

# Optimizers that treat each weight by itself: whatever they do to a pruned one, it is set to zero
# again and no other weight sees it, so that masking their gradients would cost and change nothing.
ELEMENTWISE = {getattr(keras.optimizers, name) for name in (
    "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lion", "Nadam", "RMSprop", "SGD")}


@keras.saving.register_keras_serializable(package="tf_sparsity")
class SparseOptimizer(keras.optimizers.Optimizer):
    r"""Wraps an optimizer so that pruned weights stay zero, in any model, with nothing replaced.

    $$ \theta_{t+1} = m \odot \text{inner}(\theta_t,\ m \odot g_t) $$

    Masks, step and schedule position are variables of the optimizer: saved with it, applied
    after every step inside the compiled train step. Train with `ts.callbacks.SparsityUpdate()`.

    Args:
      inner: the `keras.optimizers.Optimizer` that trains the weights (clipping, weight decay,
        EMA, gradient accumulation and loss scaling belong to it).
      method: a mask method, for instance `ts.MagnitudePruning(...)`.
      select: as in `ts.sparsify`; by default every trainable array of rank >= 2 whose name
        contains `kernel` or `embeddings`. A regular expression may name any array of rank >= 2.

    Raises:
      ValueError: if `inner` is no Keras optimizer; for a method with trainable state or
        `revive=True`, which need layers.

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
    model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.1), method), "mse")
    ts.update(model)
    assert ts.report(model).sparsity == 0.5
    ```

    Source: the arrangement is that of JaxPruner (Lee et al. 2023, arXiv:2304.14082), whose
    masks live in the optimizer's state; gradients are masked before the inner optimizer, so
    that clipping by norm agrees with the layer host.
    """

    def __init__(self, inner, method, *, select=None, name="sparse_optimizer"):
        inner = keras.optimizers.get(inner)
        if not isinstance(method, MaskMethod):
            raise ValueError(
                f"{type(method).__name__} learns its sparsity with trainable state, which an "
                "optimizer cannot hold. Use layers: ts.sparsify(model, method), or "
                "ts.layers.SparseDense(..., method=method) in your own model.")
        if method.latent:
            raise ValueError(f"{type(method).__name__}(revive=True) scores the weights behind "
                             "the mask, which SparseOptimizer does not keep. Use "
                             "ts.sparsify(model, method), or revive=False.")
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer, self.method, self.select = inner, method, select
        self.states = []  # the state variables of each slot
        self.layout = None  # [(index among the trainable variables, Kernel)], once resolved
        self.bound = None  # the Updater that has taken charge
        self.saved_seeds = {}

    # ---- what is sparse

    def bind(self, updater):
        """Lets `updater` take charge; `updater.find()` names the layer of each variable."""
        known = {self._var_key(v) for v in self._trainable_variables}
        if self.built and any(self._var_key(v) not in known for v in updater.trainable_variables):
            raise ValueError(
                f"This SparseOptimizer was built for other variables than those of model "
                f"'{updater.model.name}', and its masks belong to them. Compile the model with a "
                "new ts.SparseOptimizer.")
        self.bound = updater
        if self.built and self.layout is None:
            self._resolve()

    def build(self, variables):
        if self.built:
            return
        self.inner_optimizer.build(variables)
        super().build(variables)
        # [optimizer updates over the model's life, the last step whose updates have run]
        self.clock = self.add_variable(
            (2,), lambda shape, dtype=None: ops.convert_to_tensor([0, -1], dtype), dtype="int32",
            name="sparsity_clock", aggregation="only_first_replica")
        if self.layout is not None:
            self._add_slots()
        elif self.bound is not None:
            self._resolve()

    def _resolve(self):
        """Chooses the sparse variables, and creates their state."""
        found = {id(f.variable): f for f in self.bound.find()}
        candidates = []
        for index, variable in enumerate(self._trainable_variables):
            entry = found.get(id(variable))
            if len(variable.shape) < 2 or (entry is not None and entry.method is not None):
                continue  # no kernel, or sparse already in a layer of this package
            if entry is not None:
                candidates.append((index, entry.kernel, entry.layer))
            elif selection.is_kernel_like(variable) or selection.is_pattern(self.select):
                path = variable.path.removeprefix(self.bound.prefix)
                candidates.append((index, selection.guess_kernel(variable, path), None))
        chosen = selection.choose(self.select, [k.path for _, k, _ in candidates],
                                  [layer for _, _, layer in candidates])
        layout = [(i, kernel) for (i, kernel, _), c in zip(candidates, chosen) if c]
        skipped = [(k.path, self.method.unsupported(k)) for _, k in layout]
        reasons = "; ".join(f"{path}: {why}" for path, why in skipped if why)
        layout = [(i, k) for (i, k), (_, why) in zip(layout, skipped) if not why]
        if not layout:
            raise ValueError(f"{type(self.method).__name__} can handle none of the selected "
                             f"kernels: {reasons}")
        if reasons:
            warnings.warn(f"Not sparsified: {reasons}", stacklevel=2)
        self.method.validate([k for _, k in layout])
        self.layout = layout
        self._add_slots()

    @property
    def slots(self):
        """One Slot for each sparse variable; empty until the optimizer is built and bound."""
        return [Slot(kernel, self._trainable_variables[index], state)
                for (index, kernel), state in zip(self.layout or [], self.states)]

    def _add_slots(self):
        for index, kernel in self.layout:
            variable = self._trainable_variables[index:index + 1]
            if [tuple(v.shape) for v in variable] != [kernel.shape]:
                raise ValueError(
                    f"This SparseOptimizer keeps the mask of {kernel.path}, of shape "
                    f"{kernel.shape}, for trainable variable {index}; the model has "
                    f"{[(v.path, tuple(v.shape)) for v in variable]} there. Its configuration is "
                    "that of another model: compile with a new ts.SparseOptimizer.")
            state = {key: self._add_state(kernel, key, spec)
                     for key, spec in self.method.state(kernel).items()}
            if self.method.needs_probe:
                # each replica sees the gradient of its share of the batch
                state["gradient"] = self._add_state(kernel, "gradient", Spec(kernel.shape), "sum")
            if self.method.compiled:
                state["spare"] = self._add_state(kernel, "spare", Spec(kernel.shape))
            self.states.append(state)

    def _add_state(self, kernel, key, spec, aggregation="only_first_replica"):
        return self.add_variable(spec.shape, initializer=spec.initializer, dtype="float32",
                                 name=f"{kernel.path.replace('/', '_')}_{key}",
                                 aggregation=aggregation)

    # ---- the compiled step

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(list(trainable_variables))
        if self.bound is None:
            train_step.give_back()
            raise ValueError(
                f"SparseOptimizer prunes with {type(self.method).__name__}, whose masks must be "
                "updated between steps, but nothing updates them. Pass "
                "callbacks=[ts.callbacks.SparsityUpdate()] to fit; in a custom loop call "
                "ts.update(model) (or ts.update(optimizer)) once before the first step and "
                "after every step.")
        variables = list(trainable_variables or self._trainable_variables)
        dense, grads = list(grads), list(grads)
        position = {self._var_key(v): i for i, v in enumerate(variables)}
        slots = [(slot, position[key]) for slot in self.slots
                 if (key := self._var_key(slot.theta)) in position
                 and grads[position[key]] is not None]
        if self._masks_gradients():
            for slot, i in slots:
                grads[i] = ops.multiply(grads[i], ops.cast(slot.state["mask"], grads[i].dtype))
        scale = self.scale_loss(1.0)
        before = self.inner_optimizer.iterations + 0  # a copy: the variable itself will move
        self._apply_inner(grads, variables)
        done = ops.cast(self.inner_optimizer.iterations - before, "int32")
        self.clock.assign(self.clock + ops.stack([done, ops.zeros_like(done)]))
        if self.method.needs_probe:
            for slot, i in slots:
                old = ops.convert_to_tensor(slot.state["gradient"])
                gradient = ops.zeros_like(old) + ops.cast(dense[i], "float32")  # may be sparse
                slot.state["gradient"].assign(ops.where(done > 0, gradient / scale, old))
        if self.method.compiled:
            self.method.update_in_step(self.slots, self.clock[STEP])
        self.project()

    def _masks_gradients(self):
        """Must the inner optimizer see masked gradients? Not if no weight that is kept, now or
        later, depends on the gradient of a pruned one."""
        inner = innermost(self)
        return not self.method.dense_gradients and (
            self.method.regrows or type(inner) not in ELEMENTWISE
            or inner.clipnorm is not None or inner.global_clipnorm is not None)

    def _apply_inner(self, grads, variables):
        inner = self.inner_optimizer
        if (keras.backend.backend() != "jax"
                or not isinstance(inner, keras.optimizers.LossScaleOptimizer)):
            inner.apply(grads, variables)
            return
        # Its `apply` assigns inside a branch, which JAX cannot trace; its stateless form can.
        new, state = inner.stateless_apply([v.value for v in inner.variables], grads,
                                           [v.value for v in variables])
        for variable, array in zip(variables + inner.variables, list(new) + list(state)):
            variable.assign(array)

    def project(self):
        """Sets the pruned weights to zero, and their moving averages too."""
        inner = innermost(self)
        for slot in self.slots:
            arrays = [slot.theta]
            if inner.use_ema:
                arrays.append(inner._model_variables_moving_average[
                    inner._get_variable_index(slot.theta)])
            for array in arrays:
                array.assign(ops.multiply(array, ops.cast(slot.state["mask"], array.dtype)))

    def last_gradients(self):
        """{kernel path: dense gradient of the last step}, for methods with `needs_probe`."""
        return {s.kernel.path: ops.convert_to_numpy(s.state["gradient"]) for s in self.slots}

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)
        if innermost(self).use_ema:
            for variable in var_list:  # on JAX the averages have become the weights' memory,
                variable.assign(ops.copy(variable))  # which a later fit cannot give away twice
            self.project()

    # ---- what the inner optimizer answers

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        innermost(self).exclude_from_weight_decay(var_list, var_names)

    @property
    def loss_scale_factor(self):
        inner = self.inner_optimizer
        if isinstance(inner, keras.optimizers.LossScaleOptimizer):
            return inner.initial_scale  # TensorFlow's optimizers do not set what is there already
        return inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor):
        inner = self.__dict__.get("inner_optimizer")
        if isinstance(inner, keras.optimizers.LossScaleOptimizer):  # said by one around this one
            raise ValueError(
                "The loss would be scaled twice, by a LossScaleOptimizer inside SparseOptimizer "
                "and by one around it. compile() under mixed_float16 adds the latter: pass "
                "SparseOptimizer(inner) without one, LossScaleOptimizer(SparseOptimizer(inner)) "
                "for other settings of it, or compile(..., auto_scale_loss=False).")
        if inner is not None:
            inner.loss_scale_factor = factor

    @property
    def _model_variables_moving_average(self):
        return innermost(self)._model_variables_moving_average  # SwapEMAWeights asks for it

    # ---- the clock, saving, configuration

    def read_clock(self):
        """(step, updated): optimizer updates so far, and the last step whose updates ran."""
        step, updated = ops.convert_to_numpy(self.clock)
        return int(step), int(updated)

    def write_updated(self, updated):
        self.clock.assign([self.read_clock()[STEP], updated])

    def save_own_variables(self, store):
        for i, variable in enumerate(self._variables):  # the inner optimizer saves its own
            store[str(i)] = variable.numpy()
        seeds = self.saved_seeds if self.bound is None else self.bound.seeds_for(self)
        for key, seed in seeds.items():
            store[key] = seed

    def load_own_variables(self, store):
        keys = list(store.keys())
        arrays = sum(key.isdigit() for key in keys)
        if arrays != len(self._variables):
            warnings.warn(
                f"SparseOptimizer '{self.name}' has {len(self._variables)} variables, the file "
                f"holds {arrays}: its masks and its step are not loaded. Call ts.update(model) "
                "once before loading, or load in a callback of fit, after SparsityUpdate.",
                stacklevel=2)
            return
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])
        self.saved_seeds = {k: np.asarray(store[k]) for k in keys if k.startswith("seed:")}
        if self.bound is not None:
            self.bound.after_load()

    def get_config(self):
        select = self.select
        if isinstance(select, selection.Exclude):
            select = select._asdict()
        elif callable(select):
            if self.layout is None:
                raise ValueError(
                    f"select={select!r} cannot be saved, and what it selects is not known before "
                    "training begins. Call ts.update(model) or fit first, or select by regular "
                    "expression.")
            select = None  # the layout says what it chose
        return {"name": self.name,
                "inner": keras.saving.serialize_keras_object(self.inner_optimizer),
                "method": keras.saving.serialize_keras_object(self.method),
                "select": select,
                "layout": None if self.layout is None else
                [[index, kernel.path, list(kernel.shape), list(kernel.axes)]
                 for index, kernel in self.layout]}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        layout = config.pop("layout", None)
        config["inner"] = keras.saving.deserialize_keras_object(config["inner"], custom_objects)
        config["method"] = keras.saving.deserialize_keras_object(config["method"], custom_objects)
        if isinstance(config["select"], dict):
            patterns, first, last = config["select"].values()
            config["select"] = selection.Exclude(tuple(patterns), first, last)
        optimizer = cls(**config)
        if layout is not None:
            optimizer.layout = [(i, Kernel(path, tuple(shape), tuple(axes)))
                                for i, path, shape, axes in layout]
        return optimizer


def innermost(optimizer):
    """The optimizer that trains the weights, inside SparseOptimizer and LossScaleOptimizer."""
    while isinstance(optimizer, (SparseOptimizer, keras.optimizers.LossScaleOptimizer)):
        optimizer = optimizer.inner_optimizer
    return optimizer


def find_sparse_optimizer(model):
    """The SparseOptimizer of a compiled model, inside a LossScaleOptimizer or not, or None."""
    optimizer = model.optimizer if model.compiled else None
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, SparseOptimizer) else None
