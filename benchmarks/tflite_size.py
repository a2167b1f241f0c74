"""The size of exported files: ours, the converter's own sparsity option, and what CSR has to take.

Pictures are small, because no constant of these networks depends on their size and every file is
also run by `tflite_export.convert`, which takes its time.
"""

import contextlib
import io
import math

import numpy as np
import tensorflow as tf

import tflite_export
from benchmarks import measure, networks
from tflite_export.sizes import size

SEED = 0
PICTURE = 96
SPARSITIES = (0.7, 0.8, 0.9, 0.95)
NAMES = (*networks.CNNS, networks.MLP, networks.ENCODER)
SMALL = {"names": ("MobileNetV3Small",), "sparsities": (0.9,)}
OURS = {"float32": {}, "int8 storage": {"quantize": "int8_weights"}}
CONVERTER = "converter's option"
BOUNDS = CSR, LOWER_BOUND = "CSR", "CSR without its rows"
GOAL = 1.1  # of the bytes of the encoded tensors over LOWER_BOUND
FILE_GOALS = {("MobileNetV2", 0.9, "float32"): 6.8e6, ("MobileNetV2", 0.9, "int8 storage"): 2.6e6}


def converted(model, sparse):
    """TensorFlow's own file."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if sparse:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    with contextlib.redirect_stdout(io.StringIO()):  # its list of captured variables
        return converter.convert()


def sizes(tflite):
    found = size("", tflite)
    return {"bytes": found.bytes, "zipped": found.zipped}


def csr(row):
    """The bytes of CSR by rows or by columns, by its arithmetic: each non-zero value and its index,
    and where each row begins, in the shortest types that can hold them."""
    size, dtype = math.prod(row.shape), np.dtype(row.dtype)
    kept = round((1 - row.sparsity) * size)
    return min(kept * (dtype.itemsize + _bytes(width - 1)) + (size // width + 1) * _bytes(kept)
               for width in (row.shape[0], row.shape[-1]))


def _bytes(greatest):
    return next(n for n in (1, 2, 4) if greatest < 256 ** n)


def case(name, sparsity):
    """One network at one sparsity."""
    model = networks.randomize(networks.build(name, PICTURE), sparsity, seed=SEED)
    dense = converted(model, sparse=False)
    rows = {"dense float32": sizes(dense), CONVERTER: sizes(converted(model, sparse=True))}
    for label, options in OURS.items():
        exported = tflite_export.convert(dense, **options)
        encoded = [row for row in exported.report.layers if row.stored_sparse]
        rows[label] = sizes(exported.tflite) | {
            "encoded": sum(row.bytes for row in encoded),
            CSR: sum(csr(row) for row in encoded),
            LOWER_BOUND: sum(row.lower_bound for row in encoded)}
    return {"network": name, "sparsity": sparsity, "rows": rows}


def run(small=False):
    names, levels = (SMALL["names"], SMALL["sparsities"]) if small else (NAMES, SPARSITIES)
    cases = []
    for name in names:
        for sparsity in levels:
            cases.append(case(name, sparsity))
            print(f"{name} at {sparsity:g}", flush=True)
    return measure.document("tflite_size", {"seed": SEED, "picture": PICTURE,
                                            "classes": networks.CLASSES}, cases)
