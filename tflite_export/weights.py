"""The weights of a .tflite file: which constants they are, who uses them, and how often.

A weight is a constant of two or more dimensions that an operator of WEIGHTS multiplies or looks up
in, or that a DEQUANTIZE unpacks for one. It may be stored sparse already, behind a DENSIFY.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tflite_export import flatbuffer, loops

# operator -> which of its inputs is the weight, and the dimension of its output channels
WEIGHTS = {"FULLY_CONNECTED": (1, 0), "CONV_2D": (1, 0), "DEPTHWISE_CONV_2D": (1, 3),
           "TRANSPOSE_CONV": (1, 0), "GATHER": (0, 0)}
RANKS = {"FULLY_CONNECTED": 2, "CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "TRANSPOSE_CONV": 4}
UNPACKING = ("DENSIFY", "DEQUANTIZE")
TYPES = (np.float32, np.float16, np.int8)


class Weight(NamedTuple):
    """One weight of a file."""

    key: tuple  # (number of its graph, its place there): the same however it is stored
    graph: Any  # schema.SubGraphT
    index: int  # of the constant tensor
    value: np.ndarray  # dense, in the dtype that is stored
    users: tuple  # the operators that read the constant itself
    unpacking: tuple  # the operators between the constant and those that compute with it
    computing: tuple  # the operators that compute with it
    operator: str  # that computes with it: FULLY_CONNECTED, ...
    channel: int  # the dimension of its output channels
    activations: str  # the dtype that the operator computes on: float32, int8, ...
    multiply_adds: int  # in one run, of all that computes with it, zeros included; 0 for a look-up
    rows: int  # how many vectors it is multiplied with at once

    @property
    def tensor(self):
        """The constant's schema.TensorT."""
        return self.graph.tensors[self.index]

    @property
    def name(self):
        """The constant's name in the file."""
        return flatbuffer.name(self.tensor)

    @property
    def computed(self):
        """[(number of its graph, tensor)] of what is unpacked from it and computed with it."""
        return [(self.key[0], int(op.outputs[0])) for op in self.unpacking + self.computing]

    @property
    def zeros(self):
        """The fraction of zeros, in [0, 1]."""
        return float(np.mean(self.value == 0))

    @property
    def symmetric(self):
        """Whether a stored 0 stands for the number 0."""
        quantization = self.tensor.quantization
        points = None if quantization is None else quantization.zeroPoint
        return points is None or not np.any(points)


def find(model):
    """Every Weight of a schema.ModelT, in the order of its graphs and operators."""
    return [weight for number, (graph, runs) in enumerate(zip(model.subgraphs, loops.runs(model)))
            for weight in _of_graph(model, graph, number, runs)]


def _of_graph(model, graph, number, runs):
    ports = {int(t) for t in [*graph.inputs, *graph.outputs]}
    producers = {int(t): op for op in graph.operators for t in op.outputs}
    users = {}
    for op in graph.operators:
        for t in {int(t) for t in op.inputs}:
            users.setdefault(t, []).append(op)
    found = {}  # index of the constant -> (operators that compute with it, those that unpack it)
    for op in graph.operators:
        place, _ = WEIGHTS.get(flatbuffer.operator(model, op), (None, None))
        if place is not None and len(op.inputs) > place and len(op.outputs) > 0:
            index, steps = _constant(model, producers, int(op.inputs[place]))
            computing, unpacking = found.setdefault(index, ([], []))
            computing.append(op)
            unpacking += [step for step in steps if all(step is not u for u in unpacking)]
    for place, (index, (computing, unpacking)) in enumerate(found.items()):
        if index < 0 or index in ports or graph.tensors[index].isVariable:
            continue
        value = flatbuffer.constant(model, graph.tensors[index])
        names = [flatbuffer.operator(model, op) for op in computing]
        if (value is None or value.dtype not in TYPES or value.size == 0 or value.ndim < 2
                or any(value.ndim != RANKS.get(name, value.ndim) for name in names)):
            continue
        work = sum(_work(graph, op, name, value) for op, name in zip(computing, names))
        yield Weight(
            key=(number, place), graph=graph, index=index, value=value, users=tuple(users[index]),
            unpacking=tuple(unpacking), computing=tuple(computing),
            operator=" and ".join(dict.fromkeys(names)), channel=WEIGHTS[names[0]][1],
            activations=_activations(graph, computing[0], names[0]),
            multiply_adds=runs * work, rows=work // value.size,
        )


def _constant(model, producers, index):
    """The tensor that `index` is unpacked from, and the operators that do it, in order."""
    steps = []
    while (index in producers and len(steps) < len(producers)
           and flatbuffer.operator(model, producers[index]) in UNPACKING
           and len(producers[index].inputs) == 1):
        steps.insert(0, producers[index])
        index = int(producers[index].inputs[0])
    return index, steps


def _activations(graph, op, name):
    """The name of the dtype that an operator computes on."""
    place = {"GATHER": None, "TRANSPOSE_CONV": 2}.get(name, 0)
    tensor = int(op.outputs[0] if place is None else op.inputs[place])
    kind = graph.tensors[tensor].type if tensor >= 0 else None
    return np.dtype(flatbuffer.DTYPES[kind]).name if kind in flatbuffer.DTYPES else "another"


def _work(graph, op, name, value):
    """Multiply-adds of one operator with a weight of this value."""
    def shape(t):
        return [int(size) for size in _list(graph.tensors[int(t)].shape)] if t >= 0 else []

    if name == "FULLY_CONNECTED":
        return math.prod(shape(op.outputs[0])) * value.shape[1]
    if name == "CONV_2D":
        return math.prod(shape(op.outputs[0])) * math.prod(value.shape[1:])
    if name == "DEPTHWISE_CONV_2D":
        return math.prod(shape(op.outputs[0])) * math.prod(value.shape[1:3])
    if name == "TRANSPOSE_CONV" and len(op.inputs) > 2:
        return math.prod(shape(op.inputs[2])) * math.prod(value.shape[:3])
    return 0


def _list(vector):
    return [] if vector is None else vector
