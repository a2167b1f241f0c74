"""Files to an emulated ARM machine and their outcomes back."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from arm import exports, graphs, networks
from tflite_export import store
from tflite_export.legalize import legalize

TOOLS = Path(__file__).parents[2] / "tools" / "arm"
FILES_AT_A_TIME, TIMEOUT = 40, 1800  # for one start of the emulator; seconds
FLOAT_TOLERANCE = 1e-5  # float32 sums in another order, relative to the greatest output
# Of the counts of tools/arm/insn.c. Some int8 kernels use other multiplications than it counts.
MULTIPLY_ADDS, VECTOR_LOADS = slice(1, 3), 3
# Activations rounded to 8 bits, layer after layer, and kernels that round other ways on ARM.
EXPORT_TOLERANCES = {"dynamic": 0.1, "int8": 0.1}
DENSE_FAILS = "dense file fails"  # so that nothing can be said of the sparse one
LOADS_OF_DENSE = 0.8  # a kernel that leaves 3/4 of the weights out loads less than that


class File(NamedTuple):
    """What is run, and what is expected."""

    tflite: bytes
    tolerance: float  # greatest relative error that rounding explains
    reference: bytes  # the file whose outputs are expected


def files():
    """{name: File} of the small graphs"""
    result = {}
    for name, graph in {**graphs.CLUSTERS, **graphs.RANDOM}.items():
        tolerance = getattr(graph, "tolerance", FLOAT_TOLERANCE)
        result |= _stored(name, graph(), None, tolerance)
    for name, graph in graphs.ENCODINGS.items():
        tflite = graph()
        result[f"encoding/{name}"] = File(tflite, graph.tolerance, store.dense_twin(tflite))
    return result


def network_files():
    """{name: File} of legalized networks, in float expected to equal the file before"""
    result = {}
    for name in networks.NAMES:
        dense = networks.network(name)
        result |= _stored(f"network/{name}", legalize(dense).tflite, dense, FLOAT_TOLERANCE)
    return result


def export_files():
    """{name: File} of what `tflite_export.convert` writes for small networks"""
    return {f"export/{name}": File(tflite, EXPORT_TOLERANCES.get(name.split("/")[2],
                                                                 FLOAT_TOLERANCE),
                                   store.dense_twin(tflite))
            for name, tflite in exports.files().items()}


def _stored(name, tflite, reference, tolerance):
    """A file with its weights stored sparse, in both ways."""
    result = {}
    for int8 in (False, True):
        sparse = store.store(tflite, store.Policy("size", int8)).tflite
        expected = store.dense_twin(sparse) if int8 else reference or tflite
        result[f"{name}/{'int8' if int8 else 'float'}"] = File(sparse, tolerance, expected)
    return result


def outcomes(environment, version, named):
    """What one version of LiteRT makes of the files, on emulated ARM.

    Args:
      environment: the folder that tools/arm/setup has made.
      version: of LiteRT, one that is in the folder.
      named: {name: File}.

    Returns:
      {name: {"outcome": "sparse" | "dense" | "wrong" | DENSE_FAILS, "how": what is wrong, "error":
      greatest relative error, "multiply_adds": executed, "multiply_adds_dense": by the dense twin}}.
    """
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {name: str(number) for number, name in enumerate(named)}
        for name, place in places.items():
            _write(Path(folder, place), named[name])
        left = list(places)
        while left:
            here = left[:FILES_AT_A_TIME]
            events, how = _emulate(environment, version, folder, [places[n] for n in here])
            for name in here:
                runs = events.get(places[name], {})
                if "tflite" not in runs and how is None:
                    raise RuntimeError(f"the emulator ended without a word on {name}")
                left.remove(name)
                result[name] = _outcome(runs, how, named[name].tolerance)
                if not runs.get("tflite", {}).get("done"):
                    break  # the process died here: go on with the next file in a new one
    return result


def _write(path, file):
    """The file, its dense twin, inputs and expected outputs for emulated.py."""
    inputs, expected = run_here(file.reference)
    path.with_suffix(".tflite").write_bytes(file.tflite)
    path.with_suffix(".twin.tflite").write_bytes(store.dense_twin(file.tflite))
    np.savez(path.with_suffix(".npz"),
             **{f"input{i:02}": value for i, value in enumerate(inputs)},
             **{f"output{i:02}": value for i, value in enumerate(expected)})


def run_here(tflite, seed=0):
    """(normal inputs, outputs) of a file with float inputs in this machine's LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter, draw = Interpreter(model_content=tflite), np.random.default_rng(seed)
    interpreter.allocate_tensors()
    inputs = []
    for detail in interpreter.get_input_details():
        inputs.append(draw.standard_normal(detail["shape"]).astype(np.float32))
        interpreter.set_tensor(detail["index"], inputs[-1])
    interpreter.invoke()
    return inputs, [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def _emulate(environment, version, folder, places):
    """({place: {kind: what emulated.py said}}, how the process died or None)"""
    plugin, counts = Path(environment, "insn.so"), Path(folder, "counts")
    if not plugin.exists():
        raise FileNotFoundError(f"{plugin} is missing: run {TOOLS / 'setup'} {environment}, with a "
                                "C compiler installed")
    counts.unlink(missing_ok=True)
    variables = {"QEMU_PLUGIN": f"file={plugin.resolve()}", "INSN_OUT": str(counts)}
    try:
        done = subprocess.run(
            [TOOLS / "arm-python", environment, "--litert", version,
             Path(__file__).with_name("emulated.py"), folder, *places],
            capture_output=True, text=True, timeout=TIMEOUT, env={**os.environ, **variables})
        printed, how = done.stdout, None
        if done.returncode:
            how = f"process ended with status {done.returncode}"
    except subprocess.TimeoutExpired as error:
        printed, how = error.stdout.decode(), f"no answer within {TIMEOUT} s"
    events, lines = {}, iter(counts.read_text().splitlines() if counts.exists() else [])
    for line in printed.splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        run = events.setdefault(event["name"], {}).setdefault(event["kind"], {})
        if "ran" in event:
            run.update(event, done=True)
            if event["ran"]:
                counted = [int(n) for n in next(lines).split()]
                run["multiply_adds"] = sum(counted[MULTIPLY_ADDS])
                run["vector_loads"] = counted[VECTOR_LOADS]
    return events, how


def _outcome(runs, how, tolerance):
    twin, run = runs.get("twin.tflite", {}), runs.get("tflite", {})
    if twin.get("done") and not run.get("done"):
        return {"outcome": "wrong", "how": how}
    if run.get("done") and not run["ran"]:
        return {"outcome": "wrong", "how": "not loaded: " + run["message"].strip().split("\n")[0]}
    if not twin.get("ran") or twin["error"] is None or twin["error"] > tolerance:
        return {"outcome": DENSE_FAILS, "how": str(twin.get("message") or twin or how)}
    if run["error"] is not None:
        run["error"] = float(f"{run['error']:.1e}")
    result = {"error": run["error"], "multiply_adds": run["multiply_adds"],
              "multiply_adds_dense": twin["multiply_adds"]}
    if run["error"] is None:
        return {"outcome": "wrong", "how": "NaN, or outputs of another shape", **result}
    if run["error"] > tolerance:
        return {"outcome": "wrong", "how": f"relative error {run['error']:.1g}", **result}
    loads = run["vector_loads"] / max(twin["vector_loads"], 1)
    same = run["multiply_adds"] == twin["multiply_adds"] and loads > LOADS_OF_DENSE
    return {"outcome": "dense" if same else "sparse", **result}
