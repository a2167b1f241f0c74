"""Runs files on emulated ARM: outcomes first, into a file; then predictions, against them.

    python -m arm ENVIRONMENT graphs|networks|exports [--litert VERSION ...] [-o RESULTS.json]

ENVIRONMENT is the folder that tools/arm/setup has made, with these versions. Ends with status 1 if
a prediction is not what has happened, or more than `REFUSED` graphs are refused that are right.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from arm import exports, graphs, matrix, networks
from tflite_export import kernels, xnnpack

VERSIONS = ("tflite-2.14.0", "1.2.0", "1.4.0", "2.1.0", "2.3.0")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
REFUSED = 2
# What: the files, the result, and what the files are made with.
KINDS = {"graphs": (matrix.files, "arm_matrix.json", {"seed": graphs.SEED}),
         "networks": (matrix.network_files, "arm_networks.json",
                      {"picture": networks.SIZE, "zeros of 1x1 kernels": networks.ZEROS}),
         "exports": (matrix.export_files, "arm_exports.json",
                     {"seed": exports.SEED, "zeros": exports.ZEROS})}


def main():
    parser = argparse.ArgumentParser(prog="python -m arm", description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path)
    parser.add_argument("what", choices=tuple(KINDS))
    parser.add_argument("--litert", nargs="+", default=VERSIONS, metavar="VERSION")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    make, result, settings = KINDS[arguments.what]
    output, files = arguments.output or RESULTS / result, make()
    results = {"what": f"{arguments.what} on emulated ARM: outcome for each version of LiteRT",
               "command": "cd tests && python -m arm ../build/arm " + arguments.what,
               "versions": versions(arguments.litert), **settings}
    outcomes = {name: {"sha256": hashlib.sha256(file.tflite).hexdigest()}
                for name, file in files.items()}
    for version in arguments.litert:
        for name, outcome in matrix.outcomes(arguments.environment, version, files).items():
            outcomes[name][version] = outcome
        print(f"LiteRT {version}: {summary(outcomes, version)}", flush=True)
        write(output, results, outcomes)

    predictions = {name: xnnpack.predict(file.tflite).runtimes for name, file in files.items()}
    mismatches, refused = compare(outcomes, predictions)
    distinct = {name.removesuffix("/float").removesuffix("/int8") for name in files}
    results |= {"graphs": len(distinct),
                "files": len(files), "runs": sum(len(runs(one)) for one in outcomes.values()),
                "mismatches": mismatches, "refused although right": refused}
    write(output, results, outcomes, predictions)
    print(f"{len(files)} files, {len(mismatches)} mismatches, {len(refused)} refused and right")
    for line in mismatches + refused:
        print(" ", line)
    return int(bool(mismatches) or len(refused) > REFUSED)


def versions(litert):
    qemu = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True)
    return {"LiteRT on ARM": list(litert), "cpu": "cortex-a76, emulated",
            "qemu": qemu.stdout.splitlines()[0].split("version ")[-1],
            "LiteRT here": metadata.version("ai-edge-litert"),
            "flatbuffers": metadata.version("flatbuffers"), "Python": platform.python_version(),
            "Keras": metadata.version("keras"), "TensorFlow": metadata.version("tensorflow")}


def summary(outcomes, version):
    found = [by_version[version]["outcome"] for by_version in outcomes.values()]
    return ", ".join(f"{found.count(kind)} {kind}" for kind in sorted(set(found)))


def runs(recorded):
    """{version: outcome} of what is recorded of a file"""
    return {version: outcome for version, outcome in recorded.items()
            if version not in ("predicted", "sha256")}


def compare(outcomes, predictions):
    """(what was not predicted, what is predicted wrong and is right), as sentences"""
    mismatches, refused = [], []
    for name, by_version in outcomes.items():
        for version, outcome in runs(by_version).items():
            fails = name.startswith("export/") and outcome["outcome"] == matrix.DENSE_FAILS
            if fails or not covers(name, version):  # a dense file of the converter may fail, too
                continue
            predicted = predictions[name][generation(version)]
            if predicted == outcome["outcome"]:
                continue
            line = f"{name} on {version}: predicted {predicted}, was {outcome['outcome']}"
            right = predicted == "wrong" and outcome["outcome"] in ("sparse", "dense")
            (refused if right else mismatches).append(line)
    return mismatches, refused


def covers(name, version):
    """Whether a file is made for a release: those of `convert` say so in their names."""
    runtime = name.rsplit("/", 1)[-1]
    return generation(version) in kernels.GENERATIONS.get(runtime, xnnpack.GENERATIONS)


def generation(version):
    """The one of xnnpack.GENERATIONS that a version belongs to."""
    if version.startswith("tflite-"):
        return xnnpack.OLDEST
    number = tuple(int(part) for part in version.split(".")[:2])
    return (xnnpack.FIRST if number < (1, 4) else
            xnnpack.MIDDLE if number < (2, 2) else xnnpack.NEWEST)


def write(path, results, outcomes, predictions=None):
    """JSON with a line for each file; whole or not at all."""
    lines = [json.dumps(name) + ": " + json.dumps(
        {**({} if predictions is None else {"predicted": predictions[name]}), **by_version})
        for name, by_version in outcomes.items()]
    head = json.dumps(results, indent=1)[:-2]
    part = path.with_suffix(".part")
    part.write_text(f'{head},\n "outcomes": {{\n  ' + ",\n  ".join(lines) + "\n }\n}\n")
    json.loads(part.read_text())
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
