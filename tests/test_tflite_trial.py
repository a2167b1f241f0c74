"""Sparse files are run beside their dense twins in a child process; wrong ones are caught there."""

import re

import children
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from arm import graphs
from exports import dense, dense_file, prune, wide
from keras import layers

import tflite_export
from tflite_export import check, child, encoding, flatbuffer, kernels, ports, store, trial, weights

KINDS = ["XNNPACK", "built-in", "reference", "CompiledModel"]


def test_a_crash_a_hang_and_an_error_are_answers():
    assert child.call(children.crash, limit=60) == child.Answer(
        None, "its process was ended by SIGSEGV", ("begins",))
    assert child.call(children.hang, limit=3).failure == "it did not end within 3 seconds"
    assert child.call(children.fail, "two\nlines", limit=60).failure == "two lines"
    assert child.call(child.echo, np.arange(3), limit=60).value.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["notes", "result"])
@pytest.mark.parametrize("share", [0.02, 0.9])
def test_a_child_that_is_ended_while_it_writes_is_an_answer(name, share):
    assert child.call(children.end_while_writing, name, share, limit=60) == child.Answer(
        None, "its process was ended by SIGKILL", ("begins",))


def tried(tflite, rounding=1e-5):
    batches = ports.random_batches(ports.inputs(flatbuffer.read(tflite)), 2)
    return trial.trial(tflite, store.dense_twin(tflite), batches, rounding=rounding)


def test_a_right_file_passes_everywhere():
    result = tried(tflite_export.convert(dense_file(dense)).tflite)
    assert [o.kernels for o in result.outcomes] == KINDS and result.failure is None
    assert all(o.passed and o.difference == 0 for o in result.outcomes)
    assert len(result.outputs) == 2 and result.outputs[0]["output_0"].shape == (1, 10)


def test_a_native_kernel_differs_by_rounding_only():
    result = tried(tflite_export.convert(dense_file(dense, 0.9, 4)).tflite)
    assert result.failure is None and max(o.difference for o in result.outcomes) < 1e-6


def spoiled(tflite, block, version=None, densify=False):
    """Every int8 or float32 weight of FULLY_CONNECTED encoded without asking who can read it."""
    model = flatbuffer.read(tflite)
    for weight in weights.find(model):
        if weight.operator == "FULLY_CONNECTED":
            encoded = encoding.encode(weight.value, block=block)
            if densify:
                op = store._densify(model, weight.graph, weight.index, encoded.sparsity)
                weight.graph.operators.insert(0, op)
                packed = weight.graph.tensors[int(op.inputs[0])]
                packed.buffer = flatbuffer.add_constant(model, encoded.values)
            else:
                weight.tensor.buffer = flatbuffer.add_constant(model, encoded.values)
                weight.tensor.sparsity = encoded.sparsity
            if version:
                weight.users[0].opcodeIndex = flatbuffer.operator_code(
                    model, schema.BuiltinOperator.FULLY_CONNECTED, version)
    return flatbuffer.write(model)


@pytest.fixture(scope="module")
def quantized():
    """{mode: dense file of a Dense, pruned at random}"""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64, use_bias=False)])
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).copy()
    kernel[np.random.default_rng(0).random(kernel.shape) < 0.9] = 0
    model.layers[0].kernel.assign(kernel)
    data = np.random.default_rng(0).random((20, 64), "float32")
    return {mode: tflite_export.convert(
        model, quantize=mode, sparse=False,
        representative_data=data if mode == "int8" else None).tflite
        for mode in (None, "dynamic", "int8")}


@pytest.mark.parametrize(("mode", "block", "version", "densify", "says"), [
    ("dynamic", 1, None, True, "cannot load the file"),  # hybrid behind DENSIFY
    ("int8", 1, None, True, "cannot load the file"),  # int8 FULLY_CONNECTED, LiteRT 2.2 and newer
    ("dynamic", 4, 8, False, "outputs differ|ended by"),  # hybrid takes all for blocks of 1x16
    (None, 4, 4, False, "outputs differ|ended by|cannot load"),  # XNNPACK takes it for dense
    (None, 16, 8, False, "cannot load|ended by|invoke|Invoke|differ"),  # float has no 1x16
])
def test_what_runtimes_get_wrong_is_caught(quantized, mode, block, version, densify, says):
    """Each is refused by `kernels.py`, so that this never gets so far; here it is made by hand."""
    failure = tried(spoiled(quantized[mode], block, version, densify)).failure
    assert failure is not None
    assert re.search(says, failure), failure


def test_what_slips_through_is_seen_in_the_file(quantized, monkeypatch):
    """Were `kernels.py` to allow a hybrid weight behind a DENSIFY, the file would be refused."""
    monkeypatch.setattr(kernels, "unpackable", lambda weight, runtime: None)
    with pytest.raises(ValueError, match="FULLY_CONNECTED .* would be wrong on .*does not load"):
        tflite_export.convert(quantized["dynamic"])


def test_convert_refuses_what_fails_its_trial(monkeypatch):
    """Not even the same bits pass: the dense file comes back, and the report says why."""
    monkeypatch.setattr(check, "ROUNDING", -1.0)
    with pytest.warns(tflite_export.ExportWarning, match="The file is dense: in LiteRT with XNN"):
        exported = tflite_export.convert(dense_file(dense))
    assert exported.tflite == dense_file(dense) and not exported.report.is_sparse
    assert "dense, because in LiteRT with XNNPACK kernels its outputs" in exported.report.reason
    assert [o.kernels for o in exported.report.trial if not o.passed] == KINDS


def test_each_output_is_compared_with_itself():
    """Boxes of hundreds beside scores below 1: a score that is lost must show."""
    twin = [{"boxes": np.array([640.0, 8.0]), "scores": np.array([0.5, 0.9])},
            {"boxes": np.array([0.0, 1.0]), "scores": np.array([0.25, 0.0])}]
    lost = [{"boxes": batch["boxes"], "scores": np.zeros(2)} for batch in twin]
    assert trial.relative(twin, lost) == 1.0 and trial.greatest(twin, lost) == 0.9
    assert trial.relative(twin, twin) == 0.0
    # beside 640 an output of 1e-9 is rounding: it counts as one of 0.64
    tiny = [{"boxes": np.array([640.0]), "scores": np.array([value])} for value in (1e-9, 2e-9)]
    assert trial.relative(tiny[:1], tiny[1:]) == pytest.approx(1e-9 / 0.64)
    nan = [{"a": np.array([np.nan]), "b": np.ones(1)}]
    assert trial.relative(nan, nan) == 0.0
    assert np.isnan(trial.relative([{"a": np.ones(1), "b": np.ones(1)}], nan))
    with np.errstate(all="raise"):
        assert trial.relative([], []) == 0.0


def test_where_the_twin_fails_nothing_is_expected():
    """Both files ask for inputs that no batch has: that is no fault of the encoding."""
    file = tflite_export.convert(dense_file(wide)).tflite
    result = trial.trial(file, store.dense_twin(file), [{"input_0": np.ones((1, 3), "float32")}])
    assert result.failure is None and len(result.outcomes) == 4
    assert all("the dense file does not run either" in o.failure for o in result.outcomes)


def test_an_interface_that_litert_lacks_is_not_tried(tmp_path, monkeypatch):
    """In the child, this LiteRT is one without an option of CompiledModel."""
    (tmp_path / "sitecustomize.py").write_text(
        "import ai_edge_litert.compiled_model\ndel ai_edge_litert.compiled_model.CpuOptions\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = tried(dense_file(dense))
    assert [o.kernels for o in result.outcomes] == KINDS and result.failure is None
    assert [o.difference for o in result.outcomes] == [0, 0, 0, None]
    assert result.outcomes[-1].failure.startswith("not tried: cannot import name 'CpuOptions'")


LOOKED_UP = "embedding_int8_weight_through_densify_and_dequantize"


@pytest.mark.parametrize("name", [name for name in graphs.ENCODINGS if name != LOOKED_UP
                                  and re.match("(int8_)?(convolution_3x3|depthwise)|transp|embedd",
                                               name)])
def test_every_operator_reads_an_unpacked_weight(name):
    """Beside its dense twin, with every kind of kernels; on Arm the matrix does the same."""
    result = tried(graphs.ENCODINGS[name](), graphs.ENCODINGS[name].tolerance)
    assert [(o.kernels, o.failure) for o in result.outcomes] == [(kind, None) for kind in KINDS]
    assert result.failure is None and np.ptp(result.outputs[0].popitem()[1]) > 0.1


def test_a_look_up_behind_an_unpacking_and_a_dequantization():
    """XNNPACK takes both operators, and leaves GATHER, which it has not, without a weight."""
    result = tried(graphs.ENCODINGS[LOOKED_UP]())
    assert [o.passed for o in result.outcomes] == [False, True, True, False]


@pytest.mark.parametrize(("mode", "runtime"), [("int8_weights", "litert"),
                                               ("float16", "litert>=2.2")])
def test_such_a_look_up_is_never_written(mode, runtime):
    """Rows so long that sparse int8 would be the smallest."""
    ids = keras.Input((4,), dtype="int32")
    x = layers.Embedding(40, 512)(ids)
    model = prune(keras.Model(ids, layers.Dense(64)(x) * 2.0), 0.9)
    report = tflite_export.convert(model, quantize=mode, runtime=runtime).report
    embedding, matrix = report.layers
    assert matrix.stored_sparse and matrix.dtype == {"int8_weights": "int8"}.get(mode, mode)
    assert (embedding.operator, embedding.dtype, embedding.stored_sparse) == (
        ("GATHER", "float32", True) if mode == "int8_weights" else ("GATHER", "float16", False))
    assert all(outcome.passed for outcome in report.trial) and len(report.trial) == 4
