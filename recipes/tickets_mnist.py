"""Lottery tickets of LeNet-300-100 on MNIST: python -m recipes.tickets_mnist

Tickets by continuous sparsification (`ts.TicketSearch`, several s0 from one rewind point), tickets
by iterative magnitude pruning with late rewinding (every round is a point of its curve), and
gradual magnitude pruning within one training: test accuracy over the weights that are left. All
trainings are equally long. Nothing is chosen by the test images. One run is one seed; the plot
shows all results in the folder.
"""

import sys
from functools import partial

from recipes.data import arrays
from recipes.networks import lenet
from recipes.running import program
from recipes.shared import tickets

RECIPE = "tickets_mnist"

# The optimizer, its steps in the learning rate, rounds, final beta and lambda are those of the
# authors of continuous sparsification (lolemacs/continuous-sparsification: main.py), who train
# ResNets for 85 epochs of CIFAR-10 and rewind to epoch 2; the share of a round is that of Frankle
# and Carbin 2019.
TRAINING = tickets.Training(
    "LeNet-300-100", lenet.lenet300, batch=100, rate=0.1, momentum=0.9, decay=0.0,
    falls=(56 / 85, 71 / 85), rewind=2 / 85, share=0.2, pruning=(0.1, 0.7))
FULL = 10, {
    "s0": (-0.1, -0.05, -0.02, -0.01, -0.005, 0.0, 0.005),  # by a trial of 4 epochs
    "rounds": 3, "pruning_rounds": 20,  # 0.8^20: 1.15 % are left
    "sparsities": (0.5, 0.8, 0.9, 0.95, 0.98)}
SMOKE = 2, {"s0": (0.02,), "rounds": 2, "pruning_rounds": 2, "sparsities": (0.8,)}

table = tickets.table
headlines = partial(tickets.headlines, network="LeNet-300-100")


def differences(result):
    """One line for each point; there is no published number to differ from."""
    yield from tickets.points_of(result)
    yield ("The authors show continuous sparsification on CIFAR-10 and ImageNet only, and Frankle "
           "and Carbin's curves for this network are figures, made with Adam at 1.2e-3 for 50,000 "
           "steps of 60 images and a tenth of the last layer pruned in place of a fifth.")


def main(argv=None):
    return tickets.program(RECIPE, __doc__, TRAINING, FULL, SMOKE, arrays.asked, differences, argv)


if __name__ == "__main__":
    sys.exit(program.status(main))
