"""One subgraph of a file: its operators by what they read and write, and small edits of it.

Constants are never changed in place: a buffer may belong to several tensors, a tensor to several
operators. An edit adds a tensor; `flatbuffer.write` drops what nothing uses any more.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import flatbuffer

FORMS = {  # kind: (inputs at least, options); what the code below may rely on
    "ADD": (2, "Add"), "CONV_2D": (2, "Conv2D"), "DEPTHWISE_CONV_2D": (2, "DepthwiseConv2D"),
    "FULLY_CONNECTED": (2, "FullyConnected"), "MEAN": (2, "Reducer"), "MUL": (2, "Mul"),
    "PAD": (2, None), "RESHAPE": (1, None), "SUM": (2, "Reducer"), "DENSIFY": (1, None),
    "DEQUANTIZE": (1, None)}
RANKS = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 2}  # of kernels
ELEMENTWISE = frozenset([  # of one tensor, each element on its own
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG",
    "RELU", "RELU6", "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH"])


class Graph:
    """A view of `model.subgraphs[index]`. Tensors are numbers, operators the schema's objects."""

    def __init__(self, model, index=0):
        self.model, self.graph = model, model.subgraphs[index]
        self._values = {}
        for op in self.operators:
            self._check_form(op)

    def _check_form(self, op):
        kind = self.kind(op)
        least, options = FORMS.get(kind, (0, None))
        wanted = getattr(schema, f"{options}OptionsT", object)
        ranks = [len(self.shape(t)) for t in self.reads(op)[:2]]
        if (len(self.reads(op)) < least or any(t < 0 for t in op.inputs[:least])
                or (least and len(self.writes(op)) != 1)
                or not isinstance(op.builtinOptions, wanted)
                or (kind in RANKS and ranks[1] != RANKS[kind])
                or (RANKS.get(kind) == 4 and ranks[0] != 4)):
            raise ValueError(f"The .tflite file is damaged: {kind} has inputs of the ranks "
                             f"{ranks}, {len(self.writes(op))} outputs and the options "
                             f"{type(op.builtinOptions).__name__}.")

    @property
    def operators(self):
        return self.graph.operators

    @property
    def inputs(self):
        return [int(t) for t in self.graph.inputs]

    @property
    def outputs(self):
        return [int(t) for t in self.graph.outputs]

    def kind(self, op):
        """"CONV_2D" and so on."""
        return flatbuffer.operator(self.model, op)

    def reads(self, op):
        """The tensors that an operator reads; an optional one that is left out is none."""
        return [int(t) for t in op.inputs if t >= 0]

    def writes(self, op):
        return [int(t) for t in op.outputs if t >= 0]

    def describe(self, op):
        """The operator's kind and the name of what it computes, for messages."""
        written = self.writes(op)
        return f"{self.kind(op)} {self.name(written[0]) if written else ''!r}"

    def producer(self, tensor):
        """The operator that writes a tensor, or None."""
        return next((op for op in self.operators if tensor in op.outputs), None)

    def users(self, tensor):
        """The operators that read a tensor, in order."""
        return [op for op in self.operators if tensor in op.inputs]

    def name(self, tensor):
        return flatbuffer.name(self.graph.tensors[tensor])

    def type(self, tensor):
        return self.graph.tensors[tensor].type

    def shape(self, tensor):
        """Tuple of sizes; () for a scalar and for a tensor of unknown rank."""
        shape = self.graph.tensors[tensor].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def constant(self, tensor):
        """The dense array of a constant; None for what is computed."""
        if tensor not in self._values:
            self._values[tensor] = flatbuffer.constant(self.model, self.graph.tensors[tensor])
        return self._values[tensor]

    def data(self, tensor):
        """The bytes that are stored for a tensor; none for what is computed."""
        data = self.model.buffers[self.graph.tensors[tensor].buffer].data
        return b"" if data is None else data

    def is_sparse(self, tensor):
        """Is it a constant that is stored sparse?"""
        return self.graph.tensors[tensor].sparsity is not None

    def computed(self, op):
        """The tensors that an operator reads and that are no constants."""
        return [t for t in self.reads(op) if self.constant(t) is None]

    def add_tensor(self, name, shape, like):
        """A tensor that an operator will write, with the type and the free batch size of `like`."""
        tensor, model = schema.TensorT(), self.graph.tensors[like]
        tensor.name, tensor.shape = name.encode(), np.array(shape, np.int32)
        tensor.type, tensor.buffer, tensor.hasRank = model.type, 0, True
        if model.shapeSignature is not None and len(model.shapeSignature) and shape:
            tensor.shapeSignature = np.array([model.shapeSignature[0], *shape[1:]], np.int32)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add_constant(self, name, value):
        """A tensor with the values of a float32 or int32 array."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name.encode(), np.array(value.shape, np.int32)
        tensor.type, tensor.hasRank = {
            np.dtype("float32"): schema.TensorType.FLOAT32,
            np.dtype("int32"): schema.TensorType.INT32}[value.dtype], True
        tensor.buffer = flatbuffer.add_constant(self.model, value)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add_metadata(self, name, content):
        """An entry of the file's metadata, from bytes."""
        entry = schema.MetadataT()
        entry.name = name.encode()
        entry.buffer = flatbuffer.add_constant(self.model, np.frombuffer(content, np.uint8))
        self.model.metadata.append(entry)

    def operator(self, kind, reads, writes, **fields):
        """An operator, not yet in the graph, with the options of its kind."""
        op = schema.OperatorT()
        op.inputs, op.outputs = np.array(reads, np.int32), np.array(writes, np.int32)
        self.become(op, kind, **fields)
        return op

    def become(self, op, kind, **fields):
        """Gives an operator a kind and options."""
        options = "".join(word.title() for word in kind.split("_")).removesuffix("2d")
        options = {"Mean": "Reducer", "Sum": "Reducer"}.get(options, options) + "Options"
        op.opcodeIndex = flatbuffer.operator_code(
            self.model, getattr(schema.BuiltinOperator, kind), 1)
        op.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        op.builtinOptions = getattr(schema, f"{options}T")()
        for field, value in fields.items():
            setattr(op.builtinOptions, field, value)

    def insert(self, op, *, before=None, after=None):
        place = self.operators.index(before) if after is None else self.operators.index(after) + 1
        self.operators.insert(place, op)

    def remove(self, op):
        self.operators.remove(op)

    def reconnect(self, op, old, new):
        """Makes an operator read tensor `new` where it has read `old`."""
        op.inputs = np.array([new if t == old else t for t in op.inputs], np.int32)

    def rewrite(self, op, place, tensor):
        """Makes an operator read `tensor` as its input number `place`."""
        op.inputs = np.array([tensor if i == place else t for i, t in enumerate(op.inputs)],
                             np.int32)
