"""Writes small .tflite graphs operator by operator, with random weights of a known number of zeros.

What a converter would fold or reorder stays as written, so that a test can say exactly which graph
it means.
"""

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import flatbuffer

ACTIVATIONS = {None: 0, "RELU": 1, "RELU6": 3}
TYPES = {np.dtype(dtype): code for code, dtype in flatbuffer.DTYPES.items()}
VERSIONS = {"FULLY_CONNECTED": 4, "DEPTHWISE_CONV_2D": 2, "CONV_2D": 2, "RESIZE_BILINEAR": 3}


class Builder:
    """One graph. Every method that adds an operator returns the index of its output tensor.

    Args:
      seed: of the weights.
      zeros: the fraction of zeros in the kernels of 1x1 convolutions.
    """

    def __init__(self, seed=0, zeros=0.9):
        self.random, self.zeros = np.random.default_rng(seed), zeros
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.operatorCodes = 3, []
        self.model.buffers, self.model.subgraphs = [schema.BufferT()], [self.graph]
        self.model.metadata = []
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []

    def shape(self, tensor):
        return [int(size) for size in self.graph.tensors[tensor].shape]

    def tensor(self, shape, dtype="float32", name="t"):
        tensor = schema.TensorT()
        tensor.name = f"{name}{len(self.graph.tensors)}".encode()
        tensor.shape, tensor.type = np.array(shape, np.int32), TYPES[np.dtype(dtype)]
        tensor.buffer, tensor.hasRank = 0, True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def input(self, *shape, dtype="float32"):
        self.graph.inputs.append(self.tensor(shape, dtype, "input"))
        return self.graph.inputs[-1]

    def constant(self, value, name="constant"):
        value = np.asarray(value)
        index = self.tensor(value.shape, value.dtype, name)
        self.graph.tensors[index].buffer = flatbuffer.add_constant(self.model, value)
        return index

    def add(self, kind, inputs, shape, options=None, dtype="float32", **fields):
        """An operator with the options class `options` and its fields."""
        op = schema.OperatorT()
        op.opcodeIndex = flatbuffer.operator_code(
            self.model, getattr(schema.BuiltinOperator, kind), VERSIONS.get(kind, 1))
        if options is not None:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            op.builtinOptions = getattr(schema, options + "T")()
            for field, value in fields.items():
                setattr(op.builtinOptions, field, value)
        op.inputs = np.array(inputs, np.int32)
        op.outputs = np.array([self.tensor(shape, dtype, kind.lower())], np.int32)
        self.graph.operators.append(op)
        return int(op.outputs[0])

    def kernel(self, shape, zeros=0.0):
        """He-scaled normal weights of which round(zeros * size) are zero."""
        scale = math.sqrt(2 / max(math.prod(shape[1:]) * (1 - zeros), 1))
        weight = (scale * self.random.standard_normal(shape)).astype(np.float32)
        weight.flat[self.random.permutation(weight.size)[:round(zeros * weight.size)]] = 0
        return weight

    def bias(self, size):
        return self.constant((0.1 * self.random.standard_normal(size)).astype(np.float32), "bias")

    def conv(self, x, channels, kernel=1, stride=1, padding="SAME", activation=None, zeros=None,
             weight=None, dilation=1):
        """A CONV_2D. A 1x1 kernel has the builder's zeros, others none."""
        batch, height, width, depth = self.shape(x)
        if zeros is None:
            zeros = self.zeros if kernel == 1 else 0.0
        if weight is None:
            weight = self.constant(self.kernel((channels, kernel, kernel, depth), zeros), "kernel")
        size = [_size(n, kernel, stride, padding, dilation) for n in (height, width)]
        return self.add("CONV_2D", [x, weight, self.bias(channels)], [batch, *size, channels],
                        "Conv2DOptions", strideH=stride, strideW=stride, dilationHFactor=dilation,
                        dilationWFactor=dilation, padding=getattr(schema.Padding, padding),
                        fusedActivationFunction=ACTIVATIONS[activation])

    def depthwise(self, x, kernel=3, stride=1, padding="SAME", activation=None, dilation=1,
                  multiplier=1, weight=None):
        batch, height, width, depth = self.shape(x)
        if weight is None:
            weight = self.kernel((depth * multiplier, kernel, kernel)).transpose(1, 2, 0)[None]
            weight = self.constant(weight, "kernel")
        size = [_size(n, kernel, stride, padding, dilation) for n in (height, width)]
        return self.add("DEPTHWISE_CONV_2D",
                        [x, weight, self.bias(depth * multiplier)],
                        [batch, *size, depth * multiplier], "DepthwiseConv2DOptions",
                        strideH=stride, strideW=stride, depthMultiplier=multiplier,
                        dilationHFactor=dilation, dilationWFactor=dilation,
                        padding=getattr(schema.Padding, padding),
                        fusedActivationFunction=ACTIVATIONS[activation])

    def transpose_conv(self, x, weight, stride=2):
        """With a kernel as large as its stride, without a bias."""
        batch, height, width, _ = self.shape(x)
        shape = [batch, stride * height, stride * width, self.shape(weight)[0]]
        size = self.constant(np.array(shape, np.int32), "size")
        return self.add("TRANSPOSE_CONV", [size, weight, x], shape, "TransposeConvOptions",
                        padding=schema.Padding.VALID, strideH=stride, strideW=stride)

    def gather(self, weight, rows):
        """These rows of a matrix."""
        ids = self.constant(np.array(rows, np.int32), "rows")
        return self.add("GATHER", [weight, ids], [len(rows), *self.shape(weight)[1:]],
                        "GatherOptions", axis=0)

    def pad(self, x, top=1, bottom=1, left=1, right=1, channels=0):
        amounts = np.array([[0, 0], [top, bottom], [left, right], [0, channels]], np.int32)
        shape = [n + int(a.sum()) for n, a in zip(self.shape(x), amounts)]
        return self.add("PAD", [x, self.constant(amounts, "padding")], shape, "PadOptions")

    def stem(self, x, channels=16, kernel=3, activation="RELU6"):
        """Symmetric padding and a convolution of stride 2: how a sparse cluster begins."""
        half = kernel // 2
        return self.conv(self.pad(x, half, half, half, half), channels, kernel, 2, "VALID",
                         activation)

    def mean(self, x, keepdims=False, axes=(1, 2), kind="MEAN"):
        shape = [1 if i in axes else n for i, n in enumerate(self.shape(x))
                 if keepdims or i not in axes]
        return self.add(kind, [x, self.constant(np.array(axes, np.int32), "axes")], shape,
                        "ReducerOptions", keepDims=keepdims)

    def dense(self, x, units, keep_num_dims=False, zeros=0.0, activation=None, weight=None):
        if weight is None:
            weight = self.constant(self.kernel((units, self.shape(x)[-1]), zeros), "kernel")
        rows = self.shape(x)[:-1]
        shape = [*rows, units] if keep_num_dims else [math.prod(rows), units]
        return self.add("FULLY_CONNECTED", [x, weight, self.bias(units)], shape,
                        "FullyConnectedOptions", keepNumDims=keep_num_dims,
                        fusedActivationFunction=ACTIVATIONS[activation])

    def binary(self, kind, a, b, activation=None):
        shape = list(np.broadcast_shapes(self.shape(a), self.shape(b)))
        return self.add(kind, [a, b], shape, {"ADD": "AddOptions", "MUL": "MulOptions",
                                              "SUB": "SubOptions"}[kind],
                        fusedActivationFunction=ACTIVATIONS[activation])

    def unary(self, kind, x):
        if kind == "LEAKY_RELU":
            return self.add(kind, [x], self.shape(x), "LeakyReluOptions", alpha=0.2)
        return self.add(kind, [x], self.shape(x))

    def reshape(self, x, *shape):
        target = np.array(shape, np.int32)
        return self.add("RESHAPE", [x, self.constant(target, "shape")], shape, "ReshapeOptions",
                        newShape=target)

    def concatenate(self, *tensors, axis=3):
        shape = self.shape(tensors[0])
        shape[axis] = sum(self.shape(t)[axis] for t in tensors)
        return self.add("CONCATENATION", tensors, shape, "ConcatenationOptions", axis=axis)

    def pool(self, kind, x, size=2):
        batch, height, width, depth = self.shape(x)
        return self.add(kind, [x], [batch, height // size, width // size, depth], "Pool2DOptions",
                        padding=schema.Padding.VALID, strideH=size, strideW=size, filterHeight=size,
                        filterWidth=size)

    def resize(self, x, height, width):
        batch, _, _, depth = self.shape(x)
        return self.add("RESIZE_BILINEAR",
                        [x, self.constant(np.array([height, width], np.int32), "size")],
                        [batch, height, width, depth], "ResizeBilinearOptions",
                        halfPixelCenters=True)

    def depth_to_space(self, x, block=2):
        batch, height, width, depth = self.shape(x)
        return self.add("DEPTH_TO_SPACE", [x],
                        [batch, height * block, width * block, depth // block**2],
                        "DepthToSpaceOptions", blockSize=block)

    def squeeze_excite(self, x, reduced=8):
        """As EfficientNet has it; its 1x1 convolutions have the builder's zeros too."""
        y = self.conv(self.mean(x, keepdims=True), reduced, activation="RELU")
        return self.binary("MUL", x, self.unary("LOGISTIC", self.conv(y, self.shape(x)[3])))

    def metadata(self, name, content):
        entry = schema.MetadataT()
        entry.name = name.encode()
        entry.buffer = flatbuffer.add_constant(self.model, np.frombuffer(content, np.uint8))
        self.model.metadata.append(entry)

    def finish(self, *outputs):
        """The file's bytes."""
        self.graph.outputs = list(outputs)
        self.graph.inputs = np.array(self.graph.inputs, np.int32)
        self.graph.outputs = np.array(self.graph.outputs, np.int32)
        return flatbuffer.write(self.model)


def _size(size, kernel, stride, padding, dilation):
    if padding == "SAME":
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def together(first, second):
    """The first file with the graph of the second one as its second graph."""
    model, other = flatbuffer.read(first), flatbuffer.read(second)
    for graph in other.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer += len(model.buffers)
        for op in graph.operators:
            op.opcodeIndex += len(model.operatorCodes)
    for field in ("buffers", "operatorCodes", "subgraphs"):
        setattr(model, field, getattr(model, field) + getattr(other, field))
    return flatbuffer.write(model)
