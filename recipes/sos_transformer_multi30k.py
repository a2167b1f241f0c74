"""The State of Sparsity's techniques on a small Transformer, Multi30k, English to German.

The network, its training and its BLEU are those of the paper's Transformer
(`sos_transformer_wmt14`), made so small that one core trains it in minutes: 2 + 2 layers of width
128. Any aligned text of short sentences will do in place of Multi30k (Elliott et al. 2016).
"""

import dataclasses

from recipes.data import translation
from recipes.running.configuration import defaults
from recipes.running.registry import Difference
from recipes.shared import sos, sos_translation

# Ours: no paper has this network. All techniques share them.
EPOCHS = 10
BATCH = 2048
LENGTHS = (16, 24, 48)  # subwords; a pair that is longer is left out
VOCABULARY = 4000
WIDTH, HIDDEN, HEADS, LAYERS = 128, 512, 4, 2
RATE = 1.0  # factor; tensor2tensor's 2 is for 512 features and 8,000 steps
RATE_WARM_UP = 1000  # steps; the rate is 2.8e-3 at most
# Shares of the run, as the paper's best magnitude pruning at 80 % and its best variational dropout
# at 90 % have them; an update each 1/50 of the run.
PRUNING_BEGIN, PRUNING_END = 0.4, 0.8
FREQUENCY = 68
WARM_UP = 0.4
# As recipes/sos_lenet_mnist.py.
SCALE = 1.0
INITIAL_KEEP = 0.5
ANNEALING = 0.9
S0 = 0.05
GATE_PENALTY = 1e-5

SPARSITIES = (0.8, 0.9)
FILES = {"train": "train", "validation": "val", "test": "test_2016_flickr"}

DIFFERENCES = (
    Difference("The paper trains transformer_base, 6 + 6 layers of width 512, on WMT14 for "
               "500,000 steps; network, data and schedule are ours."),
    Difference("The paper meets a sparsity by sweeping the penalty; here learned methods keep "
               "the most important weights when training is over (reach=rank).",
               technique=sos.LEARNED, reach=("rank",)),
    Difference("Label smoothing and dropout are the same for all techniques and sparsities; "
               "the paper's best runs have less of both where there is more sparsity."),
)

MEASURE = sos_translation.BLEU
NEEDS = ("data_dir=FOLDER",)
ENDS = sos_translation.ENDS
DEFAULTS = defaults(
    sos_translation.Settings, epochs=EPOCHS, batch=BATCH, rate=RATE, rate_warm_up=RATE_WARM_UP,
    vocabulary=VOCABULARY, width=WIDTH, hidden=HIDDEN, heads=HEADS, layers=LAYERS,
    pruning_begin=PRUNING_BEGIN, pruning_end=PRUNING_END, warm_up=WARM_UP, scale=SCALE,
    initial_keep=INITIAL_KEEP, annealing=ANNEALING, s0=S0, gate_penalty=GATE_PENALTY)


@dataclasses.dataclass(frozen=True)
class Configuration(DEFAULTS):
    def usual(self):
        return {"frequency": FREQUENCY}


GRID = (
    {"technique": ("dense",)},
    {"technique": ("magnitude", "variational_dropout", "l0"), "sparsity": SPARSITIES},
    {"technique": ("random", "continuous_sparsification"), "sparsity": SPARSITIES},
    {"technique": ("scratch_e", "scratch_b", "lottery"), "sparsity": SPARSITIES},
)


def read(folder):
    """The three parts of Multi30k in a folder, or the commands that get them."""
    missing = [stem for stem in FILES.values() if not translation.has_files(folder, stem)]
    if missing:
        raise ValueError(
            f"Multi30k's {', '.join(f'{stem}.en' for stem in missing)} (or .en.gz) "
            f"{'is' if len(missing) == 1 else 'are'} not in {folder or 'data_dir (not given)'}.\n"
            "  download: git clone https://github.com/multi30k/dataset multi30k\n"
            "  then give data_dir=multi30k/data/task1/raw")
    return translation.read_files(folder, FILES)


def own_data(c, folder):
    return sos_translation.fingerprint_of(read(folder))


def run(c, run):
    return sos_translation.perform(c, run, read(run.options["data_dir"]), LENGTHS)
