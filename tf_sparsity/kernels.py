"""Finds the kernels of a model: path, variable, axes, and why one cannot be sparsified."""

from collections import Counter
from typing import Any, NamedTuple

import keras
from keras.src.models.functional import Functional, functional_like_constructor

from tf_sparsity import selection
from tf_sparsity.layers import REPLACEMENTS, SparseLayer
from tf_sparsity.layers.attention import PROJECTIONS, SparseAttention
from tf_sparsity.layers.dense import einsum_axes
from tf_sparsity.layers.recurrent import SparseRNN
from tf_sparsity.method import Kernel, Method, Slot

# Containers that `sparsify` can rebuild around new layers.
WRAPPERS = (keras.layers.TimeDistributed, keras.layers.Bidirectional)
SPARSE_CLASSES = {cls: cls for cls in REPLACEMENTS.values()}


class Found(NamedTuple):
    """One kernel of a model.

    `layer` is the layer that a predicate sees and that `sparsify` replaces, `name` the kernel's
    name in it; `owner` is the layer that holds the variable (a cell, a projection, or `layer`).
    """

    kernel: Kernel
    variable: Any
    layer: Any
    name: str
    owner: Any
    skipped: str | None

    @property
    def method(self) -> Method | None:
        if not isinstance(self.owner, SparseLayer):
            return None
        return self.owner.methods.get(self.name.split("/")[-1])

    @property
    def slot(self) -> Slot:
        return Slot(self.kernel, self.variable, dict(self.owner.state[self.name.split("/")[-1]]))


def find(model):
    """Every kernel of a built model, each variable once, in the order of its layers."""
    found, seen, paths = [], set(), Counter()

    def add(kernel, variable, *more):
        if id(variable) in seen:
            return
        seen.add(id(variable))
        paths[kernel.path] += 1
        if paths[kernel.path] > 1:  # a subclassed model may give two layers one name
            kernel = kernel._replace(path=f"{kernel.path}_{paths[kernel.path]}")
        found.append(Found(kernel, variable, *more))

    def visit(layer, path, inside):
        sparse = SPARSE_CLASSES.get(type(layer)) or REPLACEMENTS.get(type(layer))
        if sparse is not None and layer.built:
            for name, owner, variable, axes in _kernels_of(layer, sparse):
                kernel = Kernel(f"{path}/{name}", tuple(variable.shape), axes)
                add(kernel, variable, layer, name, owner, _refusal(owner) or inside)
            return
        for variable in layer._trainable_variables:
            if selection.is_kernel_like(variable):
                add(selection.guess_kernel(variable, f"{path}/{variable.name}"), variable, layer,
                    variable.name, layer,
                    inside or f"{type(layer).__name__} has no sparse counterpart; "
                              "ts.SparseOptimizer prunes it")
        rebuilt = type(layer) in WRAPPERS or is_graph(layer)
        reason = inside if rebuilt else inside or (
            f"it is inside {type(layer).__name__} '{layer.name}', which cannot be rebuilt; "
            "ts.SparseOptimizer prunes it")
        children = layer.layers if isinstance(layer, keras.Model) else layer._flatten_layers(
            include_self=False, recursive=False)
        for child in children:
            visit(child, f"{path}/{child.name}" if path else child.name, reason)

    visit(model, "", None)
    return found


def check_is_model(model, function, expected="a keras.Model"):
    """Raises TypeError for what is no Keras 3 model, with the way out for a tf_keras model."""
    if isinstance(model, keras.Model):
        return
    if any(cls.__module__.split(".")[0] == "tf_keras" for cls in type(model).__mro__):
        raise TypeError(f"{function} works on Keras 3 models; this is a tf_keras (Keras 2) model. "
                        "Rebuild it with `keras` (not `tf_keras`, and without "
                        "TF_USE_LEGACY_KERAS=1), or prune it with tensorflow_model_optimization.")
    raise TypeError(f"{function} expects {expected}. Received: {model!r}")


def is_graph(layer):
    """Is this a functional or Sequential model, whose layers can be replaced?"""
    return type(layer) is keras.Sequential or (
        isinstance(layer, Functional) and functional_like_constructor(type(layer)))


def _kernels_of(layer, sparse):
    """(name, owner, variable, axes) of each kernel of a Keras layer or its sparse counterpart."""
    if issubclass(sparse, SparseAttention):
        for name, (attribute, head_axis) in PROJECTIONS.items():
            dense = layer.__dict__.get(attribute)
            if dense is not None:
                yield (f"{name}/kernel", dense, _stored(dense, "kernel"),
                       einsum_axes(dense.equation, head_axis))
        return
    owner = layer.cell if issubclass(sparse, SparseRNN) else layer
    for name, axes in sparse.KERNELS.items():
        yield name, owner, _stored(owner, name), axes or einsum_axes(owner.equation)


def _stored(owner, name):
    """The variable, not what reading `owner.kernel` computes."""
    if isinstance(owner, SparseLayer):
        return owner.theta(name)
    return owner.__dict__.get("_" + name, owner.__dict__.get(name))


def _refusal(layer):
    if layer.__dict__.get("lora_enabled", False):
        return ("LoRA is enabled on it and would make its weight dense; merge LoRA by saving and "
                "loading the model first")
    if layer.quantization_mode is not None:
        return (f"it is quantized ({layer.quantization_mode}); sparsify before quantizing")
    return None
