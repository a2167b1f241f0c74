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

FREQUENCY = 100  # steps between two looks at the sparsity that is asked for

# The controller, in the units of `importance` (see LearnedMethod.unit) and of its updates.
APPROACH = 10.0  # updates in which the distance to the target shall fall to 1/e
GAIN = 1.0
LIMIT = math.asinh(1e4)  # the coefficient stays within this many times the configured one


class LearnedMethod(Method):
    r"""Base of the methods whose state is trained and whose penalty makes it sparse.

    The loss gets `c * complexity(theta, state)`, with c = `scale` times `ramp`. A subclass writes

    - `complexity(theta, state)`: the sum that the penalty is a multiple of;
    - `importance(theta, state)`: one number for each group (broadcastable to theta): a group is
      kept if it is above `boundary`, and the highest are kept where a sparsity is asked for;
    - `kept_weight(theta, state)`: the weights of evaluation where they are kept.

    With `target_sparsity=s` and `reach="rank"` exactly the most important groups are kept in
    evaluation, the share s of all weights of all kernels is zero: up to one group, and but for the
    weight that each kernel keeps. Training does not see it. With `reach="controller"` the
    coefficient follows the distance that the importance of rank s still is from `boundary`:

    $$ c = \text{scale}\cdot r(t)\cdot\sinh(u) / \sinh(u_0),\quad
       u \mathrel{+}= g\,\big(q/\tau - (q' - q)\big) $$

    where q is that distance now, q' the one before. So c moves over decades, is negative where too
    much is zero, and comes to rest where q is 0.
    """

    trainable_state = True
    has_penalty = True
    boundary = 0.0
    unit = 1.0  # what the controller calls a distance of one

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
        if frequency is not None:
            check_number("frequency", frequency, least=1, whole=True)
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
            state["drive"] = Spec((), keras.initializers.Constant(math.asinh(1.0)))  # u
            state["distance"] = Spec((), keras.initializers.Constant(math.nan))  # q
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
        return self.target_sparsity

    @property
    def last_step(self):
        return None if self.ramp is None else self.ramp.last_step

    def due(self, prev, step):
        if self.ramp is not None and self.ramp.due(prev, step):
            return True
        frequency = self.frequency or FREQUENCY
        return self.target_sparsity is not None and prev // frequency < step // frequency

    def update(self, slots, step, probe=None):
        if self.ranked:
            self._rank(slots)
        factor = 1.0 if self.ramp is None else self.ramp.value(step)
        if self.controlled:
            factor *= math.sinh(self._control(slots, step))
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
            state = {k: ops.convert_to_tensor(v) for k, v in slot.state.items()}
            theta = ops.cast(ops.convert_to_tensor(slot.theta), "float32")
            values.append(np.asarray(ops.convert_to_numpy(self.importance(theta, state))))
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

    def _control(self, slots, step):
        values, sizes = self._importances(slots)
        at = masks.quantile(values, sizes, self.target_sparsity)
        distance = (at - self.boundary) / self.unit
        before = float(ops.convert_to_numpy(slots[0].state["distance"]))
        drive = float(ops.convert_to_numpy(slots[0].state["drive"]))
        if not math.isnan(before):
            drive += GAIN * (distance / APPROACH - (before - distance))
            drive = min(max(drive, -LIMIT), LIMIT)
        for slot in slots:
            slot.state["distance"].assign(distance)
            slot.state["drive"].assign(drive)
        return drive

    def watch(self, theta, state):
        """What TensorBoard shows: scalars, and histograms of the others."""
        return {"coefficient": self.coefficient(state), "penalty": self.penalty(theta, state),
                "threshold": self.boundary}

    def learned_config(self):
        """The arguments that all learned methods have."""
        ramp = None if self.ramp is None else keras.saving.serialize_keras_object(self.ramp)
        return {"ramp": ramp, "target_sparsity": self.target_sparsity, "reach": self.reach,
                "frequency": self.frequency}
