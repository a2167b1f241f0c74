"""A sparse file run beside its dense twin, with every kind of kernels, before anybody ships it.

All runs of a trial share one child process: a crash or a hang there is an outcome here.
"""

from typing import NamedTuple

import numpy as np

from tflite_export import child, runner

SMALL = 1e-3
LIMIT = 600  # seconds for all runs; the reference kernels take seconds for a large CNN


class Outcome(NamedTuple):
    """What one kind of kernels made of the file."""

    kernels: str
    difference: float | None  # from the twin, relative to the twin's greatest output
    failure: str | None = None  # why there is no difference
    passed: bool = True


class Trial(NamedTuple):
    """A trial's outcomes."""

    outcomes: tuple  # of Outcome, one per kind of kernels that was tried
    outputs: list | None  # of the file, for each batch: arrays by name, with XNNPACK

    @property
    def failure(self):
        """None, or what is wrong with the file in one sentence."""
        wrong = [outcome for outcome in self.outcomes if not outcome.passed]
        if not wrong:
            return None
        one = wrong[0]
        what = one.failure or f"its outputs differ by {one.difference:.1e} of the greatest one"
        return f"in LiteRT with {one.kernels} kernels {what}"


def trial(tflite, twin, batches, *, rounding=1e-5, limit=LIMIT):
    """Runs a file and the file that it must compute the same as.

    Args:
        tflite: bytes of the file.
        twin: bytes of its dense twin, `store.dense_twin(tflite)`.
        batches: arrays by input name, for each batch.
        rounding: the greatest difference that passes, relative to the twin's greatest output.
        limit: seconds for all runs.

    Returns:
        Trial. Where the twin does not run, nothing is expected of the file.

    Example:
        >>> import keras, tflite_export
        >>> from tflite_export import ports, flatbuffer, trial
        >>> tflite = tflite_export.convert(
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), sparse=False).tflite
        >>> batches = ports.random_batches(ports.inputs(flatbuffer.read(tflite)), 1)
        >>> {o.kernels: o.difference for o in trial.trial(tflite, tflite, batches).outcomes}
        {'XNNPACK': 0.0, 'built-in': 0.0, 'reference': 0.0, 'CompiledModel': 0.0}
    """
    answer = child.call(run_all, tflite, twin, batches, limit=limit)
    outcomes, started, outputs = [], None, None
    for note in answer.notes:
        if note[0] == "starts":
            started = note[1:]
            continue
        if note[0] == "outputs":
            outputs = note[1]
            continue
        _, kernels, difference, failure, whose = note
        passed = (failure is not None and whose != "file"
                  or difference is not None and difference <= rounding)
        if whose == "twin" and failure is not None:
            failure = f"the dense file does not run either: {failure}"
        outcomes.append(Outcome(kernels, difference, failure, passed))
        started = None
    if answer.failure is not None:
        kernels, whose = started or ("any", "file")
        passed = whose == "twin"
        said = f"the dense file fails: {answer.failure}" if passed else answer.failure
        outcomes.append(Outcome(kernels, None, said, passed))
    return Trial(tuple(outcomes), outputs)


def run_all(note, tflite, twin, batches):
    """What the child does; it notes the file's outputs with XNNPACK as soon as it has them."""
    for kernels in (*runner.KERNELS, runner.COMPILED):
        here = batches[:1] if kernels == "reference" else batches  # which is slow
        results, failure = {}, None
        for whose, file in (("twin", twin), ("file", tflite)):
            note(("starts", kernels, whose))
            try:
                results[whose] = run_file(file, kernels, here)
            except (RuntimeError, ValueError) as error:
                failure = " ".join(str(error).split())
                break
            except ImportError as error:  # an older LiteRT lacks an interface
                failure, whose = f"not tried: {error}", "runtime"
                break
        if failure is not None:
            note(("ends", kernels, None, failure, whose))
            continue
        if kernels == runner.KERNELS[0]:
            note(("outputs", results["file"]))
        note(("ends", kernels, relative(results["twin"], results["file"]), None, "file"))


def run_file(tflite, kernels, batches):
    """The outputs by name for each batch."""
    loaded = (runner.CompiledRunner(tflite) if kernels == runner.COMPILED
              else runner.Runner(tflite, kernels))
    outputs = []
    for batch in batches:
        loaded.set(batch)
        loaded.run()
        outputs.append(loaded.get())
    return outputs


def outputs(tflite, batches, limit=LIMIT):
    """The outputs by name with XNNPACK, for each batch of arrays by name, in a child process.

    Raises:
        ValueError: the file does not run; in the words of LiteRT, or that it crashed.
    """
    answer = child.call(run_in_child, tflite, batches, limit=limit)
    if answer.failure is not None:
        raise ValueError(answer.failure)
    return answer.value


def run_in_child(note, tflite, batches):
    """`run_file` with XNNPACK, for `child.call`."""
    return run_file(tflite, runner.KERNELS[0], batches)


def relative(expected, actual):
    """The greatest difference of an output, relative to the greatest number of that output over
    all batches; NaN and infinities equal themselves.

    An output that is a thousand times smaller than the greatest one is compared with a thousandth
    of that: beside numbers of 100, 1e-9 is nothing but rounding.
    """
    found = _compare(expected, actual)
    least = SMALL * max((scale for _, scale in found), default=0.0)
    ratios = [worst if worst == 0 or scale == 0 else worst / max(scale, least)
              for worst, scale in found]
    return float(np.max(ratios, initial=0.0))  # unlike max(), keeps a NaN


def greatest(expected, actual):
    """The greatest absolute difference over all batches and outputs."""
    return float(np.max([worst for worst, _ in _compare(expected, actual)], initial=0.0))


def _compare(expected, actual):
    """[(greatest difference, greatest finite expected number)] of each output, over all batches;
    outputs are matched by place where their names differ."""
    found = []
    for one, two in zip(expected, actual):
        shapes = [sorted(np.shape(value) for value in outputs.values()) for outputs in (one, two)]
        if shapes[0] != shapes[1]:
            raise ValueError("The outputs cannot be compared, their shapes differ: expected "
                             f"{shapes[0]}, and the file has {shapes[1]}. Was the file made from "
                             "this model?")
        pairs = ([(one[name], two[name]) for name in one] if set(one) == set(two)
                 else zip(one.values(), two.values()))
        here = []
        for a, b in pairs:
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            with np.errstate(invalid="ignore"):
                same = (a == b) | (np.isnan(a) & np.isnan(b))
                apart = np.where(same, 0.0, np.abs(a - b))
            here.append((apart.max(initial=0.0),
                         np.abs(np.nan_to_num(a, posinf=0, neginf=0)).max(initial=0.0)))
        found = found or [(0.0, 0.0)] * len(here)
        found = [(np.maximum(worst, w), max(scale, s))
                 for (worst, scale), (w, s) in zip(found, here)]
    return found
