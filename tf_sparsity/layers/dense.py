"""SparseDense and SparseEinsumDense."""

import keras
from keras import ops

from tf_sparsity.layers.base import SparseLayer, sparse_layer


def _finish(layer, y):
    if layer.bias is not None:
        y = ops.add(y, layer.bias)
    return y if layer.activation is None else layer.activation(y)


@sparse_layer
class SparseDense(SparseLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a sparse kernel of shape (in, out)."""

    KERNELS = {"kernel": ("in", "out")}

    def call(self, inputs, training=None):
        return _finish(self, self.apply_kernel("kernel", ops.matmul, inputs, training))


def einsum_axes(equation, head_axis=None):
    """The roles of the kernel's axes in an EinsumDense equation such as "abc,cd->abd"."""
    left, output = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    roles = ["batch" if letter in inputs and letter in output else
             "in" if letter in inputs else "out" for letter in kernel]
    if head_axis is not None:
        roles[head_axis] += ":head"
    return tuple(roles)


@sparse_layer
class SparseEinsumDense(SparseLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` with a sparse kernel; the equation names its axes.

    An axis that the kernel shares with the input only is `in`, with the output only `out`, with
    both `batch`. Attention marks its head axis through `head_axis`.
    """

    KERNELS = {"kernel": None}
    head_axis = None

    def axes(self, name):
        return einsum_axes(self.equation, self.head_axis)

    def call(self, inputs, training=None):
        y = self.apply_kernel("kernel", lambda x, w: ops.einsum(self.equation, x, w), inputs,
                              training)
        return _finish(self, y)
