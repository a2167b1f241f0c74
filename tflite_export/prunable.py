"""Which layers of a model would run sparse, if they were pruned: asked before the training.

The answer is not guessed. The model is converted as it is, zeros are put into the file, the file is
encoded as `convert(sparse="speed")` does it, and its layers are looked at.
"""

import contextlib
import re

import numpy as np

from tflite_export import encode, flatbuffer, kernels, quantize as quantization, store, weights
from tflite_export.from_keras import KerasSource
from tflite_export.layers import layers

KERNELS = re.compile("kernel|embeddings")  # names of Keras' variables that get pruned
SAME = 0.999  # cosine of two rows that are the same up to a scale and rounding to int8
MODES = (None, "dynamic", "int8_weights")


def prunable(model, *, runtime="litert", quantize=None, pattern=None, sparsity=0.9):
    """A predicate for `select=` of tf_sparsity.sparsify: the layers that will run sparse.

    Args:
        model: a built `keras.Model`, trained or not.
        runtime: as for `convert`; the layers run sparse on every release that it covers.
        quantize: None, "dynamic" or "int8_weights", as the model will be exported.
        pattern: of the zeros: None for single weights, "1x4" or "1x16" for blocks of inputs.
        sparsity: that the layers will be pruned to, in (0, 1).

    Returns:
        A function of a layer of `model`: True if all of its kernels would run sparse; of a
        separable convolution, the pointwise one, which has most of its weights (`sparsify` prunes
        the other one with it, which runs dense). It knows the layers of this model only, not those
        of a copy.

    Raises:
        TypeError: not a Keras 3 model.
        ValueError: a wrong argument, a model that cannot be converted, or one that some release
            would compute wrongly if it were pruned.

    Example:
        >>> import keras, tflite_export
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64),
        ...                           keras.layers.Dense(6), keras.layers.Dense(6)])
        >>> runs_sparse = tflite_export.prunable(model, pattern="1x4")
        >>> [runs_sparse(layer) for layer in model.layers]  # 6 inputs are no multiple of 4
        [True, True, False]
    """
    if quantize not in MODES:
        raise ValueError(f"quantize must be None, 'dynamic' or 'int8_weights'; got {quantize!r}.")
    if runtime not in kernels.RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(map(repr, kernels.RUNTIMES))}; got "
                         f"{runtime!r}.")
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity must be in (0, 1); got {sparsity!r}.")
    block = _block(pattern)
    mode = quantize if quantize in quantization.BY_A_QUANTIZER else None
    source = KerasSource(model)
    variables = [v for layer in model._flatten_layers() for v in layer._trainable_variables +
                 layer._non_trainable_variables if len(v.shape) > 1 and KERNELS.search(v.name)]
    with _without_zeros(model, variables):
        files = source.files(mode, None)
        pruned, found = _pruned(files[mode is not None], variables, block, sparsity)
    policy = store.Policy("speed", quantize == "int8_weights", runtime)
    rows = []
    if found:
        encoded = encode.encode(pruned, policy)
        rows = layers(encoded.tflite, policy, encoded.runs_sparse(runtime))
    runs = {id(v) for row in rows if row.runs_sparse for v in found.get(row.name, ())}
    model_variables = {id(v) for v in variables}

    def runs_sparse(layer):
        """Whether all kernels of a layer would run sparse, but those inside a separable one."""
        own = [v for v in layer.weights if id(v) in model_variables]
        separable = any(v.name == "pointwise_kernel" for v in own)
        main = [v for v in own if not separable or v.name != "depthwise_kernel"]
        return bool(main) and all(id(v) in runs for v in main)

    return runs_sparse


@contextlib.contextmanager
def _without_zeros(model, variables):
    """Kernels and scales that are all zero, as some start, get other values inside: a layer is
    known in the file by its weights."""
    import keras

    scales = [layer.gamma for layer in model._flatten_layers()
              if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None]
    values = [(v, keras.ops.convert_to_numpy(v)) for v in variables + scales]
    zeros = [(v, value) for v, value in values if not value.any()]
    rng = np.random.default_rng(1)
    try:
        for v, value in zeros:
            v.assign(rng.uniform(0.5, 1.5, value.shape))
        yield
    finally:
        for v, value in zeros:
            v.assign(value)


def _block(pattern):
    """How many consecutive inputs are zero together; outputs (2x1) do not matter to a kernel."""
    found = re.fullmatch(r"[1-9]\d*x(\d+)", pattern) if isinstance(pattern, str) else None
    if pattern is None:
        return 1
    if found is None or int(found[1]) < 1:
        raise ValueError("pattern must be None or '1x4', '1x16', '2x1' and so on; got "
                         f"{pattern!r}.")
    return int(found[1])


def _pruned(tflite, variables, block, sparsity):
    """(the file with zeros in the weights of these variables, {name of a weight: variables})."""
    import keras

    arrays = [(v, _rows_of(keras.ops.convert_to_numpy(v))) for v in variables]
    model, found, rng = flatbuffer.read(tflite), {}, np.random.default_rng(0)
    for weight in weights.find(model):
        rows = np.moveaxis(weight.value, weight.channel, 0).reshape(
            weight.value.shape[weight.channel], -1)
        same = [v for v, candidates in arrays if any(_same(rows, c) for c in candidates)]
        if not same:
            continue
        found[weight.name] = same
        one = weight.value.dtype.type(1)
        value = np.where(weight.value == 0, one, weight.value)  # zeros that are there already
        groups = value.reshape(-1, block if value.shape[-1] % block == 0 else 1)
        groups[rng.permutation(len(groups))[:round(sparsity * len(groups))]] = 0
        weight.tensor.buffer = flatbuffer.add_constant(model, value)
    return flatbuffer.write(model), found


def _rows_of(array):
    """The array as a matrix with a row per output channel, in every way that TFLite may see it."""
    array = array.astype(np.float32)
    return [array.reshape(int(np.prod(array.shape[:split])), -1).T
            for split in range(1, array.ndim)] + [array.reshape(len(array), -1)]


def _same(rows, others):
    """Are the rows of two matrices the same up to a scale, as a folded normalization leaves?"""
    if rows.shape != others.shape:
        return False
    a, b = rows.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return bool(lengths.any() and (np.abs((a * b).sum(1)) >= SAME * lengths).all())
