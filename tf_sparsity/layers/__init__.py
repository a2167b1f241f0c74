"""The layer host's classes, one for each Keras layer with kernels."""

from tf_sparsity.layers.attention import SparseGroupQueryAttention, SparseMultiHeadAttention
from tf_sparsity.layers.base import SparseLayer
from tf_sparsity.layers.conv import (
    SparseConv1D, SparseConv1DTranspose, SparseConv2D, SparseConv2DTranspose, SparseConv3D,
    SparseConv3DTranspose, SparseDepthwiseConv1D, SparseDepthwiseConv2D, SparseSeparableConv1D,
    SparseSeparableConv2D)
from tf_sparsity.layers.dense import SparseDense, SparseEinsumDense
from tf_sparsity.layers.embedding import SparseEmbedding, SparseReversibleEmbedding
from tf_sparsity.layers.recurrent import (
    SparseGRU, SparseGRUCell, SparseLSTM, SparseLSTMCell, SparseSimpleRNN, SparseSimpleRNNCell)

SPARSE_CLASSES = [
    SparseConv1D, SparseConv1DTranspose, SparseConv2D, SparseConv2DTranspose, SparseConv3D,
    SparseConv3DTranspose, SparseDense, SparseDepthwiseConv1D, SparseDepthwiseConv2D,
    SparseEinsumDense, SparseEmbedding, SparseGRU, SparseGroupQueryAttention, SparseLSTM,
    SparseMultiHeadAttention, SparseReversibleEmbedding, SparseSeparableConv1D,
    SparseSeparableConv2D, SparseSimpleRNN]

# Keras class -> the class that `sparsify` puts in its place
REPLACEMENTS = {cls.keras_class: cls for cls in SPARSE_CLASSES}

__all__ = [cls.__qualname__ for cls in SPARSE_CLASSES] + [
    "REPLACEMENTS", "SPARSE_CLASSES", "SparseGRUCell", "SparseLSTMCell", "SparseLayer",
    "SparseSimpleRNNCell"]
