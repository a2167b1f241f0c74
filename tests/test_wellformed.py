"""Damaged, cut and foreign files are refused in one sentence; nothing hangs or crashes."""

import contextlib
import signal

import keras
import numpy as np
import pytest
from damage import mutated
from keras import layers

import tflite_export
from tflite_export import encode, flatbuffer, ports, store, wellformed
from tflite_export.__main__ import main
from tflite_export.layers import layers as layers_of_file

MINUTE = 60.0  # of a file that takes a tenth of a second


def small_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(24, 3, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(40)(x))
    for layer in model.layers:
        if layer.weights:
            kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
            kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.9)] = 0
            layer.kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def files():
    model = small_model()
    return [tflite_export.convert(model, quantize=q, sparse=s).tflite
            for q, s in ((None, False), (None, "auto"), ("int8_weights", "auto"))]


def everything(tflite):
    """All that we do with a file that somebody gives us."""
    flatbuffer.constants(tflite)
    flatbuffer.read(store.store(tflite)[0])
    flatbuffer.read(store.store(tflite, store.Policy(int8=True))[0])
    flatbuffer.read(store.dense_twin(tflite))
    layers_of_file(tflite, runs_sparse=encode.look(tflite).runs_sparse("litert"))
    ports.inputs(flatbuffer.read(tflite))
    encode.encode(tflite, store.Policy("speed", int8=True))


def test_good_files_pass(files):
    for tflite in files:
        everything(tflite)


@pytest.mark.parametrize("tflite", [b"", b"TFL3", b"PK\x03\x04" * 10, bytes(100)])
def test_foreign_files(tflite):
    with pytest.raises(ValueError, match="Not a .tflite file"):
        everything(tflite)


def test_files_that_are_cut_off(files):
    for tflite in files:
        for size in np.linspace(8, len(tflite) - 1, 60).astype(int):
            with pytest.raises(ValueError, match="damaged"):
                everything(tflite[:size])


def test_a_reference_to_nothing_is_named(files):
    model = flatbuffer.read(files[0])
    model.subgraphs[0].operators[0].opcodeIndex = 77
    with pytest.raises(ValueError, match="operator 77 is used, and there are"):
        flatbuffer.read(flatbuffer.write(model))
    model = flatbuffer.read(files[0])
    model.subgraphs = []
    with pytest.raises(ValueError, match="no graph"):
        flatbuffer.read(flatbuffer.write(model))


def test_a_table_that_holds_itself_ends():
    """16 bytes: a root table whose list of subgraphs is a list of the root itself, and so on."""
    vtable = np.array([10, 12, 0, 0, 4], "<u2").tobytes()  # the third field is at byte 4
    tflite = (np.array([24], "<u4").tobytes() + b"TFL3" + bytes(4) + vtable + bytes(2)
              + np.array([12, 8, 0, 1], "<u4").tobytes())
    with pytest.raises(ValueError, match="damaged"):
        wellformed.check(tflite)


@contextlib.contextmanager
def deadline(seconds):
    """Raises in the main thread when the time is over, in Python code or back in it."""
    def late(*_):
        raise TimeoutError(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(files, count):
    """Any exception but ValueError fails the test, and so does a file that takes MINUTE."""
    refused = 0
    with np.errstate(all="ignore"):  # a weight may have become infinite
        for seed in range(count):
            rng = np.random.default_rng(seed)
            tflite = mutated(files[seed % len(files)], rng)
            try:
                with deadline(MINUTE):
                    everything(tflite)
            except ValueError as error:
                refused += 1
                assert len(str(error)) < 400, error
    assert 0.02 * count < refused < count


@pytest.mark.parametrize("count", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_mutated_files_cannot_take_verify_with_them(files, tmp_path, capfd, count):
    """What passes the reader is run, in a child process: a crash there is a sentence here."""
    path, statuses = tmp_path / "mutated.tflite", set()
    with np.errstate(all="ignore"):
        for seed in range(count):
            path.write_bytes(mutated(files[seed % len(files)], np.random.default_rng(seed)))
            with deadline(MINUTE):
                statuses.add(main(["verify", str(path)]))
            said = capfd.readouterr()
            assert "Traceback" not in said.err and said.out + said.err
    assert statuses <= {0, 1, 3}
