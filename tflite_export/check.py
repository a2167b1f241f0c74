"""The exported file run in the LiteRT interpreter, and compared with Keras."""

import os

import numpy as np

from tflite_export import flatbuffer, ports, runner, trial, weights, wellformed
from tflite_export.from_keras import KerasSource

# A file against its dense twin, relative to the greatest output. Weights that are unpacked when the
# file is loaded give the same bits; kernels that read blocks add up in another order; the one for
# int8 activations rounds a few outputs to the other neighbour, which later layers make more of.
ROUNDING, INT8_ROUNDING = 1e-5, 0.02


def interpret(tflite, inputs):
    """Runs a .tflite file on a batch of any size in the LiteRT interpreter.

    The file's own batch size is fixed, so the batch is cut into pieces of that size; the last one
    is filled up with copies of the last row, whose outputs are dropped.

    Args:
        tflite: the file: its bytes, its path, or the `Exported` that `convert` returns.
        inputs: an array, or a dict of arrays by input name where there are several inputs;
            they are cast to the dtypes of the file.

    Returns:
        The outputs nested as Keras nests them: an array, a list of arrays, or a dict of arrays.

    Raises:
        FileNotFoundError: there is no file at the path.
        ValueError: it is no .tflite file, or a name, a shape or a number of rows does not fit; the
            sentence says which.

    Example:
        >>> import keras, numpy as np, tflite_export
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> tflite_export.interpret(tflite_export.convert(model).tflite, np.ones((3, 4))).shape
        (3, 2)
    """
    return runner.nested(run(_content(tflite), inputs))


def compare(model, tflite, inputs):
    """The greatest absolute difference between a Keras model's outputs and its exported file's.

    Args:
        model: the Keras model that was converted.
        tflite: the file, as for `interpret`.
        inputs: a batch, nested as the model takes it; where the file was made with
            rotate_input=False, the pictures are turned for it.

    Returns:
        float, over all rows and outputs; nan where only one of the two is NaN.

    Raises:
        ValueError: as for `interpret`.

    Example:
        >>> import keras, numpy as np, tflite_export
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> exported = tflite_export.convert(model)
        >>> tflite_export.compare(model, exported.tflite, np.ones((3, 4))) < 1e-6
        True
    """
    tflite, source = _content(tflite), KerasSource(model)
    named = source.by_name(inputs)
    turned = ports.turned(flatbuffer.read(tflite))
    (fed,) = ports.turn([{name: np.asarray(value) for name, value in named.items()}], turned)
    return trial.greatest(source.outputs([named]), [run(tflite, fed)])


def _content(tflite):
    """The bytes of a file that is given by its bytes, its path, or as `convert` returns it."""
    tflite = getattr(tflite, "tflite", tflite)
    if isinstance(tflite, (str, os.PathLike)):
        return wellformed.read(tflite)
    tflite = bytes(tflite)
    wellformed.check(tflite)
    return tflite


def run(tflite, inputs):
    """Outputs of the file by name; `inputs` as for `interpret`."""
    loaded = runner.Runner(tflite)
    ports.refuse_scalars({name: shape for name, (shape, _) in loaded.inputs.items()})
    inputs = _named(inputs, loaded.inputs)
    rows = {len(value) for value in inputs.values()}
    if len(rows) != 1 or rows == {0}:
        raise ValueError(
            "Every input needs the same number of rows, at least 1; "
            f"got {[len(value) for value in inputs.values()]}."
        )
    rows = rows.pop()
    batch = next(iter(loaded.inputs.values()))[0][0]
    pieces = []
    for start in range(0, rows, batch):
        here = np.minimum(np.arange(start, start + batch), rows - 1)
        loaded.set({name: value[here] for name, value in inputs.items()})
        loaded.run()
        pieces.append(loaded.get())
    for name, value in pieces[0].items():
        if value.shape[:1] != (batch,):
            raise ValueError(
                f"Output {name!r} has shape {value.shape}: without a row per input row, the "
                "outputs of several pieces cannot be put together."
            )
    return {name: np.concatenate([piece[name] for piece in pieces])[:rows] for name in pieces[0]}


def rounding(tflite):
    """The greatest difference from its dense twin, relative to the twin's greatest output, that
    the order of additions in a file's sparse kernels explains."""
    int8 = any(weight.tensor.sparsity is not None and not weight.unpacking
               and weight.activations == "int8" for weight in weights.find(flatbuffer.read(tflite)))
    return INT8_ROUNDING if int8 else ROUNDING


def _named(inputs, ports):
    if not isinstance(inputs, dict):
        if len(ports) != 1:
            raise ValueError(
                f"The file has {len(ports)} inputs: give a dict of arrays with the keys "
                f"{sorted(ports)}."
            )
        inputs = {next(iter(ports)): inputs}
    if set(inputs) != set(ports):
        raise ValueError(f"The file's inputs are {sorted(ports)}; got {sorted(inputs)}.")
    named = {}
    for name, (shape, dtype) in ports.items():
        value = np.asarray(inputs[name])
        if value.shape[1:] != shape[1:] or value.ndim == 0:
            raise ValueError(
                f"Input {name!r} must have shape (rows, {', '.join(map(str, shape[1:]))}); "
                f"got {value.shape}."
            )
        named[name] = value.astype(dtype)
    return named
