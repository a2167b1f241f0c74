"""Convolutions: plain, depthwise, separable and transposed."""

import keras
from keras import ops

from tf_sparsity.layers.base import SparseLayer, add_bias_and_activation, sparse_layer


class _Conv(SparseLayer):
    """The map of keras.layers.Conv1D/2D/3D; the kernel is (*window, in / groups, out)."""

    def call(self, inputs, training=None):
        padding = self.padding
        if padding == "causal":
            inputs = ops.pad(inputs, self._compute_causal_padding())
            padding = "valid"

        def conv(x, w):
            return ops.conv(x, w, strides=list(self.strides), padding=padding,
                            dilation_rate=self.dilation_rate, data_format=self.data_format)

        return add_bias_and_activation(self, self.apply_kernel("kernel", conv, inputs, training))


class _DepthwiseConv(SparseLayer):
    """Each (in, multiplier) pair of the kernel is an output channel of its own."""

    def call(self, inputs, training=None):
        def conv(x, w):
            return ops.depthwise_conv(x, w, strides=self.strides, padding=self.padding,
                                      dilation_rate=self.dilation_rate,
                                      data_format=self.data_format)

        return add_bias_and_activation(self, self.apply_kernel("kernel", conv, inputs, training))


class _SeparableConv(SparseLayer):
    """A depthwise convolution followed by a pointwise one, each with its own method."""

    def call(self, inputs, training=None):
        def depthwise(x, w):
            return ops.depthwise_conv(x, w, strides=self.strides, padding=self.padding,
                                      dilation_rate=self.dilation_rate,
                                      data_format=self.data_format)

        def pointwise(x, w):
            # Channels last, as in Keras: TensorFlow's CPU has no other convolution without oneDNN
            if self.data_format == "channels_last":
                return ops.conv(x, w, padding="valid", data_format="channels_last")
            y = ops.conv(ops.moveaxis(x, 1, -1), w, padding="valid", data_format="channels_last")
            return ops.moveaxis(y, -1, 1)

        y = self.apply_kernel("depthwise_kernel", depthwise, inputs, training)
        y = self.apply_kernel("pointwise_kernel", pointwise, y, training)
        return add_bias_and_activation(self, y)


class _ConvTranspose(SparseLayer):
    """The kernel is (*window, out, in): Keras swaps the last two axes."""

    def call(self, inputs, training=None):
        def conv(x, w):
            return ops.conv_transpose(x, w, strides=list(self.strides), padding=self.padding,
                                      output_padding=self.output_padding,
                                      dilation_rate=self.dilation_rate,
                                      data_format=self.data_format)

        return add_bias_and_activation(self, self.apply_kernel("kernel", conv, inputs, training))


@sparse_layer
class SparseConv1D(_Conv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with a sparse kernel of shape (kw, in / groups, out)."""

    KERNELS = {"kernel": ("kw", "in", "out")}


@sparse_layer
class SparseConv2D(_Conv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a sparse kernel of shape (kh, kw, in / groups, out)."""

    KERNELS = {"kernel": ("kh", "kw", "in", "out")}


@sparse_layer
class SparseConv3D(_Conv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with a sparse kernel of shape (kd, kh, kw, in / groups, out)."""

    KERNELS = {"kernel": ("kd", "kh", "kw", "in", "out")}


@sparse_layer
class SparseDepthwiseConv1D(_DepthwiseConv, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a sparse kernel of shape (kw, channels, multiplier)."""

    KERNELS = {"kernel": ("kw", "out", "out:mult")}


@sparse_layer
class SparseDepthwiseConv2D(_DepthwiseConv, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D`, sparse kernel of shape (kh, kw, channels, multiplier)."""

    KERNELS = {"kernel": ("kh", "kw", "out", "out:mult")}


@sparse_layer
class SparseSeparableConv1D(_SeparableConv, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with a sparse depthwise and a sparse pointwise kernel."""

    KERNELS = {"depthwise_kernel": ("kw", "out", "out:mult"),
               "pointwise_kernel": ("kw", "in", "out")}


@sparse_layer
class SparseSeparableConv2D(_SeparableConv, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with a sparse depthwise and a sparse pointwise kernel."""

    KERNELS = {"depthwise_kernel": ("kh", "kw", "out", "out:mult"),
               "pointwise_kernel": ("kh", "kw", "in", "out")}


@sparse_layer
class SparseConv1DTranspose(_ConvTranspose, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a sparse kernel of shape (kw, out, in)."""

    KERNELS = {"kernel": ("kw", "out", "in")}


@sparse_layer
class SparseConv2DTranspose(_ConvTranspose, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a sparse kernel of shape (kh, kw, out, in)."""

    KERNELS = {"kernel": ("kh", "kw", "out", "in")}


@sparse_layer
class SparseConv3DTranspose(_ConvTranspose, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with a sparse kernel of shape (kd, kh, kw, out, in)."""

    KERNELS = {"kernel": ("kd", "kh", "kw", "out", "in")}
