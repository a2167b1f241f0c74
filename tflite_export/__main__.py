"""python -m tflite_export MODEL.keras -o OUT.tflite [--quantize int8_weights] [--dense] [--overwrite]

Converts a saved Keras model and prints the sizes. Layers of tf_sparsity are stripped first.
"""

import argparse
import os
import sys

from tflite_export.convert import convert, first_line, refuse_overwrite, sparse_layers
from tflite_export.quiet import quiet


def main(argv=None):
    """Runs the command line; returns the exit status: 0, or 1 after one sentence on stderr."""
    usage, what = __doc__.strip().split("\n\n")
    parser = argparse.ArgumentParser(prog="python -m tflite_export", usage=usage, description=what)
    parser.add_argument("model", metavar="MODEL.keras")
    parser.add_argument("-o", "--output", metavar="MODEL.tflite", required=True)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the output file if it is there"
    )
    parser.add_argument(
        "--quantize", choices=["int8_weights"],
        help="store the weights as int8, with a scale for each output channel"
    )
    parser.add_argument("--dense", action="store_true", help="store no weight sparse")
    arguments = parser.parse_args(argv)
    try:
        report = _convert_file(arguments)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"tflite_export: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{arguments.output}\n{report}")
    return 0


def _convert_file(arguments):
    # The cheap refusals come before the imports and the conversion, which take seconds.
    if not os.path.isfile(arguments.model):
        raise FileNotFoundError(f"{arguments.model} is not there, or is not a file.")
    refuse_overwrite(arguments.output, arguments.overwrite)
    if not os.path.isdir(os.path.dirname(os.path.abspath(arguments.output))):
        raise FileNotFoundError(f"The folder of {arguments.output} is not there.")
    with quiet():
        import keras

        import tf_sparsity  # registers the classes that a sparse model is saved with
    try:
        model = keras.saving.load_model(arguments.model, compile=False)
    except Exception as error:
        raise ValueError(
            f"{arguments.model} cannot be loaded as a Keras model: {first_line(error)}"
        ) from error
    if sparse_layers(model):
        model = tf_sparsity.strip(model)
    with quiet():
        sparse = False if arguments.dense else "auto"
        exported = convert(model, quantize=arguments.quantize, sparse=sparse)
    exported.save(arguments.output, overwrite=arguments.overwrite)
    return exported.report


if __name__ == "__main__":
    sys.exit(main())
