"""The bridge to TFMOT: bit parity with prune_low_magnitude, and where our own pruner agrees."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tf_sparsity as ts
from tf_sparsity.method import Kernel, Slot

if keras.backend.backend() != "tensorflow":
    pytest.skip("TFMOT runs on TensorFlow", allow_module_level=True)

from tf_sparsity.tfmot import import_tfmot

pruning_impl, pruning_schedule = import_tfmot()

LAYERS = (("dense", 20, 32), ("dense_1", 32, 3))
BATCH = 8


def data(seed, steps):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((steps * BATCH, 20)).astype("float32")
    y = rng.standard_normal((steps * BATCH, 3)).astype("float32")
    weights = []
    for _, fan_in, fan_out in LAYERS:
        weights += [0.3 * rng.standard_normal((fan_in, fan_out)), np.zeros(fan_out)]
    return x, y, [w.astype("float32") for w in weights]


def mlp(k, weights):
    """The same network in Keras 3 and in tf_keras."""
    model = k.Sequential([k.layers.Input((20,)), k.layers.Dense(32, "relu"), k.layers.Dense(3)])
    model.set_weights(weights)
    return model


OPTIMIZERS = {"sgd": lambda k: k.optimizers.SGD(0.05, momentum=0.9),
              "adam": lambda k: k.optimizers.Adam(0.05)}


def trace_of_tfmot(model, optimizer, schedule, x, y, epochs=1):
    """After each step: [(the mask of that step, the weights, not masked again yet)]."""
    import tf_keras
    from tensorflow_model_optimization.python.core.sparsity.keras import prune, pruning_callbacks
    trace = []

    class Record(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            trace.append([(layer.pruning_vars[0][1].numpy(), layer.layer.kernel.numpy())
                          for layer in self.model.layers if layer.pruning_vars])

        def on_epoch_end(self, epoch, logs=None):
            trace.pop()
            self.on_train_batch_end(0)

    model = prune.prune_low_magnitude(model, pruning_schedule=schedule)
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0,
              callbacks=[pruning_callbacks.UpdatePruningStep(), Record()])
    return trace


def trace_of_ours(model, optimizer, method, x, y, epochs=1, **compile_args):
    """After each step: [(mask, weights)] of a SparseOptimizer's kernels."""
    trace = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            trace.append([(slot.state["mask"].numpy(), slot.theta.numpy())
                          for slot in self.model.optimizer.slots])

        def on_epoch_end(self, epoch, logs=None):
            trace.pop()
            self.on_train_batch_end(0)

    model.compile(ts.SparseOptimizer(optimizer, method), "mse", **compile_args)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(), Record()])
    return trace


def compare(tfmot, ours):
    """(fraction of equal mask entries, greatest difference of masked weights, comebacks).

    Our mask after t steps is the one that TFMOT makes at the beginning of its step t + 1.
    """
    equal, difference, comebacks = [], 0.0, 0
    for before, after, now in zip(tfmot[:-1], tfmot[1:], ours[:-1], strict=True):
        for (old, weight), (mask, _), (our_mask, our_weight) in zip(
                before, after, now, strict=True):
            equal.append((mask == our_mask).mean())
            difference = max(difference, np.abs(weight * mask - our_weight).max())
            comebacks += int(np.sum((old == 0) & (mask == 1)))
    return min(equal), float(difference), comebacks


# ---- parity


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_bit_parity_with_prune_low_magnitude(optimizer, seed):
    import tf_keras
    x, y, weights = data(seed, steps=110)
    schedule = pruning_schedule.PolynomialDecay(0.0, 0.8, 0, 80, frequency=5)
    tfmot = trace_of_tfmot(mlp(tf_keras, weights), OPTIMIZERS[optimizer](tf_keras), schedule, x, y)
    # jit_compile=False: XLA may sum in another order than the operations that tf_keras runs
    ours = trace_of_ours(mlp(keras, weights), OPTIMIZERS[optimizer](keras),
                         ts.TFMOTPruning(schedule), x, y, jit_compile=False)
    agreement, difference, comebacks = compare(tfmot, ours)
    assert len(ours) == 110
    assert agreement == 1.0
    assert difference == 0.0
    assert comebacks > 0  # an engine that sees masked weights could not do this
    assert 1 - ours[-1][0][0].mean() == 0.8  # 512 of 640


@pytest.mark.parametrize("steps, epochs, seed", [(9, 14, 0), (9, 14, 1), (1, 110, 2)])
def test_bit_parity_where_an_epoch_begins_with_new_masks(steps, epochs, seed):
    """TFMOT masks at the end of an epoch: nothing comes back in the first step of the next."""
    import tf_keras
    x, y, weights = data(seed, steps)
    schedule = pruning_schedule.PolynomialDecay(0.0, 0.8, 0, 105, frequency=5)
    tfmot = trace_of_tfmot(mlp(tf_keras, weights), OPTIMIZERS["sgd"](tf_keras), schedule, x, y,
                           epochs=epochs)
    ours = trace_of_ours(mlp(keras, weights), OPTIMIZERS["sgd"](keras),
                         ts.TFMOTPruning(schedule), x, y, epochs=epochs, jit_compile=False)
    assert len(ours) == steps * epochs
    assert compare(tfmot, ours)[:2] == (1.0, 0.0)


def test_bit_parity_over_epochs_for_a_cnn():
    import tf_keras
    rng = np.random.default_rng(0)
    x = rng.standard_normal((26 * BATCH, 8, 8, 3)).astype("float32")
    y = rng.standard_normal((26 * BATCH, 2)).astype("float32")

    def cnn(k):
        model = k.Sequential([k.layers.Input((8, 8, 3)), k.layers.Conv2D(4, 3, activation="relu"),
                              k.layers.Flatten(), k.layers.Dense(2)])
        values = np.random.default_rng(1)
        model.set_weights([0.1 * values.standard_normal(w.shape) for w in model.get_weights()])
        return model

    schedule = pruning_schedule.PolynomialDecay(0.0, 0.7, 0, 80, frequency=5)
    tfmot = trace_of_tfmot(cnn(tf_keras), OPTIMIZERS["sgd"](tf_keras), schedule, x, y, epochs=4)
    ours = trace_of_ours(cnn(keras), OPTIMIZERS["sgd"](keras), ts.TFMOTPruning(schedule), x, y,
                         epochs=4, jit_compile=False)
    assert len(ours) == 104
    assert compare(tfmot, ours)[:2] == (1.0, 0.0)


def test_bit_parity_of_blocks_and_of_m_by_n():
    import tf_keras
    from tensorflow_model_optimization.python.core.sparsity.keras import prune
    for arguments in ({"block_size": (4, 1), "block_pooling_type": "MAX"},
                      {"block_size": (3, 2)},  # edge blocks are smaller
                      {"sparsity_m_by_n": (2, 4)}):
        x, y, weights = data(0, steps=20)
        schedule = pruning_schedule.ConstantSparsity(0.6, 1, frequency=7)
        twin = prune.prune_low_magnitude(mlp(tf_keras, weights), schedule, **arguments)
        with _replaced(prune, "prune_low_magnitude", lambda model, pruning_schedule: model):
            tfmot = trace_of_tfmot(twin, OPTIMIZERS["sgd"](tf_keras), schedule, x, y)
        ours = trace_of_ours(mlp(keras, weights), OPTIMIZERS["sgd"](keras),
                             ts.TFMOTPruning(schedule, **arguments), x, y, jit_compile=False)
        assert compare(tfmot, ours)[:2] == (1.0, 0.0), arguments
        assert 0.45 < 1 - ours[-1][0][0].mean() < 0.65


@contextlib.contextmanager
def _replaced(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def test_first_mask_is_made_before_the_first_step():
    x, y, weights = data(0, steps=1)
    model = mlp(keras, weights)
    model.compile(ts.SparseOptimizer(OPTIMIZERS["sgd"](keras),
                                     ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1))), "mse")
    ts.update(model)
    assert ts.report(model).sparsity == 0.5
    model.compile(ts.SparseOptimizer(OPTIMIZERS["sgd"](keras),
                                     ts.TFMOTPruning(ts.ConstantSparsity(0.5, 2))), "mse")
    model.set_weights(weights)
    ts.update(model)
    assert ts.report(model).sparsity == 0.0
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    assert ts.report(model).sparsity == 0.5


def test_steps_per_execution_changes_nothing():
    x, y, weights = data(0, steps=40)
    results = []
    for steps_per_execution in (1, 4):
        model = mlp(keras, weights)
        trace_of_ours(model, OPTIMIZERS["sgd"](keras),
                      ts.TFMOTPruning(ts.PolynomialDecay(0.0, 0.8, 1, 31, frequency=3)),
                      x, y, steps_per_execution=steps_per_execution)
        results.append(model.get_weights())
    for one, four in zip(*results, strict=True):
        assert np.array_equal(one, four)
    assert (results[0][0] == 0).sum() == 512


def test_gradient_accumulation_updates_masks_once_per_optimizer_step():
    x, y, weights = data(0, steps=40)
    model = mlp(keras, weights)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9, gradient_accumulation_steps=4)
    method = ts.TFMOTPruning(ts.PolynomialDecay(0.0, 0.8, 1, 9, frequency=2))
    trace = trace_of_ours(model, optimizer, method, x, y)
    zeros = [int(1e-6 + 640 * (1 - step[0][0].mean())) for step in trace]
    changes = [i for i in range(1, 40) if zeros[i] != zeros[i - 1]]
    assert changes == [7, 15, 23, 31]  # after 2, 4, 6, 8 optimizer steps: TFMOT's 3, 5, 7, 9
    assert zeros[-1] == 512


def test_resume_is_bit_exact(tmp_path):
    x, y, weights = data(0, steps=20)

    def make():
        model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(32, "relu"),
                                  keras.layers.Dropout(0.2, seed=3), keras.layers.Dense(3)])
        model.set_weights(weights)
        method = ts.TFMOTPruning(ts.PolynomialDecay(0.0, 0.8, 1, 36, frequency=5))
        model.compile(ts.SparseOptimizer(keras.optimizers.Adam(0.01), method), "mse")
        return model

    def fit(model, epochs, initial_epoch=0):
        model.fit(x, y, batch_size=BATCH, epochs=epochs, initial_epoch=initial_epoch,
                  shuffle=False, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])

    whole = make()
    fit(whole, 2)
    first = make()
    with pytest.warns(UserWarning, match="ends its schedule at step 35, but this run ends at"):
        fit(first, 1)
    first.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(resumed.optimizer.method, ts.TFMOTPruning)
    fit(resumed, 2, initial_epoch=1)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(whole.optimizer.slots, resumed.optimizer.slots, strict=True):
        assert np.array_equal(a.state["mask"], b.state["mask"])
        assert np.array_equal(a.state["threshold"], b.state["threshold"])
    assert ts.report(resumed).sparsity == (512 + 77) / 736


# ---- sparse layers


def test_on_sparse_layers(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 8, 8, 3)).astype("float32")
    dense = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3),
                              keras.layers.Flatten(), keras.layers.Dense(5)])
    method = ts.TFMOTPruning(ts.PolynomialDecay(0.0, 0.75, 1, 9, frequency=4))
    model = ts.sparsify(dense, method)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", steps_per_execution=2)
    model.fit(x, np.ones((80, 5)), batch_size=BATCH, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()])
    report = ts.report(model)
    assert report.sparsity == 0.75
    assert [row.target for row in report.rows] == [0.75, 0.75]
    plain = ts.strip(model)
    assert type(plain.layers[0]) is keras.layers.Conv2D
    assert np.array_equal(plain.predict(x, verbose=0), model.predict(x, verbose=0))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].methods["kernel"] == method
    assert np.array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert ts.report(loaded).sparsity == 0.75
    thresholds = [s.state["threshold"].numpy() for l in (loaded.layers[0], loaded.layers[2])
                  for _, s in l.slots()]
    assert all(t > 0 for t in thresholds)


def test_kernels_that_tfmot_cannot_prune_are_skipped_with_a_reason():
    dense = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 3),
                              keras.layers.Reshape((36, 4)), keras.layers.Conv1D(4, 3),
                              keras.layers.Flatten(), keras.layers.Dense(6)])
    schedule = ts.ConstantSparsity(0.5, 1)
    with pytest.warns(UserWarning, match="block_size needs kernels of rank 2, this one has rank 4"):
        model = ts.sparsify(dense, ts.TFMOTPruning(schedule, block_size=(2, 2)))
    ts.update(model)
    assert [row.skipped is None for row in ts.report(model).rows] == [False, False, True]
    assert ts.report(model).sparsity == 0.5
    with pytest.warns(UserWarning, match="rank 2 or 4, this one has rank 3"):
        model = ts.sparsify(dense, ts.TFMOTPruning(schedule, sparsity_m_by_n=(2, 4)))
    ts.update(model)
    assert [row.sparsity for row in ts.report(model).rows] == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("shape, fits", [((8, 8), True), ((8, 2), False), ((1, 8), False),
                                         ((5, 3), True)])
def test_reasons_for_small_kernels_are_those_of_the_engine(shape, fits):
    import tensorflow as tf
    method = ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1), block_size=(4, 2))
    assert (method.unsupported(Kernel("k", shape, ("in", "out"))) is None) == fits
    slot = slot_of(np.random.default_rng(0).standard_normal(shape), ("in", "out"))
    if fits:
        method.update([slot], 0)
    else:
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            method.update([slot], 0)


def test_nan_weights_are_named():
    slot = slot_of(np.full((4, 4), np.nan), ("in", "out"))
    with pytest.raises(ValueError, match="weights of k contain NaN at step 0"):
        ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1)).update([slot], 0)


# ---- our own pruner


def slot_of(weight, axes):
    state = {"mask": keras.Variable(np.ones(weight.shape, "float32")),
             "threshold": keras.Variable(0.0)}
    return Slot(Kernel("k", weight.shape, axes), keras.Variable(weight.astype("float32")), state)


def mask_of(method, weight, axes=("in", "out")):
    slot = slot_of(weight, axes)
    method.update([slot], 0)
    return slot.state["mask"].numpy()


def test_numbers_of_zeros_are_those_of_tfmots_rule():
    """The table of ten weights; TFMOT keeps round-half-even(float32(n (1 - s))), at least 1."""
    weight = np.random.default_rng(0).standard_normal((10, 1))
    table = {0.05: 0, 0.15: 2, 0.25: 2, 0.35: 4, 0.45: 4, 0.55: 6, 0.65: 6, 0.75: 8, 0.85: 9,
             0.95: 9, 0.999: 9}
    for sparsity, zeros in table.items():
        tfmot = mask_of(ts.TFMOTPruning(ts.ConstantSparsity(sparsity, 1)), weight)
        assert (tfmot == 0).sum() == zeros, sparsity
        ours = mask_of(ts.MagnitudePruning(ts.ConstantSparsity(sparsity, 0)), weight)
        assert (ours == 0).sum() == (8 if sparsity == 0.85 else zeros), sparsity


def test_same_mask_as_ours_where_rounding_coincides():
    rng = np.random.default_rng(0)
    compared = 0
    while compared < 60:
        shape = tuple(rng.integers(1, 12, size=rng.choice([2, 4])))
        sparsity = float(rng.integers(0, 100)) / 100
        fraction = np.prod(shape) * sparsity % 1
        if 0.49 < fraction < 0.51:
            continue  # half a weight: the rules differ
        weight = rng.standard_normal(shape)
        axes = ("kh", "kw", "in", "out")[-len(shape):]
        ours = mask_of(ts.MagnitudePruning(ts.ConstantSparsity(sparsity, 0)), weight, axes)
        tfmot = mask_of(ts.TFMOTPruning(ts.ConstantSparsity(sparsity, 1)), weight, axes)
        assert np.array_equal(ours, tfmot), (shape, sparsity)
        compared += 1


def test_same_training_as_ours_where_semantics_coincide():
    """No momentum and small steps, so that nothing comes back; the grid ends at end_step."""
    x, y, weights = data(0, steps=60)
    ours = trace_of_ours(mlp(keras, weights), keras.optimizers.SGD(0.001),
                         ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.8, 10, 50, frequency=10)),
                         x, y)
    tfmot = trace_of_ours(mlp(keras, weights), keras.optimizers.SGD(0.001),
                          ts.TFMOTPruning(ts.PolynomialDecay(0.0, 0.8, 11, 51, frequency=10)),
                          x, y)
    for a, b in zip(ours, tfmot, strict=True):
        for (our_mask, our_weight), (mask, weight) in zip(a, b, strict=True):
            assert np.array_equal(our_mask, mask)
            assert np.array_equal(our_weight, weight)
    assert 1 - ours[-1][0][0].mean() == 0.8


@pytest.mark.parametrize("shape, axes", [((16, 6), ("in", "out")),
                                         ((3, 3, 8, 5), ("kh", "kw", "in", "out"))])
def test_m_zeros_in_n_is_our_n_of_m(shape, axes):
    weight = np.random.default_rng(0).standard_normal(shape)
    for zeros, group in ((2, 4), (1, 4), (3, 4), (4, 8)):
        ours = ts.MagnitudePruning(ts.ConstantSparsity(zeros / group, 0),
                                   pattern=f"{group - zeros}:{group}")
        tfmot = ts.TFMOTPruning(ts.ConstantSparsity(0.1, 0), sparsity_m_by_n=(zeros, group))
        mask = mask_of(tfmot, weight, axes)
        assert np.array_equal(mask, mask_of(ours, weight, axes))
        assert 1 - mask.mean() == zeros / group
        assert tfmot.target([None], 0) == [zeros / group]


@pytest.mark.parametrize("block, pooling, pattern", [((4, 1), "AVG", "1x4"),
                                                     ((2, 3), "AVG", "3x2")])
def test_block_of_in_by_out_is_our_out_by_in(block, pooling, pattern):
    weight = np.random.default_rng(0).standard_normal((16, 12))
    tfmot = mask_of(ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1), block_size=block,
                                    block_pooling_type=pooling), weight)
    ours = mask_of(ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0), pattern=pattern), weight)
    assert np.array_equal(tfmot, ours)
    assert tfmot.mean() == 0.5


def test_tfmot_schedules_are_accepted_by_our_methods():
    for theirs, ours in (
            (pruning_schedule.ConstantSparsity(0.5, 3, 9, 2), ts.ConstantSparsity(0.5, 3, 9, 2)),
            (pruning_schedule.PolynomialDecay(0.1, 0.8, 10, 55, 2, 10),
             ts.PolynomialDecay(0.1, 0.8, 10, 55, 2, 10))):
        assert ts.MagnitudePruning(theirs) == ts.MagnitudePruning(ours)
        for step in range(ours.begin_step, 70):
            value = float(theirs(step)[1])
            assert ts.MagnitudePruning(theirs).schedule.value(step) == pytest.approx(value)


# ---- schedules and configuration


@keras.saving.register_keras_serializable(package="test_tfmot")
class TwoSteps(pruning_schedule.PruningSchedule):
    """Prunes at steps 4 and 9, half and then three quarters."""

    def __init__(self, final=0.75):
        self.final = final

    def __call__(self, step):
        import tensorflow as tf
        step = tf.cast(step, tf.int64)
        return (tf.logical_or(tf.equal(step, 4), tf.equal(step, 9)),
                tf.where(step < 9, 0.5, self.final))

    def get_config(self):
        return {"class_name": "TwoSteps", "config": {"final": self.final}}


def test_due_follows_tfmots_grid():
    for schedule in (pruning_schedule.PolynomialDecay(0.0, 0.8, 10, 55, frequency=10),
                     pruning_schedule.ConstantSparsity(0.5, 0, frequency=7),
                     pruning_schedule.ConstantSparsity(0.5, 1, 20, frequency=3), TwoSteps()):
        method = ts.TFMOTPruning(schedule)
        asked = [p for p in range(1, 80) if bool(schedule(p)[0])]  # TFMOT counts from 1
        updated = [step for step in range(79) if method.due(step - 1, step)]
        assert [step + 1 for step in updated] == asked
        for prev, step in ((-1, 78), (5, 5), (10, 30), (48, 70), (3, 4)):
            assert method.due(prev, step) == any(prev < p - 1 <= step for p in asked)


def test_last_step_and_target():
    decay = ts.TFMOTPruning(pruning_schedule.PolynomialDecay(0.0, 0.8, 10, 55, frequency=10))
    assert decay.last_step == 49  # the mask of TFMOT's step 50 exists after 49 steps
    assert decay.target([None], 8) == [0.0]
    assert decay.target([None, None], 1000) == [pytest.approx(0.7989, abs=1e-4)] * 2
    constant = ts.TFMOTPruning(pruning_schedule.ConstantSparsity(0.8, 0))
    assert constant.last_step == 99
    assert [constant.target([None], s)[0] for s in (0, 98, 99, 150)] == [0.0, 0.0, 0.8, 0.8]
    custom = ts.TFMOTPruning(TwoSteps())
    assert custom.last_step is None
    assert [custom.target([None], s)[0] for s in (2, 3, 7, 8, 50)] == [0.0, 0.5, 0.5, 0.75, 0.75]
    m_by_n = ts.TFMOTPruning(pruning_schedule.ConstantSparsity(0.8, 0), sparsity_m_by_n=(2, 4))
    assert (m_by_n.last_step, m_by_n.due(-1, 0), m_by_n.due(0, 500)) == (0, True, False)


def test_custom_schedule_on_both_hosts():
    x, y, weights = data(0, steps=12)
    trace = trace_of_ours(mlp(keras, weights), OPTIMIZERS["sgd"](keras),
                          ts.TFMOTPruning(TwoSteps()), x, y)
    assert [1 - step[0][0].mean() for step in trace] == [0.0] * 2 + [0.5] * 5 + [0.75] * 5
    model = ts.sparsify(mlp(keras, weights), ts.TFMOTPruning(TwoSteps()))
    model.compile("sgd", "mse")
    model.fit(x, y, batch_size=BATCH, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    assert ts.report(model).sparsity == 0.75


@pytest.mark.parametrize("method", [
    lambda: ts.TFMOTPruning(pruning_schedule.PolynomialDecay(0.1, 0.9, 3, 70, 2, 4),
                            block_size=(4, 2), block_pooling_type="MAX"),
    lambda: ts.TFMOTPruning(ts.ConstantSparsity(0.5, 3, 70, 7), sparsity_m_by_n=(3, 8)),
    lambda: ts.TFMOTPruning(TwoSteps(0.625)),
])
def test_configuration_round_trip(method):
    method = method()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method))
    assert copy == method
    assert type(copy.schedule) is type(method.schedule)
    assert copy.schedule.get_config() == method.schedule.get_config()
    for name in ("block_size", "block_pooling_type", "sparsity_m_by_n"):
        assert getattr(copy, name) == getattr(method, name)


def test_an_unregistered_schedule_is_named():
    config = ts.TFMOTPruning(TwoSteps()).get_config()
    config["schedule"] |= {"class_name": "Mine", "registered_name": "Mine"}
    with pytest.raises(TypeError, match="schedule Mine is not known. Decorate its class"):
        ts.TFMOTPruning.from_config(config)
    with keras.saving.custom_object_scope({"Mine": TwoSteps}):
        assert type(ts.TFMOTPruning.from_config(config).schedule) is TwoSteps


@pytest.mark.parametrize("error, text, arguments", [
    (TypeError, "schedule is a TFMOT PruningSchedule", {"schedule": 0.5}),
    (TypeError, "schedule is a TFMOT PruningSchedule", {"schedule": ts.Ramp(0, 10)}),
    (ValueError, "block_size is a pair of positive integers", {"block_size": (4,)}),
    (ValueError, "block_size is a pair of positive integers", {"block_size": (0, 4)}),
    (ValueError, "block_pooling_type is 'AVG' or 'MAX'", {"block_pooling_type": "SUM"}),
    (ValueError, "m zeros in every n weights, m < n", {"sparsity_m_by_n": (4, 4)}),
    (ValueError, "sparsity_m_by_n is a pair of positive", {"sparsity_m_by_n": (2.0, 4)}),
    (ValueError, "exclude each other", {"sparsity_m_by_n": (2, 4), "block_size": (4, 1)}),
    (ValueError, "TFMOT never prunes", {"schedule": ts.ConstantSparsity(0.5, 0, 50)}),
    (ValueError, "computes NaN",
     {"schedule": pruning_schedule.PolynomialDecay(0.0, 0.5, 10, 10)}),
])
def test_errors(error, text, arguments):
    with pytest.raises(error, match=text):
        ts.TFMOTPruning(**{"schedule": ts.ConstantSparsity(0.5, 1), **arguments})


# ---- the import


def python(code):
    environment = {**os.environ, "PYTHONPATH": str(Path(ts.__file__).parents[1]),
                   "KERAS_BACKEND": "tensorflow"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    result = subprocess.run([sys.executable, "-c", code], env=environment,
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_a_fresh_process_imports_tfmot_late_and_without_side_effect(tmp_path):
    """Also a model that was saved with the method loads after `import tf_sparsity` alone."""
    model = ts.sparsify(mlp(keras, data(0, 1)[2]), ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1)))
    model.compile("sgd", "mse")
    ts.update(model)
    model.save(tmp_path / "model.keras")
    out = python(f"""
import os, sys, warnings
warnings.simplefilter("error")
import tf_sparsity as ts
print([m for m in ("tensorflow_model_optimization", "tf_keras", "tensorboard", "tflite_export")
       if m in sys.modules])
before = dict(os.environ)
ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1))
print("tensorflow_model_optimization" in sys.modules, dict(os.environ) == before,
      "TF_USE_LEGACY_KERAS" in os.environ)
import keras, tensorflow as tf
print(tf.keras.Model is keras.Model, tf.keras.__version__[0])
warnings.simplefilter("ignore")
print(ts.report(keras.models.load_model({str(tmp_path / "model.keras")!r})).sparsity)
""")
    assert out == ["[]", "True", "True", "False", "True", "3", "0.5"]


def test_a_legacy_variable_of_the_users_own_stays(monkeypatch):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    import_tfmot()
    assert os.environ["TF_USE_LEGACY_KERAS"] == "0"


def test_other_backends_get_a_clear_error(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="Keras runs on 'jax'. Set KERAS_BACKEND=tensorflow"):
        ts.TFMOTPruning(ts.ConstantSparsity(0.5, 1))


@pytest.mark.slow
def test_mirrored_strategy_gives_the_same_masks():
    out = python("""
import contextlib
import keras, numpy as np, tensorflow as tf, tf_sparsity as ts
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
x = np.random.default_rng(0).standard_normal((64, 20)).astype("float32")
masks = []
for strategy in (None, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(8)])
        method = ts.TFMOTPruning(ts.PolynomialDecay(0.0, 0.75, 1, 13, frequency=3))
        model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.05, momentum=0.9), method), "mse")
    model.fit(x, x[:, :8], batch_size=8, epochs=2, shuffle=False, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()])
    masks.append(model.optimizer.slots[0].state["mask"].numpy())
print((masks[0] == masks[1]).all(), 1 - masks[0].mean())
""")
    assert out == ["True", "0.75"]
