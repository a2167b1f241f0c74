"""What learned methods share: the coefficient of the penalty, and a sparsity that is asked for.

A learned method trains its state with the weights; its penalty decides how sparse it ends. That is
its natural sparsity. `target_sparsity` asks for another one, and `reach` says how it is met.
"""

import math

import keras
import numpy as np
from keras import ops

from tf_sparsity import masks
from tf_sparsity.method import Method, Spec, check_number
from tf_sparsity.schedule import Ramp

FREQUENCY = 100  # steps between two looks at the sparsity that is asked for, where nothing is known
UPDATES = 200  # of a controller in a run whose length is known
PROMISE = 0.005  # a controller ends within this of what is asked for

# The controller of the coefficient (LearnedMethod.control). All numbers are per update and without
# a unit; they were chosen by training small models with each method, Adam and SGD, with and without
# a ramp, scales wrong by ten times either way and 50 to 250 updates.
FAR_HORIZON, NEAR_HORIZON = 10, 5  # updates that it looks ahead
SMOOTHING = 0.3  # of the speed: the share of the newest difference
NEAR = 0.015  # the weights around the target rank whose spread is the unit of distance, as a share
FAR_RATE, NEAR_RATE = 0.1, 0.4  # of the coefficient's recent size, by which its held part moves
GROW, SHRINK = 0.2, 0.7  # of the stroke's logarithm, at errors of equal and of opposite sign
LEAST_STROKE, FORGETTING = 0.02, 0.9
LIMIT = 1e4  # the coefficient stays within this many times the configured one
# What it knows between two updates, in the order of the state array "controller": its output, its
# last error, and what it measured at which rank and step; -1: it has not looked yet.
START = {"held": 1.0, "stroke": 1.0, "size": 1.0, "error": 0.0, "speed": 0.0,
         "distance": 0.0, "asked": 0.0, "step": -1.0}


class LearnedMethod(Method):
    r"""Base of the methods whose state is trained and whose penalty makes it sparse.

    The loss gets `c * complexity(theta, state)`, with c = `scale` times `ramp`. A subclass writes

    - `complexity(theta, state)`: the sum that the penalty is a multiple of;
    - `importance(theta, state)`: one number for each group (broadcastable to theta): a group is
      kept if it is above `boundary`, and the highest are kept where a sparsity is asked for;
    - `kept_weight(theta, state)`: the weights of evaluation where they are kept.

    With `target_sparsity=s` and `reach="rank"` exactly the most important groups are kept in
    evaluation, the share s of all weights of all kernels is zero: up to one group, and but for the
    weight that each kernel keeps. Training does not see it. With `reach="controller"` training is
    steered until the method's own threshold prunes that share (`control`); the share that is asked
    for rises with the `ramp`.

    Args:
      coefficient: `scale`, by N where the loss is a mean over N examples; >= 0, > 0 for the
        controller, which moves it in multiples.
      ramp: r(t), a `ts.Ramp`, or None for 1 from the first step on.
      target_sparsity: the sparsity asked for, in [0, 1), or None.
      reach: how it is reached, "rank" or "controller".
      frequency: steps between two updates towards it, >= 1. None: 100, and for the controller a
        200th of the first `fit` (of the schedule, if that is longer).

    Raises:
      TypeError: for a ramp that is none, or a number that is none.
      ValueError: for numbers outside these ranges, and for another `reach`.

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    from tf_sparsity.learned import LearnedMethod

    class Lasso(LearnedMethod):  # a penalty on |theta|; what it brings below 0.01 is pruned
        boundary = 0.01

        def __init__(self, scale, ramp=None, target_sparsity=None, reach="rank", frequency=None):
            super().__init__(scale, ramp, target_sparsity, reach, frequency)
            self.scale = scale

        def complexity(self, theta, state):
            return keras.ops.sum(keras.ops.abs(theta))

        def importance(self, theta, state):
            return keras.ops.abs(theta)

        def weight(self, theta, state, *, training, seed=None):
            return theta if training else self.evaluated(theta, state)

        def get_config(self):
            return {"scale": self.scale, **self.learned_config()}

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = ts.sparsify(model, Lasso(1e-3, target_sparsity=0.75))
    ts.update(model)
    assert ts.report(model).sparsity == 0.75
    ```

    Reference: ramp, rank and controller are for every method; `ts.Ramp` has the sources of the
    first, the other two are ours. The penalties are in the papers that the subclasses name.
    """

    trainable_state = True
    has_penalty = True
    boundary = 0.0

    def __init__(self, coefficient, ramp, target_sparsity, reach, frequency):
        if isinstance(ramp, dict):
            ramp = keras.saving.deserialize_keras_object(ramp)
        if ramp is not None and not isinstance(ramp, Ramp):
            raise TypeError(f"ramp must be a ts.Ramp or None. Received: ramp={ramp!r}")
        if target_sparsity is not None:
            check_number("target_sparsity", target_sparsity, least=0)
            if target_sparsity >= 1:
                raise ValueError("target_sparsity is a fraction of zeros in [0, 1). Received: "
                                 f"target_sparsity={target_sparsity!r}")
        if reach not in ("rank", "controller"):
            raise ValueError(f'reach is "rank" or "controller". Received: reach={reach!r}')
        if target_sparsity is None and reach == "controller":
            raise ValueError('reach="controller" steers towards a sparsity: give target_sparsity.')
        if frequency is not None:
            check_number("frequency", frequency, least=1, whole=True)
        if target_sparsity is not None and reach == "controller" and not coefficient > 0:
            raise ValueError('reach="controller" moves the coefficient of the penalty in multiples '
                             "of the configured one: scale must be > 0. Received: scale=0")
        self.full_coefficient = coefficient  # without ramp and controller
        self.ramp, self.target_sparsity, self.reach = ramp, target_sparsity, reach
        self.frequency = frequency

    def complexity(self, theta, state):
        raise NotImplementedError

    def importance(self, theta, state):
        raise NotImplementedError

    def kept_weight(self, theta, state):
        return theta

    # ---- what follows from these

    @property
    def ranked(self):
        return self.target_sparsity is not None and self.reach == "rank"

    @property
    def controlled(self):
        return self.target_sparsity is not None and self.reach == "controller"

    @property
    def needs_update(self):
        """False where nothing moves: a constant coefficient and no sparsity asked for."""
        return self.ramp is not None or self.target_sparsity is not None

    def state(self, kernel):
        state = {}
        if self.ramp is not None or self.controlled:
            start = self.full_coefficient * (1.0 if self.ramp is None else self.ramp.value(0))
            state["coefficient"] = Spec((), keras.initializers.Constant(start))
        if self.controlled:
            state["controller"] = Spec((len(START),), _start)
        if self.ranked:
            state["mask"] = Spec(kernel.shape, "ones")
        return state

    def coefficient(self, state):
        """c, what the complexity is multiplied by now."""
        return state.get("coefficient", self.full_coefficient)

    def penalty(self, theta, state):
        return self.coefficient(state) * self.complexity(theta, state)

    def natural(self, theta, state):
        keep = ops.cast(self.importance(theta, state) > self.boundary, "float32")
        return ops.broadcast_to(keep, ops.shape(theta))

    def keep(self, theta, state):
        return ops.convert_to_tensor(state["mask"]) if self.ranked else self.natural(theta, state)

    def evaluated(self, theta, state):
        """The weight of evaluation."""
        return self.kept_weight(theta, state) * self.keep(theta, state)

    def total_target(self, step):
        """The sparsity asked for at a step: the controller's rises with the ramp."""
        if self.controlled and self.ramp is not None:
            return self.target_sparsity * self.ramp.value(step)
        return self.target_sparsity

    @property
    def last_step(self):
        return None if self.ramp is None else self.ramp.last_step

    def for_run(self, last_step):
        """With a controller and `frequency=None`: with that of a run of this length, or as long as
        the schedule if this run is only a part of it."""
        if not self.controlled or self.frequency is not None or last_step is None:
            return self
        length = max(last_step, self.last_step or 0)
        return self.with_config(frequency=max(1, length // UPDATES))

    def with_config(self, **changed):
        return type(self)(**{**self.get_config(), **changed})

    @property
    def interval(self):
        """Steps between two updates towards `target_sparsity`."""
        return self.frequency or FREQUENCY

    def due(self, prev, step):
        if self.target_sparsity is not None and prev // self.interval < step // self.interval:
            return True
        # A controller reads the ramp at its own updates, which are equally far apart.
        return self.ramp is not None and not self.controlled and self.ramp.due(prev, step)

    def update(self, slots, step, probe=None):
        if self.ranked:
            self._rank(slots)
        factor = 1.0 if self.ramp is None else self.ramp.value(step)
        if self.controlled:
            if self._last_look(slots) // self.interval == step // self.interval:
                return  # a subclass has updates of its own
            if factor > 0:  # the ramp raises what is asked for
                factor = self.control(slots, step)
        for slot in slots:
            if "coefficient" in slot.state:
                slot.state["coefficient"].assign(self.full_coefficient * factor)

    def end_epoch(self, slots, step):
        if self.ranked:  # what is saved, evaluated and stripped has the sparsity asked for
            self._rank(slots)

    def _importances(self, slots):
        """[importance of each group, flat], and the weights in a group of each slot."""
        values, sizes = [], []
        for slot in slots:
            values.append(np.asarray(ops.convert_to_numpy(self.importance(*_tensors(slot)))))
            if np.isnan(values[-1].min(initial=np.inf)):
                raise ValueError(
                    f"{slot.kernel.path} contains NaN, in its weights or in the state that "
                    f"{type(self).__name__} trains; no mask can be made from them. Training has "
                    "diverged: lower the learning rate or clip the gradients, and resume from an "
                    "earlier checkpoint.")
            sizes.append(math.prod(slot.kernel.shape) // values[-1].size)
        return values, sizes

    def _rank(self, slots):
        values, sizes = self._importances(slots)
        kept = masks.rank(values, sizes, self.target_sparsity)
        for slot, keep in zip(slots, kept):
            mask = np.broadcast_to(keep, slot.kernel.shape)
            slot.state["mask"].assign(ops.cast(mask, slot.state["mask"].dtype))

    def control(self, slots, step):
        r"""The multiple of the configured coefficient until the next update.

        q(s) is the distance from `boundary` to the importance of rank s, w the spread of importance
        around the rank s_t that is asked for now, s_{t+h} the one asked for h updates later. v is
        the smoothed change of q from update to update at one rank, so that it is the weights' own:
        what the ramp adds by moving the rank is not in it. The error

        $$ e = \text{clip}\big((q(s_{t+h}) + h v) / \max(w, |q(s_t)|/4),\, -1,\, 1\big) $$

        is 0 where q falls so fast that it meets the target in about h updates: 10, and 5 where
        |q(s_t)| < w. The multiple is held + stroke * e. Errors of one sign let the stroke grow,
        changing ones shrink it, so it finds the size that a model needs. The held part is what
        remains at rest; it follows e, and close to the target q / w, which is less noisy, as long
        as e has its sign: where q is on its way back already, more would overshoot. Negative
        multiples reward open gates: with them weights return that the data alone would not bring
        back.
        """
        now = dict(zip(START, ops.convert_to_numpy(slots[0].state["controller"]).tolist()))
        s = self.total_target(step)
        around = min(NEAR, s / 2, (1 - s) / 2)
        later = [self.total_target(step + h * self.interval) for h in (NEAR_HORIZON, FAR_HORIZON)]
        q, low, high, before, soon, far = (at - self.boundary for at in masks.quantiles(
            *self._importances(slots), [s, s - around, s + around, now["asked"], *later]))
        if now["step"] >= 0:
            updates = (step - now["step"]) / self.interval  # 1, but for steps_per_execution
            moved = (before - now["distance"]) / updates
            now["speed"] += SMOOTHING * (moved - now["speed"])
            _steer(now, q, max(high - low, 1e-9), soon, far)
        now.update(distance=q, asked=s, step=step)
        for slot in slots:
            slot.state["controller"].assign(list(now.values()))
        return _multiple(now)

    def _last_look(self, slots):
        """The step of the controller's last update, -1 before the first."""
        return float(ops.convert_to_numpy(slots[0].state["controller"])[list(START).index("step")])

    def unmet(self, slots, step):
        if not self.controlled or step < (self.last_step or 0):
            return None
        kept = sum(int(np.count_nonzero(self.keep(*_tensors(slot)))) for slot in slots)
        total = sum(math.prod(slot.kernel.shape) for slot in slots)
        reached = 1 - kept / total
        if abs(reached - self.target_sparsity) <= max(PROMISE, self._coarsest(slots) / total):
            return None
        smaller = f"take a smaller frequency (it is {self.interval}), " if self.interval > 1 else ""
        return (f"{type(self).__name__} was asked for a sparsity of {self.target_sparsity:g} and "
                f"ends with {reached:.4f} at step {step}. Its controller needs about {UPDATES} "
                "updates, and a learning rate that still moves weights when the ramp (or the "
                f"annealing) is over: {smaller}train longer or end the ramp earlier, "
                "unless another fit goes on.")

    def _coarsest(self, slots):
        """Weights in the largest group."""
        return max(math.prod(slot.kernel.shape) // math.prod(self.importance(*_tensors(slot)).shape)
                   for slot in slots)

    def watch(self, theta, state):
        """What TensorBoard shows: scalars, and histograms of the others."""
        return {"coefficient": self.coefficient(state), "penalty": self.penalty(theta, state),
                "threshold": self.boundary}

    def learned_config(self):
        """The arguments that all learned methods have."""
        ramp = None if self.ramp is None else keras.saving.serialize_keras_object(self.ramp)
        return {"ramp": ramp, "target_sparsity": self.target_sparsity, "reach": self.reach,
                "frequency": self.frequency}


def _start(shape, dtype=None):
    return ops.convert_to_tensor(list(START.values()), dtype)


def _tensors(slot):
    """theta and state of a slot, as the methods want them."""
    return (ops.cast(ops.convert_to_tensor(slot.theta), "float32"),
            {key: ops.convert_to_tensor(value) for key, value in slot.state.items()})


def _steer(now, q, spread, soon, far):
    """The next error, stroke and held part; see LearnedMethod.control."""
    near = abs(q) < spread
    ahead = soon + NEAR_HORIZON * now["speed"] if near else far + FAR_HORIZON * now["speed"]
    error = _clip(ahead / max(spread, abs(q) / 4), 1)
    agreement = error * now["error"]
    now["size"] = max(abs(now["held"] + now["stroke"] * now["error"]), FORGETTING * now["size"])
    now["error"] = error
    now["stroke"] *= math.exp((GROW if agreement > 0 else SHRINK) * agreement)
    now["stroke"] = min(max(now["stroke"], LEAST_STROKE * now["size"], 1e-3), LIMIT)
    step = max(FAR_RATE * now["stroke"], (NEAR_RATE if near else FAR_RATE) * now["size"])
    if not near or q * error > 0:
        now["held"] = _clip(now["held"] + step * (q / spread if near else error), LIMIT)


def _multiple(now):
    return _clip(now["held"] + now["stroke"] * now["error"], LIMIT)


def _clip(value, limit):
    return min(max(value, -limit), limit)
