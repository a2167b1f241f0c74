"""The search for the sparsest model that is accurate enough."""

import json
import re

import keras
import numpy as np
import pytest

import tf_sparsity as ts
from tf_sparsity import tuning

pytest.importorskip("keras_tuner")

X = np.random.default_rng(0).normal(size=(96, 8)).astype("float32")
Y = (X[:, 0] + X[:, 1] > 0).astype("int32")
STEPS = 2 * 3  # epochs x batches of 32


def dense():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, "relu"),
                              keras.layers.Dense(2)])
    train(model, [])
    return model


def train(model, callbacks, x=X):
    model.compile(keras.optimizers.Adam(0.05),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, Y, epochs=2, verbose=0, callbacks=callbacks)


def accuracy(model):
    return float((model.predict(X, verbose=0).argmax(-1) == Y).mean())


def search(folder, train=train, model=None, evaluate=accuracy, **arguments):
    return tuning.sparsest(dense() if model is None else model, train, evaluate, **{
        "steps": STEPS, "num_samples": len(X), "folder": folder, "trials": 3, "within": 0.1,
        "methods": {"magnitude": tuning.magnitude}, **arguments})


def candidate(accuracy, sparsity, method="magnitude", **figures):
    return tuning.Candidate(method, {}, accuracy, sparsity, figures, None)


def test_the_best_is_the_sparsest_that_is_accurate_enough():
    start = candidate(0.90, 0.0, "dense")
    found = [candidate(0.89, 0.7), candidate(0.896, 0.6), candidate(0.895, 0.6),
             candidate(0.91, 0.5), candidate(0.85, 0.9), candidate(0.84, 0.8)]
    result = tuning.result(start, found, within=0.005)
    assert result.best is found[1]  # of two equally sparse ones the more accurate
    # dense is beaten by the candidate of 0.91 and 0.5; 0.84 at 0.8 by 0.85 at 0.9
    assert result.front == (found[3], found[1], found[0], found[4])
    assert result.candidates == (start, *found)
    assert tuning.result(start, found[4:], 0.005).best is None
    assert "No trial is accurate enough" in str(tuning.result(start, found[4:], 0.005))


def test_figures_make_the_front():
    start = candidate(0.90, 0.0, "dense", bytes=100, seconds=4)
    small, fast = (candidate(0.88, 0.9, bytes=10, seconds=4),
                   candidate(0.88, 0.5, bytes=60, seconds=1))
    neither = candidate(0.88, 0.95, bytes=10, seconds=5)
    assert tuning.result(start, [small, fast, neither], 0.05).front == (start, fast, small)
    assert tuning.result(start, [small, fast, neither], 0.05).best is neither


def test_figures_are_compared_by_name():
    start = candidate(0.90, 0.0, "dense", bytes=100, seconds=4)
    worse = candidate(0.88, 0.9, seconds=5, bytes=110)
    assert tuning.result(start, [worse], 0.05).front == (start,)


@pytest.mark.any_backend
def test_a_search_keeps_what_it_has_trained(tmp_path):
    calls = []
    found = search(tmp_path, measure=lambda model: calls.append(model) or {
        "weights": sum(int(np.count_nonzero(w)) for w in model.get_weights())})
    start, *tried = found.candidates
    assert start.method == "dense" and start.accuracy == accuracy(dense()) and start.path is None
    assert len(tried) == 3 and len(calls) == 4
    for one in tried:
        model = keras.saving.load_model(one.path)
        rows = ts.report(model).rows
        zeros, size = sum(row.zeros for row in rows), sum(row.size for row in rows)
        assert one.sparsity == zeros / size == pytest.approx(one.settings["sparsity"], abs=0.01)
        assert accuracy(model) == one.accuracy
        assert set(one.settings) == {"sparsity", "pruning_end", "distribution"}
        biases = sum(int(np.count_nonzero(layer.bias)) for layer in model.layers)
        assert one.figures == {"weights": size - zeros + biases}
    scores = {json.loads(path.read_text())["trial_id"]: json.loads(path.read_text())["score"]
              for path in tmp_path.glob("tuner/trial_*/trial.json")}
    for one in tried:
        short = start.accuracy - one.accuracy - 0.1
        trial = one.path.rsplit("/", 1)[-1].removesuffix(".keras")
        assert scores[trial] == pytest.approx(-short if short > 0 else one.sparsity)
    again = search(tmp_path, train=None, evaluate=None, measure=lambda model: None)
    assert again == found  # complete: nothing is trained


def test_an_interrupted_search_goes_on(tmp_path):
    trained = []

    def interrupted(model, callbacks):
        trained.append(model)
        if len(trained) == 2:
            raise KeyboardInterrupt
        train(model, callbacks)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, train=interrupted)
    assert len(list((tmp_path / "models").glob("*.json"))) == 1
    found = search(tmp_path, train=interrupted)
    assert len(found.candidates) == 4 and len(trained) == 4  # the second trial twice


def without_paths(result):
    return [one._replace(path=None) for one in result.candidates]


@pytest.mark.any_backend
def test_a_search_is_repeatable(tmp_path):
    """Whatever the state of the generators, and a trial in another process alike."""
    model, found = dense(), []

    def interrupted(sparse, callbacks):
        train(sparse, callbacks)
        if len(list((tmp_path / "3" / "models").glob("*.json"))) == 1:
            raise KeyboardInterrupt

    for state in (1, 2, 3):
        keras.utils.set_random_seed(state)
        if state == 3:
            with pytest.raises(KeyboardInterrupt):
                search(tmp_path / "3", interrupted, model, methods={"l0": tuning.l0})
        found.append(without_paths(search(tmp_path / str(state), train, model,
                                          methods={"l0": tuning.l0})))
    assert found[0] == found[1] == found[2]
    other = search(tmp_path / "other", train, model, methods={"l0": tuning.l0}, seed=1)
    assert without_paths(other)[1:] != found[0][1:]


def diverging(*numbers):
    """`train`, but the trainings of these numbers, counted from 1, get NaN for data."""
    count = iter(range(1, 100))

    def train_or_diverge(model, callbacks):
        train(model, callbacks, X * np.nan if next(count) in numbers else X)

    return train_or_diverge


@pytest.mark.any_backend
def test_a_trial_that_diverges_fails_and_the_search_goes_on(tmp_path):
    found = search(tmp_path, train=diverging(2), trials=4)
    assert len(found.candidates) == 4
    failure, = found.failures
    assert failure.method == "magnitude" and set(failure.settings) == {
        "sparsity", "pruning_end", "distribution"}
    assert re.match(r"ValueError: The weights of .* contain NaN at step \d", failure.message)
    assert f"failed magnitude sparsity={failure.settings['sparsity']:.4g}" in str(found)
    assert str(found).endswith(failure.message)
    again = search(tmp_path, train=None, trials=4)
    assert again.failures == found.failures and again.candidates == found.candidates


def test_three_failures_in_a_row_end_the_search(tmp_path):
    with pytest.raises(ValueError, match="3 trials in a row have failed. The last one: "
                                         "ValueError: The weights .* contain NaN"):
        search(tmp_path, train=diverging(1, 2, 4, 5, 6), trials=7)
    found = search(tmp_path, trials=7)  # it goes on with the next one
    assert len(found.failures) == 5 and len(found.candidates) == 3


@pytest.mark.parametrize("kind, ends", [(FloatingPointError, False), (TypeError, True)])
def test_which_errors_end_the_search(tmp_path, kind, ends):
    broken = []

    def train_once_broken(model, callbacks):
        if not broken:
            broken.append(model)
            raise kind("no such\noptimizer")
        train(model, callbacks)

    if ends:
        with pytest.raises(Exception, match="no such\noptimizer") as raised:
            search(tmp_path, train=train_once_broken)
        assert isinstance(raised.value.__cause__, kind)
    found = search(tmp_path, train=train_once_broken)  # mended, it goes on
    assert [f.message for f in found.failures] == [f"{kind.__name__}: no such optimizer"] * (
        not ends)
    assert len(found.candidates) == 3 + ends


def test_trials_are_spread_over_the_settings(tmp_path):
    """Not the lowest of each method first."""
    found = search(tmp_path, trials=4, methods=tuning.METHODS)
    assert all(one.settings["sparsity"] != tuning.LEAST for one in found.candidates[1:])


@pytest.mark.parametrize("name", tuning.METHODS)
def test_every_method_can_be_searched(tmp_path, name):
    found = search(tmp_path, trials=1, methods={name: tuning.METHODS[name]})
    _, one = found.candidates
    assert one.method == name and "sparsity" in one.settings


def test_a_folder_takes_numpy_s_numbers(tmp_path):
    found = search(tmp_path, trials=1, steps=np.int64(STEPS), num_samples=np.int64(96),
                   within=np.float32(0.25), seed=np.int64(3))
    assert search(tmp_path, train=None, trials=1, within=0.25, seed=3) == found


def test_another_search_in_the_same_folder_is_refused(tmp_path):
    search(tmp_path, trials=1)
    with pytest.raises(ValueError, match=r"search with within 0.1 \(now 0.2\)"):
        search(tmp_path, within=0.2)
    said = r"kernels \['0: 8x8', '1: 8x2'\] \(now \['1: 8x2'\]\), num_samples 96 \(now 95\)"
    with pytest.raises(ValueError, match=said):
        search(tmp_path, num_samples=95, select=lambda layer: layer.units == 2)
    with pytest.raises(ValueError, match=r"search with measured False \(now True\)"):
        search(tmp_path, measure=lambda model: {"bytes": 1})
    model = dense()
    model.layers[0].bias.assign(model.layers[0].bias + 1e-6)
    with pytest.raises(ValueError, match="search with dense weights [0-9a-f]{16} "):
        search(tmp_path, model=model)


def test_a_selection_by_a_function_goes_on(tmp_path):
    found = search(tmp_path, trials=1, select=lambda layer: layer.units == 8)
    again = search(tmp_path, train=None, trials=1, select=lambda layer: layer.units == 8)
    assert again == found


def test_the_dense_accuracy_is_that_of_the_folder(tmp_path):
    """Another device may round to another one."""
    found = search(tmp_path, trials=1)
    again = search(tmp_path, trials=2, evaluate=lambda model: accuracy(model) - 0.25)
    assert again.candidates[:2] == found.candidates and len(again.candidates) == 3


def test_an_accuracy_in_per_cent_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\]. Received: 97"):
        tuning.sparsest(dense(), train, lambda model: 97.0, steps=STEPS, num_samples=96,
                        folder=tmp_path)


@pytest.mark.parametrize("arguments, error, said", [
    ({"methods": ["magnitude"]}, TypeError, "methods is {name: function"),
    ({"methods": {}}, TypeError, "methods is {name: function"),
    ({"trials": 0}, ValueError, "trials must be >= 1"),
    ({"within": -0.1}, ValueError, "within must be >= 0"),
    ({"seed": -1}, ValueError, "seed must be >= 0"),
    ({"steps": 1.5}, TypeError, "steps")])
def test_arguments(tmp_path, arguments, error, said):
    with pytest.raises(error, match=said):
        search(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())
