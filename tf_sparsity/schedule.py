"""When masks are updated, and how sparse the weights shall be at each step.

A schedule is a pure function of the step (the number of optimizer updates over the model's life)
and holds no state. Its update points are `begin_step`, `begin_step + frequency`,
`begin_step + 2 * frequency`, ... up to `end_step`, and `end_step` itself, on the grid or not.
"""

import dataclasses
import math
import numbers
from abc import ABC, abstractmethod

import keras


class Schedule(ABC):
    """Base class: `value(step)`, and `due(prev, step)` from three attributes.

    A subclass is a frozen dataclass (which gives equality, hash, repr and configuration) with at
    least `begin_step`, `end_step` (-1: no end) and `frequency`, all in steps, and the attribute
    `final_sparsity`. Register it with `keras.saving.register_keras_serializable` to save it.
    """

    @abstractmethod
    def value(self, step):
        """The value asked for at `step` (an int), a Python float."""

    @property
    @abstractmethod
    def last_step(self):
        """The step of the update that reaches the final value: a run must get there."""

    def due(self, prev, step):
        """Whether an update point lies in `(prev, step]`; `due(-1, 0)`: before the first step."""
        if prev < self.end_step <= step:
            return True
        limit = step if self.end_step == -1 else min(step, self.end_step)
        if limit < self.begin_step:
            return False
        return limit - (limit - self.begin_step) % self.frequency > prev

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tf_sparsity")
@dataclasses.dataclass(frozen=True)
class ConstantSparsity(Schedule):
    """The same sparsity from one step on.

    `s(t) = 0` for `t < begin_step`, `target_sparsity` from there on.

    The target is reached by the first update, so `last_step` is `begin_step`, whatever `end_step`
    says; the later updates only choose again which weights are kept.

    Args:
        target_sparsity: Fraction of zeros, in [0, 1).
        begin_step: First update, in optimizer steps, >= 0; 0 means before the first step.
        end_step: Last update, >= `begin_step`; -1: updates go on for ever.
        frequency: Steps between two updates, >= 1.

    Raises:
        TypeError: if a step is not an integer or the sparsity is not a number.
        ValueError: if an argument is outside its range.

    Example:
        >>> schedule = ConstantSparsity(0.5, begin_step=200)
        >>> schedule.value(199), schedule.value(200), schedule.due(199, 200), schedule.due(200, 299)
        (0.0, 0.5, True, False)

    Reference:
        One-shot pruning at `begin_step`. Names, order and defaults are those of TFMOT's
        `tfmot.sparsity.keras.ConstantSparsity`.

    Deviations: `end_step` is always an update point; TFMOT's only if it lies on the grid. Before
    `begin_step` TFMOT's value is already `target_sparsity` (no mask is updated there by either).
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self):
        _sparsity(self, "target_sparsity")
        _step(self, "begin_step")
        _step(self, "end_step", least=-1)
        _step(self, "frequency", least=1)
        if -1 != self.end_step < self.begin_step:
            raise ValueError(
                f"end_step must be -1 (no end) or at least begin_step={self.begin_step}, "
                f"got {self.end_step}."
            )

    @property
    def final_sparsity(self):
        return self.target_sparsity

    @property
    def last_step(self):
        return self.begin_step

    def value(self, step):
        return self.target_sparsity if step >= self.begin_step else 0.0


@keras.saving.register_keras_serializable(package="tf_sparsity")
@dataclasses.dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """Sparsity that rises quickly first and levels off at the end (cubic by default).

    `s(t) = s_f + (s_i - s_f) * (1 - clip((t - b) / (e - b), 0, 1)) ** power`, and 0 for `t < b`.

    Exactly `initial_sparsity` at `begin_step` and exactly `final_sparsity` from `end_step` on.

    Args:
        initial_sparsity: `s_i`, fraction of zeros at `begin_step`, in [0, 1).
        final_sparsity: `s_f`, fraction of zeros at `end_step`, in [0, 1), >= `initial_sparsity`.
        begin_step: `b`, first update, in optimizer steps, >= 0; 0 means before the first step.
        end_step: `e`, last update, > `begin_step`.
        power: Exponent, > 0; 1 is linear, 3 cubic.
        frequency: Steps between two updates, >= 1.

    Raises:
        TypeError: if a step is not an integer or another argument is not a number.
        ValueError: if an argument is outside its range.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
        >>> [round(schedule.value(step), 6) for step in (0, 250, 500, 1000)]
        [0.0, 0.4625, 0.7, 0.8]

    Reference:
        Zhu & Gupta 2017, "To prune, or not to prune", arXiv:1710.01878, eq. (1).

    Deviations: `end_step` is always an update point; the paper's t and TFMOT's are on the grid
    `b + k * frequency` only, so that TFMOT can miss its final sparsity. Before `begin_step` the
    value is 0, TFMOT's is `initial_sparsity` (no mask is updated there by either). A sparsity that
    falls is refused, because a pruned weight does not return.
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self):
        _sparsity(self, "initial_sparsity")
        _sparsity(self, "final_sparsity")
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError(
                "initial_sparsity must not exceed final_sparsity, because a pruned weight does not "
                f"return, got {self.initial_sparsity} > {self.final_sparsity}."
            )
        _interval(self, hint="For pruning in one step use ConstantSparsity.")
        _step(self, "frequency", least=1)

    @property
    def last_step(self):
        return self.end_step

    def value(self, step):
        if step < self.begin_step:
            return 0.0
        if step == self.begin_step:
            return self.initial_sparsity  # the sum below may be one ulp off
        change = self.initial_sparsity - self.final_sparsity
        return self.final_sparsity + change * (1.0 - _progress(self, step)) ** self.power


@keras.saving.register_keras_serializable(package="tf_sparsity")
@dataclasses.dataclass(frozen=True)
class Ramp(Schedule):
    """Warm-up of a coefficient from 0 to 1.

    `r(t) = 1 - (1 - clip((t - b) / (e - b), 0, 1)) ** power`

    Args:
        begin_step: `b`, in optimizer steps, >= 0: 0 up to here.
        end_step: `e`, > `begin_step`: exactly 1 from here on.
        power: Exponent, > 0; 1 is linear, 3 the cubic one of Gale et al. 2019: fast at first.
        frequency: Steps between two updates, >= 1: the coefficient is constant in between. None:
            a hundredth of the ramp, at least 1. A controller of a `target_sparsity` reads the ramp
            at its own updates instead.

    Raises:
        TypeError: if a step is not an integer or `power` is not a number.
        ValueError: if an argument is outside its range.

    Example:
        >>> ramp = Ramp(0, 1000)
        >>> ramp.value(250), ramp.value(5000), ramp.frequency
        (0.25, 1.0, 10)

    Reference:
        Sønderby et al. 2016, "Ladder variational autoencoders", arXiv:1602.02282 (linear warm-up of
        the KL term); Molchanov, Ashukha and Vetrov 2017, arXiv:1701.05369 (0 for 5 epochs, then
        linear to 1 at epoch 20; in their repository, no equation of the paper has it); Gale, Elsen
        and Hooker 2019, arXiv:1902.09574 (constant, linear and the cubic one, in their code).

    Deviations: any power; piecewise constant between updates.
    """

    begin_step: int
    end_step: int
    power: float = 1
    frequency: int | None = None

    def __post_init__(self):
        _interval(self, hint="For a constant coefficient use no ramp.")
        if self.frequency is None:
            object.__setattr__(self, "frequency", max(1, (self.end_step - self.begin_step) // 100))
        _step(self, "frequency", least=1)

    @property
    def last_step(self):
        return self.end_step

    def value(self, step):
        return 1 - (1 - _progress(self, step)) ** self.power


def as_schedule(obj):
    """`obj` as a sparsity schedule: ours, a serialised one (dict), or TFMOT's, which is converted.

    Raises:
        TypeError: for anything else, `Ramp` (not a sparsity) and TFMOT's custom schedules included.
    """
    if isinstance(obj, Schedule) and not isinstance(obj, Ramp):
        return obj
    if isinstance(obj, dict):
        return as_schedule(keras.saving.deserialize_keras_object(obj))
    if type(obj).__module__.startswith("tensorflow_model_optimization"):
        config = obj.get_config()
        ours = {"ConstantSparsity": ConstantSparsity, "PolynomialDecay": PolynomialDecay}
        return ours[config["class_name"]](**config["config"])
    if any(c.__module__.startswith("tensorflow_model_optimization") for c in type(obj).__mro__):
        raise TypeError(
            f"{type(obj).__name__} is a custom TFMOT schedule. Use ts.TFMOTPruning, which runs any "
            "TFMOT schedule, or write it as a tf_sparsity Schedule."
        )
    raise TypeError(
        "Expected a schedule: ConstantSparsity, PolynomialDecay, your own Schedule, TFMOT's "
        f"ConstantSparsity or PolynomialDecay, or a serialised one. Got {obj!r}."
    )


def _progress(schedule, step):
    begin, end = schedule.begin_step, schedule.end_step
    return min(max((step - begin) / (end - begin), 0.0), 1.0)


def _interval(schedule, hint):
    _step(schedule, "begin_step")
    _step(schedule, "end_step")
    _number(schedule, "power")
    if schedule.end_step <= schedule.begin_step:
        raise ValueError(
            f"end_step must be greater than begin_step={schedule.begin_step}, "
            f"got {schedule.end_step}. {hint}"
        )
    if not 0 < schedule.power < math.inf:
        raise ValueError(f"power must be positive and finite, got {schedule.power}.")


def _sparsity(schedule, name):
    _number(schedule, name)
    object.__setattr__(schedule, name, float(getattr(schedule, name)))
    if not 0.0 <= getattr(schedule, name) < 1.0:
        raise ValueError(
            f"{name} must be a fraction of zeros in [0, 1), got {getattr(schedule, name)}."
        )


def _number(schedule, name):
    value = getattr(schedule, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")


def _step(schedule, name, least=0):
    """Checks an integer and stores it as Python's (NumPy's integers have no JSON form)."""
    value = getattr(schedule, name)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer number of steps, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
    object.__setattr__(schedule, name, int(value))
