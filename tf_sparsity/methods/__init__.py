"""One method per file; nothing here imports layers, callbacks or another method."""

from tf_sparsity.methods.continuous_sparsification import ContinuousSparsification
from tf_sparsity.methods.fixed_mask import FixedMask
from tf_sparsity.methods.l0 import L0Regularization
from tf_sparsity.methods.magnitude import MagnitudePruning
from tf_sparsity.methods.random_pruning import RandomPruning
from tf_sparsity.methods.variational_dropout import VariationalDropout

__all__ = ["ContinuousSparsification", "FixedMask", "L0Regularization", "MagnitudePruning",
           "RandomPruning", "VariationalDropout"]
