"""Instructions of one inference in the stock aarch64 LiteRT, emulated: exported networks and dense.

Needs the environment that `make test-arm` builds in build/arm. Instructions are counted, which
repeats; they are no time, for caches and latencies are not in them.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

import tflite_export
from benchmarks import measure, networks
from benchmarks.tflite_conv import DENSE
from benchmarks.tflite_size import OURS, converted
from tflite_export import flatbuffer, ports

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "build" / "arm"
LITERT = "2.3.0"
SEED = 0
PICTURE = 224
SPARSITIES = (0.8, 0.9)
CALIBRATION = 4  # pictures; counts do not depend on what is in them
DENSE_INT8 = "dense int8"
GOALS = {("MobileNetV2", 0.9): 2.4}  # times fewer instructions than dense float32, float32
SMALL = {"names": ("MobileNetV3Small",), "sparsities": (0.9,), "picture": 32}


def counts(tflite, folder):
    """{kind of instruction: millions of one inference} as tools/arm/insn counts them."""
    model, inputs = folder / "model.tflite", folder / "inputs.npz"
    model.write_bytes(tflite)
    (batch,) = ports.random_batches(ports.inputs(flatbuffer.read(tflite)), 1)
    np.savez(inputs, **batch)
    done = subprocess.run([ROOT / "tools" / "arm" / "insn", ENVIRONMENT, "--litert", LITERT, model,
                           inputs], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.stderr.strip()}\nIs build/arm made? `make build/arm/made.stamp`")
    words = done.stdout.split(":", 1)[1].split(",")[0].split()  # insn 1.23M fma 0.45M ...
    return {kind: float(number.removesuffix("M")) for kind, number in zip(words[::2], words[1::2])}


def case(name, sparsity, picture):
    """Counts of the dense files and ours."""
    model = networks.randomize(networks.build(name, picture), sparsity, seed=SEED)
    dense = converted(model, sparse=False)
    some = np.random.default_rng(SEED).random((CALIBRATION, *model.input_shape[1:]))
    files = {DENSE: dense, DENSE_INT8: tflite_export.convert(
        model, quantize="int8", sparse=False, representative_data=some.astype("float32")).tflite}
    files |= {label: tflite_export.convert(dense, **options).tflite
              for label, options in OURS.items()}
    with tempfile.TemporaryDirectory() as folder:
        rows = {label: counts(tflite, Path(folder)) for label, tflite in files.items()}
    return {"network": name, "sparsity": sparsity, "rows": rows}


def run(small=False):
    names, levels, picture = SMALL.values() if small else (networks.CNNS, SPARSITIES, PICTURE)
    cases = []
    for name in names:
        for sparsity in levels:
            cases.append(case(name, sparsity, picture))
            print(f"{name} at {sparsity:g}", flush=True)
    return measure.document("tflite_arm", {
        "seed": SEED, "picture": picture, "LiteRT on ARM": LITERT, "cpu": "cortex-a76, emulated",
    }, cases)
