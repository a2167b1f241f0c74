"""The exported file run in the LiteRT interpreter, and compared with Keras."""

import re

import numpy as np

from tflite_export.signature import Signature


def interpret(tflite, inputs):
    """Runs a .tflite file on a batch of any size in the LiteRT interpreter.

    The file's own batch size is fixed, so the batch is cut into pieces of that size; the last one
    is filled up with copies of the last row, whose outputs are dropped.

    Args:
        tflite: the file's bytes, with one signature, as `convert` writes it.
        inputs: an array, or a dict of arrays by input name where there are several inputs;
            they are cast to the dtypes of the file.

    Returns:
        The outputs nested as Keras nests them: an array, a list of arrays, or a dict of arrays.

    Raises:
        ValueError: a name, a shape or a number of rows does not fit; the sentence says which.

    Example:
        >>> import keras, numpy as np, tflite_export
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> tflite_export.interpret(tflite_export.convert(model).tflite, np.ones((3, 4))).shape
        (3, 2)
    """
    outputs = run(tflite, inputs)
    if not all(re.fullmatch(r"output_\d+", name) for name in outputs):
        return outputs
    listed = [outputs[f"output_{i}"] for i in range(len(outputs))]
    return listed[0] if len(listed) == 1 else listed


def compare(model, tflite, inputs):
    """The greatest absolute difference between a Keras model's outputs and its exported file's.

    Args:
        model: the Keras model that was converted.
        tflite: the file's bytes.
        inputs: a batch, nested as the model takes it.

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
    named = Signature(model).by_name(inputs)
    return difference(run_keras(model, named), run(tflite, named))


def difference(expected, actual):
    """The greatest absolute difference between two dicts of arrays by name; NaN equals NaN."""
    worst = 0.0
    for name, a in expected.items():
        a, b = np.asarray(a, np.float64), np.asarray(actual[name], np.float64)
        with np.errstate(invalid="ignore"):
            apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        worst = np.maximum(worst, apart.max(initial=0.0))  # unlike max(), keeps a NaN
    return float(worst)


def run_keras(model, inputs):
    """Outputs of the Keras model by name, for inputs by name."""
    import keras

    signature = Signature(model)
    tensors = [keras.ops.convert_to_tensor(inputs[i.name], i.dtype) for i in signature.inputs]
    return {
        name: keras.ops.convert_to_numpy(output)
        for name, output in signature.call(*tensors).items()
    }


def run(tflite, inputs):
    """Outputs of the file by name; `inputs` as for `interpret`."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=tflite).get_signature_runner()
    details = runner.get_input_details()
    inputs = _named(inputs, details)
    rows = {len(value) for value in inputs.values()}
    if len(rows) != 1 or rows == {0}:
        raise ValueError(
            "Every input needs the same number of rows, at least 1; "
            f"got {[len(value) for value in inputs.values()]}."
        )
    rows = rows.pop()
    batch = int(next(iter(details.values()))["shape"][0])
    pieces = []
    for start in range(0, rows, batch):
        here = np.minimum(np.arange(start, start + batch), rows - 1)
        pieces.append(runner(**{name: value[here] for name, value in inputs.items()}))
    for name, value in pieces[0].items():
        if value.shape[:1] != (batch,):
            raise ValueError(
                f"Output {name!r} has shape {value.shape}: without a row per input row, the "
                "outputs of several pieces cannot be put together."
            )
    return {name: np.concatenate([piece[name] for piece in pieces])[:rows] for name in pieces[0]}


def _named(inputs, details):
    if not isinstance(inputs, dict):
        if len(details) != 1:
            raise ValueError(
                f"The file has {len(details)} inputs: give a dict of arrays with the keys "
                f"{sorted(details)}."
            )
        inputs = {next(iter(details)): inputs}
    if set(inputs) != set(details):
        raise ValueError(f"The file's inputs are {sorted(details)}; got {sorted(inputs)}.")
    named = {}
    for name, detail in details.items():
        value, shape = np.asarray(inputs[name]), tuple(int(size) for size in detail["shape"])
        if value.shape[1:] != shape[1:] or value.ndim == 0:
            raise ValueError(
                f"Input {name!r} must have shape (rows, {', '.join(map(str, shape[1:]))}); "
                f"got {value.shape}."
            )
        named[name] = value.astype(detail["dtype"])
    return named
