"""The time of exported files in LiteRT on this machine, in turns, one thread.

Dense layers: the runtime's sparse kernels against the best dense file, which is int8. The MLP is
measured twice, with a dense classifier and with a pruned one, because it matters on x86 which
kernel comes before a sparse one (`tflite_export.benchmark`). Convolutions:
XNNPACK takes no sparse path on x86 with AVX, so that these files would show nothing here; their
numbers are those of `tflite_conv` and, on emulated ARM, `tflite_arm`.
"""

import statistics

import keras
import numpy as np
from keras import layers

import tflite_export
from benchmarks import measure, networks
from tflite_export import benchmark

SEED = 0
SPARSITIES = (0.8, 0.9, 0.95)
ROUNDS = 11
LAYER = "Dense 4096 x 4096"
WHOLE = f"{networks.MLP}, all layers pruned"
NAMES = (networks.MLP, WHOLE, LAYER, networks.ENCODER)
# Times as fast as the best dense file.
GOALS = {(networks.MLP, 0.9): 2.4, (WHOLE, 0.9): 2.4, (LAYER, 0.9): 3.3}
CALIBRATION = 64  # rows
# What is pruned how, and how it is shipped.
SPARSE = {"1x16 blocks, dynamic": (16, {"quantize": "dynamic", "sparse": "speed"}),
          "1x4 blocks, float32": (4, {"sparse": "speed"})}
DENSE = {"dense float32": {}, "dense dynamic": {"quantize": "dynamic"},
         "dense int8": {"quantize": "int8"}}


def build(name):
    if name == LAYER:
        return keras.Sequential([keras.Input((4096,)), layers.Dense(4096)])
    if name == WHOLE:
        model = networks.build(networks.MLP)
        config = model.layers[-1].get_config()
        return keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers[:-1],
                                 layers.Dense.from_config({**config, "name": "pruned_classes"})])
    return networks.build(name)


def dense_files(model):
    """{label: the bytes of a dense file}"""
    rng = np.random.default_rng(SEED)
    some = rng.random((CALIBRATION, *model.input_shape[1:])).astype("float32")
    networks.randomize(model, 0.0, seed=SEED)
    return {label: tflite_export.convert(
        model, sparse=False, **options,
        **({"representative_data": some} if options.get("quantize") == "int8" else {})).tflite
        for label, options in DENSE.items()}


def case(name, model, dense, sparsity, rounds):
    """Ratios of every sparse file to every dense one; the best dense file is the fastest."""
    rows = {}
    for label, (block, options) in SPARSE.items():
        networks.randomize(model, sparsity, block, seed=SEED)
        exported = tflite_export.convert(model, **options)
        row = {"bytes": len(exported.tflite),
               "layers that run sparse": sum(r.runs_sparse for r in exported.report.layers)}
        for against, file in dense.items():
            found = benchmark.benchmark(exported.tflite, file, rounds=rounds)
            row |= {"seconds": found.seconds, f"seconds of {against}": found.seconds_against,
                    f"times {against}": {"median": statistics.median(found.ratios),
                                         "min": min(found.ratios), "max": max(found.ratios)}}
        row["best dense"] = min(dense, key=lambda against: row[f"seconds of {against}"])
        rows[label] = row
    return {"network": name, "sparsity": sparsity, "rounds": rounds, "rows": rows}


def run(small=False):
    cases = []
    for name in NAMES[:1] if small else NAMES:
        model = build(name)
        dense = dense_files(model)
        for sparsity in SPARSITIES[1:2] if small else SPARSITIES:
            cases.append(case(name, model, dense, sparsity, 2 if small else ROUNDS))
            print(f"{name} at {sparsity:g}", flush=True)
    return measure.document("tflite_speed", {"seed": SEED, "threads": 1}, cases)
