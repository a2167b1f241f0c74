"""Tickets of a narrow ResNet-20 on CIFAR-10: python -m recipes.tickets_cifar_narrow_short

As recipes/tickets_mnist.py, with a ResNet-20 of 8 filters in its first stage in place of 16 and
trainings of 4 epochs in place of the authors' 85, without augmentation: it is made for two CPU
cores. Its accuracies are not those of the papers' networks. Tickets train for as long as the dense
network, but from the rewind point, a tenth of a training after its start.
"""

import sys
from functools import partial

import numpy as np

from recipes.data import arrays
from recipes.networks import resnet_cifar
from recipes.running import program
from recipes.shared import tickets

RECIPE = "tickets_cifar_narrow_short"

# As the authors of continuous sparsification (lolemacs/continuous-sparsification: main.py) but for
# the width, the length, the augmentation, and a longer share before the rewind point, which 2 of 85
# epochs would put into the first tenth of an epoch.
DECAY = 1e-4
TRAINING = tickets.Training(
    "Narrow ResNet-20, 4 epochs,", partial(resnet_cifar.resnet, 20, 8, decay=DECAY), batch=128,
    rate=0.1, momentum=0.9, decay=DECAY, falls=(56 / 85, 71 / 85), rewind=0.1, share=0.36,
    pruning=(0.1, 0.7))
FULL = 4, {
    "s0": (-0.02, 0.0, 0.02), "rounds": 2,
    "pruning_rounds": 6,  # 0.64^6: 6.9 % are left; a round takes two of the lottery ticket's
    "sparsities": (0.5, 0.8, 0.9)}
SMOKE = 1, {"s0": (0.02,), "rounds": 1, "pruning_rounds": 1, "sparsities": (0.8,)}

table = tickets.table
headlines = partial(tickets.headlines, network="narrow ResNet-20")


def load(args):
    """`train, test, name`: each channel standardised by the training images."""
    train, test, name = arrays.asked(args, "cifar10")
    mean, deviation = (f(train[0], axis=(0, 1, 2)) for f in (np.mean, np.std))
    return *(((x - mean) / deviation, y) for x, y in (train, test)), name


def differences(result):
    """One line for each point."""
    yield from tickets.points_of(result)
    yield ("Published, in the authors' README: tickets of a ResNet-20 of twice the width with 91.5 "
           "to 92.0 % after 3 rounds, the dense network 90 to 91 %.")
    yield ("The authors train the full width for 85 epochs with crops and flips; a network that is "
           "far from converged, as here, has less to lose by pruning.")


def main(argv=None):
    return tickets.program(RECIPE, __doc__, TRAINING, FULL, SMOKE, load, differences, argv)


if __name__ == "__main__":
    sys.exit(program.status(main))
