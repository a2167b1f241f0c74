"""sparsify: a model with sparse layers in place of Keras' own. strip: the way back."""

import contextlib
import tempfile
import warnings

import keras
import numpy as np
from keras import ops
from keras.src.saving.serialization_lib import SafeModeScope

from tf_sparsity import selection
from tf_sparsity.kernels import check_is_model, find, is_graph
from tf_sparsity.layers import REPLACEMENTS, SPARSE_CLASSES, SparseLayer
from tf_sparsity.layers.base import activations_of
from tf_sparsity.method import STEP, UPDATED, Method, group_by_method
from tf_sparsity.methods import FixedMask
from tf_sparsity.optimizer import find_sparse_optimizer


def sparsify(model, method, *, select=None):
    """A new, uncompiled model whose selected layers compute with `method.weight(theta, state)`.

    Layer names, inputs and outputs stay; weights are copied; the given model is untouched.
    Layers that cannot be sparsified are skipped, with one warning for all of them.

    Args:
      model: a built functional or Sequential `keras.Model`; nested models, shared layers,
        TimeDistributed and Bidirectional included. It may be sparsified already: another call
        with another selection mixes methods.
      method: for instance `ts.MagnitudePruning(...)`.
      select: None (every kernel), a regular expression or a list of them searched in the
        kernel's path (`block/dense/kernel`), a predicate on the layer, or `ts.exclude(...)`.

    Returns:
      keras.Model. Train it with `ts.callbacks.SparsityUpdate()` where the method needs updates.

    Raises:
      TypeError: if `model` is no Keras 3 model or `method` no method.
      ValueError: for an unbuilt or subclassed model, a selection that matches nothing, a kernel
        that is sparsified already.

    Warns:
      UserWarning: names the kernels that are skipped, and why: a custom layer, a pattern that the
        kernel has no axis for, a frozen layer under a method whose state is trained.

    Example:

    ```python
    import keras
    import tensorflow as tf
    import tf_sparsity as ts
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    sparse = ts.sparsify(dense, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)))
    ts.update(sparse)                      # one-shot; in fit, SparsityUpdate does it
    assert ts.report(sparse).sparsity == 0.5
    ```
    """
    _check_model(model, "sparsify")
    if not isinstance(method, Method):
        raise TypeError("method must be a tf_sparsity method such as ts.MagnitudePruning(...). "
                        f"Received: {method!r}")
    found = find(model)
    possible = [f for f in found if f.skipped is None]
    skipped = [(f.kernel.path, f.skipped) for f in found if f.skipped]
    if not possible:
        reasons = "; ".join(f"{path}: {why}" for path, why in skipped) or "it has no kernels"
        raise ValueError(f"Model '{model.name}' has no kernel that sparsify can handle ({reasons}"
                         "). ts.SparseOptimizer prunes any trainable array of rank >= 2.")
    chosen = selection.choose(select, [f.kernel.path for f in possible],
                              [f.layer for f in possible])
    chosen = [f for f, c in zip(possible, chosen) if c]
    taken = [f.kernel.path for f in chosen if f.method is not None]
    if taken:
        raise ValueError(f"Already sparsified: {', '.join(taken)}. Select other kernels, for "
                         f"instance with select=ts.exclude(...), or ts.strip(model) first.")
    unsupported = [(f, method.unsupported(f.kernel) or _frozen(f, method)) for f in chosen]
    skipped += [(f.kernel.path, why) for f, why in unsupported if why]
    chosen = [f for f, why in unsupported if not why]
    if not chosen:
        raise ValueError(f"{type(method).__name__} can handle none of the selected kernels: "
                         + "; ".join(f"{path}: {why}" for path, why in skipped))
    method.validate([f.kernel for f in chosen])
    if skipped:
        warnings.warn("Not sparsified: " + "; ".join(f"{p}: {why}" for p, why in skipped),
                      stacklevel=2)
    methods = {}
    for f in chosen:
        methods.setdefault(id(f.layer), {})[f.name] = method
    new = _clone(model, lambda layer: _sparse(layer, methods.get(id(layer), {})))
    _continue_clock(new)
    return new


def _frozen(found, method):
    """Why a method that is trained cannot have this kernel, or None."""
    if method.trainable_state and not found.variable.trainable:
        return (f"its layer is frozen, and {type(method).__name__} is trained; set trainable=True "
                "before ts.sparsify, or select other kernels")
    return None


def strip(model):
    """The plain Keras model: the same layers and outputs, zeros stored in the kernels.

    Args:
      model: a model made by `ts.sparsify`; a plain model is copied as it is.

    Returns:
      keras.Model, uncompiled, without any class of this package.

    Raises:
      TypeError, ValueError: as `ts.sparsify` for what is no functional or Sequential model.

    Warns:
      UserWarning: if a schedule is not complete ("schedule at step s of e").

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    sparse = ts.sparsify(dense, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)))
    ts.update(sparse)
    plain = ts.strip(sparse)
    assert type(plain.layers[0]) is keras.layers.Dense
    ```
    """
    _check_model(model, "strip")
    for message in incomplete(model):
        warnings.warn(message, stacklevel=2)
    return plain_twin(model)


def freeze_masks(model):
    """The model under the masks that it has now, as a `ts.FixedMask` in every sparse layer.

    For fine-tuning: what is zero stays zero, and the rest trains by the data loss alone, without
    gates, noise or penalty. Outputs of evaluation are the same bit for bit: theta of the new model
    is the weight that evaluation computes with.

    Args:
      model: a model made by `ts.sparsify`; it is untouched.

    Returns:
      keras.Model, uncompiled. It needs no callback.

    Raises:
      TypeError, ValueError: as `ts.strip`, and for a model without sparse layers.

    Warns:
      UserWarning: if a schedule is not complete ("schedule at step s of e").

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    dense = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    sparse = ts.sparsify(dense, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)))
    ts.update(sparse)
    fixed = ts.freeze_masks(sparse)
    assert fixed.layers[0].methods == {"kernel": ts.FixedMask()}
    assert ts.report(fixed).sparsity == 0.5
    ```
    """
    _check_model(model, "freeze_masks")
    if all(f.method is None for f in find(model)):
        raise ValueError(
            f"Model '{model.name}' has no sparse layer, so it has no masks to freeze. Call "
            "ts.sparsify(model, method) and train first. The masks of a ts.SparseOptimizer are "
            "fixed once its schedule is complete: train on with it.")
    for message in incomplete(model):
        warnings.warn(message, stacklevel=2)
    return fixed_twin(model)


def fixed_twin(model):
    """`freeze_masks` without its warnings."""
    new = _clone(model, _fixed)
    sparse = [f for f in find(model) if f.method is not None]
    for old, f in zip(sparse, (f for f in find(new) if f.method is not None), strict=True):
        theta, state = ops.convert_to_tensor(old.variable), old.slot.state
        f.slot.state["mask"].assign(_own_copy(old.method.keep(theta, state)) != 0)
        f.variable.assign(_own_copy(old.owner.effective(old.name.split("/")[-1])))
    return new


def plain_twin(model):
    """`strip` without its warnings: a copy in plain Keras layers."""
    return _clone(model, _plain)


def incomplete(model):
    """One sentence for each method whose last scheduled update has not run, on either host."""
    layers = [l for l in model._flatten_layers() if isinstance(l, SparseLayer) and l.built]
    clocks = [(m, l.read_clock()) for l in layers for m in l.methods.values()]
    optimizer = find_sparse_optimizer(model)
    if optimizer is not None and optimizer.slots:
        clocks.append((optimizer.method, optimizer.read_clock()))
    for method, of_method in group_by_method(clocks):
        step = max(clock[STEP] for clock in of_method)
        updated = min(clock[UPDATED] for clock in of_method)
        if method.needs_update and method.last_step is not None and updated < method.last_step:
            when = f"last updated at step {updated}" if updated >= 0 else "not updated yet"
            yield (f"{type(method).__name__}: schedule at step {step} of {method.last_step}, "
                   f"{when}. Sparsity is not what the schedule ends with; "
                   "train on with ts.callbacks.SparsityUpdate().")


def _check_model(model, verb):
    check_is_model(model, f"ts.{verb}")
    if not is_graph(model):
        raise ValueError(f"ts.{verb} rebuilds functional and Sequential models; '{model.name}' "
                         f"is the subclassed model {type(model).__name__}. ts.SparseOptimizer "
                         "trains it; its arrays then hold the zeros themselves, so there is "
                         "nothing to strip: export it as it is, or compile it with a plain "
                         "optimizer and save it.")
    if not model.built:
        raise ValueError(f"Model '{model.name}' is not built, so its kernels do not exist yet. "
                         "Call model.build(input_shape) or start it with keras.Input(shape).")


def _sparse(layer, methods):
    """A copy of `layer` with `methods` ({kernel name: Method}) added; None for an ordinary one."""
    if not methods:
        return None
    if type(layer) in REPLACEMENTS:
        return REPLACEMENTS[type(layer)].from_config({**_config(layer), "method": methods})
    return type(layer).from_config({**_config(layer), "method": {**layer.methods, **methods}})


def _plain(layer):
    if type(layer) not in SPARSE_CLASSES:
        return None
    config = _config(layer)
    del config["method"]
    return type(layer).keras_class.from_config(config)


def _fixed(layer):
    if type(layer) not in SPARSE_CLASSES:
        return None
    methods = {name: FixedMask() for name in layer.methods}
    return type(layer).from_config({**_config(layer), "method": methods})


def _config(layer):
    """`layer.get_config()`, for copies: with what Keras leaves out of it."""
    config = layer.get_config()
    if type(layer) in REPLACEMENTS:
        config.update(REPLACEMENTS[type(layer)].unsaved_config(layer))
    if type(layer).__module__.startswith(("keras.", "tf_sparsity.")):
        config.update((k, v) for k, v in activations_of(layer).items() if k in config)
    return config


def _clone(model, replace):
    """A copy of `model` with `replace(layer)` (None: an ordinary copy) for each layer."""
    copies = {}

    def copy(layer):
        if id(layer) not in copies:  # layers stay shared, across nested models too
            copies[id(layer)] = layer, make(layer)
        return copies[id(layer)][1]

    def make(layer):
        if not isinstance(layer, keras.Layer):
            return layer  # an operation of keras.ops holds no weights
        if is_graph(layer):
            inputs = None if isinstance(layer, keras.Sequential) else keras.tree.map_structure(
                lambda t: copy(t._keras_history.operation).output, layer.input)
            new = keras.models.clone_model(layer, input_tensors=inputs, clone_function=copy)
            new._trainable = layer._trainable  # the setter would reach into all its layers
            return new
        try:
            new = replace(layer)
            return ordinary_copy(layer) if new is None else new
        except Exception as error:
            missing = isinstance(error, NotImplementedError)
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) cannot be copied: "
                f"{'it has no get_config' if missing else error}. Make from_config(get_config()) "
                "work (keras.io/guides/serialization_and_saving), or train with "
                "ts.SparseOptimizer, which replaces nothing.") from error

    def ordinary_copy(layer):
        config = _config(layer)
        if type(layer) is keras.layers.TimeDistributed:
            config.update(layer=copy(layer.layer))
            new = keras.layers.TimeDistributed(**config)
        elif type(layer) is keras.layers.Bidirectional:
            config.update(layer=make(layer.forward_layer),
                          backward_layer=make(layer.backward_layer))
            new = keras.layers.Bidirectional(**config)
        elif type(layer) is keras.layers.Lambda:  # written and read, code loses its globals
            live = {"function": layer.function, "output_shape": layer._output_shape,
                    "mask": layer.mask, "arguments": dict(layer.arguments)}
            new = keras.layers.Lambda(**{**config, **live})
        else:
            new = type(layer).from_config(config)
        if hasattr(layer, "save_assets"):  # a vocabulary; the graph needs its size
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                new.load_assets(folder)
        return new

    with _uncompiled(model), SafeModeScope(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*lambda")  # those of a live model are no danger
        new_model = make(model)
    for old, new in copies.values():
        if isinstance(old, keras.Layer) and not is_graph(old):
            _copy_variables(old, new)
    return new_model


def _copy_variables(old_layer, new_layer):
    """Values by name, layer by layer; a plain layer takes the weight, a sparse one theta."""
    for old, new in zip(old_layer._flatten_layers(), new_layer._flatten_layers(), strict=True):
        if type(old) is type(new) and not isinstance(old, SparseLayer):
            store = {}  # Normalization computes from what it loads, attention may merge LoRA
            old.save_own_variables(store)
            new.load_own_variables({k: _own_copy(v) for k, v in store.items()})
            if len(old.variables) != len(new.variables):
                continue  # merged: the names no longer mean the same
        values: dict = {}
        for variable in old._trainable_variables + old._non_trainable_variables:
            values.setdefault(variable.name, []).append(variable)
        if isinstance(old, SparseLayer) and not isinstance(new, SparseLayer):
            for name in old.KERNELS:
                values[name] = [old.effective(name)]
        for variable in new._trainable_variables + new._non_trainable_variables:
            if values.get(variable.name):
                variable.assign(_own_copy(values[variable.name].pop(0)))
        for old_seed, new_seed in zip(old._seed_generators, new._seed_generators):
            new_seed.state.assign(_own_copy(old_seed.state))


def _own_copy(array):
    """Memory of its own: JAX gives the buffers of a model's variables away in each step."""
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(array)))


def _continue_clock(model):
    """Layers that were sparsified later share the step of the model's life."""
    layers = [l for l in model._flatten_layers() if isinstance(l, SparseLayer)]
    step = max(l.read_clock()[STEP] for l in layers)
    for layer in layers:
        layer.write_clock(step, layer.read_clock()[UPDATED])


@contextlib.contextmanager
def _uncompiled(model):
    """clone_model compiles the copy of a compiled model; ours are returned uncompiled."""
    models = [l for l in model._flatten_layers() if isinstance(l, keras.Model) and l.compiled]
    for m in models:
        m.compiled = False
    try:
        yield
    finally:
        for m in models:
            m.compiled = True


