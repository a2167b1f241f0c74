"""The sparsest model that is accurate enough: method and settings searched together.

keras-tuner chooses and keeps the trials; its oracle sees one number, `score`.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import keras

from tf_sparsity import callbacks
from tf_sparsity.convert import sparsify, strip
from tf_sparsity.kernels import find
from tf_sparsity.method import check_number
from tf_sparsity.methods import (ContinuousSparsification, FixedMask, L0Regularization,
                                 MagnitudePruning, VariationalDropout)
from tf_sparsity.report import report
from tf_sparsity.schedule import PolynomialDecay, Ramp

LEAST, MOST = 0.5, 0.99  # sparsities that are tried
IN_A_ROW = 3  # failures that end a search
NEVER = 10**9  # keras-tuner 1.4 keeps its lock when too many failures in a row make it raise
DENSE = "dense"


class Candidate(NamedTuple):
    """A model that was trained.

    Attributes:
      method: its name in `methods`; "dense" for the model that the search began with.
      settings: what keras-tuner chose, {name: value}.
      accuracy: by `evaluate`.
      sparsity: fraction of zeros of the selected kernels.
      figures: {name: number} by `measure`; less is better.
      path: of the stripped model, a .keras file; None for the dense one.
    """

    method: str
    settings: dict
    accuracy: float
    sparsity: float
    figures: dict
    path: str | None

    def __str__(self):
        figures = "".join(f"  {name} {value:,.6g}" for name, value in self.figures.items())
        return (f"accuracy {self.accuracy:.4f}  sparsity {self.sparsity:.4f}{figures}  "
                f"{_words(self)}")


class Failure(NamedTuple):
    """A trial that has failed.

    Attributes:
      method, settings: as of a Candidate.
      message: of the error, its type in front.
    """

    method: str
    settings: dict
    message: str

    def __str__(self):
        return f"{_words(self)}: {self.message}"


def _words(one):
    chosen = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
              for k, v in one.settings.items())
    return " ".join([one.method, *chosen])


class Result(NamedTuple):
    """What a search has found.

    Attributes:
      best: the sparsest candidate whose accuracy is at most `within` below the dense one's; None if
        no trial is.
      front: candidates that no other one beats, sparsest last: none is at least as accurate and
        no greater in every figure, and better in one of them. The figures are those of `measure`;
        without it, the weights left.
      candidates: all of them, the dense model first.
      failures: the trials that have failed.
    """

    best: Candidate | None
    front: tuple
    candidates: tuple
    failures: tuple = ()

    def __str__(self):
        best = "No trial is accurate enough." if self.best is None else f"best   {self.best}"
        return "\n".join([best, *(f"front  {candidate}" for candidate in self.front),
                          *(f"failed {failure}" for failure in self.failures)])


# ---- what is searched: (hyperparameters, sparsity, steps of a training, examples) -> method


def magnitude(hp, sparsity, steps, num_samples):
    """Gradual magnitude pruning: distribution, and when it ends."""
    end = max(1, round(hp.Float("pruning_end", 0.4, 0.9) * steps))
    schedule = PolynomialDecay(0.0, sparsity, 0, end, frequency=_frequency(steps))
    distribution = hp.Choice("distribution", ["uniform", "erk", "global"])
    return MagnitudePruning(schedule, distribution=distribution)


def variational_dropout(hp, sparsity, steps, num_samples):
    """Variational dropout, ranked: the penalty's scale and how long it rises."""
    return VariationalDropout(num_samples, target_sparsity=sparsity, frequency=_frequency(steps),
                              scale=hp.Float("scale", 0.1, 10.0, sampling="log"),
                              ramp=_ramp(hp, steps))


def l0(hp, sparsity, steps, num_samples):
    """L0 with a hard mask, steered to the sparsity."""
    return L0Regularization(num_samples, hard_mask=True, target_sparsity=sparsity,
                            reach="controller", frequency=_frequency(steps),
                            scale=hp.Float("scale", 0.1, 10.0, sampling="log"),
                            ramp=_ramp(hp, steps))


def continuous_sparsification(hp, sparsity, steps, num_samples):
    """Continuous sparsification, steered to the sparsity: where s starts, how steep beta ends."""
    return ContinuousSparsification(max(1, round(0.9 * steps)), target_sparsity=sparsity,
                                    reach="controller", frequency=_frequency(steps),
                                    s0=hp.Float("s0", 0.01, 0.2, sampling="log"), scale=1e-5,
                                    final_beta=hp.Float("final_beta", 50.0, 500.0, sampling="log"))


def _frequency(steps):
    return max(1, min(100, steps // 200))  # a controller needs some hundred updates


def _ramp(hp, steps):
    return Ramp(0, max(1, round(hp.Float("warm_up", 0.1, 0.6) * steps)))


METHODS = {"magnitude": magnitude, "variational_dropout": variational_dropout, "l0": l0,
           "continuous_sparsification": continuous_sparsification}


# ---- the search


def sparsest(model, train, evaluate, *, steps, num_samples, folder, within=0.005, methods=None,
             select=None, measure=None, trials=20, seed=0):
    """Searches for the sparsest model within some points of the dense model's accuracy.

    Each trial takes a method, a sparsity in [0.5, 0.99] and the method's settings, sparsifies the
    dense model and trains it. `score`, which keras-tuner's Bayesian optimization makes as large as
    it can, is the sparsity if the accuracy is within, and else minus the points that it is short.
    Choose by validation examples: the accuracy of the best of many is not that of new ones.

    Args:
      model: the dense model, built and trained; it is not changed.
      train: a function (sparse model, callbacks): compiles it, and fits it with these callbacks.
      evaluate: a function (dense model, as stripped) -> accuracy, a fraction; of examples that are
        neither trained nor tested with.
      steps: optimizer steps of a training, for the schedules; integer >= 1.
      num_samples: training examples, for the penalties; integer >= 1.
      folder: for keras-tuner's state and the trained models. A search that was interrupted goes on
        from there; a complete one returns what it has found. The dense model is measured once.
      within: greatest loss of accuracy, a fraction >= 0: 0.005 is half a point.
      methods: {name: function (hyperparameters of keras-tuner, sparsity, steps, num_samples) ->
        method}; by default `METHODS`, all of this package's.
      select: as for `ts.sparsify`.
      measure: a function (dense model, as stripped) -> {name: number}, less is better: bytes and
        seconds of the exported file, for example (see docs/tuning.md).
      trials: how many are trained, those that fail among them; integer >= 1.
      seed: of the choices, integer >= 0. Trial n, counted from 0, begins with
        `keras.utils.set_random_seed(seed + n)`, so that a search is repeatable. (One that was
        interrupted may choose otherwise than one that was not, once the choices are no longer
        random.)

    Returns:
      Result.

    Raises:
      TypeError, ValueError: for arguments of another type or outside their ranges; if the folder
        holds a search with other dense weights, kernels, methods or settings; after three failed
        trials in a row. A trial fails where `train`, `evaluate` or `measure` raise ValueError or
        ArithmeticError, as when it diverges; the search goes on. Any other error ends it. Called
        again it goes on, after an error of the first kind with the next trial.

    Example:

    ```python
    import keras, numpy as np, tempfile
    import tf_sparsity as ts
    from tf_sparsity import tuning
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])

    def train(model, callbacks):
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)

    def evaluate(model):
        return float((model.predict(x, verbose=0).argmax(-1) == y).mean())

    found = tuning.sparsest(model, train, evaluate, steps=4, num_samples=64, trials=2, within=1.0,
                            folder=tempfile.mkdtemp(), methods={"magnitude": tuning.magnitude})
    assert found.best.sparsity >= 0.5 and len(found.candidates) == 3
    ```
    """
    check_number("steps", steps, least=1, whole=True)
    check_number("num_samples", num_samples, least=1, whole=True)
    check_number("trials", trials, least=1, whole=True)
    check_number("within", within, least=0)
    check_number("seed", seed, least=0, whole=True)
    steps, num_samples, seed, within = int(steps), int(num_samples), int(seed), float(within)
    methods = METHODS if methods is None else methods
    if not isinstance(methods, dict) or not methods or not all(map(callable, methods.values())):
        raise TypeError("methods is {name: function (hyperparameters, sparsity, steps, "
                        f"num_samples) -> method}}. Received: methods={methods!r}")
    folder = Path(folder)
    _same_search(folder, {
        "dense weights": _digest(model), "kernels": _kernels(model, select), "within": within,
        "methods": sorted(methods), "steps": steps, "num_samples": num_samples, "seed": seed,
        "measured": measure is not None})
    if not (folder / "dense.json").exists():
        _write(folder / "dense.json", Candidate(
            DENSE, {}, _fraction(evaluate(model)), 0.0, _measured(measure, model), None)._asdict())
    dense = Candidate(**json.loads((folder / "dense.json").read_text()))

    def choose(hp, name):
        """The method called `name`, with its settings as `hp` has them, or declares them."""
        with hp.conditional_scope("method", [name]), hp.name_scope(name):
            return methods[name](hp, hp.Float("sparsity", LEAST, MOST), steps, num_samples)

    def run_trial(trial):
        keras.utils.set_random_seed(seed + int(trial.trial_id))
        hp = trial.hyperparameters
        name = hp.get("method")
        method = choose(hp, name)
        sparse = sparsify(model, method, select=select)
        train(sparse, [callbacks.SparsityUpdate()])
        reached, plain = report(sparse).sparsity, strip(sparse)
        path = folder / "models" / f"{trial.trial_id}.keras"
        path.parent.mkdir(parents=True, exist_ok=True)
        plain.save(path)
        candidate = Candidate(*_chosen(trial), _fraction(evaluate(plain)), reached,
                              _measured(measure, plain), str(path))
        _write(path.with_suffix(".json"), candidate._asdict())
        short = dense.accuracy - candidate.accuracy - within
        return {"score": reached if short <= 0 else -short}

    with warnings.catch_warnings():
        # A trial is judged by the sparsity that it reached, whatever it was asked for.
        warnings.filterwarnings("ignore", ".*was asked for a sparsity of", UserWarning)
        # keras-tuner 1.4 calls threading.currentThread().getName()
        warnings.filterwarnings("ignore", "(currentThread|getName)", DeprecationWarning)
        tuner = _tuner(run_trial, _space(choose, methods), folder, trials, seed)
        tuner.search(verbose=0)
    found = [Candidate(**json.loads(path.read_text()))
             for path in sorted((folder / "models").glob("*.json"))]
    failures = [Failure(*_chosen(trial), _reason(trial))
                for _, trial in sorted(tuner.oracle.trials.items()) if trial.status == "FAILED"]
    return result(dense, found, within)._replace(failures=tuple(failures))


def result(dense, found, within):
    """The Result of candidates: the sparsest that is accurate enough, and the Pareto front.

    Args:
      dense: the Candidate that is not sparse; found: the others.
      within: greatest loss of accuracy.
    """
    enough = [one for one in found if one.accuracy >= dense.accuracy - within]
    best = max(enough, key=lambda one: (one.sparsity, one.accuracy), default=None)
    everyone = (dense, *found)
    front = [one for one in everyone if not any(_beats(other, one) for other in everyone)]
    return Result(best, tuple(sorted(front, key=lambda one: one.sparsity)), everyone)


def _chosen(trial):
    """The name of a trial's method, and its settings."""
    values = trial.hyperparameters.values
    name = values["method"]
    return name, {key.removeprefix(f"{name}/"): value for key, value in values.items()
                  if key.startswith(f"{name}/")}


def _reason(trial):
    """keras-tuner keeps the traceback: its last line is that of the FailedTrialError below."""
    return trial.message.strip().splitlines()[-1].split(": ", 1)[1]


def _beats(a, b):
    pairs = list(zip(_costs(a), _costs(b), strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _costs(candidate):
    figures = [value for _, value in sorted(candidate.figures.items())]
    return [-candidate.accuracy, *(figures or [-candidate.sparsity])]


def _fraction(accuracy):
    accuracy = float(accuracy)
    if not 0 <= accuracy <= 1:
        raise ValueError("evaluate returns the accuracy as a fraction in [0, 1]. Received: "
                         f"{accuracy:g}")
    return accuracy


def _measured(measure, model):
    return {} if measure is None else {k: float(v) for k, v in measure(model).items()}


def _digest(model):
    weights = b"".join(weight.tobytes() for weight in model.get_weights())
    return hashlib.sha256(weights).hexdigest()[:16]


def _kernels(model, select):
    """What is selected, by number and shape: Keras numbers unnamed layers on within a process."""
    found = enumerate(find(sparsify(model, FixedMask(), select=select)))
    return [f"{number}: {'x'.join(map(str, f.kernel.shape))}" for number, f in found
            if f.method is not None]


def _same_search(folder, now):
    """Refuses to go on with another search: its trials would be compared with this dense model."""
    path = folder / "search.json"
    if not path.exists():
        _write(path, now)
        return
    then = json.loads(path.read_text())
    changed = [f"{key} {then.get(key, 'not recorded')} (now {value})"
               for key, value in now.items() if then.get(key) != value]
    if changed:
        raise ValueError(f"{folder} holds a search with {', '.join(changed)}. Give another folder, "
                         "or remove it.")


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".part")
    new.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(new, path)


def _space(choose, methods):
    """All settings of all methods: keras-tuner would else try a method at its lowest settings
    first, where it learns that there are any."""
    import keras_tuner

    space = keras_tuner.HyperParameters()
    space.Choice("method", sorted(methods))
    for name in sorted(methods):
        space.values["method"] = name  # what belongs to another method has no value
        choose(space, name)
    return space


def _tuner(run_trial, space, folder, trials, seed):
    import keras_tuner

    class Search(keras_tuner.Tuner):
        failed = 0  # in a row

        def run_trial(self, trial, **_):
            try:
                return run_trial(trial)
            except (ValueError, ArithmeticError) as error:  # weights are NaN, for example
                message = " ".join(f"{type(error).__name__}: {error}".split())
                raise keras_tuner.errors.FailedTrialError(message) from error
            except Exception as error:  # keras-tuner would count it as a trial and go on
                raise keras_tuner.errors.FatalError(str(error)) from error

        def on_trial_end(self, trial):
            super().on_trial_end(trial)
            self.failed = self.failed + 1 if trial.status == "FAILED" else 0
            if self.failed == IN_A_ROW:
                raise ValueError(
                    f"{IN_A_ROW} trials in a row have failed. The last one: {_reason(trial)}\n"
                    f"The tracebacks are in {folder / 'tuner'}. Mend what raises it and call "
                    "again: the search goes on with the next trial.")

    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        objective=keras_tuner.Objective("score", "max"), max_trials=trials,
        seed=seed + 1,  # it draws one for 0
        hyperparameters=space, max_consecutive_failed_trials=NEVER)
    return Search(oracle=oracle, directory=str(folder), project_name="tuner")
