"""A Keras model to dense .tflite files, by TensorFlow's converter.

The converter's own EXPERIMENTAL_SPARSITY option is never used: it encodes whatever has 30 % zeros,
larger or not, and for some dtypes wrongly.
"""

import importlib
import json
import os
import re
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from tflite_export import child, flatbuffer, quantize
from tflite_export.signature import Signature

LIMIT = 3600  # seconds for a conversion in a child process
_COLOUR = re.compile("\x1b\\[\\d*m")


class KerasSource:
    """A Keras model that is to be converted.

    Args:
        model: a built `keras.Model`. Layers of tf_sparsity are stripped.
        batch_size: of the file.

    Raises:
        TypeError: not a Keras 3 model.
        ValueError: not built, a dynamic size, or a precision that LiteRT cannot compute in.
    """

    def __init__(self, model, batch_size=1):
        self._batch_size = batch_size
        self._signature = Signature(model, batch_size)
        self._model = model = stripped(model)
        if model is not self._signature.model:
            self._signature = Signature(model, batch_size)
        refuse_other_precisions(model)
        self.name = f"model {model.name!r}"
        self.inputs = self._signature.inputs

    def by_name(self, arrays):
        """Arrays nested as the model takes them, or in a dict by input name, by name."""
        names = {port.name for port in self.inputs}
        if isinstance(arrays, dict) and set(arrays) == names:
            return arrays
        return self._signature.by_name(arrays)

    def outputs(self, batches):
        """Keras' outputs by name, for each batch of arrays by name.

        Raises:
            ValueError: the model fails on them; in the words of the layer, or of the backend.
        """
        try:
            return [self._outputs(batch) for batch in batches]
        except Exception as error:
            raise ValueError(
                f"{self.name[0].upper()}{self.name[1:]} does not run on these inputs, which for "
                "the check are random floats in [0, 1) and integers 0 and 1: "
                f"{first_line(error).rstrip('.')}. Where the model must not see those, write it "
                "dense by model.export(path, format='litert'), and convert that file."
            ) from error

    def _outputs(self, batch):
        import keras

        tensors = [keras.ops.convert_to_tensor(batch[i.name], i.dtype) for i in self.inputs]
        return {name: keras.ops.convert_to_numpy(output)
                for name, output in self._signature.call(*tensors).items()}

    def files(self, mode, batches, only_int8=False):
        """(bytes of the float32 file, bytes of the quantized one or None).

        Args:
            mode: one of quantize.MODES.
            batches: representative batches of arrays by name, or None.
            only_int8: refuse an operator that has no int8 kernel.

        Raises:
            ValueError: the model cannot be converted; in the words of the converter.
            ImportError: TensorFlow is missing.
        """
        import keras

        if keras.backend.backend() == "tensorflow":
            return _convert(self._model, self._signature, mode, batches, only_int8)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.keras")
            self._model.save(path)
            answer = child.call(
                convert_saved, path, _modules(self._model, path), self._batch_size, mode, batches,
                only_int8, limit=LIMIT, environment={"KERAS_BACKEND": "tensorflow"})
        if answer.failure is not None:
            raise ValueError(
                f"{self.name[0].upper()}{self.name[1:]} of the backend {keras.backend.backend()} "
                "was saved, and cannot be converted under KERAS_BACKEND=tensorflow: "
                f"{answer.failure}")
        return answer.value


def convert_saved(note, path, modules, batch_size, mode, batches, only_int8):
    """`KerasSource.files` of a saved model, for `child.call`."""
    import keras

    for module in modules:  # which register the model's classes
        importlib.import_module(module)
    model = keras.saving.load_model(path, compile=False, safe_mode=False)  # written by ourselves
    return _convert(model, Signature(model, batch_size), mode, batches, only_int8)


def load(path):
    """The Keras model of a .keras file.

    Raises:
        ValueError: it cannot be loaded; for one with code of your own, what to do first.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        text = str(error)
        if "tf_sparsity" in text and "tf_sparsity" not in sys.modules:
            raise ValueError(f"{path} holds layers of tf_sparsity: import tf_sparsity before it is "
                             "loaded.") from error
        if own := re.search("Could not locate (?:class|function) ('[^']*')", text):
            raise ValueError(
                f"{path} needs {own[1]}, which is not registered with Keras: in Python, import "
                "the module that registers it, load the model by keras.saving.load_model, and "
                "pass it to tflite_export.convert.") from error
        if "safe_mode=False" in text:
            raise ValueError(
                f"{path} holds a Python lambda, which may run anything: if you trust "
                f"the file, load it by keras.saving.load_model({os.fspath(path)!r}, "
                "safe_mode=False), and pass it to tflite_export.convert.") from error
        raise ValueError(
            f"{path} cannot be loaded as a Keras model: {first_line(error)}") from error


def stripped(model):
    """The model without layers of tf_sparsity, by that package's own `strip`."""
    if not sparse_layers(model):
        return model
    return sys.modules["tf_sparsity"].strip(model)  # loaded, for it has made the layers


def sparse_layers(model):
    """Names of the layers of `model`, nested ones too, whose class comes from tf_sparsity."""
    return [
        layer.name
        for layer in model._flatten_layers()
        if type(layer).__module__.split(".")[0] == "tf_sparsity"
    ]


def refuse_other_precisions(model):
    """Raises ValueError for layers that TensorFlow's converter or LiteRT cannot compute."""
    for layer in model._flatten_layers(include_self=False):
        if layer.quantization_mode is not None:
            raise ValueError(
                f"Layer {layer.name!r} of model {model.name!r} is quantized by Keras "
                f"({layer.quantization_mode}), which TensorFlow's converter cannot convert: export "
                "the float32 model, before quantize()."
            )
        if layer.weights and layer.compute_dtype in ("float16", "bfloat16"):
            raise ValueError(
                f"Layer {layer.name!r} of model {model.name!r} computes in {layer.compute_dtype}, "
                "which LiteRT cannot. Convert a float32 copy: copy = keras.models.model_from_json("
                f"model.to_json().replace('\"{layer.dtype_policy.name}\"', '\"float32\"')); "
                "copy.set_weights(model.get_weights()). Classes of your own must be registered for "
                "it, by keras.saving.register_keras_serializable."
            )


# What Keras and TensorFlow write before they say what is wrong.
_WHERE = ("Exception encountered when calling", "in user code:", "    File ", "        ")


def first_line(error):
    """The first line of an error's text that says what is wrong, or its class' name."""
    lines = [line for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    while len(lines) > 1 and lines[0].startswith(_WHERE):
        lines = lines[1:]
    return lines[0].strip() if lines else type(error).__name__


def _modules(model, path):
    """The modules of a saved model's layers and of what it names that is registered with Keras,
    an activation for instance; beside Keras' own."""
    import keras

    with zipfile.ZipFile(path) as file:
        config = file.read("config.json").decode()
    found = {type(layer).__module__ for layer in model._flatten_layers()}
    found |= {registered.__module__ for name, registered
              in keras.saving.get_custom_objects().items() if json.dumps(name) in config}
    if "__main__" in found:
        raise ValueError(
            f"Model {model.name!r} uses classes or functions that are defined in __main__, where "
            "the process that converts it under KERAS_BACKEND=tensorflow cannot import them: move "
            "them to a module.")
    return sorted(m for m in found if m.split(".")[0] not in ("keras", "tf_sparsity"))


def _convert(model, signature, mode, batches, only_int8):
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, signature, folder)
        float_file = _from_saved_model(folder, model.name, None)
        if mode not in quantize.BY_A_QUANTIZER:
            return float_file, None
        if mode == "int8":
            quantize.refuse_loops(flatbuffer.operators(float_file))
        return float_file, _from_saved_model(folder, model.name, mode, batches, only_int8)


def _write_saved_model(model, signature, folder):
    # Not TFLiteConverter.from_concrete_functions: given a Keras 3 model it silently leaves the
    # weights out of the file, without one it writes no signature.
    import keras

    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "tflite_export.convert needs TensorFlow's converter: pip install tensorflow."
        ) from error

    archive = keras.export.ExportArchive()
    archive.track(model)
    specs = [tf.TensorSpec(i.shape, i.dtype, name=i.name) for i in signature.inputs]
    try:
        archive.add_endpoint("serve", signature.call, input_signature=specs)
        archive.write_out(folder, verbose=False)
    except OSError:
        raise
    except Exception as error:
        inputs = ", ".join(f"{i.name} {i.shape} {i.dtype}" for i in signature.inputs)
        raise ValueError(
            f"Model {model.name!r} cannot be traced on the inputs {inputs}: {first_line(error)}"
        ) from error


def _from_saved_model(folder, name, mode, batches=None, only_int8=False):
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if mode is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    # Scales for each output of a dense layer would need version 12 of the operator, which
    # tflite-runtime 2.14 does not load; TensorFlow has no other name for it.
    converter._experimental_disable_per_channel_quantization_for_dense_layers = mode == "dynamic"
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode == "int8":
        converter.representative_dataset = lambda: iter(batches)
    if only_int8:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with warnings.catch_warnings():  # the converter calibrates with TensorFlow's interpreter
            warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
            return converter.convert()
    except Exception as error:
        raise ValueError(
            f"TensorFlow's converter cannot convert model {name!r}: {_converter_says(error)}"
        ) from error


def _converter_says(error):
    """The one useful line of a converter's error, which is pages of MLIR."""
    missing = re.search(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.MULTILINE)
    return f"LiteRT has no {missing[1]}" if missing else first_line(error)
