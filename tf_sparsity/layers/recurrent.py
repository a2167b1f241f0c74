"""Recurrent layers: the cell is the sparse layer, its weights are fixed for a whole sequence."""

import keras

from tf_sparsity.layers.base import (
    SparseLayer, activations_of, serialize_methods, sparse_layer)

GATES = {"kernel": ("in", "out"), "recurrent_kernel": ("in", "out")}


@sparse_layer
class SparseLSTMCell(SparseLayer, keras.layers.LSTMCell):
    """`keras.layers.LSTMCell` with sparse kernels (in, 4 units) and (units, 4 units)."""

    KERNELS = GATES


@sparse_layer
class SparseGRUCell(SparseLayer, keras.layers.GRUCell):
    """`keras.layers.GRUCell` with sparse kernels (in, 3 units) and (units, 3 units)."""

    KERNELS = GATES


@sparse_layer
class SparseSimpleRNNCell(SparseLayer, keras.layers.SimpleRNNCell):
    """`keras.layers.SimpleRNNCell` with sparse kernels (in, units) and (units, units)."""

    KERNELS = GATES


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

    def call(self, sequences, initial_state=None, mask=None, training=False):
        with self.cell.fixed_weights(training):
            return super().call(sequences, initial_state=initial_state, mask=mask,
                                training=training)

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
