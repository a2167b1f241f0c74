"""The State of Sparsity's ResNet-50 on ImageNet, in full.

The network, the pictures, the optimizer and the schedule are the paper's, and so are the settings
of each technique at each sparsity where none are given: those of its best run.
`recipes/shared/sos.py` says what each technique does.

An epoch here is 1,310,720 pictures, 1.02 times those of ImageNet, so that 100 epochs are the
paper's 128,000 steps of 1,024. All schedules are shares of the run: a shorter run, or another
batch, goes through the same ones.
"""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from recipes.networks.resnet50 import WIDTH, resnet
from recipes.running import devices
from recipes.running.configuration import defaults, setting
from recipes.running.registry import Difference
from recipes.shared import sos

# google-research/google-research, state_of_sparsity/sparse_rn50, unless said otherwise.
STEPS = 128_000  # of a run, of BATCH pictures: rn50_baselines.csv
BATCH = 1024
IMAGES = 1_281_167  # training images of ImageNet
EPOCHS = 100
EPOCH_IMAGES = STEPS * BATCH // EPOCHS
RATE, RATE_BATCH = 0.1, 256  # 0.1 for 256 pictures, in proportion (Goyal et al. 2017)
MOMENTUM = 0.9  # Nesterov's
DECAY = 1e-4  # of kernels only, in the loss: half of the sum of the squares
# Passes through the images in which the rate rises, and after which it falls to a tenth
RISE, FALLS = 5, (30, 60, 80)
PICTURE = 224
SIGMA2 = -15.0  # log of the variance at the start
THRESHOLD = 0.5  # of log alpha: the README's, for ResNet-50
LABEL_SMOOTHING = 0.1  # of dense runs; the sources have 0 and 0.1 and do not say which: assumed

# Extended runs have a last step of 48,000, of 4,096 pictures: 1.5 times as many as the others.
EXTENDED_STEPS, EXTENDED_BATCH = 48_000, 4096
EXTENDED_EPOCHS = EXTENDED_STEPS * EXTENDED_BATCH // EPOCH_IMAGES


class Pruning(NamedTuple):
    """A published setting, in steps of its run."""

    begin: int
    end: int
    frequency: int
    label_smoothing: float


class Penalty(NamedTuple):
    """A published setting: the steps between which the penalty rises, and its scale."""

    begin: int
    end: int
    scale: float
    label_smoothing: float


# The best run at each sparsity: rn50_magnitude_pruning.csv and rn50_random_pruning.csv.
MAGNITUDE = {
    0.5: Pruning(40_000, 100_000, 2_000, 0.1), 0.7: Pruning(40_000, 100_000, 4_000, 0.1),
    0.8: Pruning(40_000, 100_000, 2_000, 0.1), 0.9: Pruning(40_000, 76_000, 2_000, 0.1),
    0.95: Pruning(40_000, 68_000, 2_000, 0.0), 0.98: Pruning(40_000, 100_000, 2_000, 0.1)}
RANDOM = {
    0.5: Pruning(20_000, 40_000, 4_000, 0.1), 0.7: Pruning(8_000, 40_000, 8_000, 0.1),
    0.8: Pruning(0, 40_000, 8_000, 0.0), 0.9: Pruning(0, 40_000, 2_000, 0.0),
    0.95: Pruning(0, 40_000, 2_000, 0.0), 0.98: Pruning(20_000, 40_000, 8_000, 0.0)}
# Whose masks tickets and scratch runs have: rn50_lottery_ticket.csv, rn50_scratch_lr_scaled.csv
# (to 0.95). At 0.95 it is not the best magnitude run.
MASKS = {**MAGNITUDE, 0.95: Pruning(20_000, 100_000, 4_000, 0.0)}
# The README's names of the four published checkpoints, and the sparsity of all kernels but the
# first and the last one in each.
EXTENDED = {
    0.8: Pruning(12_500, 40_000, 2_000, 0.1), 0.9: Pruning(12_500, 36_000, 2_000, 0.1),
    0.95: Pruning(7_500, 36_000, 1_000, 0.0), 0.965: Pruning(12_500, 36_000, 500, 0.0)}
OTHERS = {0.8: 0.8, 0.9: 0.91, 0.95: 0.96, 0.965: 0.98}
# The README's best checkpoints; at 0.7, where it has none, the best run of
# rn50_variational_dropout.csv that is at least so sparse. The run of 0.95 is in no CSV.
VARIATIONAL = {
    0.5: Penalty(8_000, 68_000, 0.01, 0.1), 0.7: Penalty(40_000, 100_000, 0.05, 0.0),
    0.8: Penalty(40_000, 68_000, 0.05, 0.0), 0.9: Penalty(20_000, 68_000, 0.1, 0.0),
    0.95: Penalty(40_000, 100_000, 0.5, 0.1), 0.98: Penalty(8_000, 76_000, 1.0, 0.1)}
# L0 fails: no row of rn50_l0_regularization.csv is usable. Its most accurate run (0.405, no zeros)
# is the default; when its penalty rises is not in the file: assumed.
L0 = Penalty(20_000, 68_000, 400, 0.0)
L0_FAILS = ("L0 has no usable setting on ResNet-50: the paper's best run has an accuracy of 0.405 "
            "and no zeros, and none of its runs with zeros is above 0.04.")

DIFFERENCES = (
    Difference("Keras' SGD keeps the learning rate in the momentum, TensorFlow 1's does not: "
               "after the rate has fallen, the last ten steps or so still count at the old "
               "one."),
    Difference("Images are shuffled in blocks of 1,024 from 16 files that are read by turns; "
               "the paper's code has a buffer of 1,024."),
    Difference("A batch is normalized as a whole, on several devices too. The paper's code "
               "normalizes the share of each TPU core, of which it does not say how many "
               "there were."),
    Difference("Evaluation takes all 50,000 pictures of the validation split, as the test "
               "images."),
    Difference("Extended runs stretch warm-up and falls of the rate with the run, 1.5 times: "
               "assumed.",
               distribution=("extended",)),
    Difference("Dense runs have label smoothing: assumed. scratch_b stretches the whole "
               "schedule, as rn50_scratch_lr_scaled.csv."),
    Difference("The penalty rises in a hundred stairs.",
               technique=("variational_dropout", "l0")),
    Difference("The step at which the penalty of L0 rises is assumed.",
               technique=("l0",)),
    Difference("continuous_sparsification is not in the paper.",
               technique=("continuous_sparsification",)),
)

NEEDS = ("data_dir=FOLDER",)
DEFAULTS = defaults(
    sos.PublishedSettings, epochs=None, batch=BATCH, rate=None, pruning_begin=None,
    pruning_end=None, frequency=None, warm_up_begin=None, warm_up=None, scale=None,
    reach="penalty", threshold=THRESHOLD, log_sigma2=SIGMA2)


@dataclasses.dataclass(frozen=True)
class Configuration(DEFAULTS):
    label_smoothing: float = setting(None, "of the training loss", least=0, below=1)
    decay: float = setting(None, "of kernels, in the loss", least=0)
    depth: int = setting(50, "layers; 14, 26, 50, 101 or 152", least=14)
    width: int = setting(WIDTH, "filters of the first stage; 64 is the published network", least=1)
    picture: int = setting(PICTURE, "height and width of a picture", least=32)
    epoch_images: int = setting(EPOCH_IMAGES, "pictures of an epoch", least=1)
    devices: int = setting(1, "that share a batch", least=1)

    @property
    def epoch_steps(self):
        return max(1, round(self.epoch_images / self.batch))

    def usual(self):
        best, run = best_setting(self)
        epochs = EXTENDED_EPOCHS if run == EXTENDED_STEPS else EPOCHS
        steps = (self.epochs or epochs) * self.epoch_steps
        # Of what the technique does not have, anything will do: it is no part of the configuration
        pruning = best if isinstance(best, Pruning) else MAGNITUDE[0.9]
        penalty = best if isinstance(best, Penalty) else L0
        return {
            "epochs": epochs,
            "rate": RATE * self.batch / RATE_BATCH,
            "label_smoothing": best.label_smoothing if best else LABEL_SMOOTHING,
            "decay": DECAY / (self.initial_keep if self.technique == "l0" else 1),
            "pruning_begin": pruning.begin / run,
            "pruning_end": pruning.end / run,
            "frequency": max(1, round(pruning.frequency / run * steps)),
            "warm_up_begin": penalty.begin / run,
            "warm_up": (penalty.end - penalty.begin) / run,
            "scale": penalty.scale,
        }


def best_setting(c):
    """`(the published setting at the nearest sparsity or None, steps of its run)`."""
    if c.technique == "l0":
        return L0, STEPS
    if c.technique in ("magnitude", *sos.UNDER_A_MASK) and c.distribution == "extended":
        return _nearest(EXTENDED, c.sparsity), EXTENDED_STEPS
    tables = {"magnitude": MAGNITUDE, "random": RANDOM, "variational_dropout": VARIATIONAL,
              **dict.fromkeys(sos.UNDER_A_MASK, MASKS)}
    if c.technique not in tables:
        return None, STEPS
    return _nearest(tables[c.technique], c.sparsity), STEPS


def _nearest(table, sparsity):
    return table[min(table, key=lambda published: abs(published - sparsity))]


def remarks(c):
    """What whoever reads the result should know of its settings, as sentences."""
    if c.technique == "l0":
        return [L0_FAILS]
    best, _ = best_setting(c)
    if best is None:
        return []
    tables = (MAGNITUDE, RANDOM, MASKS, EXTENDED, VARIATIONAL)
    if any(table.get(c.sparsity) is best for table in tables):
        return []
    return [f"No setting of {c.technique} is published at a sparsity of {c.sparsity:g}: where none "
            "is given, that of the nearest published one applies."]


# ---- the published experiments


def _shares(*steps):
    return tuple(step / STEPS for step in steps)


SMOOTHINGS = (0.0, LABEL_SMOOTHING)
FREQUENCIES = (2_000, 4_000, 8_000)  # in steps of this run: with another batch give frequency=
SCALES = (0, 0.01, 0.03, 0.05, 0.1, 0.3, 0.5, 1, 10, 100)
# {initial keep probability, the sigmoid of the file's log alpha: the scales that were tried}
L0_SCALES = {0.69993: range(160, 180), 0.9: range(400, 500, 5), 0.95026: range(890, 911),
             0.99005: range(4200, 4400, 10)}

# The best settings first, then all that the paper has tried to find them: rn50_*.csv.
GRID = (
    {"technique": ("dense",)},
    {"technique": ("magnitude",), "sparsity": tuple(MAGNITUDE)},
    {"technique": ("magnitude",), "distribution": ("extended",), "sparsity": tuple(EXTENDED)},
    {"technique": ("variational_dropout",), "sparsity": tuple(VARIATIONAL)},
    {"technique": ("random",), "sparsity": tuple(RANDOM)},
    {"technique": ("scratch_e", "scratch_b"), "sparsity": tuple(MASKS)[:-1],
     "initialization": ("plain", "augmented")},
    {"technique": ("lottery",), "sparsity": tuple(MASKS)},
    {"technique": ("magnitude",), "sparsity": tuple(MAGNITUDE), "label_smoothing": SMOOTHINGS,
     "pruning_begin": _shares(8_000, 20_000, 40_000),
     "pruning_end": _shares(68_000, 76_000, 100_000), "frequency": FREQUENCIES},
    {"technique": ("random",), "sparsity": tuple(RANDOM), "label_smoothing": SMOOTHINGS,
     "pruning_begin": _shares(0, 8_000, 20_000),
     "pruning_end": _shares(40_000, 68_000, 76_000), "frequency": FREQUENCIES},
    *({"technique": ("variational_dropout",), "scale": SCALES, "label_smoothing": SMOOTHINGS,
       "warm_up_begin": _shares(begin), "warm_up": _shares(end - begin)}
      for begin in (8_000, 20_000, 40_000) for end in (68_000, 76_000, 100_000)),
    *({"technique": ("l0",), "initial_keep": (keep,), "scale": tuple(scales),
       "label_smoothing": SMOOTHINGS, "decay": (0.0, DECAY / keep)}
      for keep, scales in L0_SCALES.items()),
)


# ---- training


@keras.saving.register_keras_serializable(package="recipes")
class RiseAndFalls(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises from 0 in a line, and falls to a tenth at some steps.

    Args:
      rate: that it rises to.
      rise: steps until then.
      falls: steps at which it falls.
    """

    def __init__(self, rate, rise, falls):
        self.rate, self.rise, self.falls = rate, rise, list(falls)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        fallen = sum(ops.cast(step >= fall, "float32") for fall in self.falls)
        return self.rate * ops.minimum(step / self.rise, 1.0) * 0.1 ** fallen

    def get_config(self):
        return {"rate": self.rate, "rise": self.rise, "falls": self.falls}


class Smoothed(keras.losses.Loss):
    """Cross-entropy of logits with classes of which a share is given to all alike."""

    def __init__(self, share):
        super().__init__(name="smoothed")
        self.share = share

    def call(self, classes, logits):
        wanted = ops.one_hot(ops.cast(classes, "int32"), logits.shape[-1])
        return keras.losses.categorical_crossentropy(wanted, logits, from_logits=True,
                                                     label_smoothing=self.share)


def rate(c, steps):
    """The paper's learning rates, stretched or shrunk to a run of so many steps."""
    rise, *falls = (steps * passes * IMAGES / (STEPS * BATCH) for passes in (RISE, *FALLS))
    return RiseAndFalls(c.rate, rise, falls)


def compile(c, model, steps):
    sgd = keras.optimizers.SGD(rate(c, steps), momentum=MOMENTUM, nesterov=True)
    model.compile(sgd, Smoothed(c.label_smoothing),
                  metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")])


def run(c, run):
    try:
        from recipes.data import imagenet
    except ImportError as error:
        raise ValueError(f"ImageNet is read with {error.name}, which is not installed: pip install "
                         "tensorflow tensorflow-datasets importlib_resources") from error
    if c.batch % c.devices:
        raise ValueError(f"batch={c.batch} cannot be shared evenly by devices={c.devices}. Near is "
                         f"batch={c.batch // c.devices * c.devices or c.devices}.")
    train, test, kept_out = imagenet.load(run.options["data_dir"], c.holdout)
    run.reads(imagenet.fingerprint(train, test))
    looked_at = {"accuracy": test} | ({"holdout_accuracy": kept_out} if kept_out else {})
    pictures = {name: imagenet.evaluation(split, c.picture, c.devices)
                for name, split in looked_at.items()}
    for remark in remarks(c):
        print(remark, flush=True)

    def figures(model):
        return {name: float(model.evaluate(dataset, verbose=0, return_dict=True)["accuracy"])
                for name, dataset in pictures.items()}

    with devices.sharing(c.devices):
        report = sos.perform(c, run, sos.Task(
            lambda: resnet(c.depth, c.width, c.picture, train.classes, c.decay,
                           devices.synchronized(c.devices)),
            imagenet.Stream(train, c.batch, c.epoch_steps, c.seed, c.picture),
            pictures["holdout_accuracy" if kept_out else "accuracy"],
            lambda model, steps: compile(c, model, steps), figures,
            first="^stem/", last="^classes/", others=OTHERS))
    return report | {"remarks": remarks(c)}
