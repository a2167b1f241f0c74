"""When updates happen: the clock, the callback, custom loops, resuming. (any backend)"""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import tf_sparsity as ts

pytestmark = pytest.mark.any_backend

X = np.random.default_rng(0).standard_normal((32, 10)).astype("float32")
Y = np.random.default_rng(1).standard_normal((32, 4)).astype("float32")
too_short = pytest.mark.filterwarnings("ignore:.*ends its schedule at step:UserWarning")
incomplete = pytest.mark.filterwarnings("ignore:.*schedule at step:UserWarning")


def dense_model(dropout=0.0):
    """One kernel of 40 weights: 0.1 of it is 4 weights."""
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((10,)), layers.Dropout(dropout),
                             layers.Dense(4, name="dense")])


def model_of(schedule, optimizer=None, dropout=0.0, method=None, **compile_args):
    model = ts.sparsify(dense_model(dropout), method or ts.MagnitudePruning(schedule))
    model.compile(optimizer or keras.optimizers.SGD(0.01), "mse", **compile_args)
    return model


def fit(model, epochs=1, callbacks=(), batch_size=4, **kwargs):
    """8 steps an epoch."""
    return model.fit(X, Y, batch_size=batch_size, epochs=epochs, verbose=0, shuffle=False,
                     callbacks=[ts.callbacks.SparsityUpdate(), *callbacks], **kwargs)


def zeros(model):
    return int((ops.convert_to_numpy(model.get_layer("dense").kernel) == 0).sum())


class Zeros(keras.callbacks.Callback):
    """The number of zeros after every step (index 0: before the first)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.seen:
            self.seen.append(zeros(self.model))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(zeros(self.model))


def test_updates_fall_on_the_grid_and_on_the_end():
    """s(t) = 0.8 (t - 2) / 5, linear: at 2, 5 and, off the grid, at the end 7; 40 weights."""
    counts = Zeros()
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 2, 7, power=1, frequency=3))
    fit(model, callbacks=[counts])
    #                      step 0  1  2  3  4   5   6   7   8
    assert counts.seen == [0, 0, 0, 0, 0, 19, 19, 32, 32]  # 0.48 * 40 = 19.2


def test_begin_step_zero_updates_before_the_first_step():
    counts = Zeros()
    fit(model_of(ts.ConstantSparsity(0.5, 0)), callbacks=[counts])
    assert counts.seen == [20] * 9


def test_one_update_for_several_points_inside_an_execution():
    counts = Zeros()
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 5, power=1, frequency=1),
                     steps_per_execution=4)
    fit(model, callbacks=[counts])
    assert counts.seen == [0, 26, 32]  # after step 4: 0.64 * 40 = 25.6; after step 8 the end


@too_short
@incomplete
def test_early_stop_keeps_the_current_target():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.model.stop_training = True

    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 8, power=1, frequency=2))
    fit(model, callbacks=[Stop()])
    assert ts.report(model).step == 4 and zeros(model) == 16  # 0.4 * 40


@pytest.mark.parametrize("epochs", [2, 1])
def test_a_run_too_short_is_warned_of_before_it(epochs):
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, epochs=epochs)
    texts = [str(w.message) for w in caught if "ends its schedule" in str(w.message)]
    assert len(texts) == (1 if epochs == 1 else 0)
    if texts:
        assert "at step 16, but this run ends at step 8" in texts[0]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras' word for such an end
def test_unknown_length_gives_no_warning():
    def endless():
        while True:
            yield X[:4], Y[:4]

    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 12))
    # steps_per_epoch makes the length known; a finite generator's is not
    model.fit((batch for batch, _ in zip(endless(), range(16))), verbose=0, shuffle=False,
              callbacks=[ts.callbacks.SparsityUpdate()])
    assert zeros(model) == 32


@too_short
def test_chunked_fits_are_one_fit():
    schedule = ts.PolynomialDecay(0.0, 0.8, 0, 20, frequency=3)
    whole, chunks = model_of(schedule), model_of(schedule)
    fit(whole, epochs=3)
    for _ in range(3):
        fit(chunks)
    np.testing.assert_array_equal(whole.get_layer("dense").kernel, chunks.get_layer("dense").kernel)
    assert zeros(chunks) == 32


@too_short
def test_gradient_accumulation_counts_optimizer_updates():
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 4, power=1, frequency=1),
                     keras.optimizers.SGD(0.01, gradient_accumulation_steps=2))
    counts = Zeros()
    fit(model, callbacks=[counts])  # 8 batches are 4 updates
    assert counts.seen == [0, 0, 8, 8, 16, 16, 24, 24, 32]
    assert ts.report(model).step == 4


def test_nan_weights_are_an_error_with_the_kernel_in_it():
    model = model_of(ts.ConstantSparsity(0.5, 4))
    bad = np.full((4, 4), np.nan, "float32")
    with pytest.raises(ValueError, match=r"dense/kernel contain NaN at step 4"):
        model.fit(X[:16], np.tile(bad, (4, 1)), batch_size=4, verbose=0,
                  callbacks=[ts.callbacks.SparsityUpdate()])


def test_nothing_to_update_is_an_error():
    model = dense_model()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="ts.sparsify"):
        fit(model)
    with pytest.raises(ValueError, match="nothing to update"):
        ts.update(model)
    with pytest.raises(TypeError, match="sparsified keras.Model"):
        ts.update("model")


def test_one_shot():
    model = ts.sparsify(dense_model(), ts.MagnitudePruning(ts.ConstantSparsity(0.7, 0)))
    ts.update(model)
    assert zeros(model) == 28 and zeros(ts.strip(model)) == 28


def test_custom_loop_counts_a_step_a_call():
    """The first call takes charge at step 0; updates at 1, 3 and 4 (the end)."""
    model = ts.sparsify(dense_model(), ts.MagnitudePruning(
        ts.PolynomialDecay(0.0, 0.8, 1, 4, power=1, frequency=2)))
    seen = []
    for _ in range(6):
        ts.update(model)
        seen.append(zeros(model))
    assert seen == [0, 0, 0, 21, 32, 32]  # step 3: 0.8 * 2/3 * 40 = 21.3
    assert ts.report(model).step == 5


def test_training_before_the_first_ts_update_is_an_error():
    model = ts.sparsify(dense_model(), ts.MagnitudePruning(ts.ConstantSparsity(0.7, 0)))
    with pytest.raises(ValueError, match=r"ts.update\(model\) once before the first step"):
        model(X, training=True)
    ts.update(model)
    model(X, training=True)


def test_a_later_fit_without_the_callback_has_frozen_masks():
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 16, power=1, frequency=4))
    with pytest.warns(UserWarning, match="ends its schedule at step 16"):
        fit(model)
    mask = ops.convert_to_numpy(model.get_layer("dense").state["kernel"]["mask"])
    model.fit(X, Y, batch_size=4, verbose=0)
    np.testing.assert_array_equal(
        mask, ops.convert_to_numpy(model.get_layer("dense").state["kernel"]["mask"]))
    with pytest.warns(UserWarning, match="schedule at step 8 of 16"):
        ts.report(model)
    with pytest.warns(UserWarning, match="schedule at step 8 of 16"):
        ts.strip(model)


def test_weight_decay_spares_the_gates_and_what_the_user_spared():
    """AdamW with learning rate 0 moves nothing but what decays: w (1 - lr wd)."""
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    model = model_of(None, optimizer, method=ts.ContinuousSparsification(8, s0=0.5, scale=0.0))
    dense = model.get_layer("dense")
    dense.bias.assign([1.0] * 4)
    optimizer.exclude_from_weight_decay(var_list=[dense.bias])
    x, y = np.zeros((32, 10), "float32"), np.ones((32, 4), "float32")  # gradients are 0
    theta = ops.convert_to_numpy(dense.theta("kernel")).copy()
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    np.testing.assert_array_equal(dense.state["kernel"]["s"], np.full((10, 4), 0.5, "float32"))
    np.testing.assert_array_equal(dense.bias, np.ones(4, "float32"))
    np.testing.assert_allclose(dense.theta("kernel"), theta * (1 - 0.01 * 0.5) ** 8, rtol=1e-5)


@too_short
@incomplete
@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_every_checkpoint_has_the_count_of_its_step(tmp_path, save_freq):
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 24, power=1, frequency=1))
    fit(model, epochs=2, callbacks=[keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}-{batch}.keras" if save_freq == 3 else tmp_path / "{epoch}.keras",
        save_freq=save_freq)])
    files = sorted(tmp_path.iterdir())
    assert len(files) == (5 if save_freq == 3 else 2)
    for file in files:
        report = ts.report(keras.saving.load_model(file))
        assert report.rows[0].zeros == round(40 * 0.8 * report.step / 24), file.name
    steps = sorted(ts.report(keras.saving.load_model(f)).step for f in files)
    assert steps == ([3, 6, 9, 12, 15] if save_freq == 3 else [8, 16])


@too_short
@incomplete
def test_a_checkpoint_written_before_the_update_catches_up(tmp_path):
    """ModelCheckpoint listed first saves step 8 without its update; resuming runs it."""
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 4, 8, power=1, frequency=4))
    model.fit(X, Y, batch_size=4, verbose=0, shuffle=False, callbacks=[
        keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", save_freq=8),
        ts.callbacks.SparsityUpdate()])
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert ts.report(again).step == 8 and zeros(again) == 0
    fit(again, epochs=2, initial_epoch=1)
    assert zeros(again) == 32


@too_short
@pytest.mark.parametrize("order", ["update first", "backup first"])
def test_backup_and_restore_resumes_bit_for_bit(tmp_path, order):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    schedule = ts.PolynomialDecay(0.0, 0.8, 0, 14, frequency=3)

    def run(callbacks, seed):
        model = model_of(schedule, keras.optimizers.Adam(0.01), dropout=0.5)
        keras.utils.set_random_seed(seed)
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        both = [ts.callbacks.SparsityUpdate(), backup]
        try:
            model.fit(X, Y, batch_size=4, epochs=2, verbose=0, shuffle=False,
                      callbacks=(both if order == "update first" else both[::-1]) + callbacks)
        except KeyboardInterrupt:
            pass
        return model

    straight = model_of(schedule, keras.optimizers.Adam(0.01), dropout=0.5)
    keras.utils.set_random_seed(5)
    fit(straight, epochs=2)
    run([Interrupt()], seed=5)
    resumed = run([], seed=77)  # a new model, as a new process makes it
    for a, b in zip(straight.variables + straight.optimizer.variables,
                    resumed.variables + resumed.optimizer.variables):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


def test_moving_averages_end_sparse():
    model = model_of(ts.ConstantSparsity(0.8, 4),
                     keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True))
    fit(model)
    assert zeros(model) == 32 and zeros(ts.strip(model)) == 32


def test_revive_brings_weights_back_and_the_default_does_not():
    """Two weights; only theta of the pruned one grows (by its gradient, were it not masked: none
    reaches it), so we move theta by hand between updates."""
    for revive, expected in [(False, [1, 0]), (True, [0, 1])]:
        model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="dense")])
        model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0, frequency=1),
                                                       revive=revive))
        layer = model.get_layer("dense")
        layer.theta("kernel").assign([[2.0], [1.0]])
        ts.update(model)
        np.testing.assert_array_equal(layer.state["kernel"]["mask"], [[1], [0]])
        layer.theta("kernel").assign([[2.0], [3.0]])
        ts.update(model)
        np.testing.assert_array_equal(layer.state["kernel"]["mask"][:, 0], expected)


def test_two_methods_in_one_model_and_a_layer_sparsified_later():
    inputs = keras.Input((10,))
    model = keras.Model(inputs, layers.Dense(4, name="b")(layers.Dense(10, name="a")(inputs)))
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)), select="a/")
    ts.update(model)
    ts.update(model)  # step 1
    model = ts.sparsify(model, ts.RandomPruning(ts.ConstantSparsity(0.25, 0), seed=0), select="b/")
    ts.update(model)  # begin_step=0 has passed in this model's life: the update is made now
    report = ts.report(model)
    assert report.step == 1
    assert [(r.name, r.zeros) for r in report.rows] == [("a/kernel", 50), ("b/kernel", 10)]


def test_sparse_layers_in_a_subclassed_model():
    """TensorFlow builds it in the first step: the update at step 0 is made after that step."""
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            method = ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.8, 0, 4, frequency=2))
            self.a = ts.layers.SparseDense(10, method=method)
            self.b = ts.layers.SparseDense(4, method=method)

        def call(self, x, training=None):
            return self.b(self.a(x, training=training), training=training)

    model = Model()
    model.compile("sgd", "mse")
    fit(model)
    assert [row.zeros for row in ts.report(model).rows] == [80, 32]


def test_weight_decay_spares_gates_that_are_built_in_the_first_step():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = ts.layers.SparseDense(
                4, method=ts.ContinuousSparsification(8, s0=0.5, scale=0.0))

        def call(self, x, training=None):
            return self.dense(x, training=training)

    model = Model()
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.5), "mse")
    fit_on_zeros = (np.zeros((32, 10), "float32"), np.zeros((32, 4), "float32"))
    model.fit(*fit_on_zeros, batch_size=4, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    np.testing.assert_array_equal(model.dense.state["kernel"]["s"], np.full((10, 4), 0.5, "float32"))


def test_data_loss_is_the_loss_without_the_penalty():
    """Learning rate 0: nothing moves but beta, 1 in the first epoch and 9 at its end. The penalty
    is lambda sum sigmoid(beta s) and the data's loss that of the soft mask (validation: hard)."""
    method = ts.ContinuousSparsification(8, final_beta=9.0, s0=0.5, scale=0.1, frequency=8)
    model = model_of(None, keras.optimizers.SGD(0.0), method=method)
    history = fit(model, epochs=2, validation_data=(X, Y), callbacks=[
        ts.callbacks.SparsityLogger()]).history
    kernel, bias = (ops.convert_to_numpy(v) for v in model.get_layer("dense").weights[:2])

    def mse(gate):
        return np.mean((X @ (kernel * gate) + bias - Y) ** 2)

    soft = [1 / (1 + np.exp(-beta * 0.5)) for beta in (1.0, 9.0)]
    np.testing.assert_allclose(history["data_loss"], [mse(g) for g in soft], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [mse(g) + 0.1 * 40 * g for g in soft], rtol=1e-5)
    np.testing.assert_allclose(history["val_data_loss"], [mse(1.0)] * 2, rtol=1e-5)
