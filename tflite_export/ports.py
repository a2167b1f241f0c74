"""The inputs of a .tflite file, and arrays for them.

An input is named as the file's signature names it, or as its tensor where there is no signature.
"""

import json
import math

import numpy as np

from tflite_export import flatbuffer, legalize
from tflite_export.signature import Input

LIMIT = 2**30  # bytes of a batch of all inputs; a damaged file states any shape


def inputs(model):
    """[Input] of a schema.ModelT.

    Raises:
        ValueError: a size besides the batch is unknown, or a dtype that NumPy lacks.
    """
    return [_input(name, tensor) for name, tensor in flatbuffer.named_inputs(model)]


def turned(model):
    """Names of the inputs that the app has to turn by 180 degrees, as the metadata says.

    Raises:
        ValueError: the metadata is damaged.
    """
    tensors = {name for entry in model.metadata if entry.name == legalize.ROTATED.encode()
               for name in _listed(model.buffers[entry.buffer].data)}
    return {name for name, tensor in flatbuffer.named_inputs(model)
            if flatbuffer.name(tensor) in tensors}


def turn(batches, names):
    """The batches with the pictures of these inputs turned by 180 degrees."""
    return [{name: value[:, ::-1, ::-1] if name in names else value
             for name, value in batch.items()} for batch in batches]


def _listed(data):
    try:
        names = json.loads(bytes(data))
    except (RecursionError, TypeError, ValueError):  # TypeError: the buffer is empty
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"The .tflite file is damaged: its metadata {legalize.ROTATED!r} must be "
                         "a JSON list of inputs' names. Convert the model again.")
    return names


def _input(name, tensor):
    shape = [int(size) for size in (tensor.shape if tensor.shape is not None else [])]
    written = tensor.shapeSignature if tensor.shapeSignature is not None else []
    if any(size < 0 for size in shape) or any(size < 0 for size in list(written)[1:]):
        raise ValueError(
            f"Input {name!r} of the .tflite file has the shape {[int(s) for s in written]}, where "
            "-1 is unknown: convert it with every size but the batch fixed."
        )
    if tensor.type not in flatbuffer.DTYPES:
        raise ValueError(f"Input {name!r} of the .tflite file has a type that NumPy has not.")
    return Input(name, tuple(shape), np.dtype(flatbuffer.DTYPES[tensor.type]).name)


def random_batches(ports, count):
    """`count` seeded batches by name: floats in [0, 1), integers that are valid indices too.

    Raises:
        ValueError: a batch would be larger than LIMIT.
    """
    sizes = {port: math.prod(port.shape) * np.dtype(port.dtype).itemsize for port in ports}
    if sum(sizes.values()) > LIMIT:
        largest = max(sizes, key=sizes.get)
        raise ValueError(
            f"A batch of the inputs takes {sum(sizes.values()):,} bytes, more than the {LIMIT:,} "
            f"that a file is tried with; input {largest.name!r} has the shape {largest.shape}. "
            "Make the file for a smaller batch or smaller inputs."
        )
    rng = np.random.default_rng(0)
    return [{name: _random(rng, shape, dtype) for name, shape, dtype in ports}
            for _ in range(count)]


def _random(rng, shape, dtype):
    if "float" in dtype:
        return rng.random(shape).astype(dtype)
    if dtype in ("int8", "uint8", "int16"):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return rng.integers(0, 2, shape, "uint8").astype(dtype)


def batches(ports, data, what):
    """`data` cut into batches of the file's size.

    The last batch is filled up with copies of the last row.

    Args:
        ports: [Input].
        data: dict of arrays by name, (rows, ...) each.
        what: the name of the argument that it came as.

    Raises:
        ValueError: a name, a shape or a value does not fit; the sentence says which.
    """
    names = [port.name for port in ports]
    if set(data) != set(names):
        raise ValueError(f"{what} needs an array for each of the inputs {sorted(names)}; got "
                         f"{sorted(map(str, data))}.")
    refuse_scalars({port.name: port.shape for port in ports})
    arrays = {}
    for name, (_, *shape), dtype in ports:
        if not hasattr(data[name], "__array__") and not isinstance(data[name], (list, tuple)):
            raise ValueError(f"{what} for input {name!r} must be an array of rows; got "
                             f"{type(data[name]).__name__}. Put the rows of a generator or a "
                             "tf.data.Dataset into one array: numpy.concatenate(list(batches)).")
        array = np.asarray(data[name])
        if array.ndim == 0 or array.shape[1:] != tuple(shape) or len(array) == 0:
            sizes = ", ".join(map(str, ("rows", *shape)))
            raise ValueError(f"{what} for input {name!r} must have the shape ({sizes}), with 1 row "
                             f"or more; got {array.shape}.")
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ValueError(f"{what} for input {name!r} must hold finite numbers only.")
        arrays[name] = _cast(array, dtype, f"{what} for input {name!r}")
    rows = {len(array) for array in arrays.values()}
    if len(rows) > 1:
        raise ValueError(f"{what} needs as many rows for each input; got "
                         f"{ {name: len(array) for name, array in arrays.items()} }.")
    rows, batch = rows.pop(), ports[0].shape[0]
    return [{name: array[np.minimum(np.arange(start, start + batch), rows - 1)]
             for name, array in arrays.items()} for start in range(0, rows, batch)]


def _cast(array, dtype, what):
    """The array as `dtype`, which must hold its numbers unless it rounds them to floats."""
    with np.errstate(invalid="ignore"):  # a float that is larger than any integer
        cast = array.astype(dtype)
    if "float" not in dtype and (other := array[cast != array]).size:
        raise ValueError(f"{what} must hold whole numbers that {dtype} has; got {other[0]}.")
    return cast


def refuse_scalars(shapes):
    """Raises ValueError where an input's shape, by name, has no dimension for rows."""
    for name, shape in shapes.items():
        if not shape:
            raise ValueError(f"Input {name!r} of the file is a scalar, so that no rows can be fed "
                             "to it: give it the shape (batch, 1) in the model.")
