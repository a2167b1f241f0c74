"""Keras 3 models made sparse while they train. Start with `ts.sparsify`; see docs/design.md."""

from tf_sparsity import callbacks, layers, tuning
from tf_sparsity.convert import freeze_masks, sparsify, strip
from tf_sparsity.method import MaskMethod, Method
from tf_sparsity.methods import (ContinuousSparsification, FixedMask, L0Regularization,
                                 MagnitudePruning, RandomPruning, VariationalDropout)
from tf_sparsity.optimizer import SparseOptimizer
from tf_sparsity.report import SparsityReport, report
from tf_sparsity.schedule import ConstantSparsity, PolynomialDecay, Ramp
from tf_sparsity.selection import exclude
from tf_sparsity.tfmot import TFMOTPruning  # imports TFMOT only when one is made
from tf_sparsity.tickets import Ticket, TicketSearch
from tf_sparsity.update import update

__version__ = "0.1.0"

__all__ = ["ConstantSparsity", "ContinuousSparsification", "FixedMask", "L0Regularization",
           "MagnitudePruning", "MaskMethod", "Method", "PolynomialDecay", "Ramp", "RandomPruning",
           "SparseOptimizer", "SparsityReport", "TFMOTPruning", "Ticket", "TicketSearch",
           "VariationalDropout", "callbacks", "exclude", "freeze_masks", "layers", "report",
           "sparsify", "strip", "tuning", "update"]
