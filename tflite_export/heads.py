"""What a global mean leads to: gates inside the sparse part, and the head behind it."""

import numpy as np

from tflite_export.graph import ELEMENTWISE
from tflite_export.region import GLOBAL, IMAGE_RANK


def gates_of_rank_4(graph):
    """Squeeze-excite: a MEAN and a RESHAPE to (batch, 1, 1, channels) are a MEAN of rank 4."""
    notes = []
    for reshape in [op for op in graph.operators if graph.kind(op) == "RESHAPE"]:
        source, target = graph.reads(reshape)[0], graph.writes(reshape)[0]
        mean = graph.producer(source)
        if mean is None or graph.kind(mean) not in GLOBAL or mean.builtinOptions.keepDims:
            continue
        features = graph.shape(graph.reads(mean)[0])
        if (len(features) != IMAGE_RANK
                or graph.shape(target) != (features[0], 1, 1, features[3])):
            continue
        kept = graph.operator(graph.kind(mean), graph.reads(mean), [target], keepDims=True)
        graph.insert(kept, before=reshape)
        graph.remove(reshape)
        if not graph.users(source) and source not in graph.outputs:
            graph.remove(mean)
        notes.append(f"{graph.name(target)}: the mean keeps four dimensions")
    return notes


def heads_of_rank_2(graph, region):
    """What follows a global mean, and does not lead back to the features, gets rank 2.

    A RESHAPE in between keeps it out of the part that runs sparse: there, LiteRT computes a wrong
    head or does not load, or counts its weights as if they were to be sparse.
    """
    notes = []
    for mean in region.means:
        if graph.kind(mean) not in GLOBAL:
            continue
        out = graph.writes(mean)[0]
        gates = [op for op in graph.users(out) if _leads_to(graph, op, region.tensors)]
        heads = [op for op in graph.users(out) if all(op is not gate for gate in gates)]
        if gates and not mean.builtinOptions.keepDims:
            region.refuse(mean, "its gate is computed in rank 2, by dense layers. Use 1x1 "
                          "convolutions of a mean that keeps its dimensions.")
        if mean.builtinOptions.keepDims:
            if heads or out in graph.outputs:
                _split_head(graph, mean, gates, notes)
        elif heads and not all(graph.kind(op) == "RESHAPE" for op in heads):
            pooled = graph.add_tensor(f"{graph.name(out)}/pooled", graph.shape(out), out)
            mean.outputs = np.array([pooled], np.int32)
            graph.insert(_reshape(graph, pooled, out), after=mean)
            notes.append(f"{graph.name(out)}: a RESHAPE keeps the head apart")
    return notes


def _leads_to(graph, op, tensors):
    """Does anything computed from what `op` writes meet `tensors`?"""
    reached = set(graph.writes(op))
    if tensors.intersection(graph.reads(op)):
        return True
    for later in graph.operators[graph.operators.index(op) + 1:]:
        if reached.intersection(graph.reads(later)):
            if tensors.intersection(graph.reads(later)):
                return True
            reached.update(graph.writes(later))
    return False


def _split_head(graph, mean, gates, notes):
    """The head of a mean that keeps rank 4 gets a mean of its own, without."""
    out = graph.writes(mean)[0]
    batch, _, _, depth = graph.shape(out)
    pooled = graph.add_tensor(f"{graph.name(out)}/pooled", (batch, depth), out)
    apart = graph.add_tensor(f"{graph.name(out)}/rank_2", (batch, depth), out)
    own = graph.operator(graph.kind(mean), graph.reads(mean), [pooled], keepDims=False)
    barrier = _reshape(graph, pooled, apart)
    graph.insert(own, after=mean)
    graph.insert(barrier, after=own)
    if gates:
        gate = graph.add_tensor(f"{graph.name(out)}/gate", graph.shape(out), out)
        mean.outputs = np.array([gate], np.int32)
        for op in gates:
            graph.reconnect(op, out, gate)
    else:
        graph.remove(mean)
    _flatten(graph, out, apart, notes)
    notes.append(f"{graph.name(out)}: the head has rank 2 and is kept apart by a RESHAPE")


def _flatten(graph, old, new, notes):
    """What reads `old`, of shape (batch, 1, 1, n), reads `new`, of shape (batch, n)."""
    producer = graph.producer(new)
    for op in graph.users(old):
        kind, weight = graph.kind(op), None
        if kind == "RESHAPE" or kind == "FULLY_CONNECTED" and not op.builtinOptions.keepNumDims:
            graph.reconnect(op, old, new)
            continue
        if kind == "CONV_2D":
            weight = graph.constant(graph.reads(op)[1])
            if weight is None or weight.shape[1:3] != (1, 1) or weight.dtype != np.float32:
                continue
            graph.rewrite(op, 1, graph.add_constant(
                f"{graph.name(graph.reads(op)[1])}/dense", weight[:, 0, 0]))
            graph.become(op, "FULLY_CONNECTED",
                         fusedActivationFunction=op.builtinOptions.fusedActivationFunction)
            notes.append(f"{graph.name(graph.writes(op)[0])}: a dense layer instead of a 1x1 "
                         "convolution")
        elif kind == "FULLY_CONNECTED":
            op.builtinOptions.keepNumDims = False
        elif kind in ("ADD", "MUL") and len(graph.computed(op)) == 1:
            (constant,) = [t for t in graph.reads(op) if t != old]
            value = graph.constant(constant)
            if value.size not in (1, graph.shape(old)[-1]):
                continue
            graph.reconnect(op, constant, graph.add_constant(
                f"{graph.name(constant)}/rank_1", value.reshape(-1)))
        elif kind not in ELEMENTWISE and kind != "SOFTMAX":
            continue
        graph.reconnect(op, old, new)
        target = graph.writes(op)[0]
        batch, *_, depth = graph.shape(target)
        flat = graph.add_tensor(f"{graph.name(target)}/rank_2", (batch, depth), target)
        op.outputs = np.array([flat], np.int32)
        _flatten(graph, target, flat, notes)
    if graph.users(old) or old in graph.outputs:  # what needs rank 4
        graph.insert(_reshape(graph, new, old), after=producer)


def _reshape(graph, source, target):
    """An operator that gives `source` the shape of `target`, for any batch size."""
    shape = np.array([-1, *graph.shape(target)[1:]], np.int32)
    return graph.operator("RESHAPE", [source, graph.add_constant("shape", shape)], [target],
                          newShape=shape)
