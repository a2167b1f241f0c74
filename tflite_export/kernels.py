"""What LiteRT's runtimes make of a sparse weight: which kernels run sparse, and what breaks.

There are three ways to run a weight that is stored sparse:

- unpacked: a DENSIFY in front of the operator unpacks it when the file is loaded. Every operator
  can read the result, and computes with the zeros.
- in XNNPACK's sparse convolutions: unpacked too, but XNNPACK looks at the zeros and runs 1x1
  convolutions sparse if the whole graph allows it; `xnnpack.py` knows when.
- natively: some kernels of FULLY_CONNECTED read the sparse encoding itself.

What is refused here has been seen to fail in some release of the runtime.
"""

from typing import NamedTuple

import numpy as np

from tflite_export import xnnpack
from tflite_export.xnnpack import HYBRID_BLOCKS, HYBRID_COLUMNS

# A pattern has blocks if so much of its sparsity is left when only whole blocks count. Below, the
# kernel multiplies zeros and the file stores them.
MINIMUM_OF_BLOCKS = 0.9

NEWER = "litert>=2.2"
RUNTIMES = {
    "litert": "tflite-runtime 2.14 and LiteRT 1.2 or newer",
    NEWER: "LiteRT 2.2 or newer",
    "tflm": "TensorFlow Lite Micro",
}
GENERATIONS = {"litert": xnnpack.GENERATIONS, NEWER: (xnnpack.NEWEST,), "tflm": ()}


class Reason(NamedTuple):
    """Why a weight is not stored or not run sparse, and what would change it."""

    text: str
    change: str | None = None


class Native(NamedTuple):
    """A kernel of FULLY_CONNECTED that reads sparse weights of one dtype."""

    name: str
    block: int  # consecutive inputs
    # Fractions of empty blocks from which it is expected to be faster than the dense kernel for the
    # same dtypes, with one row and with many; `python -m tflite_export benchmark` measures a file.
    faster_from: float
    faster_from_rows: float


# (dtype of the weight, dtype of the activations) -> kernel
NATIVE = {
    ("float32", "float32"): Native("float32, blocks of 1x4", 4, 0.85, 0.9),
    ("int8", "float32"): Native("hybrid int8, blocks of 1x16", 16, 0.75, 0.9),
    ("int8", "int8"): Native("int8, blocks of 1x16", 16, 0.96, 0.96),
}


def native(weight, runtime):
    """(Native, None) if a kernel can read this weight sparse, else (Native or None, Reason).

    Args:
        weight: weights.Weight, stored dense.
        runtime: one of RUNTIMES.
    """
    kernel = NATIVE.get((weight.value.dtype.name, weight.activations))
    if runtime == "tflm":
        return None, Reason("TensorFlow Lite Micro has no sparse kernels")
    if (kernel is None or weight.operator != "FULLY_CONNECTED" or weight.unpacking
            or len(weight.users) != len(weight.computing)):
        return None, Reason("no kernel reads this operator's weight sparse")
    pattern = f"1x{kernel.block}"
    prune = f"prune it with tf_sparsity.MagnitudePruning(pattern={pattern!r})"
    inputs = weight.value.shape[1]
    if inputs % kernel.block:
        return kernel, Reason(f"its {inputs} inputs are no multiple of {kernel.block}",
                              f"give it a multiple of {kernel.block} inputs, and {prune}")
    if not weight.symmetric:
        return kernel, _asymmetric(weight)
    if empty_blocks(weight.value, kernel.block) <= MINIMUM_OF_BLOCKS * weight.zeros:
        if weight.activations == "int8":  # whose kernel is worth it at very few blocks only
            prune = f"quantize='dynamic', and {prune}"
        return kernel, Reason(f"its zeros are not in blocks of {pattern}", prune)
    if weight.value.dtype == np.int8 and weight.activations == "float32":
        most = int(blocks(weight.value, kernel.block).any(-1).sum(-1).max(initial=0))
        if inputs > HYBRID_COLUMNS or most > HYBRID_BLOCKS:
            return kernel, Reason(
                f"its {inputs} inputs, {most} blocks in a row, are more than the kernel can count, "
                f"{HYBRID_COLUMNS} and {HYBRID_BLOCKS}",
                "split the layer along its inputs")
    scales = weight.tensor.quantization.scale if weight.tensor.quantization else None
    several = weight.activations == "int8" or scales is not None and len(scales) > 1
    if weight.value.dtype == np.int8 and several and runtime != NEWER:
        return kernel, Reason("tflite-runtime 2.14 computes it wrongly with a scale for each "
                              "channel", f"runtime={NEWER!r}")
    return kernel, None


def unpackable(weight, runtime):
    """None if a DENSIFY may unpack this weight on every release that `runtime` covers, else the
    Reason."""
    dtype = weight.value.dtype
    if runtime == "tflm":
        return Reason("TensorFlow Lite Micro has no DENSIFY")
    if not weight.symmetric:
        return _asymmetric(weight)
    if dtype == np.float16 and runtime != NEWER:
        return Reason("LiteRT before 2.2 computes NaN from sparse float16 weights on ARM",
                      f"runtime={NEWER!r}, or quantize=None or 'int8_weights'")
    if weight.unpacking:
        return before_dequantize(weight)
    if dtype != np.int8:
        return None
    if weight.activations == "float32":
        return Reason(f"LiteRT does not load a hybrid {weight.operator} with an unpacked weight",
                      "quantize='int8_weights', which computes in float32")
    if "FULLY_CONNECTED" in weight.operator:
        return Reason("LiteRT 2.2 and newer do not load an int8 FULLY_CONNECTED with an unpacked "
                      "weight", "quantize='int8_weights', which computes in float32")
    return None


def before_dequantize(weight):
    """None if a DENSIFY may stand before the DEQUANTIZE of a weight, else the Reason."""
    if "GATHER" not in weight.operator:
        return None
    return Reason("XNNPACK leaves the DEQUANTIZE after an unpacking out, which GATHER needs",
                  "quantize=None")


def _asymmetric(weight):
    text = "a stored 0 does not stand for the number 0"
    if "GATHER" in weight.operator:
        return Reason(f"{text}: what is looked up is quantized like activations", "quantize=None")
    return Reason(text, "quantize its weights symmetrically")


def blocks(matrix, block):
    """A matrix as (rows, blocks, `block`)."""
    return matrix.reshape(matrix.shape[0], -1, block)


def empty_blocks(matrix, block):
    """The fraction of blocks without a non-zero, in [0, 1]."""
    return float(np.mean((blocks(matrix, block) == 0).all(-1)))
