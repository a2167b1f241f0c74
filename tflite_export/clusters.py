"""XNNPACK's search for the clusters of a network that it computes with channels first.

A cluster begins with a 3x3 convolution of a picture, goes on with 1x1 and depthwise convolutions,
activations, sums and products, and ends with a global mean. If more than 2/3 of its 1x1 weights are
zero, and some weight of the file is stored sparse, it is computed with channels first, which is
what the sparse kernels need. Where such a cluster hands features to an operator outside, nobody
changes their order back: the result is silently wrong.

`Clusters` repeats `xnn_subgraph_rewrite_for_nchw` of XNNPACK's src/subgraph.c step by step, its
oddities included. What differs between the generations of LiteRT was measured with the stock ARM
binaries; `python -m arm` in tests/ measures it again.
"""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.graph import ELEMENTWISE

OLDEST, FIRST, MIDDLE, NEWEST = GENERATIONS = (
    "tflite-runtime 2.14", "litert 1.2", "litert 1.4-2.1", "litert 2.2+")
SPARSE, DENSE, WRONG = "sparse", "dense", "wrong"

HALF_PRECISION = "reduced_precision_support"  # metadata
PRUNE_MORE = "prune more than 2/3 of the weights of its 1x1 convolutions"
UNPACKING = ("DENSIFY", "DEQUANTIZE")
FLOAT32 = schema.TensorType.FLOAT32

# What XNNPACK runs, sparse or not; anything else is left to other kernels, outside its clusters.
DELEGATED = ELEMENTWISE | {
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "DIV",
    "FULLY_CONNECTED", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "PRELU",
    "RESHAPE", "RESIZE_BILINEAR", "SOFTMAX", "SUB", "SUM", "TRANSPOSE", "DEPTH_TO_SPACE"}
NOT_IN_OLDEST = {"RSQRT", "SQRT", "TANH"}  # activations outside its clusters
# Activations that XNNPACK does not run at all: it sees two graphs, before and after.
SPLITS = {OLDEST: {"EXP", "GELU"}, FIRST: {"EXP"}, MIDDLE: set(), NEWEST: set()}

# Flags of a node, as XNNPACK names them.
NCHW, NHWC2NCHW, NCHW2NHWC, INCOMPATIBLE = 1, 2, 4, 8


def _allows_float16(model):
    """Does the metadata allow inference, and sums, in float16?"""
    values = [bytes(model.buffers[entry.buffer].data) for entry in model.metadata
              if entry.name == HALF_PRECISION.encode()
              and model.buffers[entry.buffer].data is not None]
    return any(b"fp16" in value.split(b"acc")[0] and value.split(b"acc")[-1] == b"fp16"
               for value in values)


@dataclasses.dataclass
class _Node:
    """A node of XNNPACK's graph."""

    op: object
    kind: str
    reads: list  # tensors that are computed
    writes: int
    flags: int
    why: str | None  # it cannot be in a cluster
    part: int = 0  # which of the graphs that XNNPACK sees
    leader: int = 0
    zeros: int = 0  # of its cluster, where it is the leader
    size: int = 0
    blame: str | None = None  # its cluster is incompatible: because of what


class Clusters:
    """The search in one graph, for one of GENERATIONS."""

    def __init__(self, graph, generation):
        self.graph, self.generation = graph, generation
        self.makers = {t: op for op in graph.operators for t in graph.writes(op)}
        self.nodes, self.external = [], {*graph.inputs, *graph.outputs}
        self.allows_float16 = _allows_float16(graph.model)
        self.parts, self.stores_sparse, self.has_exit = {}, set(), set()
        self._collect()
        self.producer = {node.writes: k for k, node in enumerate(self.nodes)}
        self._search()

    # Constants, through the operators that unpack them.

    def _constant(self, tensor):
        """The constant tensor behind the operators that unpack it; None if there is none."""
        for _ in range(len(UNPACKING) + 1):
            if self.graph.constant(tensor) is not None:
                return tensor
            maker = self.makers.get(tensor)
            if maker is None or self.graph.kind(maker) not in UNPACKING:
                return None
            tensor = self.graph.reads(maker)[0]
        return None

    def _is_static(self, tensor):
        return self._constant(tensor) is not None

    # Nodes.

    def _collect(self):
        graph, padded = self.graph, {}
        for op in graph.operators:
            kind = graph.kind(op)
            if kind in UNPACKING and all(self._is_static(t) for t in graph.writes(op)):
                continue
            part = max((self.parts.get(t, 0) for t in graph.reads(op)), default=0)
            splits = kind in SPLITS[self.generation]
            self.parts.update(dict.fromkeys(graph.writes(op), part + splits))
            self.external.update(t for t in graph.reads(op) if self.parts.get(t, part) != part)
            if splits or not self._is_delegated(op, kind):
                self.external.update(graph.reads(op) + graph.writes(op))
                continue
            if kind == "PAD" and self._is_fused(op):
                padded[graph.writes(op)[0]] = graph.reads(op)[0], graph.constant(graph.reads(op)[1])
                continue
            reads, amounts = [], None
            for tensor in graph.reads(op):
                if self._is_static(tensor):
                    if graph.is_sparse(self._constant(tensor)):
                        self.stores_sparse.add(part)
                    continue
                tensor, amounts = padded.get(tensor, (tensor, amounts))
                reads.append(tensor)
            flags, why = self._check(op, kind, reads, amounts)
            node = _Node(op, kind, reads, graph.writes(op)[0], flags, why, part)
            self.nodes.append(node)
            if flags and kind in ("MEAN", "SUM") and self._adds_a_reshape(op):
                target, node.writes = node.writes, -len(self.nodes)
                self.nodes.append(_Node(op, "RESHAPE", [node.writes], target, 0, None, part))

    def _is_delegated(self, op, kind):
        graph = self.graph
        if kind not in DELEGATED or len(graph.writes(op)) != 1:
            return False
        if self.generation == OLDEST and kind in ("MEAN", "SUM"):
            return kind == "MEAN" and self._axes(op) == [1, 2]
        return True

    def _adds_a_reshape(self, op):
        """Newer generations compute a mean that keeps its dimensions, and reshape it."""
        return self.generation in (MIDDLE, NEWEST) and not op.builtinOptions.keepDims

    def _axes(self, op):
        axes = self.graph.constant(self.graph.reads(op)[1])
        return None if axes is None else sorted(int(a) % 4 for a in axes.reshape(-1))

    def _is_fused(self, op):
        """Does a PAD become the padding of the convolution behind it?"""
        graph, target = self.graph, self.graph.writes(op)[0]
        amounts, users = graph.constant(graph.reads(op)[1]), graph.users(target)
        return (len(users) == 1 and target not in self.external and amounts is not None
                and amounts.shape == (4, 2) and not amounts[[0, 3]].any()
                and graph.kind(users[0]) in ("CONV_2D", "DEPTHWISE_CONV_2D")
                and users[0].builtinOptions.padding == schema.Padding.VALID)

    def _check(self, op, kind, reads, amounts):
        """(flags, why it has none), as xnn_check_nchw_compatibility gives them."""
        graph = self.graph
        if any(graph.type(t) != FLOAT32 for t in reads + graph.writes(op)):
            return 0, "it does not compute in float32"
        ranks = [len(graph.shape(t)) for t in graph.reads(op)]
        if not ranks:
            return 0, "it has no input"
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            if not self._is_static(graph.reads(op)[1]):
                return 0, "its kernel is computed"
            check = self._check_conv if kind == "CONV_2D" else self._check_depthwise
            return check(op, amounts)
        if kind == "FULLY_CONNECTED":
            if self.generation == OLDEST or not self._is_static(graph.reads(op)[1]):
                return 0, "it is a dense layer"
            return NCHW, None
        if kind == "DEPTH_TO_SPACE":
            return NCHW2NHWC, None
        if kind in ("MEAN", "SUM"):
            return (NCHW | NCHW2NHWC, None) if ranks[0] == 4 else (0, "its input has not rank 4")
        if kind in ("ADD", "MUL"):
            return self._check_binary(op, ranks)
        if kind == "RESIZE_BILINEAR":
            enough = min(graph.shape(reads[0])[1:3]) > 1
            return (NCHW, None) if enough else (0, "its input has one row or column")
        if kind in ELEMENTWISE:
            if self.generation == OLDEST and kind in NOT_IN_OLDEST:
                return 0, "this activation is not known to sparse inference"
            return (NCHW, None) if ranks[0] == 4 else (0, "its input has not rank 4")
        return 0, "sparse inference does not know this operator"

    def _padding(self, op, amounts, size):
        """[[top, bottom], [left, right]]; None for SAME with a stride"""
        options = op.builtinOptions
        if options.padding == schema.Padding.SAME:
            if (options.strideH, options.strideW) != (1, 1):
                return None
            whole = [(n - 1) * d for n, d in zip(size, (options.dilationHFactor,
                                                        options.dilationWFactor))]
            return [[n // 2, n - n // 2] for n in whole]
        return [[0, 0], [0, 0]] if amounts is None else amounts[1:3].tolist()

    def _check_conv(self, op, amounts):
        graph, options = self.graph, op.builtinOptions
        _, *size, depth = graph.shape(graph.reads(op)[1])
        stride, channels = (options.strideH, options.strideW), graph.shape(graph.reads(op)[0])[3]
        padding = self._padding(op, amounts, size)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1) or depth != channels:
            return 0, "a dilated or grouped convolution does not run sparse"
        if size == [1, 1]:
            if stride != (1, 1) or np.any(padding):
                return 0, "a 1x1 convolution with a stride or padding does not run sparse"
            return NCHW, None
        if size != [3, 3]:
            return 0, (f"a {size[0]}x{size[1]} convolution does not run sparse; begin with one of "
                       "3x3 and stride 2, and use 1x1 ones behind it")
        if channels != 3:
            return 0, (f"a 3x3 convolution of {channels} channels does not run sparse; only the "
                       "one that reads the picture may be 3x3, and it takes 3 channels (`legalize` "
                       "fills up 1 and 2)")
        if stride != (2, 2):
            return 0, f"the first convolution has stride {stride[0]}, not 2"
        if padding != [[1, 1], [1, 1]]:
            return 0, ("with stride 2, its padding is not one explicit row and column on each side "
                       "(SAME is not either); `legalize` makes it so")
        return NHWC2NCHW, None

    def _check_depthwise(self, op, amounts):
        graph, options = self.graph, op.builtinOptions
        _, *size, depth = graph.shape(graph.reads(op)[1])
        padding = self._padding(op, amounts, size)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            return 0, "a dilated depthwise convolution does not run in a sparse cluster"
        if depth != graph.shape(graph.reads(op)[0])[3]:
            return 0, "several outputs for each channel do not run in a sparse cluster"
        if options.strideH != options.strideW or options.strideH > 2:
            return 0, f"the strides {options.strideH}, {options.strideW} are not known"
        if size not in ([3, 3], [5, 5]):
            return 0, f"a {size[0]}x{size[1]} depthwise convolution; known are 3x3 and 5x5"
        half = size[0] // 2
        if padding != [[half, half], [half, half]]:
            return 0, (f"its padding is not {half} explicit rows and columns on each side (SAME is "
                       "not with stride 2); `legalize` makes it so")
        return NCHW, None

    def _check_binary(self, op, ranks):
        graph = self.graph
        if ranks != [4, 4]:
            return 0, "an operand has not rank 4; `legalize` makes it so"
        first, second = graph.reads(op)
        # XNNPACK asks the first operand for its shape even if the second is the constant.
        if (self._is_static(first) or self._is_static(second)) and sum(
                n != 1 for n in graph.shape(first)) > 1:
            return 0, "its constant is not the first operand; `legalize` makes it so"
        return NCHW, None

    # The search.

    def _search(self):
        for k, node in enumerate(self.nodes):
            node.leader = k
        for node in self.nodes:
            if node.flags & NCHW2NHWC and self._link(node):
                self.has_exit.add(node.part)
        update = bool(self.has_exit)
        while update:
            update = False
            for node in self.nodes:
                if not node.flags & INCOMPATIBLE and node.flags & (NCHW | NCHW2NHWC):
                    update |= self._link(node)
        for node in self.nodes:
            if node.flags & INCOMPATIBLE:
                self._spoil(node, node.blame)
        self._check_consumers()
        self._count_zeros()

    def _link(self, node):
        """Joins a node with those it reads from; returns whether a leader has changed."""
        update = False
        for tensor in node.reads:
            if tensor in self.external or tensor not in self.producer:
                node.flags |= INCOMPATIBLE
                node.blame = node.blame or self._external_blame(tensor)
                continue
            producer = self.nodes[self.producer[tensor]]
            if producer.flags & (NHWC2NCHW | NCHW) and not producer.flags & INCOMPATIBLE:
                producer.flags &= ~NCHW2NHWC
                if producer.leader != node.leader:
                    producer.leader = node.leader = max(producer.leader, node.leader)
                    update = True
            else:
                node.flags |= INCOMPATIBLE
                node.blame = node.blame or producer.blame or self._reason_of(producer)
        return update

    def _external_blame(self, tensor):
        graph = self.graph
        if tensor in graph.inputs:
            return "the picture goes into it without a 3x3 convolution of stride 2 in front"
        if tensor in graph.outputs:
            return f"{graph.name(tensor)!r} is an output of the network too"
        maker = self.makers.get(tensor)
        name = graph.name(tensor) if maker is None else graph.describe(maker)
        return f"{name} is outside XNNPACK"

    def _reason_of(self, node):
        why = node.why or "no sparse cluster reaches it"
        return f"{self.graph.describe(node.op)}: {why}"

    def _spoil(self, node, blame):
        leader = self.nodes[node.leader]
        leader.flags |= INCOMPATIBLE
        leader.blame = leader.blame or blame

    def _is_inside(self, node):
        """Is it in a cluster that nothing has spoiled?"""
        return (not self.nodes[node.leader].flags & INCOMPATIBLE
                and bool(node.flags & (NCHW | NCHW2NHWC)))

    def _check_consumers(self):
        """Features of a cluster may be read by it alone, or not at all."""
        readers, inside = {}, {}
        for node in self.nodes:
            for tensor in node.reads:
                readers.setdefault(tensor, []).append(node)
                if self._is_inside(node):
                    inside[tensor] = inside.get(tensor, 0) + 1
        for node in self.nodes:
            if self._is_inside(node):
                for tensor in node.reads:
                    if inside[tensor] != len(readers[tensor]) + (tensor in self.external):
                        other = next((n for n in readers[tensor] if not self._is_inside(n)), node)
                        self._spoil(node, self._reason_of(other))

    def _count_zeros(self):
        for node in self.nodes:
            if self.nodes[node.leader].flags & INCOMPATIBLE:
                continue
            if node.kind not in ("CONV_2D", "FULLY_CONNECTED"):
                continue
            kernel = self.graph.reads(node.op)[1]
            if not self._is_static(kernel):
                continue
            if node.kind == "CONV_2D" and max(self.graph.shape(kernel)[1:3]) > 1:
                continue
            values = self.graph.constant(self._constant(kernel))
            leader = self.nodes[node.leader]
            leader.zeros += int(np.count_nonzero(values == 0))
            leader.size += values.size

    def _is_active(self, node):
        """Is it in a cluster that is computed with channels first?"""
        return self._is_inside(node) and self._has_active_cluster(node)

    def _has_active_cluster(self, node):
        """As `_is_active`; the first convolution is in front of its cluster."""
        leader = self.nodes[node.leader]
        return (node.part in self.has_exit and node.part in self.stores_sparse
                and not leader.flags & INCOMPATIBLE and leader.zeros * 3 > leader.size * 2)

    def _runs_sparse(self, node):
        ignores = self.allows_float16 and self.generation == NEWEST
        return self._is_active(node) and not ignores

    # What comes of it.

    def verdicts(self):
        """(verdict, operator, its description, reason or None, what would change it or None) for
        convolutions and dense layers, and for whatever is computed wrong."""
        wrong = {id(op): (op, text) for op, text in self._errors()}
        for op, text in wrong.values():
            yield WRONG, op, self.graph.describe(op), text, None
        for node in self.nodes:
            if id(node.op) in wrong or node.kind not in ("CONV_2D", "FULLY_CONNECTED"):
                continue
            if self.graph.is_sparse(self.graph.reads(node.op)[1]):
                continue  # a native kernel, or an error that is known already
            if self._runs_sparse(node):
                yield SPARSE, node.op, "", None, None
            elif node.flags & NHWC2NCHW and self._has_active_cluster(node):
                yield DENSE, node.op, "", None, None
            else:
                yield DENSE, node.op, *self._why_dense(node)

    def _errors(self):
        """(operator, what is wrong with its result)"""
        active = [node for node in self.nodes if self._runs_sparse(node)]
        if self.allows_float16 and active and self.generation in (FIRST, MIDDLE):
            yield active[0].op, (f"the metadata {HALF_PRECISION!r} allows float16, with which a "
                                 "sparse cluster does not load or crashes; remove the entry")
            return
        channels_first = {tensor for node in active for tensor in node.reads}
        squeezed, derived = set(), set()  # means of an odd shape, and what has copied it
        for node in active:
            kept = node.writes in channels_first
            if node.kind in ("MEAN", "SUM"):
                if self._axes(node.op) != [1, 2]:
                    yield node.op, ("in a sparse cluster, a mean over other axes than height and "
                                    "width is wrong; use a global mean")
                elif node.op.builtinOptions.keepDims and self.generation != OLDEST:
                    squeezed.add(node.writes)
                    if not kept and not self._is_reshaped(node):
                        yield node.op, ("at the end of a sparse cluster, a mean that keeps its "
                                        "dimensions has a wrong shape; `legalize` changes it")
                continue
            odd = derived.intersection(node.reads) or squeezed.intersection(node.reads)
            if odd and (node.kind in ELEMENTWISE or node.kind in ("ADD", "MUL")):
                derived.add(node.writes)
            if node.kind == "FULLY_CONNECTED" and self.generation != FIRST:
                odd = derived.intersection(node.reads)
            if not kept and node.kind != "DEPTH_TO_SPACE" and self._leaks(node, bool(odd)):
                yield node.op, (
                    f"a sparse cluster hands its result to {self._readers(node)} without putting "
                    "its channels last again, so that it is wrong, or the file does not load; end "
                    "the cluster with a global mean"
                    + (" and let `legalize` take the head out" if odd else ""))

    def _leaks(self, node, odd):
        """Is the result of a node wrong for what reads it with channels last?"""
        graph = self.graph
        places = [graph.shape(t)[1:3] for t in node.reads if len(graph.shape(t)) == 4]
        if any(place != (1, 1) for place in places):
            return True
        return odd  # one place: both orders are the same, but for the odd shape of a mean

    def _is_reshaped(self, node):
        """Do only RESHAPEs, which ask for no shape, read it?"""
        users = self.graph.users(node.writes)
        return (users and node.writes not in self.external
                and all(self.graph.kind(op) == "RESHAPE" for op in users))

    def _readers(self, node):
        readers = [self.graph.kind(op) for op in self.graph.users(node.writes)]
        return " and ".join(sorted(set(readers))) or "an output of the network"

    def _why_dense(self, node):
        """(description of what is in the way, why, what would change it or None)"""
        graph, leader = self.graph, self.nodes[node.leader]
        if not node.flags & (NCHW | NHWC2NCHW):
            return graph.describe(node.op), node.why or "sparse inference does not know it", None
        if not self.stores_sparse:
            return self._scope(), "no weight is stored sparse", PRUNE_MORE
        splits = {graph.kind(op) for op in graph.operators} & SPLITS[self.generation]
        if splits and not (node.part in self.stores_sparse and node.part in self.has_exit):
            return graph.describe(node.op), (
                f"XNNPACK does not run {' or '.join(sorted(splits))}, and sees the network in "
                "parts, this one without all that a cluster needs"), None
        if self._is_active(node):
            return "the file", (f"its metadata {HALF_PRECISION!r} allows float16, in which nothing "
                                "runs sparse; remove the entry"), "remove the entry"
        if leader.flags & INCOMPATIBLE or node.flags & INCOMPATIBLE:
            return self._blamed(node.blame or leader.blame, graph.describe(node.op))
        if node.part not in self.has_exit:
            for end in self.nodes:  # one that would end a cluster, if something were not in its way
                if end.part == node.part and end.blame and end.kind in ("MEAN", "SUM"):
                    return self._blamed(end.blame, self._scope())
        if node.part not in self.has_exit or leader.size == 0:
            return self._scope(), (
                "no global mean (MEAN over height and width) ends a cluster; max pooling, "
                "flattening and outputs with a height do not"), "end it with global average pooling"
        return "the cluster of " + graph.describe(node.op), (
            f"{leader.zeros} of the {leader.size} weights of its 1x1 convolutions are zero "
            f"({leader.zeros / leader.size:.0%}); more than 2/3 are needed"), PRUNE_MORE

    def _blamed(self, blame, where):
        """As `_why_dense`; a blame may name its operator itself."""
        return (*blame.split(": ", 1), None) if ": " in blame else (where, blame, None)

    def _scope(self):
        """What was searched, for messages."""
        if len(self.graph.model.subgraphs) == 1:
            return "the file"
        return f"the graph {bytes(self.graph.graph.name or b'').decode('utf-8', 'replace')!r}"
