"""What convert takes: models of any backend, saved models, .tflite files; and what it refuses."""

import re
import zipfile

import custom_functions
import keras
import numpy as np
import pytest
import tensorflow as tf
from exports import Scaled, dense, dense_file, prune, rows, several, subclassed
from keras import layers

import tf_sparsity as ts
import tflite_export
from tflite_export import flatbuffer, ports
from tflite_export.from_keras import first_line

TOLERANCE = 1e-5  # float32 outputs of order 1, summed in another order


def fails(match, kind=ValueError):
    return pytest.raises(kind, match=match)


def test_a_path_bytes_and_a_model_give_the_same_file(tmp_path):
    keras.utils.set_random_seed(0)
    model = prune(dense(), 0.9)
    expected = tflite_export.convert(model).tflite
    model.save(tmp_path / "model.keras")
    (tmp_path / "model.tflite").write_bytes(dense_file(dense))
    for source in (tmp_path / "model.keras", str(tmp_path / "model.tflite"), dense_file(dense),
                   bytearray(dense_file(dense)), memoryview(dense_file(dense))):
        exported = tflite_export.convert(source)
        values = [[c.value.tobytes() for c in flatbuffer.constants(file)]
                  for file in (exported.tflite, expected)]
        assert values[0] == values[1] and exported.report.is_sparse
        assert tflite_export.compare(model, exported.tflite, rows(64)) < TOLERANCE


@pytest.mark.any_backend
def test_every_backend_exports():
    """On another backend than TensorFlow a child process converts the saved model."""
    inputs = keras.Input((6, 16), name="x")
    y = layers.LayerNormalization()(layers.Dense(32, activation="gelu")(inputs))
    model = prune(keras.Model(inputs, layers.Dense(8, name="y")(layers.Flatten()(y))), 0.9)
    exported = tflite_export.convert(model)
    assert exported.report.is_sparse and exported.report.difference < TOLERANCE
    assert [port.name for port in ports.inputs(flatbuffer.read(exported.tflite))] == ["x"]
    assert tflite_export.compare(model, exported.tflite, rows(6, 16)) < TOLERANCE


@pytest.mark.any_backend
def test_every_backend_exports_models_with_custom_and_sparse_layers():
    """The class is imported in the child; sparse layers are stripped before."""
    keras.utils.set_random_seed(0)
    model = ts.sparsify(
        keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dense(4)]),
        ts.MagnitudePruning(ts.ConstantSparsity(0.9, 0)))
    ts.update(model)
    exported = tflite_export.convert(model, quantize="int8", representative_data=rows(64))
    assert {row.dtype for row in exported.report.layers} == {"int8"}
    model = subclassed()
    inputs = {"a": rows(4), "b": rows(4)}
    if keras.backend.backend() == "tensorflow":
        exported = tflite_export.convert(model)
        assert tflite_export.compare(model, exported.tflite, inputs) < TOLERANCE
    else:
        with fails("cannot be converted under KERAS_BACKEND=tensorflow: .*Subclassed"):
            tflite_export.convert(model)  # not registered: Keras cannot save and load it


@pytest.mark.any_backend
def test_every_backend_exports_registered_layers_and_functions():
    """Both modules are imported in the child: the layer's, and the activation's."""
    model = prune(keras.Sequential([
        keras.Input((64,)), Scaled(0.5), layers.Dense(64, custom_functions.bent)]), 0.9)
    exported = tflite_export.convert(model)
    assert [row.stored_sparse for row in exported.report.layers] == [True, True]
    assert tflite_export.compare(model, exported.tflite, rows(64)) < TOLERANCE


def test_a_saved_model_with_code_of_ones_own_is_loaded_by_oneself(tmp_path):
    class Unknown(layers.Dense):
        pass

    def unknown(x):
        return 2 * x

    path = tmp_path / "m.keras"
    for layer in (Unknown(4), layers.Dense(4, unknown)):
        keras.Sequential([keras.Input((8,)), layer]).save(path)
        with fails("m.keras needs '[Uu]nknown', which is not registered with Keras: in Python, "
                   "import the module that registers it, load the model.*pass it to "
                   "tflite_export.convert"):
            tflite_export.convert(path)
    model = keras.Sequential([keras.Input((8,)), layers.Lambda(lambda x: 2 * x), layers.Dense(4)])
    model.save(path)
    with fails("m.keras holds a Python lambda.*by (keras.*safe_mode=False.), and pass it") as told:
        tflite_export.convert(path)
    loading = re.search(r"by (keras\S+ safe_mode=False\))", str(told.value))[1]
    loaded = eval(loading)
    assert tflite_export.compare(loaded, tflite_export.convert(loaded), rows(8)) < TOLERANCE


def test_a_file_without_a_signature():
    model = flatbuffer.read(dense_file(dense))
    model.signatureDefs = None
    plain = flatbuffer.write(model)
    exported = tflite_export.convert(plain)
    assert exported.report.is_sparse and len(exported.report.trial) == 4
    assert all(outcome.difference == 0 for outcome in exported.report.trial)
    np.testing.assert_array_equal(
        next(iter(tflite_export.interpret(exported.tflite, rows(64)).values())),
        tflite_export.interpret(dense_file(dense), rows(64)))


def test_files_that_cannot_be_used(tmp_path):
    file = dense_file(dense)
    sparse = tflite_export.convert(file).tflite
    with fails("stores 2 weights sparse already, the first is '.*MatMul.*': give the dense file"):
        tflite_export.convert(sparse)
    with fails(r"made for the batch size \[1\], and that cannot be changed; got batch_size=2"):
        tflite_export.convert(file, batch_size=2)
    for content, sentence in ((file[: len(file) // 2], "damaged or cut off"),
                              (b"the fox jumps", "Not a .tflite file"), (b"", "Not a .tflite")):
        with fails(sentence):
            tflite_export.convert(content)
        (tmp_path / "x.tflite").write_bytes(content)
        with fails(sentence):
            tflite_export.convert(tmp_path / "x.tflite")
    with fails("absent is not there, or is not a file", FileNotFoundError):
        tflite_export.convert(tmp_path / "absent")
    with fails("is a folder: give the path of a .keras or a .tflite file", IsADirectoryError):
        tflite_export.convert(tmp_path)
    (tmp_path / "x.keras").write_bytes(b"junk")
    with fails("x.keras is not a .keras file, which is a zip archive"):
        tflite_export.convert(tmp_path / "x.keras")
    with zipfile.ZipFile(tmp_path / "y.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with fails("y.keras cannot be loaded as a Keras model"):
        tflite_export.convert(tmp_path / "y.keras")
    with fails("Not a .tflite file: it is a zip archive, as .keras files are: convert it first"):
        tflite_export.convert((tmp_path / "y.keras").read_bytes())


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_model_in_hdf5_is_to_be_saved_again(tmp_path):
    """The way that the sentence names leads to a file that is converted."""
    path = tmp_path / "real.h5"
    prune(dense(), 0.9).save(path)
    with fails("real.h5 is an HDF5 file: load it by keras.*model.save.'model.keras'.*convert that"):
        tflite_export.convert(path)
    keras.saving.load_model(path, compile=False).save(tmp_path / "model.keras")
    assert tflite_export.convert(tmp_path / "model.keras").report.is_sparse


def test_dynamic_sizes_of_a_file_are_refused():
    model = flatbuffer.read(dense_file(dense))
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    tensor.shapeSignature = np.array([-1, 64], np.int32)  # the batch may be unknown
    assert tflite_export.convert(flatbuffer.write(model)).report.is_sparse
    tensor.shapeSignature = np.array([1, -1], np.int32)
    with fails(r"shape \[1, -1\], where -1 is unknown"):
        tflite_export.convert(flatbuffer.write(model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(value):
    model = flatbuffer.read(dense_file(dense))
    constant = next(c for c in flatbuffer.constants(dense_file(dense)) if c.value.ndim == 2)
    spoiled = constant.value.copy()
    spoiled[0, 0] = value
    for tensor in model.subgraphs[0].tensors:
        if flatbuffer.name(tensor) == constant.name:
            tensor.buffer = flatbuffer.add_constant(model, spoiled)
    with fails("The weight '.*' of the .tflite file holds NaN or infinite numbers, .*: go back to "
               "a checkpoint that has none"):
        tflite_export.convert(flatbuffer.write(model))


def test_a_model_without_weights_is_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.ops.sqrt(inputs))
    with fails("no constant weight of two or more dimensions in model .*; sparse=False converts"):
        tflite_export.convert(model)
    exported = tflite_export.convert(model, sparse=False)
    assert tflite_export.compare(model, exported.tflite, np.abs(rows(4))) < TOLERANCE


class Below(layers.Layer):
    """Refuses numbers from `limit` on."""

    def __init__(self, limit, **kwargs):
        super().__init__(**kwargs)
        self.limit = limit

    def call(self, x):
        tf.debugging.assert_less(keras.ops.max(x), self.limit)
        return x


def test_a_model_that_fails_on_random_inputs(tmp_path):
    """It is converted by the way that the sentence names."""
    inputs = keras.Input((64,), name="x")
    model = prune(keras.Model(inputs, layers.Dense(64)(Below(0.01)(inputs))), 0.9)
    with fails(f"^Model '{model.name}' does not run on these inputs, .*: Condition x < y did not "
               "hold. .* write it dense by model.export"):
        tflite_export.convert(model)
    model.export(tmp_path / "dense.tflite", format="litert", verbose=False)
    exported = tflite_export.convert(tmp_path / "dense.tflite")
    assert exported.report.is_sparse and exported.report.difference == 0
    with fails("does not run on these inputs"):
        tflite_export.compare(model, exported.tflite, np.ones((2, 64)))


def test_several_inputs_of_a_file_need_names():
    source = tflite_export.convert(several(), sparse=False).tflite
    with fails("has 3 inputs: give a dict of arrays with the keys"):
        tflite_export.convert(source, quantize="int8", representative_data=rows(3))


def test_the_first_line_of_an_error_is_what_is_wrong():
    """Not the places in the code that TensorFlow writes before it, nor Keras' name of the layer."""
    traced = """in user code:

    File "model.py", line 3, in call  *
        return {"a": t, "b": [t]}

    ValueError: a list inside a dict
    """
    assert first_line(ValueError(traced)) == "ValueError: a list inside a dict"
    called = "Exception encountered when calling Scaled.call().\n\n\x1b[1mno such axis\x1b[0m\n"
    assert first_line(ValueError(called)) == "no such axis"
    assert first_line(ValueError("in user code:")) == "in user code:"
    assert first_line(ValueError()) == "ValueError"
