"""Runs files in the LiteRT of this interpreter; started by `__main__.py` inside the emulator.

    emulated.py FOLDER NAME...

FOLDER holds NAME.tflite, NAME.twin.tflite (the same weights stored dense), and NAME.npz with the
inputs and the expected outputs in the files' order. Prints a JSON line for each run of a file: that
it begins, then how far its outputs are from the expected ones, or why it did not load. The
inference lies between two calls of getppid, between which tools/arm/insn.c counts instructions.
"""

import json
import os
import sys
import warnings

import numpy as np

warnings.simplefilter("ignore")  # LiteRT calls its own Interpreter deprecated
from ai_edge_litert.interpreter import Interpreter  # noqa: E402


def outputs(path, inputs):
    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()  # the first one packs weights
    os.getppid()
    interpreter.invoke()
    os.getppid()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def error(actual, expected):
    """The greatest difference over the greatest magnitude; None for NaN or another shape."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        if a.shape != e.shape or not np.isfinite(a).all():
            return None
        worst = max(worst, float(np.abs(a.astype("f8") - e).max() / np.abs(e).max()))
    return worst


def main():
    folder, *names = sys.argv[1:]
    for name in names:
        with np.load(f"{folder}/{name}.npz") as archive:
            inputs = [archive[key] for key in sorted(archive) if key.startswith("input")]
            expected = [archive[key] for key in sorted(archive) if key.startswith("output")]
        for kind in ("twin.tflite", "tflite"):
            print(json.dumps({"name": name, "kind": kind}), flush=True)
            try:
                actual = outputs(f"{folder}/{name}.{kind}", inputs)
            except (RuntimeError, ValueError) as refused:
                result = {"ran": False, "message": str(refused)}
            else:
                result = {"ran": True, "error": error(actual, expected)}
            print(json.dumps({"name": name, "kind": kind, **result}), flush=True)


main()
