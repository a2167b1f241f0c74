"""Post-training quantization of a dense float32 model.

A Keras model is quantized by TensorFlow's converter (`from_keras.py`), a .tflite file by
ai-edge-quantizer, here. Both round weights symmetrically, so a 0 stays a 0. It comes before
anything is stored sparse: quantizers cannot read, or leave alone, what is sparse.
"""

import copy
import importlib.util

from ai_edge_litert import schema_py_generated as schema

from tflite_export import child, flatbuffer

LIMIT = 3600  # seconds for a quantization in a child process

# quantize= -> what it means; "int8_weights" is done by `store.py`
MODES = {
    None: "float32",
    "dynamic": "int8 weights, float32 activations that kernels round as they go",
    "int8": "int8 weights and activations",
    "int8_weights": "int8 weights, unpacked when the file is loaded; computes in float32",
    "float16": "float16 weights, unpacked when the file is loaded; computes in float32",
}
BY_A_QUANTIZER = ("dynamic", "int8", "float16")
NEEDS_DATA = ("int8",)
LOOPS = ("WHILE", "IF", "CALL_ONCE")
BORDERS = ("QUANTIZE", "DEQUANTIZE")
FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)


def check_mode(quantize):
    """Raises ValueError for a mode that does not exist."""
    if quantize is not None and not isinstance(quantize, str) or quantize not in MODES:
        *modes, last = map(repr, MODES)
        raise ValueError(f"quantize must be {', '.join(modes)} or {last}; got {quantize!r}.")


def check_data(quantize, data):
    """Raises ValueError for representative data that is missing, or that nothing would use."""
    if quantize in NEEDS_DATA and data is None:
        raise ValueError(
            "quantize='int8' needs representative_data, some hundred rows of what the model will "
            "see, to find the ranges of its activations: an array, or a dict of arrays by input "
            "name; quantize='dynamic' and 'int8_weights' need none."
        )
    if quantize not in NEEDS_DATA and data is not None:
        raise ValueError(f"representative_data is for quantize='int8'; got quantize={quantize!r}.")


def refuse_loops(operators):
    """Raises ValueError if a model cannot be quantized to int8: its loops are not calibrated.

    Args:
        operators: the names of the operators of the float32 file.
    """
    if loops := sorted(set(operators) & set(LOOPS)):
        raise ValueError(
            f"quantize='int8' cannot measure the activations inside {loops[0]}, which recurrent "
            "layers become: build them with unroll=True, or take quantize='dynamic' or "
            "'int8_weights'."
        )


def refuse_floats(tflite):
    """Raises ValueError if an operator of a file computes in floating point: TensorFlow Lite
    Micro's int8 build has no kernel for it. The borders of the file may be float32."""
    model = flatbuffer.read(tflite)
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = flatbuffer.operator(model, op)
            tensors = [graph.tensors[int(t)] for t in [*op.inputs, *op.outputs] if t >= 0]
            if kind not in BORDERS and any(t.type in FLOATS for t in tensors):
                name = flatbuffer.name(graph.tensors[op.outputs[0]])
                raise ValueError(f"{kind} {name!r} is left in floating point, and runtime='tflm' "
                                 "takes int8 only: replace that layer, or take runtime='litert'.")


def quantize_file(tflite, quantize, batches):
    """A float32 .tflite file quantized by ai-edge-quantizer, in a child process.

    Args:
        tflite: bytes.
        quantize: one of BY_A_QUANTIZER.
        batches: arrays by input name, for each batch; None where the mode needs none.

    Raises:
        ValueError: ai-edge-quantizer is not installed, or cannot quantize the file.
    """
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        raise ValueError(
            f"quantize={quantize!r} of a .tflite file needs ai-edge-quantizer: pip install "
            "ai-edge-quantizer. quantize='int8_weights' needs nothing, and a Keras model is "
            "quantized by TensorFlow's converter."
        )
    signature = flatbuffer.main_signature(flatbuffer.read(tflite))
    if quantize in NEEDS_DATA and signature is None:
        raise ValueError("ai-edge-quantizer names inputs by their signature, and this file has "
                         "none: convert it again with one, or take quantize='int8_weights'.")
    key = None if signature is None else flatbuffer.signature_key(signature)
    answer = child.call(run_quantizer, tflite, quantize, key, batches, limit=LIMIT)
    if answer.failure is not None:
        raise ValueError(f"ai-edge-quantizer cannot quantize this file: {answer.failure}")
    return answer.value


def run_quantizer(note, tflite, quantize, key, batches):
    """What the child does; `key` is that of the file's signature."""
    from ai_edge_quantizer import quantizer, recipe

    recipes = {"dynamic": _dynamic_recipe, "int8": recipe.static_wi8_ai8,
               "float16": _float16_recipe}
    work = quantizer.Quantizer(tflite)
    work.load_quantization_recipe(recipes[quantize]())
    if quantize == "int8":
        for port in ("INPUT", "OUTPUT"):  # of the file stay float32
            work.update_quantization_recipe(".*", port, algorithm_key="no_quantize")
    ranges = work.calibrate({key: batches}) if work.need_calibration else None
    return bytes(work.quantize(ranges, enable_progress_report=False).quantized_model)


def _dynamic_recipe():
    """One scale for each dense layer: tflite-runtime 2.14 ignores all others."""
    from ai_edge_quantizer import recipe

    (everything,) = recipe.dynamic_wi8_afp32()
    dense = copy.deepcopy({**everything, "operation": "FULLY_CONNECTED"})
    dense["op_config"]["weight_tensor_config"]["granularity"] = "TENSORWISE"
    return [everything, dense]


def _float16_recipe():
    weight = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"}
    return [{"regex": ".*", "operation": "*", "algorithm_key": "float_casting",
             "op_config": {"weight_tensor_config": weight, "compute_precision": "FLOAT",
                           "explicit_dequantize": True}}]
