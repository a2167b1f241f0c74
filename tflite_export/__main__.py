"""python -m tflite_export MODEL -o OUT.tflite [--quantize MODE] [--sparse MODE] [...]
python -m tflite_export inspect FILE.tflite
python -m tflite_export verify FILE.tflite
python -m tflite_export benchmark FILE.tflite [--against DENSE.tflite]

Stores the pruned weights of a model sparse in a .tflite file, and says what to expect of such
files. MODEL is a .keras file, of a sparse model too, or a dense .tflite file.

Exit status: 0 all is well; 1 it could not be done, one sentence on stderr says why; 2 wrong usage;
3 `verify` found that the file crashes, or computes something else than its dense twin, here or on
another release.
"""

import argparse
import json
import os
import sys
import warnings
import zipfile
from functools import partial

import numpy as np

from tflite_export import (
    check,
    encode,
    files,
    flatbuffer,
    kernels,
    ports,
    quantize,
    sizes,
    store,
    wellformed,
)
from tflite_export.benchmark import FEWEST, benchmark
from tflite_export.convert import MODELS, ExportWarning, convert
from tflite_export.layers import layers
from tflite_export.quiet import quiet
from tflite_export.report import layer_table, said, table
from tflite_export.trial import trial

USAGE, WHAT, STATUS = __doc__.strip().split("\n\n")
OFF = "off"  # --sparse off is sparse=False
CHECKED = [runtime for runtime in kernels.RUNTIMES if runtime != "tflm"]  # it reads none sparse
WRONG = 3


def main(argv=None):
    """Runs the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv.pop(0) if argv and argv[0] in COMMANDS else "convert"
    parser, run = COMMANDS[command]
    arguments = parser().parse_args(argv)
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has enough, as head -1; nothing is to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"tflite_export: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _positive(text):
    """An argument's int; argparse prints the text of the error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text!r}")
    return int(text)


def _file_parser(command, what):
    parser = argparse.ArgumentParser(prog=f"python -m tflite_export {command}", description=what,
                                     epilog=STATUS)
    parser.add_argument("file", metavar="FILE.tflite")
    return parser


def _checked_parser(command, what):
    parser = _file_parser(command, what)
    parser.add_argument("--runtime", choices=CHECKED, default="litert",
                        help="the releases that are looked at (default: %(default)s)")
    return parser


def _convert_parser():
    parser = argparse.ArgumentParser(prog="python -m tflite_export", usage=USAGE,
                                     description=WHAT, epilog=STATUS)
    parser.add_argument("model", metavar="MODEL",
                        help="a .keras file, of a sparse model too, or a dense .tflite file")
    parser.add_argument("-o", "--output", metavar="OUT.tflite", required=True)
    parser.add_argument("--quantize", choices=[mode for mode in quantize.MODES if mode],
                        help="as quantize= of tflite_export.convert")
    parser.add_argument("--representative-data", metavar="DATA.npy",
                        help="an array, or an .npz file with one for each input; for int8")
    parser.add_argument("--sparse", choices=["auto", "size", "speed", OFF], default="auto",
                        help="store sparse what becomes smaller and is not expected to be slower, "
                             "what becomes smaller, what is expected to be faster, or nothing "
                             "(default: %(default)s)")
    parser.add_argument("--runtime", choices=list(kernels.RUNTIMES), default="litert",
                        help="the releases on which the file must be right (default: %(default)s)")
    parser.add_argument("--batch-size", type=_positive, default=1,
                        help="that the file is made for (default: %(default)s)")
    parser.add_argument("--app-rotates", action="store_true",
                        help="rotate_input=False: the app turns the pictures that the report names")
    parser.add_argument("--html", metavar="REPORT.html", help="write the report as a page too")
    parser.add_argument("--json", metavar="REPORT.json", help="write the report as JSON too")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def _convert(arguments):
    # The cheap refusals come before the imports and the conversion, which take seconds.
    outputs = [path for path in (arguments.output, arguments.html, arguments.json)
               if path is not None]
    files.refuse_missing(arguments.model, MODELS)
    _refuse_one_place([arguments.model, *outputs])
    for path in outputs:
        files.refuse_no_place(path)
        files.refuse_overwrite(path, arguments.overwrite)
    data = _data(arguments.representative_data)
    with quiet(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ExportWarning)
        if arguments.model.endswith(".keras"):
            import tf_sparsity  # noqa: F401  registers the classes of sparse models
        exported = convert(
            arguments.model, quantize=arguments.quantize, representative_data=data,
            sparse=False if arguments.sparse == OFF else arguments.sparse,
            runtime=arguments.runtime, batch_size=arguments.batch_size,
            rotate_input=not arguments.app_rotates)
    for warning in warned:
        if issubclass(warning.category, ExportWarning):
            print(f"tflite_export: warning: {warning.message}", file=sys.stderr)
    if arguments.html:
        exported.report.save_html(arguments.html, overwrite=arguments.overwrite)
    if arguments.json:
        text = json.dumps(exported.report.to_dict(), indent=1, allow_nan=False) + "\n"
        files.write(arguments.json, text.encode(), overwrite=arguments.overwrite)
    exported.save(arguments.output, overwrite=arguments.overwrite)  # last: if it is there, all are
    print(f"{arguments.output}\n{exported.report}")
    return 0


def _data(path):
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            loaded = np.load(file)
            if isinstance(loaded, np.ndarray):
                return loaded
            arrays = dict(loaded)
            for name, array in arrays.items():  # of other zip archives it gives the bytes
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"{name} in it is no array")
            return arrays
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an array: {str(error).rstrip('.')}. Give "
                         "an .npy file of one array, or an .npz file with one for each "
                         "input.") from error


def _inspect(arguments):
    tflite = wellformed.read(arguments.file)
    size = sizes.size(arguments.file, tflite)
    encoded = encode.look(tflite)
    runtime = arguments.runtime
    rows = layers(tflite, store.Policy(runtime=runtime), encoded.runs_sparse(runtime))
    print("\n".join([*table(("file", "bytes", "zipped"),
                            [(size.file, f"{size.bytes:,}", f"{size.zipped:,}")]), "",
                     *layer_table(rows, sizes.other_constants(tflite), len(tflite)), "",
                     *map(str, encode.joined(encode.covered(encoded, rows, runtime)))]))
    return 0


def _verify(arguments):
    tflite = wellformed.read(arguments.file)
    twin = store.dense_twin(tflite)
    batches = ports.random_batches(ports.inputs(flatbuffer.read(tflite)), 2)
    tried = trial(tflite, twin, batches, rounding=check.rounding(tflite))
    print("\n".join(f"beside its dense twin, {said(outcome)}" for outcome in tried.outcomes))
    encoded = encode.look(tflite)
    runtime = arguments.runtime
    rows = layers(tflite, store.Policy(runtime=runtime), encoded.runs_sparse(runtime))
    releases = encode.covered(encoded, rows, runtime)
    print("\n".join(map(str, encode.joined(releases))))
    if tried.failure is None and tried.outputs is None:
        raise ValueError("The file was not compared with its dense twin, for XNNPACK runs neither "
                         f"here: {tried.outcomes[0].failure}")
    if tried.failure is not None:
        print(f"wrong: {tried.failure}")
        return WRONG
    print("right: it computes what its dense twin computes, here")
    wrong = [release.generation for release in releases if release.verdict == "wrong"]
    if wrong:
        print(f"wrong: on {', '.join(wrong)}")
    return WRONG if wrong else 0


def _benchmark_parser():
    parser = _file_parser("benchmark", "Times two files in turns on this machine.")
    parser.add_argument("--against", metavar="DENSE.tflite",
                        help="the file to compare with; left out, the same one stored dense")
    parser.add_argument("--rounds", type=_positive, default=11,
                        help=f"how often each file is measured; below {FEWEST}, nothing is "
                             "concluded (default: %(default)s)")
    parser.add_argument("--threads", type=_positive, default=1,
                        help="that the kernels may use (default: %(default)s)")
    return parser


def _benchmark(arguments):
    tflite = wellformed.read(arguments.file)
    against = wellformed.read(arguments.against) if arguments.against else store.dense_file(tflite)
    print(benchmark(tflite, against, rounds=arguments.rounds, threads=arguments.threads,
                    name=arguments.against or "the same file stored dense"))
    return 0


def _refuse_one_place(paths):
    places = {}
    for path in paths:
        place = os.path.normcase(os.path.realpath(path))
        if place in places:
            raise ValueError(f"{places[place]} and {path} are one file: give each file that is "
                             "written a name of its own.")
        places[place] = path


COMMANDS = {
    "convert": (_convert_parser, _convert),
    "inspect": (partial(_checked_parser, "inspect",
                        "Shows how each weight of a file is stored, and whether it runs sparse."),
                _inspect),
    "verify": (partial(_checked_parser, "verify",
                       "Runs a file beside its dense twin, and reads what each release does."),
               _verify),
    "benchmark": (_benchmark_parser, _benchmark),
}

if __name__ == "__main__":
    sys.exit(main())
