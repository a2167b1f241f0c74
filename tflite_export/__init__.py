"""Keras models to sparse .tflite files: knows Keras models and bytes, never imports tf_sparsity.

Only the command line does that, to load sparse models: `python -m tflite_export --help`.
Importing this package imports neither Keras nor TensorFlow.
"""

from tflite_export.check import compare, interpret
from tflite_export.convert import ExportWarning, convert
from tflite_export.exported import Exported
from tflite_export.layers import LayerReport
from tflite_export.prunable import prunable
from tflite_export.report import Report

__all__ = ["ExportWarning", "Exported", "LayerReport", "Report", "compare", "convert",
           "interpret", "prunable"]
