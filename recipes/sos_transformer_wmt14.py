"""The State of Sparsity's techniques on the Transformer, WMT14, English to German.

The paper's second network, in full: tensor2tensor's transformer_base, 61,163,520 parameters, of
which 61,083,648 are made sparse. `recipes/shared/sos.py` says what each technique does,
`recipes/networks/transformer.py` what the network is. A run is 500,000 steps.

Sources: "code" is google-research/google-research, state_of_sparsity; "csv" its result files, in
recipes/published; "tensor2tensor" its transformer_base. What they leave open is marked assumed.
"""

import dataclasses

from recipes.data import translation
from recipes.running.configuration import defaults, setting
from recipes.running.registry import Difference
from recipes.shared import sos, sos_translation

STEPS = 500_000  # csv
STEPS_OF_AN_EPOCH = 1000  # ours: how often a run is saved
# Words of a step: 2,048 for each core (csv); 8 cores are assumed, no source says how many
BATCH = 16_384
LENGTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)  # assumed; 256 is tensor2tensor's longest
RATE_WARM_UP = 8000  # steps; tensor2tensor. Factor, dropout and smoothing: sos_translation.py
INITIAL_KEEP = 0.9  # code: log alpha 2.197
LOG_SIGMA2 = -10.0  # code
# No source: continuous sparsification is not in the paper
ANNEALING = 0.9
S0 = 0.05
GATE_PENALTY = 1e-8

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
NONE, SMOOTHED, DROPPED = sos_translation.REGULARIZATIONS

# The best run of the csv that is at least so sparse (half a point less is enough), as in
# recipes/reporting/state_of_sparsity.py; chosen by the test BLEU that it reports.
# {sparsity: (begin, end, frequency in steps, regularization)}
PRUNING = {
    "magnitude": {
        0.5: (100_000, 400_000, 10_000, DROPPED),
        0.6: (100_000, 400_000, 1_000, DROPPED),
        0.7: (100_000, 300_000, 1_000, DROPPED),
        0.8: (200_000, 400_000, 10_000, SMOOTHED),
        0.9: (0, 400_000, 10_000, SMOOTHED),
        0.95: (100_000, 300_000, 1_000, SMOOTHED),
        0.98: (0, 300_000, 1_000, NONE),
    },
    "random": {
        0.5: (200_000, 500_000, 1_000, SMOOTHED),
        0.6: (0, 300_000, 1_000, SMOOTHED),
        0.7: (0, 400_000, 1_000, SMOOTHED),
        0.8: (0, 300_000, 10_000, SMOOTHED),
        0.9: (0, 100_000, 1_000, SMOOTHED),
        0.95: (0, 100_000, 1_000, NONE),
        0.98: (0, 100_000, 1_000, NONE),
    },
}
# {sparsity: (k of the coefficient k / 4.5e6, how it rises, from, in steps, regularization)}; a
# variational dropout has the threshold too
PENALTIES = {
    "variational_dropout": {
        0.5: (0.1, "linear", 400_000, 100_000, DROPPED, 2.0),
        0.6: (0.1, "cubic", 400_000, 100_000, DROPPED, 1.5),
        0.7: (0.1, "linear", 300_000, 200_000, DROPPED, 0.0),
        0.8: (0.1, "cubic", 0, 300_000, SMOOTHED, 1.5),
        0.9: (0.4, "linear", 0, 100_000, SMOOTHED, 2.5),
        0.95: (1.0, "cubic", 0, 300_000, NONE, 2.5),
        0.98: (1.0, "linear", 0, 1, NONE, 2.0),
    },
    "l0": {
        0.5: (1.3, "linear", 100_000, 100_000, SMOOTHED),
        0.6: (1.9, "linear", 100_000, 100_000, SMOOTHED),
        0.7: (2.5, "cubic", 100_000, 100_000, SMOOTHED),
        0.8: (3.5, "linear", 0, 300_000, SMOOTHED),
        0.9: (2.5, "linear", 0, 1, SMOOTHED),
        0.95: (10.0, "linear", 0, 200_000, NONE),
        0.98: (10.0, "linear", 0, 1, NONE),
    },
}
UNPUBLISHED = {"frequency": 1000, "regularization": SMOOTHED}  # continuous sparsification's

DIFFERENCES = (
    Difference("Subwords are sentencepiece's byte pairs, learned from the training text; the "
               "paper's vocabulary is tensor2tensor's, of the same size."),
    Difference("Pairs of like length make a batch, padded; the paper packs several sentences "
               "into one row."),
    Difference("Assumed: 16,384 words of a step (2,048 for each of 8 cores), lengths of the "
               "batches, the table of target spaces begins with the deviation of the words."),
    Difference("Assumed: scratch_b has twice the steps; what is published does not say how "
               "many.",
               technique=("scratch_b",)),
    Difference("Weights are pruned to the sparsity that was asked for; the paper's updates "
               "may miss the end of the schedule. Random pruning is random; in the paper's "
               "code it prunes by magnitude."),
    Difference("Variational dropout draws noise for each position; the paper's, in "
               "feed-forward blocks and attention, one for each sentence and unit.",
               technique=("variational_dropout",)),
    Difference("The penalty rises in a hundred small steps, the cubic one without the paper's "
               "moving average over ten steps; it is divided by the number of training pairs "
               "used, the paper's by 4.5e6.",
               technique=("variational_dropout", "l0")),
    Difference("BLEU is sacreBLEU's; tokenized_bleu is the paper's (recipes/shared/bleu.py)."),
)

MEASURE = sos_translation.BLEU
NEEDS = ("data_dir=FOLDER",)
ENDS = sos_translation.ENDS
DEFAULTS = defaults(
    sos_translation.Settings, epochs=STEPS // STEPS_OF_AN_EPOCH, batch=BATCH,
    rate_warm_up=RATE_WARM_UP, reach="penalty", initial_keep=INITIAL_KEEP, log_sigma2=LOG_SIGMA2,
    annealing=ANNEALING, s0=S0, gate_penalty=GATE_PENALTY,
    # By technique and sparsity, `usual` below
    pruning_begin=None, pruning_end=None, frequency=None, regularization=None, scale=None,
    ramp=None, warm_up_begin=None, warm_up=None, threshold=None)


@dataclasses.dataclass(frozen=True)
class Configuration(DEFAULTS):
    steps: int = setting(STEPS_OF_AN_EPOCH, "of an epoch", least=1)
    data: str = setting("wmt14", "files: any aligned text, NAME.en and NAME.de in data_dir, NAME "
                        "being train, validation and test; each text in a runs_dir of its own",
                        choices=("wmt14", "files"))

    def usual(self):
        """The best published settings of the technique at the nearest published sparsity.

        Scratch runs and tickets have those of the magnitude run that their masks come from, as in
        the paper.
        """
        if self.technique == "dense":
            return {"regularization": DROPPED}
        sparsity = min(SPARSITIES, key=lambda s: abs(s - self.sparsity))
        if self.technique == "continuous_sparsification":
            return UNPUBLISHED
        if self.technique in PENALTIES:
            scale, ramp, begin, rise, regularization, *threshold = (
                PENALTIES[self.technique][sparsity])
            return {"scale": scale, "ramp": ramp, "warm_up_begin": begin / STEPS,
                    "warm_up": rise / STEPS, "regularization": regularization,
                    "frequency": UNPUBLISHED["frequency"],  # by rank
                    **({"threshold": threshold[0]} if threshold else {})}
        technique = "random" if self.technique == "random" else "magnitude"
        begin, end, frequency, regularization = PRUNING[technique][sparsity]
        return {"pruning_begin": begin / STEPS, "pruning_end": end / STEPS,
                "frequency": frequency, "regularization": regularization}


def grid(techniques, pairs, begin, end, **more):
    """Blocks of a grid, one for each pair of a begin and an end."""
    return tuple({"technique": techniques, begin: (first,), end: (last,), **more}
                 for first, last in pairs)


TENTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the run: 0, 100,000 ... 500,000 steps
BEFORE = [(a, b) for a in TENTHS for b in TENTHS if a < b]
RISES = [(a, round(b - a, 1)) for a, b in BEFORE]
COMMON = {"frequency": (1000, 10_000), "regularization": (NONE, SMOOTHED, DROPPED)}
# First the best runs of the tables, then the whole grids of the csv: 504 runs of magnitude pruning,
# 630 of random pruning, 372 of variational dropout (the csv has each under 11 thresholds) and 930
# of L0
GRID = (
    {"technique": ("dense",)},
    {"technique": ("magnitude", "variational_dropout", "l0", "random"), "sparsity": SPARSITIES},
    {"technique": ("lottery", "scratch_e", "scratch_b"), "sparsity": SPARSITIES},
    {"technique": sos.SCRATCH, "sparsity": SPARSITIES, "initialization": ("augmented",)},
    *grid(("magnitude",), [(a, b) for a, b in BEFORE if b >= 0.6], "pruning_begin", "pruning_end",
          sparsity=SPARSITIES, **COMMON),
    *grid(("random",), BEFORE, "pruning_begin", "pruning_end", sparsity=SPARSITIES, **COMMON),
    *grid(("variational_dropout",), RISES, "warm_up_begin", "warm_up", ramp=("linear", "cubic"),
          scale=(0.1, 0.4, 0.7, 1.0), regularization=COMMON["regularization"]),
    *grid(("l0",), RISES, "warm_up_begin", "warm_up", ramp=("linear", "cubic"),
          scale=(0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 1.9, 2.5, 3.5, 10.0),
          regularization=COMMON["regularization"]),
    *grid(("variational_dropout",), [(0.0, 1 / STEPS)], "warm_up_begin", "warm_up",
          ramp=("linear",), scale=(0.1, 0.4, 0.7, 1.0), regularization=COMMON["regularization"]),
    *grid(("l0",), [(0.0, 1 / STEPS)], "warm_up_begin", "warm_up", ramp=("linear",),
          scale=(0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 1.9, 2.5, 3.5, 10.0),
          regularization=COMMON["regularization"]),
)


def read(c, folder):
    if c.data == "wmt14":
        return translation.read_wmt14(folder)
    return translation.read_files(folder, {name: name for name in translation.WMT14_SPLITS})


def own_data(c, folder):
    return None if c.data == "wmt14" else sos_translation.fingerprint_of(read(c, folder))


def run(c, run):
    text = read(c, run.options["data_dir"])
    return sos_translation.perform(c, run, text, LENGTHS, c.steps)
