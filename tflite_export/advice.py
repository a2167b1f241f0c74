"""What to expect of a file's speed, and what would be faster or smaller: never a promise.

Counts multiply-adds; time is not measured here. `python -m tflite_export benchmark` measures it.
"""

from tflite_export import machine
from tflite_export.layers import total

# Cores with dot-product instructions do 16 int8 multiply-adds in an instruction that does 4 in
# float32 (SDOT and FMLA on 128-bit registers).
INT8_PER_FLOAT = 4
DOT_PRODUCTS = "cores with dot-product instructions (Armv8.2 and newer, x86 with VNNI)"


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
    if natively:
        yield ("The kernels that read blocks have no dot products, and on x86 they take three "
               "times as long where a dense layer of XNNPACK for AVX-512 runs in the same file: "
               f"compare with the dense file (sparse=False), most of all on {DOT_PRODUCTS}.")
    if convolutions:
        here = " This machine has AVX." if machine.runs_sparse_convolutions() is False else ""
        yield ("XNNPACK runs convolutions sparse on Arm, WebAssembly and x86 without AVX. On x86 "
               f"with AVX the file is as fast as a dense one.{here}")
    cost = sum(row.expected_multiply_adds / (INT8_PER_FLOAT if row.computes_in == "int8" else 1)
               for row in layers)  # in float32 multiply-adds, on a core with dot products
    floats = [row for row in layers if row.runs_sparse and row.computes_in != "int8"]
    if floats and dense / INT8_PER_FLOAT < cost:
        yield (f"On {DOT_PRODUCTS} dense int8 is likely to be faster: it does {INT8_PER_FLOAT} "
               f"multiply-adds in the time of one float32, and {expected / dense:.0%} of them are "
               "left here.")
    if stored:
        found = []
        if dense / 4 < expected:
            found.append("faster in every runtime, with a quarter of the multiply-adds")
        elif dense / 4 / INT8_PER_FLOAT < cost:
            found.append(f"faster on {DOT_PRODUCTS}, with a quarter of the multiply-adds")
        others = size - sum(row.bytes for row in layers)  # names, scales, the graph
        halved = others + (float_bytes - others) // 16
        if size > halved:
            found.append(f"smaller, about {halved:,} bytes")
        if found:
            yield (f"Half of the channels of every layer, in int8, would be {', and '.join(found)}."
                   " Whether they keep the accuracy, only training tells.")
