"""A dense .tflite file that somebody else has made, as the source of a conversion."""

import numpy as np

from tflite_export import flatbuffer, ports, quantize, trial, weights


class FileSource:
    """A .tflite file that is to be stored sparse.

    Args:
        tflite: bytes.
        name: of the file, for errors.
        batch_size: 1, or that of the file.

    Raises:
        ValueError: not a .tflite file, damaged, sparse already, or with dynamic sizes.
    """

    def __init__(self, tflite, name="the .tflite file", batch_size=1):
        self.name, self._tflite = name, bytes(tflite)
        self._graphs = flatbuffer.read(self._tflite)
        self.inputs = ports.inputs(self._graphs)
        sparse = [tensor for graph in self._graphs.subgraphs for tensor in graph.tensors
                  if tensor.sparsity is not None]
        if sparse:
            raise ValueError(f"{self.name} stores {len(sparse)} weights sparse already, the first "
                             f"is {flatbuffer.name(sparse[0])!r}: give the dense file.")
        sizes = {port.shape[0] for port in self.inputs if port.shape}
        if batch_size != 1 and sizes != {batch_size}:
            raise ValueError(f"{self.name} is made for the batch size {sorted(sizes)}, and that "
                             f"cannot be changed; got batch_size={batch_size}.")

    def by_name(self, arrays):
        """Arrays by input name; one array where the file has one input."""
        if isinstance(arrays, dict):
            return arrays
        if len(self.inputs) != 1:
            raise ValueError(f"{self.name} has {len(self.inputs)} inputs: give a dict of arrays "
                             f"with the keys {sorted(port.name for port in self.inputs)}.")
        return {self.inputs[0].name: arrays}

    def outputs(self, batches):
        """The dense file's outputs by name, for each batch of arrays by name."""
        try:
            return trial.outputs(self._tflite, batches)
        except ValueError as error:
            raise ValueError(f"{self.name} does not run in LiteRT: {error}") from None

    def files(self, mode, batches, only_int8=False):
        """(bytes of the file as it came, bytes of the quantized one or None).

        Args:
            mode: one of quantize.MODES.
            batches: representative batches of arrays by name, or None.
            only_int8: refuse an operator that is left in floating point.
        """
        if mode is None:
            return self._tflite, None
        found = weights.find(self._graphs)
        if any(weight.value.dtype != np.float32 for weight in found):
            raise ValueError(f"{self.name} is quantized already: give the float32 file, or leave "
                             "quantize out.")
        if mode not in quantize.BY_A_QUANTIZER:
            return self._tflite, None
        if mode == "int8":
            quantize.refuse_loops(flatbuffer.operators(self._tflite))
        quantized = quantize.quantize_file(self._tflite, mode, batches)
        if only_int8:
            quantize.refuse_floats(quantized)
        return self._tflite, flatbuffer.pack_files(quantized, self._graphs.packed_files)
