"""The exporter: the interpreter computes what Keras computes, and no file is ever harmed."""

import contextlib
import copy
import json
import os
import re

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from exports import (
    INPUTS,
    Subclassed,
    attention,
    conv,
    dense,
    dense_file,
    prune,
    recurrent,
    rows,
    several,
    subclassed,
    wide,
)
from keras import layers

import tf_sparsity as ts
import tflite_export
from tflite_export import flatbuffer, store, trial
from tflite_export.encoding import decode
from tflite_export.flatbuffer import constants

# float32 outputs of order 1, summed in another order by XNNPACK than by TensorFlow.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def pruned():
    """A model with 90 % zeros, exported once for the tests that only look at it."""
    keras.utils.set_random_seed(0)
    model = prune(dense(), 0.9)
    return model, tflite_export.convert(model)


# ---- outputs


def warned_of(build):
    """`conv` has a stem of stride 1, so that its 1x1 convolution runs dense."""
    if build is not conv:
        return contextlib.nullcontext()
    return pytest.warns(tflite_export.ExportWarning, match="No 1x1 convolution .*stride 1")


@pytest.mark.parametrize("build", INPUTS)
def test_the_interpreter_computes_what_keras_computes(build):
    """Seven rows in batches of three: the last piece is filled up."""
    model = prune(build(), 0.8)
    with warned_of(build):
        exported = tflite_export.convert(model, batch_size=3)
    assert tflite_export.compare(model, exported, INPUTS[build]()) < TOLERANCE
    assert tflite_export.compare(model, exported.tflite, INPUTS[build]()) < TOLERANCE
    assert exported.report.difference < TOLERANCE


def test_outputs_are_nested_as_keras_nests_them():
    model = several()
    tflite = tflite_export.convert(model).tflite
    a, b, c = INPUTS[several]()
    outputs = tflite_export.interpret(tflite, {"a_b": b, "b": c, "c": a})
    assert [o.shape for o in outputs] == [(7, i + 1) for i in range(12)]
    for ours, theirs in zip(outputs, model.predict([a, b, c], verbose=0)):
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    model = subclassed()
    inputs = {"input_0": np.ones((2, 4)), "input_1": np.zeros((2, 4))}  # sorted by key: a, b
    outputs = tflite_export.interpret(tflite_export.convert(model).tflite, inputs)
    assert set(outputs) == {"sum", "first"}
    np.testing.assert_array_equal(outputs["first"], np.ones((2, 4)))


def test_a_wrong_file_is_seen():
    """`compare` and `difference` can fail."""
    model = dense()
    tflite = tflite_export.convert(model).tflite
    other = keras.models.clone_model(model)
    assert tflite_export.compare(other, tflite, rows(64)) > 1e-3
    another = keras.Sequential([keras.Input((64,)), layers.Dense(1)])
    with pytest.raises(ValueError, match="shapes differ: expected .*Was the file made from"):
        tflite_export.compare(another, tflite, rows(64))
    one, nan = [{"x": np.ones(2)}], [{"x": np.array([1, np.nan])}]
    assert trial.greatest(one, one) == trial.greatest(nan, nan) == 0
    assert np.isnan(trial.greatest(one, nan)) and np.isnan(trial.greatest(nan, one))
    two = [{"x": np.array([2.0]), "y": np.array([1.0])}], [{"x": [2.5], "y": [1.1]}]
    assert trial.greatest(*two) == 0.5 and trial.relative(*two) == 0.25


# ---- sizes and encodings


def test_a_sparse_file_is_smaller_and_the_same(pruned):
    model, exported = pruned
    report = exported.report
    assert report.is_sparse and report.reason.startswith("sparse")
    assert len(exported.tflite) == report.bytes < 0.3 * report.bytes_dense
    assert report.zipped < report.zipped_dense < report.bytes_dense
    # 64 x 128 and 128 x 10 weights, 90 % of them zero, rounded as `prune` rounds
    assert sorted(row.shape for row in report.layers) == [(10, 128), (128, 64)]
    for tensor in report.layers:
        size = tensor.shape[0] * tensor.shape[1]
        assert tensor.sparsity == round(0.9 * size) / size and tensor.stored_sparse
        kept = size - round(0.9 * size)
        # 4 bytes a value, 1 an index (fewer than 256 columns), 1 to 2 a row's end
        assert (
            5 * kept + tensor.shape[0] + 1 <= tensor.bytes <= 5 * kept + 2 * (tensor.shape[0] + 1)
        )
    plain = tflite_export.convert(model, sparse=False)
    assert len(plain.tflite) == report.bytes_dense == plain.report.bytes
    np.testing.assert_array_equal(
        tflite_export.interpret(plain.tflite, rows(64)),
        tflite_export.interpret(exported.tflite, rows(64)),
    )


def test_the_file_holds_the_weights_of_keras(pruned):
    """Read from the bytes alone, and by the interpreter: a row of the identity gives a row of w."""
    model, exported = pruned
    stored = {c.value.shape: c.value for c in constants(exported.tflite) if c.is_sparse}
    for layer in model.layers:
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        np.testing.assert_array_equal(stored[kernel.T.shape], kernel.T)
    linear = prune(keras.Sequential([keras.Input((64,)), layers.Dense(32, use_bias=False)]), 0.9)
    tflite = tflite_export.convert(linear).tflite
    np.testing.assert_array_equal(
        tflite_export.interpret(tflite, np.eye(64)),
        keras.ops.convert_to_numpy(linear.layers[0].kernel),
    )


def test_blocks_of_four_inputs_run_natively():
    """Blocks of 1x4 are left to the runtime's own kernel: no DENSIFY in the file."""
    model = prune(keras.Sequential([keras.Input((64,)), layers.Dense(32)]), 0.875, block=4)
    exported = tflite_export.convert(model)
    packed = [c for c in constants(exported.tflite) if c.is_sparse]
    assert exported.report.is_sparse and len(packed) == 1
    np.testing.assert_array_equal(
        packed[0].value, keras.ops.convert_to_numpy(model.layers[0].kernel).T
    )
    # 64 blocks of 4 values, an index each: no index per value
    assert packed[0].bytes == 64 * (16 + 1) + 33
    (row,) = exported.report.layers
    assert row.runs_sparse and row.encoding == "1x4 blocks"
    assert row.multiply_adds == 64 * 32 and row.expected_multiply_adds == 64 * 32 / 8
    assert tflite_export.compare(model, exported.tflite, rows(64)) < TOLERANCE


def test_decoding_by_hand():
    # [[0, 7, 0], [5, 0, 6]] row by row: values 7 5 6 in columns 1 0 2, rows end at 1 and 3
    stored, sparsity = np.array([7.0, 5.0, 6.0]), schema.SparsityParametersT()
    sparsity.traversalOrder = [0, 1]
    sparsity.dimMetadata = [schema.DimensionMetadataT(), schema.DimensionMetadataT()]
    first, second = sparsity.dimMetadata
    first.format, first.denseSize = schema.DimensionType.DENSE, 2
    second.format = schema.DimensionType.SPARSE_CSR
    second.arraySegments, second.arrayIndices = schema.Uint8VectorT(), schema.Uint8VectorT()
    second.arraySegments.values, second.arrayIndices.values = [0, 1, 3], [1, 0, 2]
    np.testing.assert_array_equal(decode(stored, sparsity, (2, 3)), [[0, 7, 0], [5, 0, 6]])
    # The same tree over blocks 1x2 of a 2 x 6 matrix
    sparsity.traversalOrder, sparsity.blockMap = [0, 1, 2], [1]
    block = schema.DimensionMetadataT()
    block.format, block.denseSize = schema.DimensionType.DENSE, 2
    sparsity.dimMetadata.append(block)
    np.testing.assert_array_equal(
        decode(np.array([1.0, 2, 3, 4, 5, 6]), sparsity, (2, 6)),
        [[0, 0, 1, 2, 0, 0], [3, 4, 0, 0, 5, 6]],
    )


def test_negative_zeros_are_zeros():
    model = dense()
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).copy()
    kernel[:, 12:] = -0.0  # what a mask leaves of negative weights
    model.layers[0].kernel.assign(kernel)
    report = tflite_export.convert(model).report
    assert report.is_sparse and [row.stored_sparse for row in report.layers].count(True) == 1


def test_nothing_sparse_stays_dense():
    for sparsity in (0.0, 0.2):
        report = tflite_export.convert(dense_file(dense, sparsity)).report
        assert not report.is_sparse
        assert "no weight can be stored sparse, right and smaller" in report.reason
        assert not any(row.stored_sparse for row in report.layers)


def test_what_grows_stays_dense():
    """A matrix so small that the extra tensor outweighs the zeros, beside one that is not."""
    small = prune(keras.Sequential([keras.Input((4,)), layers.Dense(4)]), 0.5)
    report = tflite_export.convert(small).report
    assert not report.is_sparse and report.bytes == report.bytes_dense
    both = prune(keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(2)]), 0.5)
    report = tflite_export.convert(both).report
    stored = {row.shape: row.stored_sparse for row in report.layers}
    assert stored == {(64, 64): True, (2, 64): False}


def test_a_wrong_sparse_file_is_never_returned(pruned, monkeypatch):
    """The encoder makes a mistake: the last value of each weight is dropped to 1."""
    real = store.encoding.smallest

    def spoiled(dense):
        encoded = real(dense)
        encoded.values[-1] = 1
        return encoded

    monkeypatch.setattr(store.encoding, "smallest", spoiled)
    with pytest.warns(tflite_export.ExportWarning, match="the encoding changed the values"):
        exported = tflite_export.convert(pruned[0])
    assert not exported.report.is_sparse
    assert "encoding changed the values" in exported.report.reason
    assert len(exported.tflite) == exported.report.bytes_dense


# ---- files


def test_save_writes_and_never_overwrites(pruned, tmp_path):
    exported, path = pruned[1], tmp_path / "model.tflite"
    assert exported.save(path) == str(path) and path.read_bytes() == exported.tflite
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        exported.save(path)
    assert path.read_bytes() == b"precious"
    exported.save(path, overwrite=True)
    assert path.read_bytes() == exported.tflite
    assert os.listdir(tmp_path) == ["model.tflite"]
    os.mkfifo(tmp_path / "pipe")  # what is no file is not replaced either
    with pytest.raises(FileExistsError, match="overwrite=True"):
        exported.save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(IsADirectoryError, match="is a folder: give the name"):
        exported.save(tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError, match="The folder of .* is not there"):
        exported.save(tmp_path / "absent" / "model.tflite")


def test_a_failing_save_leaves_the_old_file(pruned, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"precious")

    def full(_):
        raise OSError("no space left on the device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        pruned[1].save(path, overwrite=True)
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == ["model.tflite"]


# ---- refusals


def fails(match, kind=ValueError):
    return pytest.raises(kind, match=match)


def test_refusals_say_what_to_do():
    model = dense()
    with fails("Keras 3 models.*a builtins.int", TypeError):
        tflite_export.convert(3)
    with fails("model.keras is not there", FileNotFoundError):
        tflite_export.convert("model.keras")
    for sparse in ("csr", True, 0, None):
        with fails("'auto', 'size', 'speed' or False; got"):
            tflite_export.convert(model, sparse=sparse)
    for batch_size in (0, 1.0, True):
        with fails("batch_size must be an integer of at least 1"):
            tflite_export.convert(model, batch_size=batch_size)
    for rotate_input in ("no", 0, None):
        with fails("rotate_input must be True or False; got"):
            tflite_export.convert(model, rotate_input=rotate_input)
    for unbuilt in (keras.Sequential([layers.Dense(3)]), Subclassed()):
        with fails("call it once on a batch, or give it a keras.Input"):
            tflite_export.convert(unbuilt)
    with fails("every size but the batch fixed"):
        tflite_export.convert(keras.Sequential([keras.Input((None, 8)), layers.LSTM(4)]))
    erfinv = keras.Input((4,))
    with fails("LiteRT has no Erfinv"):
        tflite_export.convert(keras.Model(erfinv, keras.ops.erfinv(erfinv)))


def test_sparse_layers_are_stripped():
    inner = keras.Sequential([keras.Input((64,)), layers.Dense(64, name="inside")], name="block")
    model = keras.Sequential([keras.Input((64,)), inner, layers.Dense(4)])
    sparse = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.9, 0)), select="inside")
    ts.update(sparse)
    exported, plain = (tflite_export.convert(m) for m in (sparse, ts.strip(sparse)))
    assert exported.report.is_sparse and len(exported.tflite) == len(plain.tflite)
    assert tflite_export.compare(sparse, exported.tflite, rows(64)) < TOLERANCE


def test_half_precision_is_refused_with_a_way_out():
    """What the error says is run, for a model with operations, layers in layers and masks."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((5, 16))
        x = layers.Bidirectional(layers.LSTM(8))(inputs)
        y = layers.Dense(16, name="pruned")(x)
        y = keras.Sequential([keras.Input((16,)), layers.Dense(16)])(keras.ops.relu(x + y))
        model = keras.Model(inputs, layers.Dense(4)(y * 2.0))
    finally:
        keras.config.set_dtype_policy("float32")
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.9, 0)), select="pruned")
    model.compile("adam", "mse")
    ts.update(model)
    with fails("float16, which LiteRT cannot") as refusal:
        tflite_export.convert(model)
    names = {"keras": keras, "model": model}
    exec(re.search("float32 copy: (.*?)\\. Classes", str(refusal.value))[1], names)
    copy = names["copy"]
    exported = tflite_export.convert(copy)
    assert tflite_export.compare(copy, exported.tflite, rows(5, 16)) < TOLERANCE
    # float16 has 11 bits: outputs of order 1 differ by some thousandths
    apart = model.predict(rows(5, 16), verbose=0) - tflite_export.interpret(exported, rows(5, 16))
    assert np.abs(apart).max() < 0.01


def test_several_arguments_of_call_are_refused():
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, a, b):
            return self.dense(a) + b

    model = Two()
    model(np.ones((1, 4)), np.ones((1, 3)))
    with fails("missing a required argument: 'b'.*: give one dict or list argument"):
        tflite_export.convert(model)


def test_wrong_inputs_of_interpret():
    one = tflite_export.convert(dense()).tflite
    for content in (b"the fox jumps", bytearray(b"the fox jumps")):
        with fails("Not a .tflite file: its bytes 4 to 8 are b'fox ', not b'TFL3'"):
            tflite_export.interpret(content, np.ones((2, 64)))
    with fails("The .tflite file is damaged or cut off"):
        tflite_export.interpret(one[:-2000], np.ones((2, 64)))
    with fails(r"must have shape \(rows, 64\); got \(2, 63\)"):
        tflite_export.interpret(one, np.ones((2, 63)))
    with fails("at least 1"):
        tflite_export.interpret(one, np.ones((0, 64)))
    model = several()
    many = tflite_export.convert(model).tflite
    with fails("3 inputs: give a dict of arrays with the keys"):
        tflite_export.interpret(many, np.ones((2, 3)))
    with fails("inputs are .*; got"):
        tflite_export.interpret(many, {"c": np.ones((2, 3))})
    with fails("same number of rows"):
        tflite_export.interpret(many, {"c": rows(3)[:2], "a_b": rows(4), "b": rows(5)})
    with fails("has the inputs .*; got 1 arrays"):
        tflite_export.compare(model, many, np.ones((2, 3)))


def test_a_quantized_model_is_refused_in_one_sentence():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
    model.get_layer("head").quantize("int8")
    with pytest.raises(ValueError, match="'head' .* is quantized by Keras .int8."):
        tflite_export.convert(model)


# ---- what store.py writes


def operators(tflite):
    model = flatbuffer.read(tflite)
    return [[flatbuffer.operator(model, op) for op in graph.operators]
            for graph in model.subgraphs]


def test_an_embedding_is_stored_sparse_too():
    tokens = keras.Input((6,), dtype="int32")
    model = prune(keras.Model(tokens, layers.Dense(3)(layers.Embedding(200, 16)(tokens))), 0.9)
    exported = tflite_export.convert(model)
    assert {"DENSIFY", "GATHER"} < set(operators(exported.tflite)[0])
    assert [c.value.shape for c in constants(exported.tflite) if c.is_sparse] == [(200, 16)]
    ids = np.random.default_rng(0).integers(0, 200, (4, 6))
    assert tflite_export.compare(model, exported.tflite, ids) < TOLERANCE


@pytest.mark.parametrize(("mode", "dtype"), [(None, "float32"), ("int8_weights", "int8")])
def test_a_transposed_convolution_is_stored_sparse(mode, dtype):
    model = prune(keras.Sequential([keras.Input((5, 6, 32)), layers.Conv2DTranspose(
        24, 3, strides=2, padding="same", activation="relu")]), 0.9)
    exported = tflite_export.convert(model, quantize=mode)
    (row,) = exported.report.layers
    assert (row.operator, row.shape, row.dtype) == ("TRANSPOSE_CONV", (24, 3, 3, 32), dtype)
    assert row.stored_sparse and all(outcome.passed for outcome in exported.report.trial)
    assert row.multiply_adds == 5 * 6 * row.bytes_dense // np.dtype(dtype).itemsize
    tolerance = TOLERANCE if mode is None else 0.01
    assert tflite_export.compare(model, exported.tflite, rows(5, 6, 32)) < tolerance


def test_weights_inside_a_loop_are_stored_sparse():
    """An LSTM that is not unrolled runs a subgraph for each time step."""
    inputs = keras.Input((5, 16))
    model = prune(keras.Model(inputs, layers.LSTM(32)(inputs)), 0.9)
    exported = tflite_export.convert(model)
    assert len(operators(exported.tflite)) > 1
    assert exported.report.is_sparse and len(exported.tflite) < 0.6 * exported.report.bytes_dense
    assert tflite_export.compare(model, exported.tflite, rows(5, 16)) < TOLERANCE


def test_a_weight_that_two_layers_share_is_unpacked_once():
    inputs = keras.Input((64,))
    shared = layers.Dense(64, use_bias=False)
    model = prune(keras.Model(inputs, shared(shared(inputs))), 0.9)
    exported = tflite_export.convert(model)
    assert operators(exported.tflite) == [["DENSIFY", "FULLY_CONNECTED", "FULLY_CONNECTED"]]
    assert tflite_export.compare(model, exported.tflite, rows(64)) < TOLERANCE


@pytest.mark.parametrize("quantize", [None, "int8_weights", "dynamic"])
def test_a_weight_without_a_value_is_stored_sparse(quantize):
    """All of it pruned: one of its zeros is kept, for a constant of no bytes is none."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(64)])
    prune(model, 0.9, block=16)
    model.layers[0].set_weights([np.zeros((64, 64)), np.ones(64)])
    report = tflite_export.convert(model, quantize=quantize).report
    zeros = [row for row in report.layers if row.sparsity == 1]
    # a value, or a block of 4 float32 or 16 int8 ones, its index, and 65 places where rows begin
    assert len(zeros) == 1 and zeros[0].stored_sparse and zeros[0].bytes <= 16 + 1 + 65
    assert report.difference < (0.05 if quantize else 1e-5)


def test_a_constant_that_nothing_uses_is_no_reason_for_a_dense_file():
    """Others leave tensors behind, even with NaN; `write` drops them."""
    model = flatbuffer.read(dense_file(dense, 0.9))
    graph = model.subgraphs[0]
    left = copy.copy(graph.tensors[int(graph.operators[0].inputs[1])])
    left.name, left.buffer = b"left behind", flatbuffer.add_constant(
        model, np.full(left.shape, np.nan, "float32"))
    graph.tensors.append(left)
    file = bytes(flatbuffer._built(model).Output())
    assert b"left behind" in file
    for quantize in (None, "int8_weights"):
        assert tflite_export.convert(file, quantize=quantize).report.is_sparse


@pytest.mark.parametrize("nest", [lambda x, y: [y, y], lambda x, y: [x, y]])
def test_outputs_that_are_one_tensor(nest):
    """CompiledModel fills one of them only; that is no fault of the sparse file."""
    x = keras.Input((64,))
    model = prune(keras.Model(x, nest(x, layers.Dense(64)(x))), 0.9)
    report = tflite_export.convert(model).report
    assert report.is_sparse and report.difference < TOLERANCE
    (compiled,) = [outcome for outcome in report.trial if outcome.kernels == "CompiledModel"]
    assert compiled.passed and "are one tensor" in compiled.failure


def test_infinite_weights_are_refused():
    """TensorFlow's converter writes the greatest float32 for them."""
    model = dense()
    kernel = np.zeros((64, 128))
    kernel[3, 4] = np.inf
    model.layers[0].set_weights([kernel, np.zeros(128)])
    with fails("holds NaN or infinite numbers"):
        tflite_export.convert(model)


def test_outputs_that_are_not_finite_are_told():
    """A bias of infinity, for which TensorFlow's converter writes the greatest float32."""
    model = prune(dense(), 0.9)
    model.layers[-1].activation = None
    model.layers[-1].bias.assign([np.inf] + [0.0] * 9)
    with pytest.warns(tflite_export.ExportWarning, match="NaN or infinite on random inputs"):
        report = tflite_export.convert(model).report
    assert report.difference is None
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_file_is_run_by_its_path_too(tmp_path):
    exported = tflite_export.convert(dense())
    path = exported.save(tmp_path / "model.tflite")
    np.testing.assert_array_equal(tflite_export.interpret(path, rows(64)),
                                  tflite_export.interpret(exported.tflite, rows(64)))
    with fails("a .tflite file", FileNotFoundError):
        tflite_export.interpret(tmp_path / "absent.tflite", rows(64))


def test_files_of_others_are_refused_in_words():
    with fails("Not a .tflite file: its bytes 4 to 8 are b'fox '"):
        store.store(b"the fox jumps")
    with fails("Not a .tflite file"):
        constants(b"")


@pytest.mark.parametrize("size", [2**31 - 2**16, 2**31, 2**33])
def test_a_file_of_two_gigabytes_is_refused(size):
    """Just below the limit there is no room for the graph. No page of the zeros is touched."""
    model = flatbuffer.read(dense_file(dense))
    model.buffers[model.subgraphs[0].tensors[1].buffer].data = np.zeros(size, np.uint8)
    with fails(f"constants take {str(size)[0]},.* bytes, .* cannot be larger than 2 GB: quantize"):
        flatbuffer.write(model)


def test_writing_what_was_read_changes_nothing_but_what_is_unused(pruned):
    """Names, shapes and values of all constants, signatures and metadata."""
    dense_file = tflite_export.convert(pruned[0], sparse=False).tflite
    again = flatbuffer.write(flatbuffer.read(dense_file))
    assert operators(again) == operators(dense_file)
    before, after = ({c.name: c.value.tobytes() for c in constants(f)} for f in (dense_file, again))
    assert after == before
    models = [flatbuffer.read(f) for f in (dense_file, again)]
    keys = [[s.signatureKey for s in m.signatureDefs] for m in models]
    data = [{m.name: bytes(model.buffers[m.buffer].data) for m in model.metadata}
            for model in models]
    assert keys[0] == keys[1] and data[0] == data[1]
    np.testing.assert_array_equal(
        *(tflite_export.interpret(f, rows(64)) for f in (dense_file, again)))


# ---- int8 weights


@pytest.mark.parametrize("build", [dense, conv, recurrent, attention], ids=lambda b: b.__name__)
def test_int8_weights_never_make_a_file_larger(build):
    inputs = INPUTS[build]()
    with warned_of(build):
        plain = tflite_export.convert(dense_file(build))
        exported = tflite_export.convert(dense_file(build), quantize="int8_weights")
    assert len(exported.tflite) <= len(plain.tflite)
    # zeros stay zeros, and what is run are the rounded weights
    zeros = {row.name: row.sparsity for row in plain.report.layers}
    assert all(row.sparsity >= zeros[row.name] for row in exported.report.layers)
    outputs = keras.tree.flatten(tflite_export.interpret(exported.tflite, inputs))
    twin = keras.tree.flatten(tflite_export.interpret(store.dense_twin(exported.tflite), inputs))
    for a, b in zip(outputs, twin):
        np.testing.assert_array_equal(a, b)


def test_int8_weights_are_rounded_to_the_nearest():
    """Against NumPy: a step of max |w| / 127 for each channel, and half a step at most."""
    before = {c.name: c.value for c in flatbuffer.constants(dense_file(wide))}
    exported = tflite_export.convert(dense_file(wide), quantize="int8_weights")
    int8 = [c for c in flatbuffer.constants(exported.tflite) if c.value.dtype == np.int8]
    assert [c.value.shape for c in int8] == [(128, 3, 3, 16), (64, 128)]
    for constant in int8:
        value = before[constant.name]
        step = np.abs(value).reshape(len(value), -1).max(1) / 127
        np.testing.assert_allclose(constant.scale.ravel(), np.where(step > 0, step, 1), rtol=1e-6)
        # the half step, and the rounding of float32
        assert (np.abs(constant.value * constant.scale - value) <= constant.scale * 0.501).all()
        assert (constant.value[value == 0] == 0).all()


def test_int8_weights_by_hand():
    weight = np.array([[0, 1, -127], [0, 0, 0], [0.5, 2, 0.003]], "float32")
    values, scale = store.quantized(weight, channel=0)
    assert scale.tolist() == [1, 1, np.float32(2) / np.float32(127)]
    assert values.tolist() == [[0, 1, -127], [0, 0, 0], [32, 127, 0]]  # 31.75, and 0.19
    np.testing.assert_array_equal(store.quantized(weight.T, channel=1)[0], values.T)
    tiny = np.array([[1e-45, 0], [2e-43, -1e-45]], "float32")  # a 127th of it is 0, or coarse
    values, scale = store.quantized(tiny, channel=0)
    assert scale.tolist() == [1, 1] and not values.any()


def test_the_smallest_file_is_sparse_and_int8():
    """90 % of 512 x 256: an index and a value take 2 bytes, of 4 in float32 dense."""
    model = prune(keras.Sequential([keras.Input((256,)), layers.Dense(512, use_bias=False)]), 0.9)
    file = tflite_export.convert(model, sparse=False).tflite
    sizes = {(quantize, sparse): len(tflite_export.convert(file, quantize=quantize,
                                                           sparse=sparse).tflite)
             for quantize in (None, "int8_weights") for sparse in ("auto", False)}
    kept = 512 * 256 - round(0.9 * 512 * 256)
    # and 24 bytes for the scale of an output, twice its 4 and its zero point's 8; 2 for its row
    assert 2 * kept < sizes["int8_weights", "auto"] < 2 * kept + 26 * 512 + 4000
    assert sizes["int8_weights", "auto"] < sizes[None, "auto"] < sizes["int8_weights", False]
    assert sizes["int8_weights", False] < 0.35 * sizes[None, False]
    report = tflite_export.convert(file, quantize="int8_weights").report
    assert report.reason.startswith("sparse, ") and report.layers[0].dtype == "int8"
    assert 0 < report.difference < 1  # from Keras: the rounding of the weights


def test_a_wrong_quantize_is_refused():
    with fails("'int8_weights' or 'float16'; got 'int4'"):
        tflite_export.convert(dense(), quantize="int4")
