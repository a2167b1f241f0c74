"""A Keras model to the bytes of a .tflite file whose pruned weights are stored sparse.

TensorFlow's converter writes the dense file; `store.py` encodes its weights. (The converter's own
EXPERIMENTAL_SPARSITY option encodes whatever has 30 % zeros, larger or not, and for some dtypes
wrongly.) What was written is not believed: `convert` reads every sparse weight back and compares it
bit by bit with the dense file's, and runs both files.
"""

import contextlib
import os
import re
import tempfile
import zlib
from typing import NamedTuple

import numpy as np

from tflite_export import check
from tflite_export.flatbuffer import constants
from tflite_export.signature import Signature
from tflite_export.store import dense_twin, store

# A file against its dense twin, relative to the greatest output. Weights that are unpacked when the
# file is loaded give the same bits; the kernel for 1x4 blocks of Dense adds up in another order.
_ROUNDING = 1e-5


class TensorReport(NamedTuple):
    """One weight of the file: a constant of rank 2 or more."""

    name: str  # as TensorFlow's converter names it
    shape: tuple  # in TFLite's layout, for instance (units, inputs) for Dense
    dtype: str  # that it is stored in
    sparsity: float  # fraction of zeros, in [0, 1]
    stored_sparse: bool
    bytes: int  # values, and indices where it is stored sparse


class Report(NamedTuple):
    """What a conversion did. Sizes are in bytes; the `_zipped` ones after zlib at level 9."""

    is_sparse: bool  # whether `Exported.tflite` is the sparse file
    reason: str  # why, in one sentence
    bytes_dense: int
    bytes_sparse: int | None  # of the file with sparse or int8 weights; None: neither was asked for
    zipped_dense: int
    zipped_sparse: int | None
    difference: float  # greatest |interpreter - Keras| over all outputs, on random inputs
    tensors: tuple  # of TensorReport

    def to_dict(self):
        """The report as JSON takes it."""
        return {
            **self._asdict(),
            "tensors": [{**t._asdict(), "shape": list(t.shape)} for t in self.tensors],
        }

    def __str__(self):
        lines = [f"{'file':8}{'bytes':>12}{'zipped':>12}"]
        lines.append(f"{'dense':8}{self.bytes_dense:12,}{self.zipped_dense:12,}")
        if self.bytes_sparse is not None:
            lines.append(f"{'sparse':8}{self.bytes_sparse:12,}{self.zipped_sparse:12,}")
        lines.append(f"kept: {self.reason}")
        lines.append(f"greatest output difference from Keras: {self.difference:.1e}")
        width = max([len("weight"), *(len(t.name) for t in self.tensors)])
        lines.append(f"{'weight':{width}}  {'shape':>18}  sparsity  stored  dtype         bytes")
        for t in self.tensors:
            stored = "sparse" if t.stored_sparse else "dense"
            lines.append(
                f"{t.name:{width}}  {str(t.shape):>18}  {t.sparsity:8.4f}  {stored:6}  {t.dtype:7}"
                f"{t.bytes:12,}"
            )
        return "\n".join(lines)


class Exported(NamedTuple):
    """A converted model."""

    tflite: bytes
    report: Report

    def save(self, path, *, overwrite=False):
        """Writes the file whole or not at all, and returns its path.

        Args:
            path: where; the folder must exist.
            overwrite: replace a file that is there.

        Raises:
            FileExistsError: there is one and `overwrite` is False.
        """
        path = os.fspath(path)
        refuse_overwrite(path, overwrite)
        partial = f"{path}.{os.getpid()}.partial"
        try:
            with open(partial, "xb") as file:
                file.write(self.tflite)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(partial)
            raise
        return path


def refuse_overwrite(path, overwrite=False):
    """Raises FileExistsError if `path` is there and must not be replaced."""
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists already; to replace it, say overwrite=True, or --overwrite on the "
            "command line."
        )


def convert(model, *, quantize=None, sparse="auto", batch_size=1):
    """Converts a plain float32 Keras model to a .tflite file with its pruned weights stored sparse.

    Args:
        model: a built `keras.Model` without layers of tf_sparsity (call `tf_sparsity.strip` first).
            Sequential, functional, or subclassed with one argument; any nesting of inputs and
            outputs.
        quantize: None, or "int8_weights": the weights are stored as int8 with a scale for each
            output channel, and unpacked when the file is loaded; it computes in float32. A quarter
            of the bytes, for a rounding of the weights by at most 1/254 of a channel's greatest.
        sparse: "auto" stores each weight sparse that becomes smaller by it; the file is checked
            to be smaller, and to compute the same in the interpreter (up to the rounding of
            another order of summation). False stores all dense.
        batch_size: the batch size that the file is made for, at least 1.

    Returns:
        `Exported`: `.tflite` (bytes), `.report`, `.save(path)`.

    Raises:
        TypeError: not a Keras 3 model.
        ValueError: a model that cannot be converted.

    Example:
        >>> import keras, numpy as np, tflite_export
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> model.set_weights([np.eye(64), np.zeros(64)])
        >>> exported = tflite_export.convert(model)
        >>> exported.report.is_sparse, len(exported.tflite) < 0.2 * exported.report.bytes_dense
        (True, True)
    """
    if quantize not in (None, "int8_weights"):
        raise ValueError(f"quantize must be None or 'int8_weights'; got {quantize!r}.")
    if sparse != "auto" and sparse is not False:
        raise ValueError(f"sparse must be 'auto' or False; got {sparse!r}.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}.")
    signature = Signature(model, batch_size)
    if layers := sparse_layers(model):
        raise ValueError(
            f"Model {model.name!r} still has layers of tf_sparsity, the first is {layers[0]!r}: "
            "convert tf_sparsity.strip(model) instead."
        )
    _refuse_other_precisions(model)
    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, signature, folder)
        dense_file = _from_saved_model(folder, model)

    inputs = _random_inputs(signature.inputs)
    weights = [c for c in constants(dense_file) if c.value.ndim >= 2]
    int8 = quantize is not None
    stored, count = store(dense_file, sparse=sparse == "auto", int8=int8)
    wrong = _whats_wrong(stored, weights, inputs) if stored is not dense_file else None
    kept_file = dense_file if wrong or len(stored) >= len(dense_file) else stored
    keep = kept_file is stored and count > 0
    kind = f"{'sparse' if keep else 'dense'}{', int8' if int8 and kept_file is stored else ''}"
    if wrong:
        reason = f"dense, because {wrong}"
    elif sparse is False:
        reason = f"{kind}, as asked"
    elif not keep:
        reason = f"{kind}, because no weight has enough zeros to be smaller with their places"
    else:
        reason = f"{kind}, {len(stored) / len(dense_file):.3f} of the dense float32 file's bytes"

    sparse_file = stored if sparse or int8 else None
    packed = constants(kept_file)
    report = Report(
        is_sparse=keep,
        reason=reason,
        bytes_dense=len(dense_file),
        bytes_sparse=None if sparse_file is None else len(sparse_file),
        zipped_dense=len(zlib.compress(dense_file, 9)),
        zipped_sparse=None if sparse_file is None else len(zlib.compress(sparse_file, 9)),
        difference=check.difference(check.run_keras(model, inputs), check.run(kept_file, inputs)),
        tensors=_tensor_reports(weights, packed),
    )
    return Exported(kept_file, report)


def sparse_layers(model):
    """Names of the layers of `model`, nested ones too, whose class comes from tf_sparsity."""
    return [
        layer.name
        for layer in model._flatten_layers()
        if type(layer).__module__.split(".")[0] == "tf_sparsity"
    ]


def _refuse_other_precisions(model):
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
                "which LiteRT cannot: convert a float32 copy, made by keras.models.clone_model("
                "model, clone_function=lambda layer: type(layer).from_config({**layer.get_config()"
                ", 'dtype': 'float32'})) and set_weights(model.get_weights())."
            )


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


def _from_saved_model(folder, model):
    import tensorflow as tf

    try:
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    except Exception as error:
        raise ValueError(
            f"TensorFlow's converter cannot convert model {model.name!r}: {_converter_says(error)}"
        ) from error


def _converter_says(error):
    """The one useful line of a converter's error, which is pages of MLIR."""
    import keras

    missing = re.search(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.MULTILINE)
    what = f"LiteRT has no {missing[1]}" if missing else first_line(error)
    if keras.backend.backend() == "tensorflow":
        return what
    return f"{what} (save the model, and convert the file under KERAS_BACKEND=tensorflow)"


def _whats_wrong(stored_file, weights, inputs):
    """Why the file must not be used, or None. Runs it last: a wrong one may crash."""
    read_back = {(c.name, c.value.shape): c for c in constants(stored_file)}
    for weight in weights:
        constant = read_back.get((weight.name, weight.value.shape))
        if constant is None:
            return f"{weight.name} is not in the file"
        if constant.scale is None:
            right = _identity(constant.value) == _identity(weight.value)
        else:  # rounded to the nearest
            apart = np.abs(constant.value * constant.scale - weight.value)
            right = bool((apart <= constant.scale * np.float32(0.501)).all())
        if not right:
            return f"the encoding changed the values of {weight.name}"
    expected, outputs = check.run(dense_twin(stored_file), inputs), check.run(stored_file, inputs)
    scale = max(
        np.abs(np.nan_to_num(v.astype(np.float64), posinf=0, neginf=0)).max(initial=0.0)
        for v in expected.values()
    )
    apart = check.difference(expected, outputs)
    if not apart <= _ROUNDING * scale:  # also where it is NaN
        return f"the interpreter's outputs from the sparse file differ by {apart:.1e}"
    return None


def _tensor_reports(weights, stored):
    stored = {(c.name, c.value.shape): c for c in stored}
    reports = []
    for weight in weights:
        constant = stored[weight.name, weight.value.shape]
        reports.append(
            TensorReport(
                name=weight.name,
                shape=weight.value.shape,
                dtype=constant.value.dtype.name,
                sparsity=float(np.mean(constant.value == 0)),
                stored_sparse=constant.is_sparse,
                bytes=constant.bytes,
            )
        )
    return tuple(reports)


def _identity(array):
    return (
        array.shape,
        array.dtype.str,
        (array + 0).tobytes(),
    )  # + 0: a pruned -0.0 is a zero, and is read back as 0.0


def _random_inputs(inputs):
    """Eight seeded batches by name: floats in [0, 1), which make valid indices too; 0 and 1."""
    rng = np.random.default_rng(0)
    values = {}
    for name, (batch, *shape), dtype in inputs:
        size = (8 * batch, *shape)
        values[name] = (rng.random(size) if "float" in dtype else rng.integers(0, 2, size)).astype(
            dtype
        )
    return values


def first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
