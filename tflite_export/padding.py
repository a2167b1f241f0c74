"""Convolutions of stride 2, padded alike on each side; the picture turned where that needs it."""

from typing import NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.region import CannotLegalize, padding_of


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
