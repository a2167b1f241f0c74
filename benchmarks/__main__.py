"""python -m benchmarks [NAME ...] [--small --out FOLDER]

Measures, writes results/<name>.json, and the tables of the documents from them. `--small` tries
the program on tiny models in seconds and needs another folder, which gets no tables.
"""

import argparse
import importlib
import os
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the results are those of a CPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DEFAULT = ("step", "mask", "learned", "tflite_size", "tflite_speed", "tflite_conv",
           "input_wait")
NAMES = (*DEFAULT, "tflite_arm")  # needs an emulator


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"one of {', '.join(NAMES)}; default: all but the last")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {sorted(unknown)}: choose from {', '.join(NAMES)}")
    if options.small and options.out is None:
        parser.error("--small needs --out FOLDER: its results must not replace the measured ones")

    from tflite_export.quiet import quiet
    with quiet():
        from benchmarks import measure, readme
    for name in options.names or DEFAULT:
        with quiet():
            program = importlib.import_module(f"benchmarks.{name}")
        result = program.run(options.small)
        path = measure.save(result, options.out or measure.RESULTS)
        print(f"{path}\n\n{readme.TABLES[name](result)}")
    if options.out is None:
        readme.write()


if __name__ == "__main__":
    main()
