import dataclasses
import itertools
import os
import warnings

import keras
import numpy as np
import pytest

from tf_sparsity.schedule import ConstantSparsity, PolynomialDecay, Ramp, Schedule, as_schedule

EVERY_ARGUMENT = [
    ConstantSparsity(0.5, 3, end_step=7, frequency=2),
    PolynomialDecay(0.1, 0.9, 3, 70, power=2, frequency=4),
    Ramp(3, 70, power=3, frequency=5),
]


def test_cubic_schedule_of_zhu_and_gupta():
    # 0.9 * (1 - (1 - p) ** 3) for p = 10, 25, 50, 75 %
    schedule = PolynomialDecay(0.0, 0.9, 0, 100)
    values = [schedule.value(t) for t in (10, 25, 50, 75)]
    assert values == pytest.approx([0.2439, 0.5203125, 0.7875, 0.8859375], rel=1e-12)


@pytest.mark.parametrize("initial, final", [(0.0, 0.9), (0.1, 0.95), (0.25, 0.9), (0.3, 0.3)])
@pytest.mark.parametrize("power", [1, 3, 0.5])
def test_polynomial_decay_is_exact_at_both_ends(initial, final, power):
    schedule = PolynomialDecay(initial, final, 7, 31, power=power)
    assert [schedule.value(t) for t in (0, 6)] == [0.0, 0.0]
    assert schedule.value(7) == initial
    assert [schedule.value(t) for t in (31, 32, 10**9)] == [final] * 3
    values = [schedule.value(t) for t in range(40)]
    assert values == sorted(values)
    assert all(type(value) is float for value in values)
    assert schedule.final_sparsity == final
    assert schedule.last_step == 31


def test_constant_sparsity():
    schedule = ConstantSparsity(0.5, 10)
    assert [schedule.value(t) for t in (0, 9, 10, 11, 10**9)] == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert schedule.final_sparsity == 0.5
    assert schedule.last_step == 10
    assert ConstantSparsity(0.5, 10, end_step=90).last_step == 10
    assert type(ConstantSparsity(0, 10).value(20)) is float


def test_ramp():
    assert [Ramp(10, 20).value(t) for t in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    # the cubic one of Gale et al.: 1 - (1 - 1/2)^3
    assert [Ramp(10, 20, power=3).value(t) for t in (10, 15, 20, 99)] == [0.0, 0.875, 1.0, 1.0]
    assert Ramp(0, 5).frequency == 1
    assert Ramp(100, 1100).frequency == 10
    assert Ramp(0, 1000, frequency=7).frequency == 7
    assert Ramp(10, 20).last_step == 20


def test_defaults_and_order_are_those_of_tfmot():
    assert ConstantSparsity(0.5, 1) == ConstantSparsity(
        target_sparsity=0.5, begin_step=1, end_step=-1, frequency=100
    )
    assert PolynomialDecay(0.1, 0.5, 1, 2) == PolynomialDecay(
        initial_sparsity=0.1, final_sparsity=0.5, begin_step=1, end_step=2, power=3, frequency=100
    )


def update_points(schedule, limit):
    end = limit if schedule.end_step == -1 else schedule.end_step
    points = set(range(schedule.begin_step, end + 1, schedule.frequency))
    return points | ({end} if schedule.end_step != -1 else set())


@pytest.mark.parametrize("begin, end", [(0, -1), (5, -1), (0, 12), (4, 13), (3, 3), (0, 0)])
@pytest.mark.parametrize("frequency", [1, 3, 4, 50])
def test_due_against_enumeration(begin, end, frequency):
    schedule = ConstantSparsity(0.5, begin, end, frequency)
    points = update_points(schedule, 30)
    for prev, step in itertools.combinations(range(-1, 30), 2):
        assert schedule.due(prev, step) == any(prev < p <= step for p in points), (prev, step)
    assert not schedule.due(8, 8)


def test_the_final_update_is_due_off_the_grid():
    # TFMOT's last update is at 50, with .7989
    schedule = PolynomialDecay(0.0, 0.8, 10, 55, frequency=10)
    due = [t for t in range(100) if schedule.due(t - 1, t)]
    assert due == [10, 20, 30, 40, 50, 55]
    assert schedule.due(50, 57)  # steps_per_execution jumps over it
    assert not schedule.due(55, 1000)


def test_begin_step_0_is_due_before_the_first_step():
    assert ConstantSparsity(0.5, 0).due(-1, 0)
    assert not ConstantSparsity(0.5, 1).due(-1, 0)


@pytest.mark.parametrize("schedule", EVERY_ARGUMENT, ids=lambda s: type(s).__name__)
def test_configuration(schedule):
    cls = type(schedule)
    assert cls.from_config(schedule.get_config()) == schedule
    serialised = keras.saving.serialize_keras_object(schedule)
    assert serialised["registered_name"] == f"tf_sparsity>{cls.__name__}"
    assert keras.saving.deserialize_keras_object(serialised) == schedule
    assert hash(cls(**schedule.get_config())) == hash(schedule)
    for name, value in schedule.get_config().items():  # every argument counts in a comparison
        other = value + (0.01 if isinstance(value, float) else 1)
        assert cls(**{**schedule.get_config(), name: other}) != schedule
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.frequency = 3


def test_repr_and_equality_by_class():
    assert repr(Ramp(0, 100)) == "Ramp(begin_step=0, end_step=100, power=1, frequency=1)"
    assert Ramp(0, 100) != ConstantSparsity(0.5, 0)


def test_numpy_numbers_are_stored_as_python_numbers():
    # TFMOT's tutorial computes end_step with np.ceil(...).astype(np.int32)
    schedule = PolynomialDecay(np.float64(0), np.float64(0.5), np.int64(0), np.int32(4))
    assert type(schedule.end_step) is int
    assert type(schedule.final_sparsity) is float


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: ConstantSparsity(1.0, 0), ValueError, r"target_sparsity .* \[0, 1\), got 1.0"),
        (lambda: ConstantSparsity(-0.1, 0), ValueError, "target_sparsity"),
        (lambda: ConstantSparsity(float("nan"), 0), ValueError, "target_sparsity"),
        (lambda: ConstantSparsity("0.5", 0), TypeError, "must be a number, got '0.5'"),
        (lambda: ConstantSparsity(True, 0), TypeError, "must be a number, got True"),
        (lambda: ConstantSparsity(0.5, -1), ValueError, "begin_step must be at least 0, got -1"),
        (lambda: ConstantSparsity(0.5, 1.0), TypeError, "integer number of steps, got 1.0"),
        (lambda: ConstantSparsity(0.5, True), TypeError, "integer number of steps, got True"),
        (lambda: ConstantSparsity(0.5, 5, 4), ValueError, "-1 .no end. or at least begin_step=5"),
        (lambda: ConstantSparsity(0.5, 5, -2), ValueError, "end_step must be at least -1"),
        (lambda: ConstantSparsity(0.5, 5, frequency=0), ValueError, "frequency must be at least 1"),
        (lambda: PolynomialDecay(0, 1.0, 0, 9), ValueError, "final_sparsity"),
        (lambda: PolynomialDecay(0.6, 0.5, 0, 9), ValueError, "must not exceed final_sparsity"),
        (lambda: PolynomialDecay(0, 0.5, 5, 5), ValueError, "use ConstantSparsity"),
        (lambda: PolynomialDecay(0, 0.5, 5, -1), ValueError, "end_step must be at least 0"),
        (lambda: PolynomialDecay(0, 0.5, 0, 9, power=0), ValueError, "power must be positive"),
        (lambda: PolynomialDecay(0, 0.5, 0, 9, power="3"), TypeError, "power must be a number"),
        (lambda: PolynomialDecay(0, 0.5, 0, 9.0), TypeError, "end_step must be an integer"),
        (lambda: Ramp(5, 5), ValueError, "use no ramp"),
        (lambda: Ramp(0, 5, frequency=0), ValueError, "frequency must be at least 1"),
        (lambda: as_schedule(0.5), TypeError, "Expected a schedule: .* Got 0.5"),
        (lambda: as_schedule(Ramp(0, 5)), TypeError, "Expected a schedule: .* Got Ramp"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_as_schedule_takes_ours_and_serialised_ones():
    schedule = EVERY_ARGUMENT[1]
    assert as_schedule(schedule) is schedule
    assert as_schedule(keras.saving.serialize_keras_object(schedule)) == schedule


def test_as_schedule_takes_a_schedule_of_the_user():
    @dataclasses.dataclass(frozen=True)
    class Steps(Schedule):
        final_sparsity: float
        begin_step: int = 0
        end_step: int = 10
        frequency: int = 5
        last_step = 10

        def value(self, step):
            return self.final_sparsity * (step // 5) / 2

    assert as_schedule(Steps(0.5)).value(5) == 0.25
    assert [t for t in range(20) if Steps(0.5).due(t - 1, t)] == [0, 5, 10]


@pytest.fixture(scope="module")
def tfmot():
    """TFMOT's schedules; importing them must not switch tf.keras, nor leave the variable behind."""
    tf = pytest.importorskip("tensorflow")
    tf.keras.Model  # noqa: B018
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # distutils
            from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule
    finally:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        if before is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return pruning_schedule


@pytest.mark.parametrize("name", ["ConstantSparsity", "PolynomialDecay"])
def test_values_and_grid_are_those_of_tfmot(tfmot, name):
    args = {"ConstantSparsity": (0.6, 4, 24, 5), "PolynomialDecay": (0.2, 0.9, 4, 24, 3, 5)}[name]
    theirs = getattr(tfmot, name)(*args)
    ours = as_schedule(theirs)
    assert type(ours).__name__ == name
    assert tuple(ours.get_config().values()) == args
    for step in range(4, 40):  # before begin_step theirs is not 0, and never used
        should_prune, sparsity = theirs(step)
        assert ours.value(step) == pytest.approx(float(sparsity), abs=1e-6)  # theirs is float32
        assert ours.due(step - 1, step) == bool(should_prune)


def test_a_custom_tfmot_schedule_is_refused(tfmot):
    class Custom(tfmot.PruningSchedule):
        def __call__(self, step):
            return True, 0.5

        def get_config(self):
            return {}

    with pytest.raises(TypeError, match="Custom is a custom TFMOT schedule. Use ts.TFMOTPruning"):
        as_schedule(Custom())
