"""The State of Sparsity's techniques on a narrow ResNet-20 (8 base filters), CIFAR-10.

The paper has ResNet-50 on ImageNet. This is the network of He et al. 2016, section 4.2, at half its
width, so that a processor trains it in minutes; `filters=16` is the published one.
`recipes/shared/sos.py` says what each technique does.
"""

import dataclasses

import keras
import numpy as np

from recipes.data import arrays
from recipes.data.fingerprint import fingerprint
from recipes.networks.resnet_cifar import resnet
from recipes.running.configuration import defaults, setting
from recipes.running.registry import Difference
from recipes.shared import sos

# He et al. 2016: batch, momentum, decay, falls of the rate at 1/2 and 3/4 of the run, padding by 4.
BATCH = 128
MOMENTUM = 0.9
DECAY = 1e-4  # of kernels, in the loss; with SGD only, as the short runs with Adam have none
FALLS = (0.5, 0.75)
PADDING = 4
# Ours: a short run, for which all techniques have Adam and a rate that falls to 0 linearly. Under
# SGD gates and variances hardly move in 4,000 steps: their gradient is of the size of 1 / 50,000.
# He et al. have optimizer=sgd rate=0.1 filters=16 and 64,000 steps, which are epochs=164.
EPOCHS = 10
RATE = 3e-3
FILTERS = 8
# The paper's best magnitude pruning of ResNet-50 begins at 40,000 and ends at 100,000 of 128,000
# steps, an update each 2,000: 0.31, 0.78, and 1/64 of the run.
PRUNING_BEGIN, PRUNING_END = 0.31, 0.78
FREQUENCY = 61
# As recipes/sos_lenet_mnist.py.
WARM_UP = 0.2
SCALE = 1.0
INITIAL_KEEP = 0.5
ANNEALING = 0.9
S0 = 0.05
GATE_PENALTY = 1e-5

SPARSITIES = (0.9, 0.8, 0.95)  # in this order: what is run first matters most

DIFFERENCES = (
    Difference("The paper trains ResNet-50 on ImageNet; network, data, optimizer and schedule "
               "are ours."),
    Difference("He et al. train this network at twice the width for 164 epochs with SGD.",
               filters=(FILTERS,)),
    Difference("The paper meets a sparsity by sweeping the penalty; here learned methods keep "
               "the most important weights when training is over (reach=rank), and batch "
               "normalization's statistics are estimated anew for them.",
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
    filters: int = setting(FILTERS, "of the first stage; 16 is the published network", least=1)
    depth: int = setting(20, "layers, 6 n + 2", least=8)
    optimizer: str = setting("adam", "sgd: that of He et al.", choices=("adam", "sgd"))
    data: str = setting("cifar10", "digits: scikit-learn's, in seconds, to try things out",
                        choices=("cifar10", "digits"))

    def usual(self):
        return {"frequency": FREQUENCY}


GRID = (
    {"technique": ("dense",)},
    {"technique": ("random", "magnitude"), "sparsity": SPARSITIES},
    {"technique": sos.LEARNED, "sparsity": SPARSITIES},
    {"technique": ("magnitude",), "sparsity": SPARSITIES, "distribution": ("extended",)},
    {"technique": ("scratch_e", "scratch_b", "lottery"), "sparsity": SPARSITIES},
)


def optimizer(c, steps):
    if c.optimizer == "adam":
        return keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(c.rate, steps, 0.0))
    rates = keras.optimizers.schedules.PiecewiseConstantDecay(
        [round(fall * steps) for fall in FALLS], [c.rate, c.rate / 10, c.rate / 100])
    return keras.optimizers.SGD(rates, momentum=MOMENTUM)


def flipped_and_moved(images, generator):
    """Half of them mirrored, each moved by up to 4 pixels; what comes in from outside is 0."""
    size = images.shape[1]
    mirrored = generator.random(len(images)) < 0.5
    images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    down, right = generator.integers(0, 2 * PADDING + 1, (2, len(images)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    moved = windows[np.arange(len(images)), down, right]
    return np.ascontiguousarray(moved.transpose(0, 2, 3, 1))


def run(c, run):
    (x, y), (x_test, y_test) = arrays.load(c.data, run.options["data_dir"], shape=(32, 32, 3))
    run.reads(fingerprint(x, y, x_test, y_test))
    mean, deviation = x.mean((0, 1, 2)), x.std((0, 1, 2)) + 1e-6  # of each channel
    x, x_test = ((images - mean) / deviation for images in (x, x_test))
    decay = DECAY if c.optimizer == "sgd" else 0.0
    return sos.perform(c, run, sos.images(
        c, lambda: resnet(c.depth, c.filters, decay=decay), (x, y), (x_test, y_test), optimizer,
        first="^stem/", last="^classes/", augment=flipped_and_moved))
