"""Rewrites a convolutional network, exactly, so that XNNPACK's sparse inference can take it.

XNNPACK computes a part of a graph sparse if it begins with a 3x3 convolution of stride 2 over three
channels with one row and column of padding on each side, goes on with 1x1 convolutions and
symmetrically padded depthwise ones, and ends with a global mean (`xnnpack.py` has the whole rule).
Networks as Keras makes them miss it by details, which are changed here:

- On even sizes, Keras pads a strided convolution at the end only. Turned by 180 degrees, picture
  and kernels, the padding is at the beginning; a symmetric one then adds a last row that is never
  read. The global mean does not see the rotation.
- `MEAN` and what follows it take the shapes that do not pull the head into the sparse part.

Every pass is a function of the graph that returns what it has done, in words.
"""

import json
from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export import flatbuffer
from tflite_export.graph import ELEMENTWISE, Graph

ROTATED = "tf_sparsity.rotated_input"  # metadata: a JSON list of the inputs that the app turns
FLOAT32, IMAGE_RANK = schema.TensorType.FLOAT32, 4
GLOBAL = ("MEAN", "SUM")
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
STEM_CHANNELS = 3


class CannotLegalize(ValueError):
    """The operator that is in the way, and why."""


class Legalized(NamedTuple):
    """A file and what was done to it."""

    tflite: bytes
    notes: tuple  # of str; empty if the file needed nothing, and is the one given
    rotated: bool  # the network sees its picture turned by 180 degrees


def legalize(tflite, *, rotate_input=True):
    """The same network in the form that XNNPACK's sparse inference takes.

    Only the main subgraph is rewritten. What the file computes changes by rounding only.

    Args:
      tflite: bytes of a dense float32 file, its weights not yet encoded.
      rotate_input: where the picture has to be turned by 180 degrees, let the file do it; it costs
        two copies of the picture. False leaves it to the app, which then has to feed
        `picture[:, ::-1, ::-1]`; the file's metadata has an entry `ROTATED` that names the inputs.

    Returns:
      Legalized.

    Raises:
      CannotLegalize: for a network that cannot run sparse; the sentence names the operator.
      ValueError: for what is no .tflite file.

    Example:

    ```python
    import keras
    import tflite_export
    from keras import layers
    from tflite_export import legalize
    model = keras.Sequential([
        keras.Input((32, 32, 3)), layers.Conv2D(8, 3, strides=2, padding="same"),
        layers.Conv2D(16, 1), layers.GlobalAveragePooling2D(), layers.Dense(10)])
    dense = tflite_export.convert(model, sparse=False).tflite
    legal = legalize.legalize(dense)
    assert legal.rotated and legal.notes[-1] == "turns the input by 180 degrees"
    assert legalize.legalize(legal.tflite) == (legal.tflite, (), False)
    ```
    """
    model = flatbuffer.read(tflite)
    graph = Graph(model)
    notes = gates_of_rank_4(graph)
    notes += constants_of_rank_4(graph)
    region = Region(graph)
    notes += heads_of_rank_2(graph, region)
    notes += stems_of_three_channels(graph, region)
    strided = strided_convolutions(graph, region)
    rotated, kernels = orientation(graph, region, strided)
    if rotated:
        rotated_kernels(graph, region)
    notes += symmetric_padding(graph, strided, rotated, kernels)
    if rotated:
        turn = rotated_inputs if rotate_input else inputs_left_to_the_app
        notes += turn(graph, region)
    return Legalized(flatbuffer.write(model) if notes else tflite, tuple(notes), rotated)


# What may be there.


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
                    "ends with a global mean. A network for segmentation or detection stays dense.")
        if not self.stems:
            raise CannotLegalize("There is no convolution of a picture to begin with.")
        if not self.means:
            raise CannotLegalize("There is no global mean to end with: use global average pooling.")

    @property
    def tensors(self):
        return self.pictures | self.features

    def refuse(self, op, why):
        raise CannotLegalize(f"{self.graph.describe(op)}: {why}")

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
                        "ends with a global mean.")
        target = self.pictures if before and kind not in CONVOLUTIONS else self.features
        target.update(graph.writes(op))

    def _check_type(self, op, kind, tensor):
        if self.graph.type(tensor) not in (FLOAT32,) and kind not in ("CAST", "REVERSE_V2"):
            names = {code: name for name, code in vars(schema.TensorType).items()
                     if isinstance(code, int)}
            self.refuse(op, f"it computes with {names.get(self.graph.type(tensor))}, and sparse "
                        "inference with FLOAT32 only. Convert the network without quantization; "
                        "its weights can be stored as int8 afterwards.")
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
            if graph.constant(tensor) is not None and not before and not _is_per_channel(
                    shape, largest[3]):
                self.refuse(op, f"its constant of shape {shape} is neither a scalar nor one value "
                            "for each channel.")

    def _check_convolution(self, op, kind, before):
        graph, options = self.graph, op.builtinOptions
        weight = graph.constant(graph.reads(op)[1])
        if weight is None or weight.dtype != np.float32 or graph.is_sparse(graph.reads(op)[1]):
            self.refuse(op, "its kernel is no dense float32 constant. Legalize before weights are "
                        "quantized or stored sparse.")
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
                            "run sparse.")
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
                        "3x3 with stride 2 there.")
        if weight.shape[3] > STEM_CHANNELS:
            self.refuse(op, f"the picture has {weight.shape[3]} channels; sparse inference takes "
                        f"{STEM_CHANNELS}.")
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


# The passes.


def gates_of_rank_4(graph):
    """Squeeze-excite: MEAN, then RESHAPE to (batch, 1, 1, channels), is a MEAN that keeps rank 4."""
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


def constants_of_rank_4(graph):
    """ADD and MUL of features and a constant: the constant first, of rank 4.

    XNNPACK asks the first operand whether it is a scalar or one value for each channel.
    """
    notes = []
    for op in graph.operators:
        if graph.kind(op) not in ("ADD", "MUL") or len(graph.reads(op)) != 2:
            continue
        target = graph.writes(op)[0]
        shape = graph.shape(target)
        if len(shape) != IMAGE_RANK or graph.type(target) != FLOAT32:
            continue
        constants = [t for t in graph.reads(op) if graph.constant(t) is not None]
        if len(constants) != 1 or not _is_per_channel(graph.shape(constants[0]), shape[3]):
            continue
        (constant,), (other,) = constants, graph.computed(op)
        if len(graph.shape(constant)) == IMAGE_RANK and graph.reads(op)[0] == constant:
            continue
        value = graph.constant(constant)
        op.inputs = np.array([graph.add_constant(
            f"{graph.name(constant)}/rank_4", value.reshape(1, 1, 1, -1)), other], np.int32)
        notes.append(f"{graph.describe(op)}: its constant comes first, with rank 4")
    return notes


def _is_per_channel(shape, channels):
    """Is it the shape of one number, or of one for each channel?"""
    return set(shape[:-1]) <= {1} and (not shape or shape[-1] in (1, channels))


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


def stems_of_three_channels(graph, region):
    """Pictures of 1 or 2 channels get channels of zeros, and so do the kernels that read them."""
    notes = []
    for op in region.stems:
        weight = graph.constant(graph.reads(op)[1])
        missing = STEM_CHANNELS - weight.shape[3]
        if missing == 0:
            continue
        pad, _ = padding_of(graph, op)
        first = op if pad is None else pad
        source = graph.reads(first)[0]
        name, wider = graph.name(source), (*graph.shape(source)[:3], STEM_CHANNELS)
        target = graph.add_tensor(f"{name}/three_channels", wider, source)
        amounts = np.array([[0, 0], [0, 0], [0, 0], [0, missing]], np.int32)
        graph.insert(graph.operator("PAD", [source, graph.add_constant("channels", amounts)],
                                    [target]), before=first)
        graph.reconnect(first, source, target)
        if pad is not None:
            padded = graph.writes(pad)[0]
            pad.outputs = np.array([graph.add_tensor(
                f"{graph.name(padded)}/three_channels",
                (*graph.shape(padded)[:3], STEM_CHANNELS), padded)], np.int32)
            graph.reconnect(op, padded, graph.writes(pad)[0])
        graph.rewrite(op, 1, graph.add_constant(
            f"{graph.name(graph.reads(op)[1])}/three_channels",
            np.pad(weight, [(0, 0), (0, 0), (0, 0), (0, missing)])))
        notes.append(f"{graph.describe(op)}: {weight.shape[3]} channels become {STEM_CHANNELS}")
    return notes


class Strided(NamedTuple):
    """How a convolution of stride 2 lies on its input; pairs are for height and width."""

    op: object
    pad: object  # the PAD in front of it, or None
    source: int  # the tensor before padding
    kernel: int  # 3 or 5
    sizes: tuple  # of the source
    outputs: tuple  # positions of the kernel
    leading: tuple  # rows and columns of padding before the first one of the source

    def leading_if(self, rotated):
        """The same after a rotation: what was read after the last row."""
        if not rotated:
            return self.leading
        return tuple((positions - 1) * 2 + self.kernel - size - leading for positions, size, leading
                     in zip(self.outputs, self.sizes, self.leading))

    def fits(self, rotated, kernel):
        """Is it a convolution of kernel x kernel, its own inside zeros, padded symmetrically?

        With kernel // 2 rows on each side there are ceil(size / 2) positions. What a symmetric
        padding adds after the last position is never read.
        """
        room = kernel - self.kernel
        return all(0 <= kernel // 2 - leading <= room and positions == -(-size // 2)
                   for leading, positions, size
                   in zip(self.leading_if(rotated), self.outputs, self.sizes))


def strided_convolutions(graph, region):
    """[Strided] of the region."""
    result = []
    for op in region.convolutions:
        options = op.builtinOptions
        if options.strideH != 2:
            continue
        pad, amounts = padding_of(graph, op)
        source = graph.reads(op if pad is None else pad)[0]
        kernel = graph.shape(graph.reads(op)[1])[1]
        sizes, outputs = graph.shape(source)[1:3], graph.shape(graph.writes(op)[0])[1:3]
        same = options.padding == schema.Padding.SAME
        if same and pad is not None:
            region.refuse(op, "it is padded twice, by a PAD and by its own SAME.")
        leading = (0, 0) if amounts is None else tuple(int(a) for a in amounts[:, 0])
        if same:  # the smaller half comes first
            leading = tuple(max((n - 1) * 2 + kernel - size, 0) // 2
                            for n, size in zip(outputs, sizes))
        result.append(Strided(op, pad, source, kernel, sizes, outputs, leading))
    return result


def orientation(graph, region, strided):
    """(must the picture be turned, the kernel size that each strided convolution then needs)

    Both ways are tried; the one in which fewer depthwise kernels of 3x3 grow to 5x5 is taken.

    Raises:
      CannotLegalize: if in both ways a convolution cannot be padded symmetrically.
    """
    ways = []
    for rotated in (False, True):
        kernels = [next((k for k in _kernels(graph, s) if s.fits(rotated, k)), None)
                   for s in strided]
        if None not in kernels:
            ways.append((sum(k > s.kernel for k, s in zip(kernels, strided)), rotated, kernels))
        else:
            stuck = strided[kernels.index(None)]
    if not ways:
        region.refuse(stuck.op, f"with an input of {stuck.sizes} and {stuck.leading} rows and "
                      "columns of padding before it, neither the picture nor the same picture "
                      "turned by 180 degrees needs symmetric padding for all convolutions of "
                      "stride 2. Pad them alike, or use even sizes.")
    _, rotated, kernels = min(ways, key=lambda way: way[:2])
    if rotated and region.fixed:
        raise CannotLegalize(f"{region.fixed[0]}: the picture would have to be turned by 180 "
                             "degrees, and this operator cannot. Pad the convolutions of stride 2 "
                             "symmetrically.")
    return rotated, kernels


def _kernels(graph, strided):
    """The kernel sizes that may be tried."""
    grows = graph.kind(strided.op) == "DEPTHWISE_CONV_2D" and strided.kernel == 3
    return (3, 5) if grows else (strided.kernel,)


def rotated_kernels(graph, region):
    """Turns every kernel with a height and a width by 180 degrees."""
    turned = {}
    for op in region.convolutions:
        tensor = graph.reads(op)[1]
        kernel = graph.constant(tensor)
        if kernel.shape[1] > 1:
            if tensor not in turned:
                turned[tensor] = graph.add_constant(f"{graph.name(tensor)}/turned",
                                                    kernel[:, ::-1, ::-1])
            graph.rewrite(op, 1, turned[tensor])


def symmetric_padding(graph, strided, rotated, kernels):
    """Convolutions of stride 2 get an explicit PAD, the same on each side."""
    notes = []
    for s, kernel in zip(strided, kernels):
        half, leading = kernel // 2, s.leading_if(rotated)
        if s.pad is not None and kernel == s.kernel and (padding_of(graph, s.op)[1] == half).all():
            continue
        if kernel > s.kernel:
            room, weight = kernel - s.kernel, graph.constant(graph.reads(s.op)[1])
            before = [half - n for n in leading]
            wider = np.pad(weight, [(0, 0), *((n, room - n) for n in before), (0, 0)])
            graph.rewrite(s.op, 1, graph.add_constant(
                f"{graph.name(graph.reads(s.op)[1])}/{kernel}x{kernel}", wider))
            notes.append(f"{graph.describe(s.op)}: its kernel grows to {kernel}x{kernel}")
        batch, height, width, depth = graph.shape(s.source)
        padded = graph.add_tensor(f"{graph.name(s.source)}/padded",
                                  (batch, height + 2 * half, width + 2 * half, depth), s.source)
        amounts = np.array([[0, 0], [half, half], [half, half], [0, 0]], np.int32)
        graph.insert(graph.operator("PAD", [s.source, graph.add_constant("padding", amounts)],
                                    [padded]), before=s.op)
        graph.rewrite(s.op, 0, padded)
        s.op.builtinOptions.padding = schema.Padding.VALID
        if s.pad is not None:
            graph.remove(s.pad)
        notes.append(f"{graph.describe(s.op)}: {half} rows and columns of padding on each side")
    return notes


def rotated_inputs(graph, region):
    """The file turns its pictures. Along one axis at a time: tflite-runtime 2.14 is wrong on two."""
    for source in region.inputs:
        users, current = graph.users(source), source
        for place, axis in enumerate((1, 2)):
            target = graph.add_tensor(f"{graph.name(source)}/turned_{axis}", graph.shape(source),
                                      source)
            axes = graph.add_constant("axis", np.array([axis], np.int32))
            graph.operators.insert(place, graph.operator("REVERSE_V2", [current, axes], [target]))
            current = target
        for op in users:
            graph.reconnect(op, source, current)
    return ["turns the input by 180 degrees"]


def inputs_left_to_the_app(graph, region):
    """The app turns the pictures; the metadata says which."""
    names = json.dumps([graph.name(tensor) for tensor in region.inputs])
    graph.add_metadata(ROTATED, names.encode())
    return [f"the app has to turn the inputs {names} by 180 degrees"]
