"""SparsityLogger: `sparsity` in logs, for the progress bar, History, CSVLogger, EarlyStopping."""

import csv

import keras
import numpy as np
import pytest

import tf_sparsity as ts

pytestmark = pytest.mark.any_backend
X, Y = np.ones((12, 4), "float32"), np.ones((12, 4), "float32")
# 16 weights; 3 batches an epoch: 0 at step 1, 8 zeros at step 2, 12 at step 4.
METHOD = ts.MagnitudePruning(ts.PolynomialDecay(0.5, 0.75, 2, 4, power=1, frequency=2))


def compiled(host, method=METHOD):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    if host == "optimizer":
        model.compile(ts.SparseOptimizer(keras.optimizers.SGD(0.01), method), "mse")
    else:
        model = ts.sparsify(model, method)
        model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def fit(model, callbacks, epochs=2, verbose=0, **kwargs):
    return model.fit(X, Y, batch_size=4, epochs=epochs, verbose=verbose, callbacks=callbacks,
                     **kwargs)


class Batches(keras.callbacks.Callback):
    """What a callback behind the logger finds in the logs of each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(logs["sparsity"])


@pytest.mark.parametrize("host", ["layer", "optimizer"])
def test_every_reader_of_logs_sees_the_sparsity(host, tmp_path, capsys):
    batches, log = Batches(), tmp_path / "log.csv"
    model = compiled(host)
    history = fit(model, [ts.callbacks.SparsityUpdate(), ts.callbacks.SparsityLogger(), batches,
                          keras.callbacks.CSVLogger(log)], verbose=2)
    assert history.history["sparsity"] == [0.5, 0.75]
    assert batches.seen == [0.0, 0.5, 0.5, 0.75, 0.75, 0.75]
    with open(log) as file:
        assert [float(row["sparsity"]) for row in csv.DictReader(file)] == [0.5, 0.75]
    assert "sparsity: 0.7500" in capsys.readouterr().out
    assert ts.report(model).sparsity == 0.75


def test_early_stopping_can_wait_for_a_sparsity():
    stop = keras.callbacks.EarlyStopping(monitor="sparsity", mode="max", patience=1)
    history = fit(compiled("layer"), [ts.callbacks.SparsityUpdate(),
                                      ts.callbacks.SparsityLogger(), stop], epochs=9)
    assert history.history["sparsity"] == [0.5, 0.75, 0.75]


def test_begin_step_0_shows_from_the_first_batch():
    batches = Batches()
    method = ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0))
    fit(compiled("layer", method), [ts.callbacks.SparsityUpdate(), ts.callbacks.SparsityLogger(),
                                    batches], epochs=1)
    assert batches.seen == [0.5, 0.5, 0.5]


def test_a_plain_model_logs_its_zeros():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    kernel = np.ones((4, 4))
    kernel[0] = 0
    model.layers[0].kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    history = fit(model, [ts.callbacks.SparsityLogger()], epochs=1)
    assert history.history["sparsity"] == [0.25]


class Watched(ts.callbacks.SparsityLogger):
    """Counts how often it reads its model."""

    touched = 0

    @property
    def model(self):
        self.touched += 1
        return super().model


def test_the_model_is_touched_only_after_an_update():
    model, logger = compiled("layer"), Watched()
    fit(model, [ts.callbacks.SparsityUpdate(), logger], epochs=3)
    assert logger.touched == 1 + 2 + 3  # the beginning, updates at steps 2 and 4, three epochs
    logger.touched = 0
    fit(model, [ts.callbacks.SparsityUpdate(), logger], epochs=3)
    assert logger.touched == 1 + 3  # the schedule is over


def test_the_logger_says_when_it_is_listed_first():
    with pytest.warns(UserWarning, match="listed as SparsityLogger, SparsityUpdate"):
        fit(compiled("layer"), [ts.callbacks.SparsityLogger(), ts.callbacks.SparsityUpdate()])


@pytest.mark.parametrize("reader", [
    lambda path: keras.callbacks.CSVLogger(path),
    lambda path: keras.callbacks.EarlyStopping("loss")])
def test_the_logger_says_when_a_reader_of_logs_comes_before_it(reader, tmp_path):
    reader = reader(tmp_path / "log.csv")
    with pytest.warns(UserWarning, match=f"SparsityUpdate, {type(reader).__name__}, Spar"):
        fit(compiled("layer"), [ts.callbacks.SparsityUpdate(), reader,
                                ts.callbacks.SparsityLogger()])


def test_steps_per_execution():
    model = compiled("layer")
    model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=3)
    batches = Batches()
    fit(model, [ts.callbacks.SparsityUpdate(), ts.callbacks.SparsityLogger(), batches])
    assert batches.seen == [0.625, 0.75]  # at step 3 the update due at step 2 runs: 10 zeros
