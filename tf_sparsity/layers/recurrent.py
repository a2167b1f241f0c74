"""Recurrent layers: the cell is the sparse layer, its weights are fixed for a whole sequence.

A method that draws outputs (local reparameterization) is asked for those of the input kernel, at
all time steps at once with one draw for the sequence; the cells here then go on from them.
"""

import contextlib

import keras
from keras import ops

from tf_sparsity.layers.base import (
    SparseLayer, activations_of, serialize_methods, sparse_layer)

GATES = {"kernel": ("in", "out"), "recurrent_kernel": ("in", "out")}


class _Cell(SparseLayer):
    KERNELS = GATES
    projected = False  # are the inputs of `call` already multiplied by the kernel?

    @property
    def projects_in_training(self):
        method = self.methods.get("kernel")
        return method is not None and method.local_reparameterization

    @contextlib.contextmanager
    def projecting(self, sequences):
        """The products of all time steps with the kernel; inside, `call` takes those."""
        product = ops.matmul
        if 0.0 < self.dropout < 1.0:
            masks = self.get_dropout_mask(sequences[:, 0])
            if isinstance(masks, list):
                product = _product_of_each_gate
                sequences = ops.expand_dims(sequences, 2) * ops.expand_dims(
                    ops.stack(masks, axis=1), 1)
            else:
                sequences = sequences * ops.expand_dims(masks, 1)
        self.projected = True
        try:
            yield self.apply_kernel("kernel", product, sequences, training=True, shared_axes=(1,))
        finally:
            self.projected = False

    def call(self, inputs, states, training=False):
        if not self.projected:
            return super().call(inputs, states, training=training)
        state, *others = states if isinstance(states, (list, tuple)) else [states]
        dropped = state
        if 0.0 < self.recurrent_dropout < 1.0:
            masks = self.get_recurrent_dropout_mask(state)
            dropped = [state * m for m in masks] if isinstance(masks, list) else state * masks
        new = self.step(inputs, state, dropped, *others)
        return new[0], list(new) if isinstance(states, (list, tuple)) else new[0]


# Keras' implementation 1, which it takes for recurrent dropout, has a dropout mask for each gate.


def _product_of_each_gate(x, w):
    """(batch, time, gates, in) and (in, gates units) -> (batch, time, gates units)."""
    gates = x.shape[2]
    w = ops.reshape(w, (w.shape[0], gates, -1))
    return ops.concatenate([ops.matmul(x[:, :, i], w[:, i]) for i in range(gates)], axis=-1)


def _recurrent_product(h, w):
    """h w, where h may be a list of one state for each gate."""
    if not isinstance(h, list):
        return ops.matmul(h, w)
    return ops.concatenate([ops.matmul(a, b) for a, b in zip(h, ops.split(w, len(h), axis=1))],
                           axis=-1)


@sparse_layer
class SparseLSTMCell(_Cell, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with sparse kernels (in, 4 units) and (units, 4 units)."""

    def step(self, z, h, dropped, c):
        """(h, c) after a step, z being the inputs' part of the gates' arguments."""
        z = z + _recurrent_product(dropped, self.recurrent_kernel)
        if self.use_bias:
            z = z + self.bias
        c, o = self._compute_carry_and_output_fused(ops.split(z, 4, axis=1), c)
        return o * self.activation(c), c


@sparse_layer
class SparseGRUCell(_Cell, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with sparse kernels (in, 3 units) and (units, 3 units)."""

    def step(self, x, h, dropped):
        """(h,) after a step, x being the inputs' part of the gates' arguments."""
        bias = recurrent_bias = 0.0
        if self.use_bias:
            bias, recurrent_bias = ((self.bias[0], self.bias[1]) if self.reset_after
                                    else (self.bias, 0.0))
        x_z, x_r, x_h = ops.split(x + bias, 3, axis=-1)
        n, kernel = 2 * self.units, self.recurrent_kernel
        if self.reset_after:
            inner = _recurrent_product(dropped, kernel) + recurrent_bias
        else:
            *for_gates, dropped = dropped if isinstance(dropped, list) else (dropped,)
            inner = _recurrent_product(for_gates or dropped, kernel[:, :n])
        z = self.recurrent_activation(x_z + inner[:, :self.units])
        r = self.recurrent_activation(x_r + inner[:, self.units:n])
        candidate = r * inner[:, n:] if self.reset_after else ops.matmul(
            r * dropped, kernel[:, n:])
        return z * h + (1 - z) * self.activation(x_h + candidate),


@sparse_layer
class SparseSimpleRNNCell(_Cell, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with sparse kernels (in, units) and (units, units)."""

    def step(self, x, h, dropped):
        """(h,) after a step, x being the inputs' part of the activation's argument."""
        y = x + ops.matmul(dropped, self.recurrent_kernel)
        if self.use_bias:
            y = y + self.bias
        return y if self.activation is None else self.activation(y),


class SparseRNN:
    """Mixin: puts a sparse cell into a Keras recurrent layer."""

    KERNELS = GATES

    def __init__(self, *args, method, **kwargs):
        super().__init__(*args, **kwargs)
        cell = self.cell
        config = {**cell.get_config(), **activations_of(cell), "method": method}
        if self.CELL is not SparseSimpleRNNCell:
            config["implementation"] = cell.implementation  # absent from Keras' own config
        self._tracker.untrack(cell)
        self.cell = self.CELL.from_config(config)

    @staticmethod
    def unsaved_config(layer):
        if "use_cudnn" not in layer.__dict__:  # SimpleRNN
            return {}
        return {"implementation": layer.cell.implementation, "use_cudnn": layer.use_cudnn}

    def after_build(self):
        """Nothing to add: the cell has the state."""

    @property
    def methods(self):
        return self.cell.methods

    def inspect(self, name="kernel"):
        """That of the cell: `kernel` or `recurrent_kernel`."""
        return self.cell.inspect(name)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        cell, arguments = self.cell, {"initial_state": initial_state, "mask": mask,
                                      "training": training}
        if not (training and cell.projects_in_training):
            with cell.fixed_weights(training):
                return super().call(sequences, **arguments)
        with cell.fixed_weights(training, without=["kernel"]), \
                cell.projecting(sequences) as products:
            return super().call(products, **arguments)

    def inner_loop(self, *args, **kwargs):
        if self.cell.projected:  # cuDNN multiplies inputs by the kernel itself
            return keras.layers.RNN.inner_loop(self, *args, **kwargs)
        return super().inner_loop(*args, **kwargs)

    def get_config(self):
        return {**super().get_config(), **self.unsaved_config(self),
                "method": serialize_methods(self.methods)}


@sparse_layer
class SparseLSTM(SparseRNN, keras.layers.LSTM):
    """`keras.layers.LSTM` with a sparse input kernel and a sparse recurrent kernel."""

    CELL = SparseLSTMCell


@sparse_layer
class SparseGRU(SparseRNN, keras.layers.GRU):
    """`keras.layers.GRU` with a sparse input kernel and a sparse recurrent kernel."""

    CELL = SparseGRUCell


@sparse_layer
class SparseSimpleRNN(SparseRNN, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN` with a sparse input kernel and a sparse recurrent kernel."""

    CELL = SparseSimpleRNNCell
