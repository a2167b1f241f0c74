"""TFMOTPruning: the pruning engine and the schedules of TFMOT, on Keras 3 variables.

This file imports TFMOT only when a `TFMOTPruning` is made, see `import_tfmot`. TFMOT counts its
steps from 1 and makes the mask of step p before that step; here `step` is the number of optimizer
updates that are done, so TFMOT's p is `step + 1`.
"""

import os
import warnings

import keras
import numpy as np
from keras import ops

from tf_sparsity import schedule as schedules
from tf_sparsity.method import MaskMethod, Spec

BUILT_IN = ("ConstantSparsity", "PolynomialDecay")


@keras.saving.register_keras_serializable(package="tf_sparsity")
class TFMOTPruning(MaskMethod):
    r"""Magnitude pruning by TFMOT's own code (`pruning_impl.Pruning`), for Keras 3 models.

    $$ \text{weight} = \theta \odot m, \qquad m = [\,|w| \ge \text{k-th largest } |w|\,], \qquad
       k = \max(\operatorname{round}(n (1 - s)), 1) $$

    In a `ts.SparseOptimizer` it gives the masks and the masked weights of `prune_low_magnitude`
    bit for bit: dense gradients go to the inner optimizer, and the mask is made inside the
    compiled step, from the weights that the inner optimizer has just moved, so that a pruned
    weight can come back. On sparse layers (`ts.sparsify`) the engine runs between the steps, on
    the effective weights. docs/tfmot.md lists what differs from `ts.MagnitudePruning`.

    Args:
      schedule: a TFMOT schedule (your own subclasses of `PruningSchedule` too), or
        `ts.ConstantSparsity` / `ts.PolynomialDecay`, which are converted to TFMOT's of that name.
        All follow TFMOT's rule: updates where begin <= p <= end and (p - begin) % frequency == 0.
      block_size: `(in, out)`: blocks of a kernel of rank 2 that are pruned as one.
      block_pooling_type: `"AVG"` or `"MAX"`, the score of a block from its |w|.
      sparsity_m_by_n: `(m, n)`: m *zeros* in every n inputs (our `"2:4"` keeps 2), for kernels of
        rank 2 or 4. As in TFMOT the mask is made once, before the first step, and the schedule
        is not asked.

    Raises:
      RuntimeError: on a backend other than TensorFlow.
      ImportError: if TFMOT is not installed.
      TypeError: for a schedule that is neither TFMOT's nor one of the two of ours.
      ValueError: for invalid blocks or m:n, and for a schedule with which TFMOT would never
        prune or would compute NaN.

    Example:

    ```python
    import keras
    import tf_sparsity as ts
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    method = ts.TFMOTPruning(ts.ConstantSparsity(0.5, begin_step=1))
    model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.1), method), "mse")
    ts.update(model)
    assert ts.report(model).sparsity == 0.5
    ```

    Reference: Zhu and Gupta 2017, "To prune, or not to prune", arXiv:1710.01878; the code is
    `tensorflow_model_optimization/python/core/sparsity/keras/pruning_impl.py` of TFMOT 0.8.

    Deviations: weights are masked after every step, TFMOT's before the next one.
    """

    regrows = True
    dense_gradients = True
    compiled = True

    def __init__(self, schedule, *, block_size=(1, 1), block_pooling_type="AVG",
                 sparsity_m_by_n=None):
        _, pruning_schedule = import_tfmot()
        self.block_size = _two_integers("block_size", block_size)
        if block_pooling_type not in ("AVG", "MAX"):
            raise ValueError("block_pooling_type is 'AVG' or 'MAX'. "
                             f"Received: block_pooling_type={block_pooling_type!r}")
        self.block_pooling_type = block_pooling_type
        self.sparsity_m_by_n = sparsity_m_by_n
        if sparsity_m_by_n is not None:
            zeros, group = self.sparsity_m_by_n = _two_integers("sparsity_m_by_n", sparsity_m_by_n)
            if zeros >= group:
                raise ValueError("sparsity_m_by_n=(m, n) makes m zeros in every n weights, m < n. "
                                 f"Received: sparsity_m_by_n={sparsity_m_by_n!r}")
            if self.block_size != (1, 1):
                raise ValueError("block_size and sparsity_m_by_n exclude each other (TFMOT would "
                                 "ignore block_size). Received both.")
        self.schedule = _as_tfmot(schedule, pruning_schedule)
        self._asked = {}  # what a custom schedule said to each step: a cache, no state
        if self.sparsity_m_by_n is None:
            self._check_schedule()

    def _check_schedule(self):
        if not _is_built_in(self.schedule):
            return
        begin, end = self.schedule.begin_step, self.schedule.end_step
        if type(self.schedule).__name__ == "PolynomialDecay" and begin == end:
            raise ValueError(f"TFMOT's PolynomialDecay computes NaN (0 / 0) where begin_step == "
                             f"end_step == {begin}. For pruning in one step use ConstantSparsity.")
        if end >= 0 and self.last_step is None:
            raise ValueError(
                "With this schedule TFMOT never prunes: it counts steps from 1, and no step in "
                f"[{max(begin, 1)}, {end}] is begin_step={begin} plus a multiple of "
                f"frequency={self.schedule.frequency}. Choose a smaller frequency or begin_step=1.")

    # ---- what can be pruned

    def state(self, kernel):
        return {"mask": Spec(kernel.shape, "ones"), "threshold": Spec(())}

    def scores(self, weight, gradient, seed):
        return np.abs(weight)

    def unsupported(self, kernel):
        rank = len(kernel.shape)
        if self.block_size != (1, 1):
            if rank != 2:
                return (f"TFMOT's block_size needs kernels of rank 2, this one has rank {rank}; "
                        "ts.MagnitudePruning(pattern='RxC') prunes blocks of any kernel")
            if any(n <= b for n, b in zip(kernel.shape, self.block_size)):
                return (f"TFMOT cannot prune blocks of {self.block_size} in a kernel of shape "
                        f"{kernel.shape}, which is not larger in both directions")
        if self.sparsity_m_by_n is not None and rank not in (2, 4):
            return (f"TFMOT's sparsity_m_by_n needs kernels of rank 2 or 4, this one has rank "
                    f"{rank}; ts.MagnitudePruning(pattern='N:M') takes it")
        return None

    def validate(self, kernels):
        pass  # every kernel follows the schedule by itself

    # ---- when and how sparse

    def _last_due(self, p, after=0):
        """The last of TFMOT's steps in (after, p] that updates masks, or None."""
        if self.sparsity_m_by_n is not None:
            last = 1 if p >= 1 else 0
        elif _is_built_in(self.schedule):
            begin, end = self.schedule.begin_step, self.schedule.end_step
            limit = p if end < 0 else min(p, end)
            last = 0 if limit < begin else limit - (limit - begin) % self.schedule.frequency
        else:
            last = next((q for q in range(p, max(after, 0), -1) if self._asks_for_update(q)), 0)
        return last if last > max(after, 0) else None

    def _asks_for_update(self, p):
        if p not in self._asked:
            self._asked[p] = bool(self._ask(p)[0])
        return self._asked[p]

    def _ask(self, p):
        """(should prune?, sparsity) of the schedule at TFMOT's step p."""
        import tensorflow as tf
        should, sparsity = self.schedule(tf.constant(p, tf.int64))
        # 0.8 for TFMOT's float32 0.8, which is 0.800000011920929
        return bool(should), float(str(np.float32(sparsity)))

    def due(self, prev, step):
        return self._last_due(step + 1, after=prev + 1) is not None

    @property
    def last_step(self):
        """The step after which TFMOT's last mask is made; the first for a constant sparsity;
        None where a custom schedule has no end_step."""
        if self.sparsity_m_by_n is not None:
            return 0
        end = getattr(self.schedule, "end_step", -1)
        if type(self.schedule).__name__ == "ConstantSparsity" and _is_built_in(self.schedule):
            begin, frequency = self.schedule.begin_step, self.schedule.frequency
            first = begin if begin >= 1 else frequency
            return first - 1 if end < 0 or first <= end else None
        last = self._last_due(end) if end >= 0 else None
        return None if last is None else last - 1

    def target(self, kernels, step):
        last = self._last_due(step + 1)
        if last is None:
            value = 0.0
        elif self.sparsity_m_by_n is not None:
            value = self.sparsity_m_by_n[0] / self.sparsity_m_by_n[1]
        else:
            value = self._ask(last)[1]
        return [value] * len(kernels)

    # ---- the engine

    def _engine(self, p, arrays):
        pruning_impl, _ = import_tfmot()
        return pruning_impl.Pruning(lambda: p, arrays, self.schedule, self.block_size,
                                    self.block_pooling_type, self.sparsity_m_by_n)

    def update(self, slots, step, probe=None):
        for slot in slots:
            weight = (ops.convert_to_numpy(slot.theta).astype("float32")
                      * ops.convert_to_numpy(slot.state["mask"]))
            if np.isnan(weight).any():
                raise ValueError(
                    f"The weights of {slot.kernel.path} contain NaN at step {step}; no mask can "
                    "be made from them. Training has diverged: lower the learning rate or clip "
                    "the gradients, and resume from an earlier checkpoint.")
            self._update_eagerly(slot, step, weight)

    def _update_eagerly(self, slot, step, weight):
        """The masks of the last update that is due by `step`, from `weight`."""
        import tensorflow as tf
        # variables of its own: TFMOT's assignments need not know of a strategy's replicas
        mask = tf.Variable(ops.convert_to_numpy(slot.state["mask"]))
        threshold = tf.Variable(ops.convert_to_numpy(slot.state["threshold"]))
        p = tf.constant(self._last_due(step + 1) or 0, tf.int64)
        self._engine(p, [(tf.constant(weight), mask, threshold)]).conditional_mask_update()
        slot.state["mask"].assign(mask.numpy())
        slot.state["threshold"].assign(threshold.numpy())

    def update_in_step(self, slots, step):
        """A step of gradient accumulation that updates nothing repeats the last mask update on
        weights that are masked already, which gives the same mask."""
        import tensorflow as tf
        arrays = []
        for slot in slots:
            theta = slot.theta.value
            if theta.dtype != tf.float32:
                theta = tf.cast(theta, tf.float32)
            slot.state["spare"].assign(theta * slot.state["mask"])  # for end_epoch
            arrays.append((theta, slot.state["mask"].value, slot.state["threshold"].value))
        self._engine(tf.cast(step, tf.int64) + 1, arrays).conditional_mask_update()

    def end_epoch(self, slots, step):
        """TFMOT masks the weights at the end of an epoch. Masks that it makes in the first step
        of the next one, which are made already here, come from these."""
        if not self.due(step - 1, step):
            return
        for slot in slots:
            weight = ops.convert_to_numpy(slot.state["spare"])
            self._update_eagerly(slot, step, weight)
            slot.theta.assign(weight * ops.convert_to_numpy(slot.state["mask"]))

    # ---- configuration

    def get_config(self):
        return {"schedule": {**self.schedule.get_config(),
                             "registered_name":
                             keras.saving.get_registered_name(type(self.schedule))},
                "block_size": list(self.block_size),
                "block_pooling_type": self.block_pooling_type,
                "sparsity_m_by_n": self.sparsity_m_by_n and list(self.sparsity_m_by_n)}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        _, pruning_schedule = import_tfmot()
        saved = config.pop("schedule")
        name, registered = saved["class_name"], saved.get("registered_name")
        found = getattr(pruning_schedule, name) if name in BUILT_IN and registered in (
            None, name) else (keras.saving.get_registered_object(registered)
                              or keras.saving.get_registered_object(name))
        if found is None:
            raise TypeError(
                f"The TFMOT schedule {name} is not known. Decorate its class with "
                "keras.saving.register_keras_serializable() and import it before loading, or "
                f"pass custom_objects={{{name!r}: {name}}}.")
        return cls(found.from_config(saved["config"]), **config)


def import_tfmot():
    """(pruning_impl, pruning_schedule) of TFMOT, imported with no side effect.

    TFMOT's import sets TF_USE_LEGACY_KERAS for the process, which turns `tf.keras` into Keras 2
    if nobody has used it yet, and warns about distutils. Here `tf.keras` is resolved first, and
    the variable put back.

    Raises:
      RuntimeError: on a backend other than TensorFlow.
      ImportError: if TFMOT is not installed.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            f"ts.TFMOTPruning runs TFMOT's TensorFlow code, but Keras runs on {backend!r}. Set "
            "KERAS_BACKEND=tensorflow, or use ts.MagnitudePruning, which runs on any backend.")
    import tensorflow as tf
    tf.keras.Model  # noqa: B018  resolves tf.keras
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from tensorflow_model_optimization.python.core.sparsity.keras import (
                pruning_impl, pruning_schedule)
    except ImportError as error:
        raise ImportError(f"ts.TFMOTPruning needs TFMOT ({error}): "
                          "pip install tensorflow-model-optimization tf_keras") from error
    finally:
        if before is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return pruning_impl, pruning_schedule


def _as_tfmot(schedule, pruning_schedule):
    if isinstance(schedule, pruning_schedule.PruningSchedule):
        return schedule
    if type(schedule) in (schedules.ConstantSparsity, schedules.PolynomialDecay):
        return getattr(pruning_schedule, type(schedule).__name__)(**schedule.get_config())
    raise TypeError("schedule is a TFMOT PruningSchedule, ts.ConstantSparsity or "
                    f"ts.PolynomialDecay. Received: schedule={schedule!r}")


def _is_built_in(schedule):
    """Does it follow TFMOT's rule for begin_step, end_step and frequency, unchanged?"""
    return type(schedule).__module__.startswith("tensorflow_model_optimization.")


def _two_integers(name, value):
    if (not isinstance(value, (tuple, list)) or len(value) != 2
            or not all(type(v) is int and v > 0 for v in value)):
        raise ValueError(f"{name} is a pair of positive integers. Received: {name}={value!r}")
    return tuple(value)
