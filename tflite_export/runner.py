"""A .tflite file loaded into LiteRT, ready to run, with the kernels that one asks for.

A wrong file may crash the process. `trial.py` and `benchmark.py` load files in a child.
"""

import re

import numpy as np

from tflite_export import flatbuffer

# XNNPACK is what applications get; the others run where it is left out or refuses an operator.
KERNELS = ("XNNPACK", "built-in", "reference")
COMPILED = "CompiledModel"  # LiteRT's newer interface, with XNNPACK


class Runner:
    """A file in LiteRT's interpreter.

    Args:
        tflite: the file's bytes.
        kernels: one of KERNELS.
        threads: how many the kernels may use.

    Raises:
        ValueError: LiteRT refuses the file; the text is LiteRT's.
    """

    def __init__(self, tflite, kernels="XNNPACK", threads=1):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolver = {
            "XNNPACK": OpResolverType.AUTO,
            "built-in": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            "reference": OpResolverType.BUILTIN_REF,
        }[kernels]
        try:
            self._interpreter = Interpreter(
                model_content=tflite,
                experimental_op_resolver_type=resolver,
                num_threads=threads,
            )
            self._interpreter.allocate_tensors()
        except RuntimeError as error:
            raise ValueError(f"LiteRT cannot load the file: {error}") from error
        self._inputs, self._outputs = self._details(tflite)
        self.inputs = {
            name: (tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]))
            for name, detail in self._inputs.items()
        }

    def _details(self, tflite):
        count = len(self._interpreter.get_signature_list())
        if count:  # of several, that of the graph that invoke() runs
            signature = self._interpreter.get_signature_runner(_main(tflite) if count > 1 else None)
            return signature.get_input_details(), signature.get_output_details()
        # a file without a signature: the names of its tensors
        return tuple(
            {detail["name"]: detail for detail in details}
            for details in (
                self._interpreter.get_input_details(),
                self._interpreter.get_output_details(),
            )
        )

    def set(self, inputs):
        """Puts a batch of the file's own size in, by name."""
        for name, detail in self._inputs.items():
            self._interpreter.set_tensor(detail["index"], inputs[name])

    def run(self):
        """Computes the outputs."""
        self._interpreter.invoke()

    def get(self):
        """The outputs by name."""
        return {
            name: self._interpreter.get_tensor(detail["index"])
            for name, detail in self._outputs.items()
        }


class CompiledRunner:
    """A file in LiteRT's CompiledModel; the interface of `Runner`."""

    def __init__(self, tflite, threads=1):
        from ai_edge_litert.compiled_model import (
            CompiledModel,
            CpuKernelMode,
            CpuOptions,
            HardwareAccelerator,
            Options,
        )

        if same := _same_tensor(tflite):
            raise ValueError(f"{same} are one tensor, of which CompiledModel fills one only")
        options = Options(
            hardware_accelerators=HardwareAccelerator.CPU,
            cpu_options=CpuOptions(num_threads=threads, kernel_mode=CpuKernelMode.XNNPACK),
        )
        try:
            self._model = CompiledModel.from_buffer(tflite, options=options)
            signatures = list(self._model.get_signature_list())
            key = _main(tflite) if len(signatures) > 1 else signatures[0]
            self._index = self._model.get_signature_index(key)
            self._buffers = (self._model.create_input_buffers(self._index),
                             self._model.create_output_buffers(self._index))
        except RuntimeError as error:
            raise ValueError(f"LiteRT cannot load the file: {error}") from error
        self._outputs = self._model.get_output_tensor_details(key)
        self.inputs = {
            name: (tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]))
            for name, detail in self._model.get_input_tensor_details(key).items()
        }

    def set(self, inputs):
        """Puts a batch of the file's own size in, by name."""
        for buffer, (name, (shape, _)) in zip(self._buffers[0], self.inputs.items()):
            if inputs[name].shape != shape:  # LiteRT would leave the rest of the buffer as it is
                raise ValueError(f"input {name!r} has the shape {inputs[name].shape}, not {shape}")
            buffer.write(np.ascontiguousarray(inputs[name]))

    def run(self):
        """Computes the outputs."""
        self._model.run_by_index(self._index, *self._buffers)

    def get(self):
        """The outputs by name."""
        outputs = {}
        for buffer, (name, detail) in zip(self._buffers[1], self._outputs.items()):
            shape = [int(size) for size in detail["shape"]]
            values = buffer.read(int(np.prod(shape)), np.dtype(detail["dtype"]).type)
            outputs[name] = np.array(values).reshape(shape)
        return outputs


def _same_tensor(tflite):
    """Names of an output and of an input or another output that are one tensor, or None."""
    signature = flatbuffer.main_signature(flatbuffer.read(tflite))
    names = {}
    for port in [] if signature is None else [*(signature.inputs or []),
                                                 *(signature.outputs or [])]:
        name = bytes(port.name or b"").decode("utf-8", "replace")
        if port.tensorIndex in names:
            return f"{names[port.tensorIndex]!r} and {name!r}"
        names[port.tensorIndex] = name
    return None


def _main(tflite):
    """The key of the signature to run; None without one for the first graph."""
    signature = flatbuffer.main_signature(flatbuffer.read(tflite))
    return None if signature is None else flatbuffer.signature_key(signature)


def nested(outputs):
    """Outputs by name as Keras nests them: an array, a list of arrays, or the dict."""
    if not all(re.fullmatch(r"output_\d+", name) for name in outputs):
        return outputs
    listed = [outputs[f"output_{i}"] for i in range(len(outputs))]
    return listed[0] if len(listed) == 1 else listed
