"""Damaged, cut and foreign files are refused in one sentence; nothing hangs or crashes."""

import contextlib
import signal
import time

import keras
import numpy as np
import pytest
from arm.builder import Builder
from damage import mutated
from exports import dense_file, recurrent
from keras import layers

import tflite_export
from tflite_export import encode, flatbuffer, legalize, ports, sizes, store, wellformed
from tflite_export.__main__ import main
from tflite_export.advice import advice
from tflite_export.convert import _changed, _refuse_weights
from tflite_export.layers import layers as layers_of_file
from tflite_export.report import layer_table

MINUTE = 60.0  # of a file that takes a tenth of a second
RUN = 1800.0  # of all mutations of a test


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


def mobile_graph():
    """A graph that is rewritten so that it runs sparse."""
    b = Builder()
    x = b.depthwise(b.conv(b.input(1, 16, 16, 3), 8, 3, 2, activation="RELU6"))
    return b.finish(b.dense(b.mean(b.conv(b.conv(x, 24), 16)), 4))


@pytest.fixture(scope="module")
def files():
    """Dense and sparse ones, with blocks, with a loop, and with a picture that the app turns."""
    b = Builder()
    flat = b.finish(b.dense(b.input(1, 256), 8, zeros=0.8))
    dense, mobile = tflite_export.convert(small_model(), sparse=False).tflite, mobile_graph()
    found = [dense, mobile] + [encode.encode(*arguments).tflite for arguments in (
        (dense, store.Policy()), (flat, store.Policy(int8=True)),
        (dense_file(recurrent, 0.9, 4), store.Policy("size")))]
    found.append(encode.encode(mobile, store.Policy(), rotate_input=False).tflite)
    _, _, _, int8, loop, turned = found
    assert {"DENSIFY", "DEQUANTIZE"} <= set(flatbuffer.operators(int8))
    assert len(flatbuffer.read(loop).subgraphs) > 1
    assert "1x4 blocks" in {row.encoding for row in layers_of_file(loop)}
    assert ports.turned(flatbuffer.read(turned)) and legalize.legalize(mobile).notes
    return found


def everything(tflite):
    """All that we do with a file that somebody gives us, but running it."""
    flatbuffer.constants(tflite)
    flatbuffer.read(store.store(tflite)[0])
    flatbuffer.read(store.store(tflite, store.Policy(int8=True))[0])
    flatbuffer.read(store.dense_twin(tflite))
    looked = encode.look(tflite)
    rows = layers_of_file(tflite, runs_sparse=looked.runs_sparse("litert"))
    list(layer_table(rows, sizes.other_constants(tflite), len(tflite)))
    encode.covered(looked, rows, "litert")
    list(advice(rows, len(tflite), len(tflite)))
    sizes.dense_sizes(tflite)
    graphs = flatbuffer.read(tflite)
    ports.random_batches(ports.inputs(graphs), 1)
    ports.turned(graphs)
    _refuse_weights(tflite, tflite, "the file", "auto")
    for policy in store.Policy("auto"), store.Policy("speed", int8=True):
        encoded = encode.encode(tflite, policy)
        assert _changed(encoded.tflite, encoded.dense) is None


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
    """Raises in the main thread when the time is over, in Python code or back in it. One may be
    inside another: the sooner one counts."""
    def late(*_):
        raise TimeoutError(f"no end within {seconds} s")

    before, left = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
    began = time.monotonic()
    if not left or seconds < left:
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left and max(left - time.monotonic() + began, 1e-3))


def test_deadlines_inside_each_other():
    with pytest.raises(TimeoutError, match="within 0.2 s"), deadline(0.2):
        while True:
            with deadline(MINUTE):
                time.sleep(0.01)
    with deadline(MINUTE), pytest.raises(TimeoutError, match="within 0.1 s"):
        with deadline(0.1):
            time.sleep(5)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(files, count):
    """Any exception but ValueError fails the test, and so does a file that takes MINUTE, or a run
    that takes RUN."""
    refused = 0
    with deadline(RUN), np.errstate(all="ignore"):  # a weight may have become infinite
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
    with deadline(RUN), np.errstate(all="ignore"):
        for seed in range(count):
            path.write_bytes(mutated(files[seed % len(files)], np.random.default_rng(seed)))
            with deadline(MINUTE):
                statuses.add(main(["verify", str(path)]))
            said = capfd.readouterr()
            assert "Traceback" not in said.err and said.out + said.err
    assert statuses <= {0, 1, 3}
