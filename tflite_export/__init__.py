"""Keras models to .tflite files: knows plain Keras models and bytes, and never imports tf_sparsity.

Only the command line does that, to load and strip sparse models: `python -m tflite_export --help`.
Importing this package imports neither Keras nor TensorFlow.
"""

from tflite_export.check import compare, interpret
from tflite_export.convert import Exported, Report, TensorReport, convert

__all__ = ["Exported", "Report", "TensorReport", "compare", "convert", "interpret"]
