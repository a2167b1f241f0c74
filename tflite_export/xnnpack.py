"""Will a file run sparse, dense or wrong on ARM? Read from the file, for each generation of LiteRT.

Two things decide: how each weight is encoded, which is known here, and how XNNPACK computes
convolutions, which `clusters.py` knows. What goes wrong does so only on machines that take the
sparse paths. ARM does; x86 with AVX never takes that of convolutions, so that no test on a PC sees
it.
"""

from typing import NamedTuple

from ai_edge_litert import schema_py_generated as schema

from tflite_export import encoding, flatbuffer
from tflite_export.clusters import (
    DENSE,
    FIRST,
    GENERATIONS,
    MIDDLE,
    NEWEST,
    OLDEST,
    SPARSE,
    WRONG,
    Clusters,
)
from tflite_export.graph import Graph

__all__ = ["DENSE", "FIRST", "GENERATIONS", "HYBRID_BLOCKS", "HYBRID_COLUMNS", "MIDDLE",
           "NATIVE_VERSION", "NEWEST", "OLDEST", "SPARSE", "WRONG", "Operator", "Prediction",
           "Reason", "predict"]

NATIVE_VERSION = 8  # of a FULLY_CONNECTED that reads a sparse weight itself
HYBRID_COLUMNS, HYBRID_BLOCKS = 4096, 255  # what that kernel can count
# Operators into which XNNPACK takes what a DEQUANTIZE behind a DENSIFY makes
DEQUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
FLOAT16_GENERATIONS = (FIRST, MIDDLE)  # in which float16 weights behind a DENSIFY become NaN
FLOAT32, FLOAT16, INT8 = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16,
                          schema.TensorType.INT8)


class Reason(NamedTuple):
    """Why a file does not run sparse, and what to change."""

    verdict: str  # "dense" or "wrong"
    operator: str  # its kind and the name of its output
    text: str
    runtimes: tuple  # the generations for which this holds
    change: str | None = None  # what would make it run sparse, where `text` does not say it

    def __str__(self):
        where = "" if self.runtimes == GENERATIONS else f" ({', '.join(self.runtimes)})"
        return f"{self.operator}: {self.text}{where}"


class Operator(NamedTuple):
    """A convolution, a dense layer, or another operator with a verdict."""

    key: tuple  # (number of its graph, its output)
    name: str  # of its output
    kind: str
    runs: dict  # generation -> "sparse", "dense" or "wrong"
    why: dict  # generation -> (why it does not run sparse, what would make it), None if unknown


class Prediction(NamedTuple):
    """What becomes of a file.

    `runtimes` maps each of GENERATIONS to "wrong" if anything is computed wrong or the file does
    not load, else to "sparse" if an operator runs sparse, else to "dense".
    """

    runtimes: dict
    reasons: tuple  # of Reason, wrong ones first
    operators: tuple  # of Operator, in the file's order


def predict(tflite):
    """What each generation of LiteRT makes of a file on ARM.

    Args:
      tflite: bytes of a .tflite file, its weights stored as they will be shipped.

    Returns:
      Prediction.

    Raises:
      ValueError: for what is no .tflite file.

    Example:

    ```python
    import keras
    import tflite_export
    from tflite_export import xnnpack
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
    prediction = xnnpack.predict(tflite_export.convert(model, sparse=False).tflite)
    assert set(prediction.runtimes.values()) == {"dense"}
    assert "no weight is stored sparse" in str(prediction.reasons[-1])
    ```
    """
    model = flatbuffer.read(tflite)
    found, runs = {}, {}
    for generation in GENERATIONS:
        verdicts = list(_verdicts(model, generation))
        for verdict, op, label, text, change in verdicts:
            if text is not None:
                found.setdefault((verdict, label, text, change), []).append(generation)
            runs.setdefault(id(op), {}).setdefault(generation, (verdict, text, change))
    reasons = [Reason(verdict, label, text, tuple(runtimes), change)
               for (verdict, label, text, change), runtimes in found.items()]
    reasons.sort(key=lambda reason: reason.verdict != WRONG)
    operators = []
    for number, graph in enumerate(_graphs(model)):
        for op in graph.operators:
            of = runs.get(id(op), {})
            if of or graph.kind(op) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                of = {g: of.get(g, (DENSE, None, None)) for g in GENERATIONS}
                written = graph.writes(op)[0]
                operators.append(Operator(
                    (number, written), graph.name(written), graph.kind(op),
                    {g: verdict for g, (verdict, *_) in of.items()},
                    {g: (text, change) for g, (_, text, change) in of.items()}))
    return Prediction({g: _overall(reasons, operators, g) for g in GENERATIONS}, tuple(reasons),
                      tuple(operators))


def _overall(reasons, operators, generation):
    if any(r.verdict == WRONG and generation in r.runtimes for r in reasons):
        return WRONG
    return SPARSE if any(op.runs[generation] == SPARSE for op in operators) else DENSE


def _verdicts(model, generation):
    """(verdict, operator, its description, reason or None, what would change it or None)"""
    for graph in _graphs(model):  # LiteRT gives every graph to XNNPACK, bodies of loops too
        for found in _encodings(graph, generation):
            yield *found, None
        yield from Clusters(graph, generation).verdicts()


def _graphs(model):
    return [Graph(model, index) for index in range(len(model.subgraphs))]


# How weights are stored.


def _encodings(graph, generation):
    """What happens to each weight that is stored sparse."""
    for op in graph.operators:
        kind = graph.kind(op)
        for tensor in graph.reads(op):
            if not graph.is_sparse(tensor):
                continue
            if not len(graph.data(tensor)):
                yield WRONG, op, graph.describe(op), (
                    "its sparse weight has no values, so that no runtime takes it for a constant; "
                    "keep one of its zeros")
                continue
            if kind == "FULLY_CONNECTED":
                text = _native(graph, op, tensor, generation)
                yield SPARSE if text is None else WRONG, op, graph.describe(op), text
            elif kind == "DENSIFY":
                for user, text in _unpacked(graph, op, generation):
                    yield WRONG, user, graph.describe(user), text
            else:
                yield WRONG, op, graph.describe(op), (
                    "it reads a sparse weight as if it were dense; put a DENSIFY in front")


def _native(graph, op, tensor, generation):
    """Why a FULLY_CONNECTED computes a sparse weight wrong; None if its kernel fits."""
    version = graph.model.operatorCodes[op.opcodeIndex].version
    if version != NATIVE_VERSION:
        return (f"its version is {version}, upon which XNNPACK takes the sparse weight for a dense "
                f"one; write version {NATIVE_VERSION}")
    pattern = encoding.describe(graph.graph.tensors[tensor].sparsity)
    weight, types = graph.constant(tensor), (graph.type(tensor), graph.type(graph.reads(op)[0]))
    patterns = {(FLOAT32, FLOAT32): ("CSR", "1x4 blocks"), (INT8, FLOAT32): ("1x16 blocks",),
                (INT8, INT8): ("1x16 blocks",)}.get(types)
    if patterns is None:
        return "no kernel reads a sparse weight of this type; put a DENSIFY in front"
    if pattern not in patterns:
        return (f"its weight is stored as {pattern}, and the kernel for its types reads "
                f"{' or '.join(patterns)} only")
    if types == (INT8, FLOAT32):
        most = int((weight.reshape(weight.shape[0], -1, 16) != 0).any(-1).sum(-1).max(initial=0))
        if weight.shape[1] > HYBRID_COLUMNS or most > HYBRID_BLOCKS:
            return (f"its {weight.shape[1]} inputs, {most} blocks in a row, are more than the "
                    f"kernel counts, {HYBRID_COLUMNS} and {HYBRID_BLOCKS}; split the layer")
    quantization = graph.graph.tensors[tensor].quantization
    scales = 0 if quantization is None or quantization.scale is None else len(quantization.scale)
    if types[0] == INT8 and scales > 1 and generation == OLDEST:
        return "it ignores all scales of its weight but the first; quantize with one scale"
    return None


def _unpacked(graph, densify, generation):
    """(operator, what goes wrong) for what reads a weight behind a DENSIFY."""
    source = graph.reads(densify)[0]
    for op in graph.users(graph.writes(densify)[0]):
        kind, stored = graph.kind(op), graph.type(source)
        if kind == "DEQUANTIZE":
            for user in graph.users(graph.writes(op)[0]):
                if stored == FLOAT16 and generation in FLOAT16_GENERATIONS:
                    yield user, ("a float16 weight behind a DENSIFY becomes NaN; store it as "
                                 "float32 or int8")
                elif graph.kind(user) not in DEQUANTIZED:
                    yield user, ("XNNPACK leaves out the DEQUANTIZE between it and a DENSIFY; "
                                 "store its weight as float32")
        elif kind == "DENSIFY":
            yield op, "it reads what is dense already"
        elif kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") and stored == INT8:
            activations = graph.type(graph.reads(op)[0])
            if activations == FLOAT32 and generation != OLDEST:
                yield op, ("a hybrid operator (int8 weight, float32 activations) behind a DENSIFY "
                           "does not load; put a DEQUANTIZE in between")
            elif (kind == "FULLY_CONNECTED" and activations == INT8 and generation == NEWEST):
                yield op, "an int8 dense layer behind a DENSIFY does not load; store it dense"
