"""Rewrites a convolutional network, exactly, so that XNNPACK's sparse inference can take it.

XNNPACK computes a part of a graph sparse if it begins with a 3x3 convolution of stride 2 over three
channels with one row and column of padding on each side, goes on with 1x1 convolutions and
symmetrically padded depthwise ones, and ends with a global mean (`xnnpack.py` has the whole rule).
Networks as Keras makes them miss it by details, which are changed here:

- On even sizes, Keras pads a strided convolution at the end only. Turned by 180 degrees, picture
  and kernels, the padding is at the beginning; a symmetric one then adds a last row that is never
  read. The global mean does not see the rotation.
- `MEAN` and what follows it take the shapes that do not pull the head into the sparse part.

Every pass is a function of the graph that returns what it has done, in words; those of heads and of
padding are in `heads.py` and `padding.py`. `region.py` knows which operators may be there.
"""

import json
from typing import NamedTuple

import numpy as np

from tflite_export import flatbuffer
from tflite_export.graph import Graph
from tflite_export.heads import gates_of_rank_4, heads_of_rank_2
from tflite_export.padding import (
    orientation,
    rotated_kernels,
    strided_convolutions,
    symmetric_padding,
)
from tflite_export.region import (
    FLOAT32,
    IMAGE_RANK,
    STEM_CHANNELS,
    CannotLegalize,
    Region,
    is_per_channel,
    padding_of,
)

__all__ = ["ROTATED", "CannotLegalize", "Legalized", "legalize"]

ROTATED = "tf_sparsity.rotated_input"  # metadata: a JSON list of the inputs that the app turns


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
        if len(constants) != 1 or not is_per_channel(graph.shape(constants[0]), shape[3]):
            continue
        (constant,), (other,) = constants, graph.computed(op)
        if len(graph.shape(constant)) == IMAGE_RANK and graph.reads(op)[0] == constant:
            continue
        value = graph.constant(constant)
        op.inputs = np.array([graph.add_constant(
            f"{graph.name(constant)}/rank_4", value.reshape(1, 1, 1, -1)), other], np.int32)
        notes.append(f"{graph.describe(op)}: its constant comes first, with rank 4")
    return notes


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


def rotated_inputs(graph, region):
    """The file turns its pictures, along one axis at a time: tflite-runtime 2.14 fails at two."""
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
    tensors = [graph.name(tensor) for tensor in region.inputs]
    graph.add_metadata(ROTATED, json.dumps(tensors).encode())
    names = sorted(name for name, tensor in flatbuffer.named_inputs(graph.model)
                   if flatbuffer.name(tensor) in tensors)
    return [f"the app has to turn the inputs {names} by 180 degrees"]
