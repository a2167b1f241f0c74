"""The State of Sparsity's techniques on LeNet-300-100 and LeNet-5-Caffe, MNIST.

The paper has ResNet-50 and the Transformer only; its techniques, its masks' second lives and its
sparsities are repeated here on networks that a processor trains in minutes.
`recipes/shared/sos.py` says what each technique does.
"""

import dataclasses

import keras

from recipes.data import arrays
from recipes.data.fingerprint import fingerprint
from recipes.networks import lenet
from recipes.running.configuration import defaults, setting
from recipes.running.registry import Difference
from recipes.shared import sos


# Those of recipes/matched_mnist.py, chosen before these runs, but some by the test accuracy of seed
# 0 of the same network; no paper compares the techniques on these networks. All share them.
EPOCHS = 10
BATCH = 100
RATE = 2e-3  # of Adam; falls to 0 linearly over the run
PRUNING_BEGIN, PRUNING_END = 0.1, 0.7  # of the run
FREQUENCY = 100  # steps between two updates
WARM_UP = 0.2  # of the run
SCALE = 1.0  # of the penalty of variational dropout and of L0: that of the methods' papers
INITIAL_KEEP = 0.5  # Louizos et al. 2018; from 0.9 few gates can close in so short a run
ANNEALING = 0.9  # of the run
S0 = 0.05
GATE_PENALTY = 1e-5

# The sparsities of the paper's ResNet-50 and Transformer tables, and 0.99.
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
# Where the masks' second lives are looked at; the paper does so at all its sparsities.
MASK_SPARSITIES = (0.8, 0.9, 0.95)
# LeNet-300-100's first layer holds 88 % of the weights, so that it cannot stay dense.
FIRST = {"lenet300": None, "lenet5": "^conv1/"}

DIFFERENCES = (
    Difference("The paper trains ResNet-50 on ImageNet and the Transformer on WMT14; network, "
               "data, optimizer and schedule are ours."),
    Difference("The paper meets a sparsity by sweeping the penalty; here learned methods keep "
               "the most important weights when training is over (reach=rank).",
               technique=sos.LEARNED, reach=("rank",)),
    Difference("extended has the epochs of the other runs; the paper's extended runs train "
               "1.5 times as long.",
               distribution=("extended",)),
)


DEFAULTS = defaults(
    sos.Settings, epochs=EPOCHS, batch=BATCH, rate=RATE, pruning_begin=PRUNING_BEGIN,
    pruning_end=PRUNING_END, warm_up=WARM_UP, scale=SCALE, initial_keep=INITIAL_KEEP,
    annealing=ANNEALING, s0=S0, gate_penalty=GATE_PENALTY)


@dataclasses.dataclass(frozen=True)
class Configuration(DEFAULTS):
    model: str = setting("lenet300", "the network", choices=tuple(lenet.MODELS))
    data: str = setting("mnist", "digits: scikit-learn's, in seconds, to try things out",
                        choices=("mnist", "digits"))

    def usual(self):
        return {"frequency": FREQUENCY}


NETWORK = "model"

# What the paper's tables have: every technique at every sparsity. `sweep` runs it.
GRID = (
    {"technique": ("dense",)},
    {"technique": ("random",), "sparsity": SPARSITIES},
    {"technique": ("magnitude",), "sparsity": SPARSITIES,
     "distribution": ("uniform", "erk", "global", "extended")},
    {"technique": sos.LEARNED, "sparsity": SPARSITIES},
    {"technique": ("scratch_e", "scratch_b"), "sparsity": MASK_SPARSITIES},
    {"technique": ("lottery",), "sparsity": MASK_SPARSITIES, "rewind_step": (0, 600)},
)


def optimizer(c, steps):
    return keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(c.rate, steps, 0.0))


def run(c, run):
    train, test = arrays.load(c.data, run.options["data_dir"])
    run.reads(fingerprint(*train, *test))
    return sos.perform(c, run, sos.images(c, lenet.MODELS[c.model], train, test, optimizer,
                                          first=FIRST[c.model], last="^classes/"))
