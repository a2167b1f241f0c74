"""The part of a network that may run sparse, from the picture to the global means."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.graph import ELEMENTWISE

FLOAT32, IMAGE_RANK = schema.TensorType.FLOAT32, 4
GLOBAL = ("MEAN", "SUM")
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
STEM_CHANNELS = 3


POOL_AT_THE_END = "end it with global average pooling"
STEM = "begin with a 3x3 convolution of stride 2 over 1 to 3 channels"


class CannotLegalize(ValueError):
    """The operator that is in the way, and why; `change` is what would help, or None."""

    def __init__(self, why, change=None):
        super().__init__(why)
        self.change = change


class Region:
    """The operators from the picture to the global means, each of which must be known.

    Attributes:
      inputs: the tensors with the pictures.
      tensors: every computed tensor with a height and a width.
      stems: the convolutions that read a picture.
      convolutions: all convolutions with a height and a width, stems included.
      means: the global means and sums.
      fixed: descriptions of operators that may not be turned.

    Raises:
      CannotLegalize: for an operator that XNNPACK cannot compute sparse, or that is not known.
    """

    def __init__(self, graph):
        self.graph, self.fixed = graph, []
        self.inputs = [t for t in graph.inputs if len(graph.shape(t)) == IMAGE_RANK]
        if not self.inputs:
            raise CannotLegalize("The network has no picture, an input of rank 4: there is no "
                                 "convolution to compute sparse.")
        self.pictures, self.features = set(self.inputs), set()
        self.stems, self.convolutions, self.means = [], [], []
        for op in graph.operators:
            spatial = [t for t in graph.computed(op) if t in self.tensors]
            if spatial:
                self._take(op, spatial)
        for tensor in graph.outputs:
            if tensor in self.tensors:
                raise CannotLegalize(
                    f"The output {graph.name(tensor)!r} has a height and a width: sparse inference "
                    "ends with a global mean. A network for segmentation or detection stays dense.",
                    POOL_AT_THE_END)
        if not self.stems:
            raise CannotLegalize("There is no convolution of a picture to begin with.", STEM)
        if not self.means:
            raise CannotLegalize("There is no global mean to end with: use global average pooling.",
                                 POOL_AT_THE_END)

    @property
    def tensors(self):
        return self.pictures | self.features

    def refuse(self, op, why, change=None):
        raise CannotLegalize(f"{self.graph.describe(op)}: {why}", change)

    def _take(self, op, spatial):
        graph, kind = self.graph, self.graph.kind(op)
        for tensor in [*spatial, *graph.writes(op)]:
            self._check_type(op, kind, tensor)
        before = not self.features.intersection(spatial)
        if kind in ELEMENTWISE or kind == "PAD" or before and kind in ("CAST", "REVERSE_V2"):
            if kind == "PAD":
                self._check_pad(op, before)
            if kind == "REVERSE_V2":
                self.fixed.append(graph.describe(op))
        elif kind in ("ADD", "MUL") or before and kind in ("SUB", "DIV"):
            self._check_binary(op, before)
        elif kind in CONVOLUTIONS:
            self._check_convolution(op, kind, before)
        elif kind in GLOBAL and not before:
            self._check_mean(op)
            return
        elif kind == "FULLY_CONNECTED" and not before and op.builtinOptions.keepNumDims:
            pass
        elif kind == "RESIZE_BILINEAR" and not before:
            self.fixed.append(graph.describe(op))
        elif kind == "DEPTH_TO_SPACE" and not before:
            self.fixed.append(graph.describe(op))
            self.means.append(op)
            return
        else:
            self.refuse(op, "the picture's features cannot pass through it in sparse inference. It "
                        "takes 1x1 and depthwise convolutions, activations, sums and products, and "
                        "ends with a global mean.",
                        "pool by strided depthwise convolutions inside, and by a global average at "
                        "the end")
        target = self.pictures if before and kind not in CONVOLUTIONS else self.features
        target.update(graph.writes(op))

    def _check_type(self, op, kind, tensor):
        if self.graph.type(tensor) not in (FLOAT32,) and kind not in ("CAST", "REVERSE_V2"):
            names = {code: name for name, code in vars(schema.TensorType).items()
                     if isinstance(code, int)}
            self.refuse(op, f"it computes with {names.get(self.graph.type(tensor))}, and sparse "
                        "inference with FLOAT32 only. Convert the network without quantization; "
                        "its weights can be stored as int8 afterwards.",
                        "quantize='int8_weights', which computes in float32")
        if min(self.graph.shape(tensor), default=0) < 1:
            self.refuse(op, f"the shape {self.graph.shape(tensor)} is not known.")

    def _check_pad(self, op, before):
        users = self.graph.users(self.graph.writes(op)[0])
        amounts = self.graph.constant(self.graph.reads(op)[1])
        if before and amounts is not None and not amounts[:3].any() and amounts[3, 0] == 0:
            return  # channels of zeros
        if (len(users) != 1 or self.graph.kind(users[0]) not in CONVOLUTIONS or amounts is None
                or amounts.shape != (IMAGE_RANK, 2)):
            self.refuse(op, "it does not belong to one convolution.")
        if amounts[0].any() or amounts[3].any():
            self.refuse(op, f"it pads {amounts.tolist()}, not only height and width.")

    def _check_binary(self, op, before):
        graph = self.graph
        shapes = [graph.shape(t) for t in graph.reads(op)]
        largest = graph.shape(graph.writes(op)[0])
        for tensor, shape in zip(graph.reads(op), shapes):
            if tensor in self.tensors:
                if shape != largest:
                    self.refuse(op, f"the shapes {shapes} differ in height or width.")
                continue
            height_and_width = ((1,) * IMAGE_RANK + shape)[-3:-1]
            if height_and_width != (1, 1):
                self.refuse(op, f"an operand of shape {shape} is no feature of the picture.")
            if graph.constant(tensor) is not None and not before and not is_per_channel(
                    shape, largest[3]):
                self.refuse(op, f"its constant of shape {shape} is neither a scalar nor one value "
                            "for each channel.")

    def _check_convolution(self, op, kind, before):
        graph, options = self.graph, op.builtinOptions
        weight = graph.constant(graph.reads(op)[1])
        if weight is None or weight.dtype != np.float32 or graph.is_sparse(graph.reads(op)[1]):
            self.refuse(op, "its kernel is not a dense float32 constant, and sparse inference "
                        "computes in float32.", "quantize=None or 'int8_weights'")
        size, strides = weight.shape[1:3], (options.strideH, options.strideW)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
            self.refuse(op, "it is dilated.")
        if strides[0] != strides[1] or strides[0] > 2:
            self.refuse(op, f"it has the strides {strides}; known are 1 and 2.")
        if before:
            self._check_stem(op, kind, weight, strides[0])
        elif kind == "CONV_2D":
            if size != (1, 1) or strides[0] != 1 or weight.shape[3] != self._depth(op):
                self.refuse(op, f"a {size[0]}x{size[1]} convolution of stride {strides[0]} inside "
                            "the network; only 1x1 convolutions of stride 1, and depthwise ones, "
                            "run sparse.", "make it a depthwise convolution and a 1x1 one")
        elif size not in ((3, 3), (5, 5)) or weight.shape[3] != self._depth(op):
            self.refuse(op, f"a {size[0]}x{size[1]} kernel, or several outputs for a channel; "
                        "known are depthwise convolutions of 3x3 and 5x5.")
        elif strides[0] == 1 and not self._is_symmetric(op, size):
            self.refuse(op, "its padding does not keep the height and the width.")
        self.convolutions.append(op)

    def _check_stem(self, op, kind, weight, stride):
        if kind != "CONV_2D" or weight.shape[1:3] != (3, 3) or stride != 2:
            self.refuse(op, f"a {kind} with a kernel of {weight.shape[1]}x{weight.shape[2]} and "
                        f"stride {stride} reads the picture; sparse inference needs a CONV_2D of "
                        "3x3 with stride 2 there.", STEM)
        if weight.shape[3] > STEM_CHANNELS:
            self.refuse(op, f"the picture has {weight.shape[3]} channels; sparse inference takes "
                        f"{STEM_CHANNELS}.", STEM)
        self.stems.append(op)

    def _check_mean(self, op):
        axes = self.graph.constant(self.graph.reads(op)[1])
        if axes is None or sorted(int(a) % IMAGE_RANK for a in axes.reshape(-1)) != [1, 2]:
            self.refuse(op, "it does not reduce height and width, and nothing else.")
        self.means.append(op)

    def _depth(self, op):
        return self.graph.shape(self.graph.reads(op)[0])[3]

    def _is_symmetric(self, op, size):
        pad, amounts = padding_of(self.graph, op)
        if op.builtinOptions.padding == schema.Padding.SAME:
            return pad is None
        return amounts is not None and (amounts == np.array(size)[:, None] // 2).all()


def padding_of(graph, op):
    """(the PAD of height and width in front of a convolution, [[top, bottom], [left, right]]);
    (None, None) without one."""
    pad = graph.producer(graph.reads(op)[0])
    if pad is None or graph.kind(pad) != "PAD":
        return None, None
    amounts = graph.constant(graph.reads(pad)[1])
    return (pad, amounts[1:3]) if amounts is not None and not amounts[3].any() else (None, None)


def is_per_channel(shape, channels):
    """Is it the shape of one number, or of one for each channel?"""
    return set(shape[:-1]) <= {1} and (not shape or shape[-1] in (1, channels))
