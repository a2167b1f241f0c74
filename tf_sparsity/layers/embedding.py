"""SparseEmbedding, and SparseReversibleEmbedding for tied softmax."""

import keras
from keras import ops
from keras.src.backend import get_autocast_scope, set_keras_mask

from tf_sparsity.layers.base import SparseLayer, sparse_layer


def _look_up(ids, table):
    return ops.take(table, ids, axis=0)


class _Embedding(SparseLayer):
    KERNELS = {"embeddings": ("vocab", "out")}

    def call(self, inputs, training=None):
        if inputs.dtype != "int32" and inputs.dtype != "int64":
            inputs = ops.cast(inputs, "int32")
        y = self.apply_kernel("embeddings", _look_up, inputs, training, one_hot=True,
                              dtype=self.variable_dtype)
        return ops.cast(y, self.compute_dtype)


@sparse_layer
class SparseEmbedding(_Embedding, keras.layers.Embedding):
    """`keras.layers.Embedding` with a sparse table of shape (vocabulary, features)."""


@sparse_layer
class SparseReversibleEmbedding(_Embedding, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` with a sparse table, used in both directions.

    With `tie_weights=False` the reverse projection has a table of its own, which stays dense.
    """

    def call(self, inputs, reverse=False, training=None):
        if not reverse:
            y = super().call(inputs, training)
            mask = keras.layers.Embedding.compute_mask(self, inputs)
            if mask is not None:  # Keras sets it here: the reverse call has none
                set_keras_mask(y, mask)
            return y
        if not self.tie_weights:
            return keras.layers.ReversibleEmbedding.call(self, inputs, reverse)

        def project(x, table):
            table = ops.transpose(table)
            if self.reverse_dtype is not None:
                x, table = ops.cast(x, self.reverse_dtype), ops.cast(table, self.reverse_dtype)
            return ops.matmul(x, table)

        scope = get_autocast_scope()  # Keras opens it by itself, but not inside a mixed model
        logits = self.apply_kernel("embeddings", project, inputs, training,
                                   dtype=scope and scope.dtype or self.variable_dtype)
        if self.logit_soft_cap is not None:
            logits = ops.tanh(logits / self.logit_soft_cap) * self.logit_soft_cap
        return logits
