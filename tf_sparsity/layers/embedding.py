"""SparseEmbedding, and SparseReversibleEmbedding for tied softmax."""

import keras
from keras import ops

from tf_sparsity.layers.base import SparseLayer, sparse_layer


def _look_up(ids, table):
    return ops.take(table, ids, axis=0)


@sparse_layer
class SparseEmbedding(SparseLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` with a sparse table of shape (vocabulary, features)."""

    KERNELS = {"embeddings": ("vocab", "out")}

    def call(self, inputs, training=None):
        if inputs.dtype != "int32" and inputs.dtype != "int64":
            inputs = ops.cast(inputs, "int32")
        y = self.apply_kernel("embeddings", _look_up, inputs, training, one_hot=True,
                              dtype=self.variable_dtype)
        return ops.cast(y, self.compute_dtype)


@sparse_layer
class SparseReversibleEmbedding(SparseLayer, keras.layers.ReversibleEmbedding):
    """`keras.layers.ReversibleEmbedding` with a sparse table, used in both directions.

    With `tie_weights=False` the reverse projection has a table of its own, which stays dense.
    """

    KERNELS = {"embeddings": ("vocab", "out")}

    def call(self, inputs, reverse=False, training=None):
        if not reverse or not self.tie_weights:
            with self.fixed_weights(training):
                return super().call(inputs, reverse)
        dtype = self.reverse_dtype or self.compute_dtype
        logits = self.apply_kernel("embeddings", lambda x, w: ops.matmul(x, ops.transpose(w)),
                                   ops.cast(inputs, dtype), training, dtype=dtype)
        if self.logit_soft_cap is not None:
            logits = ops.tanh(logits / self.logit_soft_cap) * self.logit_soft_cap
        return logits
