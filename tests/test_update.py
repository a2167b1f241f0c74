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


@pytest.mark.parametrize("method", [ts.L0Regularization(100), ts.VariationalDropout(100)],
                         ids=lambda m: type(m).__name__)
def test_weight_decay_without_the_callback_is_refused(method):
    """Neither needs updates here, but nobody would exempt what they train."""
    model = model_of(None, keras.optimizers.AdamW(0.01, weight_decay=0.5), method=method)
    x, y = np.zeros((32, 10), "float32"), np.ones((32, 4), "float32")
    before = [ops.convert_to_numpy(v).copy() for v in model.variables]
    with pytest.raises(ValueError, match="which weight decay must spare.*SparsityUpdate"):
        model.fit(x, y, batch_size=4, verbose=0)
    for variable, value in zip(model.variables, before):  # the model can be trained on
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    assert not model.optimizer._use_weight_decay(
        next(iter(model.get_layer("dense").state["kernel"].values())))
    model = model_of(None, keras.optimizers.AdamW(0.01, weight_decay=0.0), method=method)
    model.fit(x, y, batch_size=4, verbose=0)  # nothing decays: no callback is needed


def test_weight_decay_spares_the_gates_of_a_custom_loop():
    model = model_of(None, keras.optimizers.AdamW(0.01, weight_decay=0.5),
                     method=ts.ContinuousSparsification(8, s0=0.5))
    ts.update(model)
    s = model.get_layer("dense").state["kernel"]["s"]
    assert not model.optimizer._use_weight_decay(s)
    assert model.optimizer._use_weight_decay(model.get_layer("dense").theta("kernel"))


def test_the_rank_is_that_of_averaged_state():
    """Keras puts the averages of use_ema in place after the last epoch."""
    optimizer = keras.optimizers.Adam(0.2, use_ema=True, ema_momentum=0.5)
    method = ts.ContinuousSparsification(8, s0=0.5, target_sparsity=0.5, frequency=1)
    model = model_of(None, optimizer, method=method)
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(32, n)).astype("float32") for n in (10, 4))
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    state = model.get_layer("dense").state["kernel"]
    s, mask = (ops.convert_to_numpy(state[name]).ravel() for name in ("s", "mask"))
    assert (mask == 0).sum() == 20 and s[mask == 1].min() >= s[mask == 0].max()


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


# ---- methods that leave the length of the run open


def beta_of(model):
    return float(ops.convert_to_numpy(model.get_layer("dense").state["kernel"]["beta"]))


def over_the_run(**kwargs):
    return model_of(None, keras.optimizers.SGD(0.01), method=ts.ContinuousSparsification(
        s0=0.5, final_beta=16.0, **kwargs))


def test_annealing_takes_the_first_fit(tmp_path):
    """Two epochs of 8 steps: beta = 16^(t/16). A second fit finds it complete, and a file that
    was saved in between knows the length."""
    model = over_the_run()
    seen = []
    fit(model, epochs=2, callbacks=[keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(beta_of(model)))])
    np.testing.assert_allclose(seen, [4.0, 16.0], rtol=1e-6)
    method = model.get_layer("dense").methods["kernel"]
    assert method == ts.ContinuousSparsification(16, s0=0.5, final_beta=16.0)
    fit(model)
    assert beta_of(model) == 16.0
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.get_layer("dense").methods["kernel"] == method


def test_annealing_over_an_interrupted_fit_is_that_of_the_whole(tmp_path):
    """BackupAndRestore brings weights and epoch back into a model made anew: 8 steps are done and
    one epoch is to come, 16 in all."""
    def stop(epoch, logs):
        raise KeyboardInterrupt

    models = []
    for callbacks in ([keras.callbacks.LambdaCallback(on_epoch_end=stop)], []):
        model = over_the_run()
        models.append(model)
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        try:
            fit(model, epochs=2, callbacks=[backup, *callbacks])
        except KeyboardInterrupt:
            pass
    straight = over_the_run()
    fit(straight, epochs=2)
    assert [m.get_layer("dense").methods["kernel"].anneal_steps for m in models] == [16, 16]
    assert beta_of(models[1]) == beta_of(straight) == 16.0


def test_attention_saves_the_length_of_its_run(tmp_path):
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, keras.layers.MultiHeadAttention(1, 4, name="mha")(inputs, inputs))
    model = ts.sparsify(model, ts.ContinuousSparsification(s0=0.5))
    model.compile("sgd", "mse")
    x = np.ones((8, 3, 4), "float32")
    model.fit(x, x, batch_size=2, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    model.save(tmp_path / "m.keras")
    methods = keras.saving.load_model(tmp_path / "m.keras").get_layer("mha").methods
    assert [m.anneal_steps for m in methods.values()] == [4] * 4


def test_an_unknown_length_is_an_error():
    def batches():
        while True:
            yield X[:4], Y[:4]

    with pytest.raises(ValueError, match="number of steps is unknown here: give anneal_steps"):
        ts.update(over_the_run())
    model = over_the_run()
    data = ((x, y) for x, y in [(X[:4], Y[:4])] * 3)
    with pytest.raises(ValueError, match="number of steps is unknown here: give anneal_steps"):
        model.fit(data, verbose=0, shuffle=False, callbacks=[ts.callbacks.SparsityUpdate()])
    model = over_the_run()
    model.fit(batches(), steps_per_epoch=4, shuffle=False, verbose=0, callbacks=[ts.callbacks.SparsityUpdate()])
    assert beta_of(model) == 16.0


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


@pytest.mark.parametrize("eagerly", [False, True])
def test_data_loss_weights_the_penalty_as_keras_weights_the_loss(eagerly):
    """Batches of 12, 12 and 8 examples; beta is 1, 81^(1/2) and 81 in them, s is 0.5 and -0.2."""
    method = ts.ContinuousSparsification(2, final_beta=81.0, s0=0.5, scale=0.1, frequency=1)
    model = model_of(None, keras.optimizers.SGD(0.0), method=method, run_eagerly=eagerly)
    state = model.get_layer("dense").state["kernel"]
    s = np.where(np.arange(40).reshape(10, 4) % 3, 0.5, -0.2)
    state["s"].assign(s)
    seen = []

    class Beta(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(float(ops.convert_to_numpy(state["beta"])))

    history = fit(model, callbacks=[Beta()], batch_size=12).history
    kernel, bias = (ops.convert_to_numpy(v) for v in model.get_layer("dense").weights[:2])
    gates = [1 / (1 + np.exp(-beta * s)) for beta in seen]
    losses = [((X[a:b] @ (kernel * gate) + bias - Y[a:b]) ** 2).mean()
              for gate, (a, b) in zip(gates, ((0, 12), (12, 24), (24, 32)), strict=True)]
    assert len(set(seen)) > 1  # the penalty is not the same in all steps
    weights = np.array([12, 12, 8]) / 32
    np.testing.assert_allclose(history["data_loss"], weights @ losses, rtol=1e-5)
    penalties = [0.1 * gate.sum() for gate in gates]
    np.testing.assert_allclose(history["loss"], weights @ np.add(losses, penalties), rtol=1e-5)


# ---- the stored clock is the truth --------------------------------------------------------------


@too_short
@incomplete
def test_saving_between_fits_leaves_the_clock_alone(tmp_path):
    """A fresh optimizer counts from 0; that is nothing to write over the model's step."""
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 16, power=1, frequency=4))
    fit(model)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.save(tmp_path / "m.keras")
    assert ts.report(model).step == 8
    assert ts.report(keras.saving.load_model(tmp_path / "m.keras")).step == 8
    fit(model)
    assert ts.report(model).step == 16 and zeros(model) == 32


@too_short
@incomplete
def test_restored_weights_bring_their_step_with_them(tmp_path):
    """As EarlyStopping(restore_best_weights=True) does at the end; saved and trained again."""
    class RestoreFirstEpoch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.weights = self.model.get_weights()

        def on_train_end(self, logs=None):
            self.model.set_weights(self.weights)

    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 24, power=1, frequency=4))
    fit(model, epochs=2, callbacks=[RestoreFirstEpoch()])
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, again):
        assert m.get_layer("dense").read_clock() == (8, 8)
        assert zeros(m) == 11  # 0.8 * 8 / 24 * 40 = 10.7
    fit(again, epochs=2)
    assert ts.report(again).step == 24 and zeros(again) == 32


@too_short
@incomplete
def test_an_older_checkpoint_counts_on_from_its_own_step(tmp_path):
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 0, 16, power=1, frequency=4))
    fit(model)
    model.save_weights(tmp_path / "old.weights.h5")
    fit(model)
    assert ts.report(model).step == 16
    model.load_weights(tmp_path / "old.weights.h5")
    model.save_weights(tmp_path / "again.weights.h5")
    assert model.get_layer("dense").read_clock() == (8, 8) and zeros(model) == 16
    fit(model)
    assert ts.report(model).step == 16 and zeros(model) == 32


@pytest.mark.parametrize("host", ["layers", "optimizer"])
def test_a_custom_loop_resumes_where_its_checkpoint_was(tmp_path, host):
    """Updates at 1, 4, 7 and 8. Loaded after `ts.update` has taken charge, as saving.md says."""
    def new():
        method = ts.MagnitudePruning(ts.PolynomialDecay(0.0, 0.8, 1, 8, power=1, frequency=3))
        if host == "layers":
            model, optimizer = ts.sparsify(dense_model(), method), keras.optimizers.SGD(0.01)
        else:
            model, optimizer = dense_model(), ts.SparseOptimizer("sgd", method)
        model.compile(optimizer, "mse")
        ts.update(model)
        return model

    def steps(model, number):
        seen = []
        for _ in range(number):
            model.train_on_batch(X[:4], Y[:4])
            ts.update(model)
            seen.append(zeros(model))
        return seen

    straight = new()
    first = steps(straight, 3)
    straight.save_weights(tmp_path / "w.weights.h5")
    last = steps(straight, 6)
    assert first == [0, 0, 0] and last == [14, 14, 14, 27, 32, 32]  # 0.8 * 3/7, 0.8 * 6/7 of 40
    resumed = new()
    resumed.load_weights(tmp_path / "w.weights.h5")
    assert steps(resumed, 6) == last
    np.testing.assert_array_equal(ops.convert_to_numpy(resumed.get_layer("dense").kernel),
                                  ops.convert_to_numpy(straight.get_layer("dense").kernel))


@too_short
def test_loading_and_saving_again_keeps_the_random_states(tmp_path):
    model = model_of(ts.ConstantSparsity(0.5, 0), dropout=0.5)
    fit(model)
    model.save(tmp_path / "a.keras")
    keras.saving.load_model(tmp_path / "a.keras").save(tmp_path / "b.keras")
    fit(model, epochs=1)
    copy = keras.saving.load_model(tmp_path / "b.keras")
    fit(copy, epochs=1)
    np.testing.assert_array_equal(ops.convert_to_numpy(model.get_layer("dense").theta("kernel")),
                                  ops.convert_to_numpy(copy.get_layer("dense").theta("kernel")))


def test_monte_carlo_dropout_does_not_hide_a_missing_callback():
    """`training` is true in every call of such a model; only a train step is training."""
    inputs = keras.Input((10,))
    hidden = layers.Dropout(0.5)(inputs, training=True)
    model = ts.sparsify(keras.Model(inputs, layers.Dense(4, name="dense")(hidden)),
                        ts.MagnitudePruning(ts.ConstantSparsity(0.5, 1)))
    model.compile("sgd", "mse")
    model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)
    with pytest.raises(ValueError, match="ts.callbacks.SparsityUpdate"):
        model.fit(X, Y, verbose=0)
    fit(model)
    assert zeros(model) == 20


def test_each_update_runs_once_across_a_resume(tmp_path):
    steps = []

    @keras.saving.register_keras_serializable(package="test_update")
    class Recorded(ts.MagnitudePruning):
        def update(self, slots, step, probe=None):
            steps.append(step)
            super().update(slots, step, probe)

    model = model_of(None, method=Recorded(ts.PolynomialDecay(0.0, 0.8, 0, 14, frequency=4)))
    with pytest.warns(UserWarning, match="ends its schedule"):
        fit(model)
    model.save(tmp_path / "m.keras")
    fit(keras.saving.load_model(tmp_path / "m.keras"), epochs=2, initial_epoch=1)
    assert steps == [0, 4, 8, 12, 14]


def test_the_model_is_touched_only_when_something_is_due():
    """On JAX reading `self.model` brings the whole state back, which doubles a step's time."""
    class Counted(ts.callbacks.SparsityUpdate):
        reads = 0

        @property
        def model(self):
            Counted.reads += 1
            return super().model

        def on_train_batch_end(self, batch, logs=None):
            before = Counted.reads
            super().on_train_batch_end(batch, logs)
            touched.append(Counted.reads - before)

    touched = []
    model = model_of(ts.PolynomialDecay(0.0, 0.8, 2, 7, frequency=3))
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[Counted()])
    assert [n > 0 for n in touched] == [step in (2, 5, 7) for step in range(1, 9)]


@pytest.mark.parametrize(("pattern", "middle", "end"), [
    ("2:4", 16, 32), ("4:8", 16, 32), ("1:4", 24, 48),  # N zeros in half of the groups, then all
    ("1x4", 24, 48),  # 6, then 12 of 16 blocks
    ("4x4", 32, 48), ("channel", 32, 48)])  # 1.5, rounded to 2, then 3 of 4 groups
def test_patterns_under_a_schedule(pattern, middle, end):
    """16 inputs x 4 outputs, linear from 0 to the final sparsity at step 8."""
    model = keras.Sequential([keras.Input((16,)), layers.Dense(4, name="dense")])
    model = ts.sparsify(model, ts.MagnitudePruning(
        ts.PolynomialDecay(0.0, end / 64, 0, 8, power=1, frequency=4), pattern=pattern))
    model.compile("sgd", "mse")
    counts = Zeros()
    model.fit(np.tile(X, (1, 2))[:, :16], Y, batch_size=4, verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate(), counts])
    assert (counts.seen[4], counts.seen[8]) == (middle, end)


def test_constraints_and_regularizers_act_on_theta():
    """A pruned weight of 3 counts 9 in the L2 loss and is clipped to 1 by the constraint."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(
        1, use_bias=False, kernel_regularizer=keras.regularizers.L2(1.0), name="dense",
        kernel_constraint=keras.constraints.MaxNorm(1.0))])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)))
    layer = model.get_layer("dense")
    layer.theta("kernel").assign([[0.0], [4.0]])
    ts.update(model)  # prunes the first
    layer.theta("kernel").assign([[3.0], [4.0]])
    np.testing.assert_allclose([float(v) for v in model.losses], [25.0])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0,
              callbacks=[ts.callbacks.SparsityUpdate()])
    np.testing.assert_allclose(ops.convert_to_numpy(layer.theta("kernel")), [[0.6], [0.8]],
                               rtol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.kernel)[0], [0.0])


def test_a_method_that_needs_no_update_trains_without_the_callback():
    class Halved(ts.Method):
        """weight = theta / 2."""

        def state(self, kernel):
            return {}

        def weight(self, theta, state, *, training, seed=None):
            return theta / 2

        def get_config(self):
            return {}

    model = ts.sparsify(dense_model(), Halved())
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ts.strip(model).get_layer("dense").kernel),
        ops.convert_to_numpy(model.get_layer("dense").theta("kernel")) / 2)
