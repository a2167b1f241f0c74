"""The interface every other file speaks: what a method is, and what it may touch.

`theta` is the stored trainable array, `state` the named arrays that a method keeps for it,
`weight` the effective array that a layer computes with. A method is configuration only: all
numbers that change live in variables of the model or the optimizer (see docs/design.md).
"""

from __future__ import annotations

import json
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from tf_sparsity import distribution as distributions
from tf_sparsity import masks
from tf_sparsity.schedule import as_schedule


LARGEST = float(np.finfo("float32").max)
STEP, UPDATED = 0, 1  # positions in a clock: steps so far, last step whose updates have run


class Kernel(NamedTuple):
    """What a method may know about an array: path, shape, and the role of each axis.

    Roles are `in`, `out` (also `in:head`, `out:head`, `out:mult`) or free axes such as `kh`,
    `kw`, `vocab`: a Dense kernel is `("in", "out")`, a Conv2D kernel `("kh", "kw", "in", "out")`.
    """

    path: str
    shape: tuple
    axes: tuple


class Spec(NamedTuple):
    """One array of a method's state. `decay=False` keeps weight decay away from it; `constraint`
    is a Keras constraint that the optimizer applies after each step."""

    shape: tuple
    initializer: Any = "zeros"
    trainable: bool = False
    decay: bool = True
    constraint: Any = None


class Slot(NamedTuple):
    """One sparsified array of a model: its kernel, its variable and its state variables."""

    kernel: Kernel
    theta: Any
    state: Mapping[str, Any]


class Method(ABC):
    """A way to make arrays sparse. Frozen and serialisable; two equal configurations are equal.

    Write `state` and `weight`; override the rest where the method needs it.

    Class attributes:
      needs_update: training without `SparsityUpdate` (or `ts.update`) would be wrong.
      needs_probe: `update` wants the gradients of a probe batch.
      has_penalty: `penalty` adds to the loss.
      needs_seed: the forward pass draws random numbers.
      trainable_state: the state is trained by gradients, so only layers can host the method.
      preserves_outputs: `sparsify` leaves the model's outputs as they were.
      local_reparameterization: `forward` draws the layer's output, where `weight` would draw the
        weights: recurrent layers then call it for their inputs.
      ranked: `keep` is what a target asks for, and not what the method has learned (`natural`).

    Example:

    ```python
    import keras
    import tf_sparsity as ts

    class HardThreshold(ts.Method):
        def __init__(self, limit):
            self.limit = limit

        def state(self, kernel):
            return {}

        def weight(self, theta, state, *, training, seed=None):
            return theta * keras.ops.cast(keras.ops.abs(theta) > self.limit, theta.dtype)

        def get_config(self):
            return {"limit": self.limit}

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model.layers[0].kernel.assign(keras.ops.reshape(keras.ops.arange(32.0), (8, 4)))
    assert ts.report(ts.sparsify(model, HardThreshold(limit=7.0))).sparsity == 0.25
    ```
    """

    needs_update = False
    needs_probe = False
    has_penalty = False
    needs_seed = False
    trainable_state = False
    preserves_outputs = True
    local_reparameterization = False
    ranked = False

    @abstractmethod
    def state(self, kernel: Kernel) -> dict[str, Spec]:
        """The arrays kept for `kernel`."""

    @abstractmethod
    def weight(self, theta, state, *, training, seed=None):
        """The effective weight: float32 tensor of theta's shape, in pure `keras.ops`."""

    def forward(self, linear, x, theta, state, *, training, seed=None):
        """The layer's linear map of `x`; `linear(x, w)` is the map, `linear.of_squares(x, w)` that
        of x**2 (of x itself where the input is a one-hot look-up)."""
        return linear(x, self.weight(theta, state, training=training, seed=seed))

    def penalty(self, theta, state):
        """A float32 scalar added to the loss, once per slot and step; for `has_penalty`."""
        raise NotImplementedError(f"{type(self).__name__} has no penalty")

    def keep(self, theta, state):
        """A tensor of theta's shape whose zeros are the pruned weights: what reports count."""
        return self.weight(theta, state, training=False)

    def natural(self, theta, state):
        """`keep` as the method has learned it, where `keep` is what a target asks for."""
        return self.keep(theta, state)

    def watch(self, theta, state) -> dict:
        """{name: tensor} for TensorBoard: scalars, and arrays for histograms."""
        return {}

    def unsupported(self, kernel: Kernel) -> str | None:
        """Why this kernel cannot be sparsified by this method, or None."""
        return None

    def validate(self, kernels: Sequence[Kernel]) -> None:
        """Raises ValueError where the configuration does not fit the selected kernels."""

    def target(self, kernels: Sequence[Kernel], step: int) -> list[float] | None:
        """The sparsity asked of each kernel at `step`, or None where nothing is asked."""
        return None

    def total_target(self, step: int) -> float | None:
        """The sparsity asked of all kernels together at `step`, or None."""
        return None

    def for_run(self, last_step: int) -> Method:
        """This method for a run that ends at `last_step`: itself, unless its configuration leaves
        the length of the run open."""
        return self

    @property
    def last_step(self) -> int | None:
        """The step at which the method's schedule is complete, None without a schedule."""
        return None

    def due(self, prev: int, step: int) -> bool:
        """Is any update due in (prev, step]?"""
        return False

    def update(self, slots: Sequence[Slot], step: int, probe=None) -> None:
        """Runs between steps, eagerly, on every slot of this method in the model."""

    def end_epoch(self, slots: Sequence[Slot], step: int) -> None:
        """Runs after the last step of an epoch of `fit`, whether or not an update is due."""

    def next_round(self, slots: Sequence[Slot]) -> None:
        """Makes a trained state the start of the next round of `ts.TicketSearch`."""
        raise NotImplementedError(f"{type(self).__name__} has no rounds")

    def unmet(self, slots: Sequence[Slot], step: int) -> str | None:
        """For a run that ends at `step`: what was asked for and not reached, and what to do about
        it; None where all is well."""
        return None

    @abstractmethod
    def get_config(self) -> dict:
        """Every constructor argument, serialisable."""

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def _key(self):
        return type(self), json.dumps(self.get_config(), sort_keys=True, default=_plain)

    def __eq__(self, other):
        return isinstance(other, Method) and self._key() == other._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        arguments = ", ".join(f"{k}={self.__dict__.get(k, v)!r}"
                              for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class MaskMethod(Method):
    r"""weight = theta * mask, with a mask of zeros and ones that `update` makes from scores.

    A new criterion writes `scores` only: what scores lowest is pruned first. How many weights
    go is the schedule's and the distribution's business, which ones may go together the
    pattern's; `masks.py` counts and breaks ties.

    Args:
      schedule: a `ts.ConstantSparsity` or `ts.PolynomialDecay`, or TFMOT's object of that name.
      distribution: `"uniform"`, `"erk"`, `"global"`, or `{regex: final sparsity}`.
      pattern: None, `"N:M"` (N kept of every M inputs), `"RxC"` (R outputs x C inputs) or
        `"channel"` (whole output units).
      min_keep: weights that every kernel keeps at least.

    Raises:
      ValueError: for a pattern, distribution or `min_keep` that the schedule cannot meet.

    Example:

    ```python
    import numpy as np
    import tf_sparsity as ts

    class LargestFirst(ts.MaskMethod):
        def scores(self, weight, gradient, seed):
            return -np.abs(weight)

    method = LargestFirst(ts.ConstantSparsity(0.5, begin_step=0), distribution="global")
    ```
    """

    needs_update = True
    # Can pruned weights come back? Otherwise the number of zeros never falls.
    regrows = False
    # Are the scores those of theta, behind the mask? Only layers keep theta.
    latent = False
    # Does the optimizer host pass unmasked gradients to the inner optimizer (TFMOT's order)?
    dense_gradients = False
    # Does the optimizer host run `update_in_step` inside its step, and never `update`?
    compiled = False

    def __init__(self, schedule, *, distribution="uniform", pattern=None, min_keep=1):
        self.schedule = as_schedule(schedule)
        distributions.validate(distribution)
        self.distribution = distribution
        self.pattern = pattern
        self.layout = masks.parse(pattern)
        check_number("min_keep", min_keep, least=0, whole=True)
        self.min_keep = min_keep
        self.layout.validate(self.schedule.final_sparsity, distribution)

    @abstractmethod
    def scores(self, weight, gradient, seed):
        """Array of weight's shape; the lowest are pruned first.

        Args:
          weight: NumPy array, the effective weight; theta for a latent method.
          gradient: NumPy array, the dense gradient of the data loss on the probe batch, or None.
          seed: a `numpy.random.SeedSequence` that is new for each kernel and step.
        """

    def state(self, kernel):
        return {"mask": Spec(kernel.shape, "ones")}

    def weight(self, theta, state, *, training, seed=None):
        return theta * ops.convert_to_tensor(state["mask"])

    def keep(self, theta, state):
        return ops.convert_to_tensor(state["mask"])

    def unsupported(self, kernel):
        return self.layout.unsupported(kernel.axes)

    def validate(self, kernels):
        self.target(kernels, self.last_step)

    def target(self, kernels, step):
        sparsity = self.schedule.value(step)
        if self.distribution == "global":
            return None
        return distributions.sparsities(
            self.distribution, [k.path for k in kernels], [k.shape for k in kernels],
            sparsity, self.schedule.final_sparsity)

    def total_target(self, step):
        return self.schedule.value(step)

    @property
    def last_step(self):
        return self.schedule.last_step

    def due(self, prev, step):
        if not self.regrows and prev >= self.last_step:
            return False  # what is pruned stays pruned: a complete mask cannot change
        return self.schedule.due(prev, step)

    def update(self, slots, step, probe=None):
        scores, previous = self._scored(slots, step, probe)
        sparsity = self.schedule.value(step)
        if self.distribution == "global":
            self._assign(slots, scores, previous, total=sparsity)
        else:
            kernels = [slot.kernel for slot in slots]
            self._assign(slots, scores, previous, targets=self.target(kernels, step))

    def prune_rest(self, slots, number):
        """Prunes the schedule's final sparsity of what is left: round `number` of a search.

        Of n weights left round(n s) go, halves to even: of each kernel for "uniform" and a map,
        of all for "global". For "erk" it is all too, shared out for the sparsity then reached.
        """
        scores, previous = self._scored(slots, number, None)
        sizes = [mask.size for mask in previous]
        left = [int(np.count_nonzero(mask)) for mask in previous]

        def sparsity(size, left, share):
            pruned = min(masks.count_zeros(left, share), max(left - 1, 0))  # one weight stays
            return Fraction(size - left + pruned, size)

        share = self.schedule.final_sparsity
        total = sparsity(sum(sizes), sum(left), share)
        kernels = [slot.kernel for slot in slots]
        if self.distribution == "global":
            self._assign(slots, scores, previous, total=total)
        elif self.distribution == "erk":
            targets = distributions.sparsities("erk", [k.path for k in kernels],
                                               [k.shape for k in kernels], float(total),
                                               float(total))
            self._assign(slots, scores, previous, targets=targets)
        else:
            shares = self.target(kernels, self.last_step)
            self._assign(slots, scores, previous,
                         targets=list(map(sparsity, sizes, left, shares)))

    def _scored(self, slots, step, probe):
        """The scores of each slot and its mask, None where pruned weights may come back."""
        scores, previous = [], None if self.regrows else []
        for slot in slots:
            weight = _values(slot.theta).astype("float32", copy=False)
            mask = _values(slot.state["mask"])
            if not self.latent:
                weight = weight * mask
            if previous is not None:
                previous.append(mask)
            gradient = None if probe is None else probe[slot.kernel.path]
            if np.isnan(weight.min(initial=np.inf)):
                raise ValueError(
                    f"The weights of {slot.kernel.path} contain NaN at step {step}; no mask can "
                    "be made from them. Training has diverged: lower the learning rate or clip "
                    "the gradients, and resume from an earlier checkpoint.")
            scores.append(self.scores(weight, gradient,
                                      seed_sequence(self, slot.kernel.path, step)))
        return scores, previous

    def _assign(self, slots, scores, previous, total=None, targets=None):
        """Masks of one ranking with `total` zeros, or of each kernel with its target."""
        axes = [slot.kernel.axes for slot in slots]
        if targets is None:
            new = masks.global_masks(scores, total, self.layout, axes, previous, self.min_keep)
        else:
            new = [masks.kernel_mask(s, target, self.layout, a,
                                     None if previous is None else previous[i], self.min_keep)
                   for i, (s, target, a) in enumerate(zip(scores, targets, axes))]
        for slot, mask in zip(slots, new):
            slot.state["mask"].assign(ops.cast(mask, slot.state["mask"].dtype))

    def update_in_step(self, slots, step):
        """For `compiled` methods: updates the masks inside the step, `step` being a tensor.
        Each slot's state has a further array of the weight's shape, "spare", for their use."""
        raise NotImplementedError

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule),
                "distribution": self.distribution, "pattern": self.pattern,
                "min_keep": self.min_keep}


def _plain(value):
    """NumPy's numbers as Python's, which saving makes of them; others as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _values(variable):
    """A read-only view of a variable's array, which `ops.convert_to_numpy` would copy."""
    return np.asarray(ops.stop_gradient(variable))


def check_number(name, value, least=-math.inf, whole=False):
    """Raises TypeError or ValueError unless `value` is a finite number, at least `least`."""
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {'an integer' if whole else 'a number'}. "
                        f"Received: {name}={value!r}")
    if not -LARGEST <= value <= LARGEST:  # nor is NaN
        raise ValueError(f"{name} must be a finite number, in float32 too. "
                         f"Received: {name}={value!r}")
    if value < least:
        raise ValueError(f"{name} must be >= {least}. Received: {name}={value!r}")


def check_flag(name, value):
    """Raises TypeError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False. Received: {name}={value!r}")


def seed_sequence(method, path, step):
    """Random numbers that depend on the method's seed, the kernel's path and the step only."""
    return np.random.SeedSequence([getattr(method, "seed", None) or 0, step, *path.encode()])


def group_by_method(pairs):
    """`[(method, item), ...]` -> `[(method, [items])]`, equal methods together, order kept."""
    groups: dict = {}
    for method, item in pairs:
        groups.setdefault(method, []).append(item)
    return list(groups.items())
