"""What to expect of a file's speed, and what would be faster or smaller: never a promise.

Counts multiply-adds; time is not measured here. `python -m tflite_export benchmark` measures it.
"""

from tflite_export import machine
from tflite_export.layers import total

# Cores with dot-product instructions do 16 int8 multiply-adds in an instruction that does 4 in
# float32 (SDOT and FMLA on 128-bit registers).
INT8_PER_FLOAT = 4


def advice(layers, size, float_bytes):
    """Sentences about a file.

    Args:
        layers: LayerReports.
        size: bytes of the file.
        float_bytes: bytes of the dense float32 file.
    """
    dense = total(layers, "multiply_adds")
    expected = total(layers, "expected_multiply_adds")
    stored = any(row.stored_sparse for row in layers)
    convolutions = [row for row in layers if row.runs_sparse and "CONV" in row.operator]
    natively = [row for row in layers if row.runs_sparse and row not in convolutions]
    if stored and not convolutions and not natively:
        yield ("No kernel runs this file sparse: it is smaller, and as fast as the dense one once "
               "it is loaded.")
    if convolutions:
        here = " This machine has AVX." if machine.runs_sparse_convolutions() is False else ""
        yield ("XNNPACK runs convolutions sparse on Arm, WebAssembly and x86 without AVX. On x86 "
               f"with AVX the file is as fast as a dense one.{here}")
    floats = [row for row in convolutions + natively if row.dtype == "float32" or "CONV"
              in row.operator]
    if floats and dense and expected * INT8_PER_FLOAT > dense:
        yield ("On cores with dot-product instructions (Armv8.2 and newer, x86 with VNNI) dense "
               f"int8 is likely to be faster: it does {INT8_PER_FLOAT} multiply-adds in the time "
               f"of one float32, and {expected / dense:.0%} of them are left here.")
    if stored:
        slower = dense and expected * INT8_PER_FLOAT * 4 > dense
        larger = size * 16 > float_bytes
        if slower or larger:
            what = " and ".join(["faster"] * bool(slower) + ["smaller"] * bool(larger))
            yield (f"Half of the channels of every layer, in int8, would be {what}: a quarter of "
                   "the multiply-adds, a sixteenth of the float32 bytes, in every runtime. Whether "
                   "they keep the accuracy, only training tells.")
