"""One method per file; nothing here imports layers, callbacks or another method."""

from tf_sparsity.methods.continuous_sparsification import ContinuousSparsification
from tf_sparsity.methods.magnitude import MagnitudePruning
from tf_sparsity.methods.random_pruning import RandomPruning

__all__ = ["ContinuousSparsification", "MagnitudePruning", "RandomPruning"]
