"""TicketSearch: rounds of training that find a mask, then training of the ticket under it."""

import collections.abc
import contextlib
import hashlib
import importlib
import inspect
import json
import os
import random
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from tf_sparsity import masks
from tf_sparsity.callbacks import SparsityUpdate
from tf_sparsity.convert import fixed_twin, plain_twin, sparsify
from tf_sparsity.kernels import check_is_model, find
from tf_sparsity.layers import SparseLayer
from tf_sparsity.method import MaskMethod, Method, check_number
from tf_sparsity.methods import FixedMask
from tf_sparsity.optimizer import find_sparse_optimizer, innermost


class TicketSearch:
    r"""Searches a lottery ticket: a mask, and the early weights that train well under it.

    With `ts.ContinuousSparsification` (Savarese et al.; the authors' `main.py`): in each round
    weights and soft mask train while beta rises anew. Weights are not rewound between rounds, and
    the optimizer keeps its momentum (its learning rate schedule starts again). Between rounds, and
    after the last one:

    $$ s \leftarrow \min(\beta s, s_0),\ \beta \leftarrow 1; \qquad m = H(s) $$

    With a mask method (iterative magnitude pruning; Frankle and Carbin, open_lth): after each
    round the share p, the schedule's final sparsity, of the weights that are left is pruned, the
    smallest after training; weights are rewound, and the next round has a new optimizer. Of the n
    weights of a kernel, or of all for "global" and "erk", round r leaves n_r:

    $$ n_0 = n,\quad n_r = n_{r-1} - \text{round}(p\, n_{r-1}) \approx (1 - p)^r n $$

    Both end alike: weights are rewound to theta_k, what they were after k = `rewind_step` steps,
    and train for a full run with a new optimizer under the mask, then a `ts.FixedMask`:

    $$ \text{weight} = \theta \odot m,\qquad \theta \leftarrow \theta_k $$

    Args:
      method: `ts.ContinuousSparsification(...)`, or a mask method whose schedule is complete at
        step 0: `ts.MagnitudePruning(ts.ConstantSparsity(0.2, 0), distribution="global")`.
      rounds: rounds of the search, >= 1. The ticket's own training comes after them.
      rewind_step: optimizer steps of the first round after which all variables of the dense model
        (those of BatchNormalization too) are kept; 0 keeps the weights that the search begins with.
      select: which kernels, as in `ts.sparsify`.
      seed: integer >= 0; None draws one from Python's `random` when `fit` begins. Round r calls
        `keras.utils.set_random_seed(seed + r)` before it trains.

    Raises:
      TypeError, ValueError: for arguments of another type or outside these ranges, a method that
        has no rounds.

    Example:

    ```python
    import keras
    import numpy as np
    import tf_sparsity as ts

    def compile(model):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    x, y = np.random.rand(64, 8), np.random.rand(64, 4)
    search = ts.TicketSearch(ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)), rounds=2)
    ticket = search.fit(model, compile, x, y, batch_size=16, epochs=2, verbose=0)
    assert ticket.sparsities == [0.5, 0.75]
    assert len(ticket.histories) == 3
    assert ts.report(ticket.model).sparsity == 0.75
    ```

    Reference: Savarese, Silva and Maire 2020, arXiv:1912.04427, and the authors' repository;
    Frankle and Carbin 2019, arXiv:1803.03635; Frankle, Dziugaite, Roy and Carbin 2019,
    "Stabilizing the Lottery Ticket Hypothesis", arXiv:1903.01611 (rewinding to step k), and the
    open_lth repository.

    Deviations: training after rewinding starts its learning rate schedule and its data anew and
    takes the full number of steps, as Savarese et al. do (open_lth goes on from step k in both).
    Of n weights round(n p) are pruned (open_lth rounds up).
    """

    def __init__(self, method, *, rounds=3, rewind_step=0, select=None, seed=None):
        if not isinstance(method, Method):
            raise TypeError("method must be a tf_sparsity method such as "
                            f"ts.ContinuousSparsification(...). Received: {method!r}")
        self.prunes = isinstance(method, MaskMethod)
        _check_method(method, self.prunes)
        check_number("rounds", rounds, least=1, whole=True)
        check_number("rewind_step", rewind_step, least=0, whole=True)
        if seed is not None:
            check_number("seed", seed, least=0, whole=True)
        self.method, self.rounds, self.rewind_step = method, int(rounds), int(rewind_step)
        self.select, self.seed = select, None if seed is None else int(seed)

    def fit(self, model, compile, *args, rewind_point=None, directory=None, **kwargs):
        """Runs the search.

        Args:
          model: a built dense functional or Sequential model, which stays as it is.
          compile: a function that compiles the model that it is given, with a new optimizer.
          args, kwargs: those of `model.fit`, for every round and the ticket alike. If x is a
            function it is called with the number of the round (1, 2, ...) and returns x: for
            generators, and for data whose order depends on the epochs before. `SparsityUpdate`
            is added in front of the callbacks.
          rewind_point: a dense model whose weights the search starts with and goes back to: that
            of `rewind_point()` or of an earlier `Ticket`, or one loaded from a file.
          directory: where complete rounds are saved. The same search that finds them goes on after
            the last one. It must have the same method, rounds, seed, kernels and initial weights,
            arguments of `model.fit` (arrays are compared by a digest), optimizer and loss, backend
            and versions. Of a function, generator or dataset only the name is compared, of
            callbacks and the rest of `compile` nothing: see to it that they are the same. A
            directory of an earlier release has less in it and is refused.

        Returns:
          Ticket.

        Raises:
          TypeError, ValueError: for a model that `ts.sparsify` refuses; if `compile` does not
            compile the model, or with an optimizer that it has used before; if `rewind_step` is
            not reached; if `directory` holds another search.

        Warns:
          UserWarning: if a kernel has no weight left.
        """
        start = self._start(model, rewind_point)
        trainer = _Trainer(compile, args, kwargs, self.seed)
        point = start if rewind_point is not None or not self.rewind_step else None
        search = sparsify(start, FixedMask() if self.prunes else self.method, select=self.select)
        trainer.compile(search)
        folder = None
        if directory is not None:
            folder = _Folder(directory, self._arguments(start, search, trainer, rewind_point))
            trainer.seed = folder.record.setdefault("seed", trainer.seed)
        rounds = [] if folder is None else folder.rounds
        for number in range(1, self.rounds + 1):
            if number <= len(rounds):  # complete
                if number == len(rounds):
                    point = self._load(folder, search, start)
                continue
            keep = None if point is not None else _KeepWeights(self.rewind_step)
            self._begin(number, search, point, trainer)
            history = trainer.fit(search, number, SparsityUpdate(), keep)
            if point is None:
                point = plain_twin(start)
                _assign(_dense_variables(point), keep.weights)
            if self.prunes:
                self.method.prune_rest(_slots(search), number)
            rounds.append({"history": history, "sparsity": _sparsity(search)})
            if folder is not None:
                if number == 1:
                    folder.save_point(point)
                folder.save(f"round_{number}", search)
        model = search if self.prunes else fixed_twin(search)
        _warn_of_empty(model)
        _rewind(model, point)
        trainer.compile(model)
        if folder is not None and "ticket" in folder.record:
            _build(model)
            folder.load("ticket", model)
            history = folder.record["ticket"]
        else:
            history = trainer.fit(model, self.rounds + 1, SparsityUpdate())
            if folder is not None:
                folder.record["ticket"] = history
                folder.save("ticket", model)
        return Ticket(model, point, [r["history"] for r in rounds] + [history],
                      [r["sparsity"] for r in rounds])

    def rewind_point(self, model, compile, *args, **kwargs):
        """A copy of `model`, trained without any mask for `rewind_step` steps.

        Save it like any model, and start several searches from it: `fit(..., rewind_point=point)`.
        A search by pruning stores the very same weights in its first round.

        Args:
          model, compile, args, kwargs: as for `fit`.

        Returns:
          keras.Model, uncompiled.

        Raises:
          TypeError, ValueError: as `fit`, but for `directory`.
        """
        point = self._start(model, None)
        if self.rewind_step:
            trainer = _Trainer(compile, args, kwargs, self.seed)
            trainer.compile(point)
            trainer.fit(point, 1, _KeepWeights(self.rewind_step, stop=True))
        return plain_twin(point)

    def _start(self, model, rewind_point):
        """A copy of the dense model, with the weights to begin with."""
        check_is_model(model, "TicketSearch")
        if any(isinstance(layer, SparseLayer) for layer in model._flatten_layers()):
            raise ValueError(f"A search starts with a dense model, '{model.name}' has sparse "
                             "layers. Give ts.strip(model).")
        start = plain_twin(model)
        if rewind_point is not None:
            check_is_model(rewind_point, "TicketSearch", "a dense keras.Model as rewind_point")
            ours, theirs = _dense_variables(start), _dense_variables(rewind_point)
            shapes = [[tuple(v.shape) for v in variables] for variables in (ours, theirs)]
            if shapes[0] != shapes[1]:
                raise ValueError("rewind_point must have the variables of the model. Shapes of the "
                                 f"model's: {shapes[0]}; of rewind_point's: {shapes[1]}")
            _assign(ours, _values(theirs))
        return start

    def _begin(self, number, search, point, trainer):
        """Brings the model into the state that round `number` starts from."""
        if number == 1:
            return
        if self.prunes:
            _rewind(search, point)
            trainer.compile(search)
        else:
            self.method.next_round(_slots(search))
            _restart_clock(search)
            trainer.restart(search.optimizer)

    def _load(self, folder, search, start):
        """The state after the last complete round; returns the rewind point."""
        _build(search)
        folder.load(f"round_{len(folder.rounds)}", search)
        point = plain_twin(start)
        folder.load_point(point)
        return point

    def _arguments(self, start, search, trainer, rewind_point):
        """What a search that goes on must have in common with the one that was interrupted."""
        backend = keras.config.backend()
        arguments = {"method": keras.saving.serialize_keras_object(self.method),
                     "rounds": self.rounds, "seed": self.seed,
                     "rewind_step": self.rewind_step if rewind_point is None else None,
                     "kernels": [slot.kernel.path for slot in _slots(search)],
                     "fit": _described({k: v for k, v in trainer.arguments.items()
                                        if k != "verbose"}),
                     "optimizer": _described(search.optimizer), "loss": _described(search.loss),
                     "initial weights": _digest(_values(_dense_variables(start))),
                     "versions": {"keras": keras.__version__,
                                  backend: importlib.import_module(backend).__version__}}
        return json.loads(json.dumps(arguments))

    def __repr__(self):
        return (f"TicketSearch({self.method!r}, rounds={self.rounds}, "
                f"rewind_step={self.rewind_step}, select={self.select!r}, seed={self.seed})")


class Ticket:
    """What `ts.TicketSearch.fit` returns: see the example there.

    Attributes:
      model: the trained ticket, compiled, its layers under `ts.FixedMask`. `ts.strip(model)` is a
        plain Keras model.
      rewind_point: the dense model with the weights that training went back to.
      histories: `history.history` of each round, then of the ticket's training. With a mask method
        the training of number r + 1 is that of the ticket of round r.
      sparsities: fraction of zeros of the selected kernels after each round.
      masks: {kernel path: boolean array, True where a weight is kept}.
      sparsity: the last of `sparsities`.
    """

    def __init__(self, model, rewind_point, histories, sparsities):
        self.model, self.rewind_point = model, rewind_point
        self.histories, self.sparsities = histories, sparsities
        self.masks = _masks(model)

    @property
    def sparsity(self):
        return self.sparsities[-1]

    def __repr__(self):
        return f"Ticket(model={self.model.name!r}, sparsities={self.sparsities})"


class _Trainer:
    """Compiles and fits with the user's arguments, and a seed for each round."""

    def __init__(self, compile, args, kwargs, seed):
        if not callable(compile):
            raise TypeError("compile must be a function that compiles the model it is given. "
                            f"Received: {compile!r}")
        given = inspect.signature(keras.Model.fit).bind(None, *args, **kwargs)
        given.apply_defaults()
        self.arguments = {k: v for k, v in given.arguments.items() if k != "self"}
        x = self.arguments["x"]
        if isinstance(x, collections.abc.Iterator):
            raise ValueError("x is an iterator, which one round would use up. Give a function of "
                             f"the round's number that returns x. Received: {x!r}")
        callbacks = self.arguments.pop("callbacks") or []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            raise TypeError("Give callbacks as a list; a CallbackList belongs to one model.")
        self.callbacks = keras.tree.flatten(callbacks)
        self.user_compile = compile
        self.seed = random.randrange(2**31) if seed is None else int(seed)
        self.rate = None

    def compile(self, model):
        self.user_compile(model)
        if not model.compiled:
            raise ValueError("compile must call compile on the model that it is given: "
                             "def compile(model): model.compile(keras.optimizers.SGD(0.1), ...)")
        optimizer = innermost(model.optimizer)
        if optimizer.built:
            raise ValueError(
                "compile must make a new optimizer each time that it is called, this one has been "
                f"used before: {optimizer!r}. Put keras.optimizers.{type(optimizer).__name__}(...) "
                "inside the function.")
        if find_sparse_optimizer(model) is not None:
            raise ValueError("The search has masks of its own: compile with the inner optimizer, "
                             "without ts.SparseOptimizer.")
        rate = optimizer.learning_rate
        self.rate = float(ops.convert_to_numpy(rate)) if isinstance(rate, keras.Variable) else None

    def restart(self, optimizer):
        """Schedules and callbacks begin with the first learning rate; momentum stays."""
        for part in {id(o): o for o in (optimizer, innermost(optimizer))}.values():
            part._iterations.assign(0)
        if self.rate is not None:
            innermost(optimizer).learning_rate = self.rate

    def fit(self, model, number, *callbacks):
        """Round `number`; returns the history as plain numbers."""
        x = self.arguments["x"]
        arguments = {**self.arguments, "x": x(number) if callable(x) else x}
        callbacks = [c for c in callbacks if c is not None]
        if any(isinstance(c, SparsityUpdate) for c in self.callbacks):
            callbacks = [c for c in callbacks if not isinstance(c, SparsityUpdate)]
        seed = _Seed((self.seed + number) % 2**32)
        seed.on_train_begin()
        history = model.fit(**arguments, callbacks=[seed, *callbacks, *self.callbacks])
        return {name: [float(v) for v in values] for name, values in history.history.items()}


class _Seed(keras.callbacks.Callback):
    """Seeds once more when training begins: on JAX Keras draws an order of the data only to look
    at its shapes, if the model has not trained yet."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def on_train_begin(self, logs=None):
        keras.utils.set_random_seed(self.seed)


class _KeepWeights(keras.callbacks.Callback):
    """Keeps the variables of the dense model as they are after a number of optimizer steps."""

    def __init__(self, step, stop=False):
        super().__init__()
        self.step, self.stop, self.weights = step, stop, None

    def on_train_begin(self, logs=None):
        steps, epochs = self.params.get("steps"), self.params.get("epochs")
        if steps is not None and epochs is not None:
            accumulate = innermost(self.model.optimizer).gradient_accumulation_steps or 1
            self._check(steps * epochs // accumulate)

    def on_epoch_begin(self, epoch, logs=None):
        self.base = self._now()

    def on_train_batch_end(self, batch, logs=None):
        # As in SparsityUpdate: an upper bound, so that the model is read when it is due.
        if self.weights is None and self.base + batch + 1 >= self.step:
            model = self.model
            now = self._now()
            if now > self.step:
                raise ValueError(
                    f"rewind_step={self.step} lies inside an execution of several steps, which "
                    f"ended at step {now}: choose a multiple of steps_per_execution.")
            if now == self.step:
                self.weights = _values(_dense_variables(model))
                model.stop_training |= self.stop

    def on_train_end(self, logs=None):
        if self.weights is None:
            self._check(self._now())

    def _now(self):
        return int(ops.convert_to_numpy(self.model.optimizer.iterations))

    def _check(self, steps):
        if steps < self.step:
            raise ValueError(f"rewind_step={self.step}, but a round has {steps} optimizer steps: "
                             "choose a smaller one, or train longer.")


class _Folder:
    """The complete rounds of a search: search.json, the arrays after the last one, the point."""

    def __init__(self, directory, arguments):
        self.path = Path(directory)
        self.path.mkdir(parents=True, exist_ok=True)
        self.record = {"arguments": arguments, "rounds": []}
        file = self.path / "search.json"
        if file.exists():
            self.record = json.loads(file.read_text())
            differences = _differences(self.record["arguments"], arguments)
            if differences:
                raise ValueError(
                    f"{directory} holds another search: {'; '.join(differences)}. To go on with it "
                    "give it the same arguments, data, optimizer, weights "
                    "(keras.utils.set_random_seed before the model is built) and versions; "
                    "otherwise give another directory.")

    @property
    def rounds(self):
        return self.record["rounds"]

    def save(self, name, model):
        """Arrays first: the record names what is complete."""
        arrays = {f"{i:05d}": v for i, v in enumerate(_values(_state_variables(model)))}
        with self._replacing(f"{name}.npz") as path:
            np.savez(path, **arrays)
        with self._replacing("search.json") as path:
            path.write_text(json.dumps(self.record, indent=1))
        for old in self.path.glob("round_*.npz"):
            if old.stem not in (name, f"round_{len(self.rounds)}"):
                old.unlink()

    def load(self, name, model):
        with np.load(self.path / f"{name}.npz") as arrays:
            _assign(_state_variables(model), [arrays[key] for key in sorted(arrays)])

    def save_point(self, point):
        with self._replacing("rewind_point.weights.h5") as path:
            point.save_weights(path)

    def load_point(self, point):
        point.load_weights(self.path / "rewind_point.weights.h5")

    @contextlib.contextmanager
    def _replacing(self, name):
        """A file is there as a whole or not at all."""
        path = self.path / f"new_{name}"
        yield path
        os.replace(path, self.path / name)


def _described(value):
    """What search.json keeps of a value: arrays as a digest, functions and datasets by name."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(v) for v in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        array = array.astype(str) if array.dtype.hasobject else array
        return f"{array.dtype} {array.shape} {_digest([array])}"
    if hasattr(value, "get_config"):
        return _without_names(keras.saving.serialize_keras_object(value))
    return getattr(value, "__qualname__", type(value).__name__)


def _without_names(config):
    """Keras numbers what has no name on within a process."""
    return json.loads(json.dumps(config), object_hook=lambda part: {
        k: v for k, v in part.items() if k != "name"})


def _digest(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view("uint8"))
    return digest.hexdigest()[:16]


def _differences(then, now, name=""):
    """["name then there, now now"] of two nested dicts; None is what one of them lacks."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [line for key in {**then, **now} for line in _differences(
            then.get(key), now.get(key), f"{name}.{key}" if name else key)]
    return [] if then == now else [f"{name} {then!r} there, {now!r} now"]


# ---- variables


def _dense_variables(model):
    """The variables that the dense model has too, layer by layer."""
    return [v for layer in model._flatten_layers()
            for v in (layer._dense_variables() if isinstance(layer, SparseLayer)
                      else layer._trainable_variables + layer._non_trainable_variables)]


def _state_variables(model):
    """Every variable that training changes, those of the optimizer and of random generators too."""
    layers = model._flatten_layers()
    own = [v for layer in layers
           for v in layer._trainable_variables + layer._non_trainable_variables]
    seeds = [seed.state for layer in layers for seed in layer._seed_generators]
    return own + seeds + model.optimizer.variables


def _values(variables):
    """Copies, for training overwrites; 16-bit floats that NumPy lacks become float32."""
    arrays = [np.array(ops.convert_to_numpy(v)) for v in variables]
    return [a.astype("float32") if a.dtype.name == "bfloat16" else a for a in arrays]


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _build(model):
    model.optimizer.build(model.trainable_variables)


def _rewind(model, point):
    _assign(_dense_variables(model), _values(_dense_variables(point)))
    _restart_clock(model)


def _restart_clock(model):
    for layer in model._flatten_layers():
        if isinstance(layer, SparseLayer):
            layer.write_clock(0, -1)


# ---- masks


def _slots(model):
    return [f.slot for f in find(model) if f.method is not None]


def _masks(model):
    return {f.kernel.path: ops.convert_to_numpy(
                f.method.keep(ops.convert_to_tensor(f.variable), f.slot.state)) != 0
            for f in find(model) if f.method is not None}


def _sparsity(model):
    kept = list(_masks(model).values())
    size = sum(mask.size for mask in kept)
    return (size - sum(int(np.count_nonzero(mask)) for mask in kept)) / size


def _warn_of_empty(model):
    empty = [path for path, mask in _masks(model).items() if not mask.any()]
    if empty:
        warnings.warn(
            f"The search left no weight in {', '.join(empty)}. Raise s0, lower the learning rate "
            "or take fewer rounds.", stacklevel=3)


def _check_method(method, prunes):
    name = type(method).__name__
    if not prunes:
        if type(method).next_round is Method.next_round:
            raise ValueError(f"{name} has no rounds. A search takes ts.ContinuousSparsification, a "
                             "mask method such as ts.MagnitudePruning, or a method of yours that "
                             "has next_round.")
        if getattr(method, "controlled", False):
            raise ValueError(
                f'{name}(reach="controller") steers one training to a sparsity, and a round only '
                "prunes on from where the last one ended. Leave target_sparsity out: s0 and the "
                "rounds decide.")
        return
    if method.compiled or method.regrows or method.needs_probe:
        why = ("updates its masks in the optimizer's step" if method.compiled else
               "lets pruned weights come back" if method.regrows else "needs gradients")
        raise ValueError(f"{method!r} {why}; a search prunes what is left after each round. Use "
                         "ts.MagnitudePruning(...) without revive, or ts.RandomPruning(...).")
    schedule = method.schedule
    if schedule.value(0) != schedule.final_sparsity:
        raise ValueError("A search prunes the same share after each round and has no schedule "
                         "within one. Give ts.ConstantSparsity(share, begin_step=0). Received: "
                         f"schedule={schedule!r}")
    if isinstance(method.layout, masks.NM):
        raise ValueError(f"Pattern {method.layout} fixes the sparsity, so there is no share of it "
                         "for each round. Use another pattern, or None.")
