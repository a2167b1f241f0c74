"""A Keras model or a dense .tflite file to a .tflite file whose pruned weights are stored sparse.

In this order: convert dense, quantize, legalize, encode, check. What was written is not believed:
every sparse weight is read back and compared bit by bit with the dense file's, and both are run.
"""

import numbers
import os
import warnings
import zipfile

import numpy as np

from tflite_export import (
    check,
    encode,
    files,
    flatbuffer,
    kernels,
    ports,
    sizes,
    store,
    trial,
    weights,
    wellformed,
)
from tflite_export import quantize as quantization
from tflite_export.advice import advice
from tflite_export.exported import Exported
from tflite_export.from_file import FileSource
from tflite_export.from_keras import KerasSource, first_line, load
from tflite_export.layers import layers
from tflite_export.report import Report

SPARSE = ("auto", "size", "speed")
MODELS = "a .keras or a .tflite file"  # that a path may lead to
BATCHES = 4  # of random inputs, for the check


def convert(model, *, quantize=None, representative_data=None, sparse="auto", runtime="litert",
            batch_size=1, rotate_input=True):
    """Converts a model to a .tflite file with its pruned weights stored sparse, and checks it.

    Args:
        model: a built `keras.Model` (Sequential, functional, or subclassed with one argument; any
            nesting of inputs and outputs; of any backend; still sparsified, or stripped), the path
            of a .keras file, or a dense .tflite file by anyone as bytes or path. A model of another
            backend than TensorFlow is saved, and converted in a child process.
        quantize: None: float32. "int8_weights": weights are stored as int8 with a scale for each
            output channel, and unpacked when the file is loaded; it computes in float32. "dynamic":
            int8 weights, and kernels that round the activations as they go. "int8": int8 weights
            and activations, float32 inputs and outputs. "float16": weights are stored so, and
            unpacked when the file is loaded. Zeros stay zeros in each. A .tflite file needs
            ai-edge-quantizer for "dynamic", "int8" and "float16".
        representative_data: for "int8", and only there: some hundred rows of what the model will
            see, as an array, or a dict of arrays by input name.
        sparse: "auto": a weight is stored sparse if it becomes smaller by it; where a kernel of the
            runtime reads sparse weights, it is left to that kernel if that is expected to be faster
            than the dense one (docs/tflite.md says where), and else unpacked when the file is
            loaded, after which a run takes as long as before. "size": the
            smallest encoding of each weight, even where a kernel that reads it is slower than the
            dense one. "speed": only what a kernel runs sparse, and faster; all else is dense.
            False: all dense. Encodings that some release of the runtime computes wrongly, or does
            not load, are never used.
        runtime: "litert": the file is right on tflite-runtime 2.14 and LiteRT 1.2 or newer.
            "litert>=2.2": on LiteRT 2.2 or newer only, where sparse float16 weights and blocks of
            int8 weights work. "tflm": TensorFlow Lite Micro, which has no sparse kernels: the file
            is dense int8, and needs representative_data.
        batch_size: the batch size that the file is made for, at least 1.
        rotate_input: some convolutional networks run sparse only if they see their picture turned
            by 180 degrees. True: the file turns it, which takes two copies of the picture. False:
            the app has to feed `picture[:, ::-1, ::-1]` for each input of
            `report.turned_inputs`, which the file's metadata names too; if it is empty, none.

    Returns:
        `Exported`: `.tflite` (bytes), `.report`, `.save(path)`.

    Raises:
        TypeError: `model` is none of those.
        ValueError: a model that cannot be converted, or an argument that does not fit.
        FileNotFoundError: there is no file at the path.
        IsADirectoryError: it is that of a folder.

    Warns:
        ExportWarning: the file is dense because the sparse one failed its check, nothing in it runs
            sparse although sparse="speed", no 1x1 convolution does although sparse="auto" stores
            one sparse, LiteRT cannot run it here (a custom operator), or outputs are not finite.

    Example:
        >>> import keras, numpy as np, tflite_export
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> model.set_weights([np.eye(64), np.zeros(64)])
        >>> exported = tflite_export.convert(model)
        >>> exported.report.is_sparse, len(exported.tflite) < 0.2 * exported.report.bytes_dense
        (True, True)
    """
    quantize, sparse = _options(quantize, representative_data, sparse, runtime, batch_size,
                                rotate_input)
    source = open_source(model, batch_size)
    batches = None
    if representative_data is not None:
        batches = ports.batches(source.inputs, source.by_name(representative_data),
                                "representative_data")
    float_file, quantized_file = _dense_files(source, quantize, batches, runtime)
    dense_file = float_file if quantized_file is None else quantized_file
    _refuse_weights(float_file, dense_file, source.name, sparse)
    if quantize == "float16":
        _refuse_large(float_file, quantized_file, source.name)

    policy = store.Policy(sparse, quantize == "int8_weights", runtime)
    encoded = encode.encode(dense_file, policy, rotate_input=rotate_input)
    samples = ports.random_batches(source.inputs, BATCHES)
    smaller = len(encoded.tflite) < len(dense_file)
    wrong, outcomes, outputs = None, (), None
    if smaller:
        wrong, outcomes, outputs = _try(encoded, dense_file, samples)
    if wrong or not smaller:
        encoded, outputs = encode.Encoded(dense_file, dense_file, 0, refused=encoded.refused), None
    rows = layers(encoded.tflite, policy, encoded.runs_sparse(runtime))
    if wrong:
        rows = tuple(row._replace(why="the sparse file failed its check", change=None)
                     if row.sparsity else row for row in rows)
    turned = ports.turned(flatbuffer.read(encoded.tflite))
    difference, not_run = _difference(source, encoded.tflite, samples, turned, outputs)
    if wrong:
        warnings.warn(f"The file is dense: {wrong}.", ExportWarning, stacklevel=2)
    if sparse == "speed" and not any(row.runs_sparse for row in rows):
        warnings.warn(f"Nothing in this file runs sparse: {_why_nothing(encoded, rows)}",
                      ExportWarning, stacklevel=2)
    if sparse == "auto" and encoded.no_convolution_runs_sparse(runtime):
        warnings.warn(f"No 1x1 convolution of this file runs sparse: {_why_nothing(encoded, rows)}",
                      ExportWarning, stacklevel=2)
    if difference is not None and not np.isfinite(difference):
        not_run = (f"The outputs of the file or of {source.name} are NaN or infinite on random "
                   "inputs, so that nothing is known of their difference")
        difference = None
    if not_run:
        warnings.warn(not_run, ExportWarning, stacklevel=2)
    measured = None if quantized_file is None else quantize
    others = [sizes.size(f"{measured}, dense", dense_file)] if measured else []
    report = Report(
        is_sparse=encoded.sparse > 0,
        reason=_reason(encoded, float_file, wrong, policy),
        sizes=(sizes.size("this file", encoded.tflite), *others,
               *sizes.dense_sizes(float_file, measured)),
        layers=rows,
        other_constants=sizes.other_constants(encoded.tflite),
        difference=difference,
        turned_inputs=tuple(sorted(turned)),
        trial=outcomes,
        covered=encode.covered(encoded, rows, runtime),
        notes=tuple(encoded.notes),
        advice=(*([not_run] if not_run else []),
                *([NOT_INT8] if policy.int8 and all(row.dtype != "int8" for row in rows) else []),
                *advice(rows, len(encoded.tflite), len(float_file))),
        source=source.name,
    )
    return Exported(encoded.tflite, report)


NOT_INT8 = ("Nothing is stored as int8: for each weight of this file, scales and unpacking take more "
            "bytes than int8 saves.")


class ExportWarning(UserWarning):
    """The file is not what was asked for, or could not be run, and the text says why.

    Example:
        >>> import warnings, tflite_export
        >>> warnings.simplefilter("error", tflite_export.ExportWarning)  # a build that must stop
        >>> warnings.simplefilter("default", tflite_export.ExportWarning)
    """


def _dense_files(source, quantize, batches, runtime):
    """`source.files`; where they fail, the ValueError says so if the model fails on the data."""
    try:
        return source.files(quantize, batches, only_int8=runtime == "tflm")
    except ValueError as error:
        why = None if batches is None else _failure(source, batches)
        if why is None:
            raise
        raise ValueError(f"{source.name[0].upper()}{source.name[1:]} fails on "
                         f"representative_data: {why}") from error


def _failure(source, batches):
    """Why the source does not run on the batches, in the words of its backend, or None."""
    try:
        source.outputs(batches)
    except ValueError as error:
        return first_line(error.__cause__ or error)
    return None


def _difference(source, tflite, samples, turned, outputs):
    """(greatest difference of the file's outputs from the source's, None), or (None, why it was
    not run); `outputs` are those of the file where they are known."""
    try:
        outputs = trial.outputs(tflite, samples) if outputs is None else outputs
    except ValueError as error:
        return None, (f"The file was not run, so that nothing compares it with {source.name}: "
                      f"LiteRT says {error}")
    return trial.greatest(source.outputs(ports.turn(samples, turned)), outputs), None


def _why_nothing(encoded, rows):
    """Why no kernel reads a weight of the file sparse; 1x1 convolutions come first."""
    if encoded.refused and any("CONV" in row.operator for row in rows):
        return encoded.refused.text
    pruned = sorted((row for row in rows if row.sparsity),
                    key=lambda row: row.operator != "CONV_2D" or row.shape[1:3] != (1, 1))
    return pruned[0].why if pruned else "no weight has zeros"


def open_source(model, batch_size=1):
    """What `convert` takes as KerasSource or FileSource."""
    if isinstance(model, (bytes, bytearray, memoryview)):
        return FileSource(model, batch_size=batch_size)
    if not isinstance(model, (str, os.PathLike)):
        return KerasSource(model, batch_size)
    path = os.fspath(model)
    files.refuse_missing(path, MODELS)
    with open(path, "rb") as file:  # a .tflite file may have a zip archive behind it
        is_tflite = file.read(8)[4:] == wellformed.IDENTIFIER
    if not is_tflite and zipfile.is_zipfile(path):
        return KerasSource(load(path), batch_size)
    if not is_tflite and path.endswith(".keras"):
        raise ValueError(f"{path} is not a .keras file, which is a zip archive: save the model "
                         "again, by model.save.")
    return FileSource(wellformed.read(path), path, batch_size)


def _options(quantize, data, sparse, runtime, batch_size, rotate_input):
    """(quantize, sparse) as the runtime allows."""
    quantization.check_mode(quantize)
    if sparse is not False and sparse not in SPARSE:
        raise ValueError(f"sparse must be 'auto', 'size', 'speed' or False; got {sparse!r}.")
    if runtime not in kernels.RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(map(repr, kernels.RUNTIMES))}; got "
                         f"{runtime!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral) or (
            batch_size < 1):
        raise ValueError(f"batch_size must be an integer of at least 1; got {batch_size!r}.")
    if not isinstance(rotate_input, bool):
        raise ValueError(f"rotate_input must be True or False; got {rotate_input!r}.")
    if runtime == "tflm":
        if sparse in ("size", "speed"):
            raise ValueError(f"TensorFlow Lite Micro has no sparse kernels and no DENSIFY: with "
                             f"runtime='tflm', sparse must be 'auto' or False; got {sparse!r}.")
        if quantize not in (None, "int8"):
            raise ValueError("runtime='tflm' makes a file with int8 weights and activations; got "
                             f"quantize={quantize!r}.")
        if data is None:
            raise ValueError("runtime='tflm' makes a file with int8 weights and activations, and "
                             "needs representative_data, some hundred rows of what the model will "
                             "see: an array, or a dict of arrays by input name.")
        quantize, sparse = "int8", False
    quantization.check_data(quantize, data)
    return quantize, sparse


def _refuse_weights(float_file, dense_file, name, sparse):
    """Raises ValueError if a constant is NaN or a weight infinite, or if there is no weight to be
    stored sparse. (Masks of attention are infinite constants. TensorFlow's converter writes the
    greatest float32 for infinity.)"""
    found = [(weight.name, np.isinf(weight.value) | (weight.value.dtype == np.float32)
              & (np.abs(weight.value) >= np.finfo(np.float32).max))
             for weight in weights.find(flatbuffer.read(float_file))
             if weight.value.dtype.kind == "f"]
    found += [(constant.name, np.isnan(constant.value)) for constant in
              flatbuffer.constants(float_file) if constant.value.dtype.kind == "f"]
    for weight, bad in found:
        if bad.any():
            raise ValueError(f"The weight {weight!r} of {name} holds NaN or infinite numbers, with "
                             "which no output is right: go back to a checkpoint that has none, and "
                             "train on with a lower learning rate or with clipped gradients.")
    if sparse is not False and not weights.find(flatbuffer.read(dense_file)):
        raise ValueError(
            f"There is no constant weight of two or more dimensions in {name} that could be stored "
            "sparse (float32, float16 or int8, of a dense layer, a convolution or an embedding); "
            "sparse=False converts it as it is.")


def _refuse_large(float_file, half_file, name):
    """Raises ValueError if a weight or a bias does not fit into float16. (A mask, which has more
    dimensions than a bias, may end there.)"""
    most = np.finfo(np.float16).max
    halved = {constant.name for constant in flatbuffer.constants(half_file)
              if constant.value.dtype == np.float16}
    found = [(weight.name, weight.value) for weight in weights.find(flatbuffer.read(float_file))]
    found += [(constant.name, constant.value) for constant in flatbuffer.constants(float_file)
              if constant.value.ndim == 1 and constant.name in halved]
    for weight, value in found:
        if value.dtype == np.float32 and (greatest := np.abs(value).max()) > most:
            raise ValueError(f"The weight {weight!r} of {name} holds {greatest:.6g}, and float16 "
                             f"ends at {most:g}: quantize=None or 'int8_weights' can store it.")


def _is_weight(constant):
    return constant.value.ndim >= 2 and constant.value.dtype.kind in "fi"


def _try(encoded, dense_file, samples):
    """(why the file must not be used or None, outcomes of its trial, its outputs)."""
    if wrong := _changed(encoded.tflite, encoded.dense):
        return wrong, (), None
    if encoded.dense is not dense_file:
        turned = ports.turned(flatbuffer.read(encoded.dense))
        try:
            before = trial.outputs(dense_file, ports.turn(samples, turned))
            apart = trial.relative(before, trial.outputs(encoded.dense, samples))
        except ValueError as error:
            return f"the rewritten graph cannot be compared: {error}", (), None
        if not apart <= check.ROUNDING:
            return f"the rewritten graph computes something else, by {apart:.1e}", (), None
    tried = trial.trial(encoded.tflite, store.dense_twin(encoded.tflite), samples,
                        rounding=check.rounding(encoded.tflite))
    return tried.failure, tried.outcomes, tried.outputs


def _changed(stored_file, dense_file):
    """Which weight of the stored file is not that of the dense one, as a clause, or None."""
    read_back = {}  # some have the same name and shape
    for constant in flatbuffer.constants(stored_file):
        read_back.setdefault((constant.name, constant.value.shape), []).append(constant)
    for weight in filter(_is_weight, flatbuffer.constants(dense_file)):
        same = read_back.get((weight.name, weight.value.shape), [])
        right = [i for i, constant in enumerate(same) if _stands_for(constant, weight)]
        if not same:
            return f"{weight.name} is not in the file"
        if not right:
            return f"the encoding changed the values of {weight.name}"
        same.pop(right[0])
    return None


def _stands_for(constant, weight):
    """Is this the weight bit by bit, or float32 rounded to the nearest int8?"""
    if constant.value.dtype == weight.value.dtype:
        return _identity(constant.value) == _identity(weight.value)
    if constant.scale is None:
        return False
    apart = np.abs(constant.value * constant.scale - weight.value)
    return bool((apart <= constant.scale * np.float32(0.501)).all())


def _identity(array):
    """What is equal for equal arrays: + 0, for a pruned -0.0 is a zero and read back as 0.0."""
    return array.shape, array.dtype.str, (array + 0).tobytes()


def _reason(encoded, float_file, wrong, policy):
    kind = "sparse" if encoded.sparse else "dense"
    given = sizes.given(float_file)
    share = f"{len(encoded.tflite) / len(float_file):.3f} of the bytes of {given}"
    if wrong:
        return f"dense, because {wrong}"
    if policy.runtime == "tflm":
        return f"dense, because TensorFlow Lite Micro has no sparse kernels, {share}"
    if policy.sparse is False:
        return f"{kind}, as asked, {share}"
    if not encoded.sparse:
        why = ("no kernel would run a weight sparse and faster" if policy.sparse == "speed" else
               "no weight can be stored sparse, right and smaller")
        return f"{kind}, because {why}; {share}"
    return f"{kind}, {share}"
