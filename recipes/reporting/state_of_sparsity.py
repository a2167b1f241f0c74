"""The published results of The State of Sparsity: the best run at each sparsity, from its CSVs."""

import csv
import statistics
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "published"
TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SHORT = 0.005  # a run counts for a target that it misses by this much
THRESHOLDS = [f"{t / 2:.1f}" for t in range(11)]  # at which variational dropout was evaluated
# {network: {technique: (file, column of the sparsity, column of the quality)}}. ResNet-50 under L0
# has no usable run, and the extended runs have no file.
FILES = {
    "ResNet-50": {
        "magnitude": ("rn50_magnitude_pruning", "Sparsity", "accuracy"),
        "random": ("rn50_random_pruning", "Target Sparsity", "accuracy"),
        "variational_dropout": ("rn50_variational_dropout", "global sparsity", "Accuracy"),
    },
    "Transformer": {
        "magnitude": ("transformer_magnitude_pruning", "Sparsity", "Moses BLEU"),
        "random": ("transformer_random_pruning", "Sparsity", "Moses BLEU"),
        "l0": ("transformer_l0_regularization", "Sparsity", "MOSES BLEU"),
        "variational_dropout": ("transformer_variational_dropout", "Sparsity:{}", "MOSES BLEU:{}"),
    },
}
# Of the Transformer; those of ResNet-50 differ in their columns.
SECOND_LIVES = {"lottery": "lottery_ticket", "scratch_e": "scratche", "scratch_b": "scratchb"}
# Accuracy in per cent there, a fraction elsewhere.
BASELINES = {"ResNet-50": ("rn50_baselines", "Accuracy", 100),
             "Transformer": ("transformer_baselines", "MOSES BLEU", 1)}


def rows(name):
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def dense(network):
    """The mean of the dense runs: top-1 accuracy as a fraction, or BLEU."""
    name, column, unit = BASELINES[network]
    return statistics.fmean(float(row[column]) for row in rows(name)) / unit


def runs(network, technique):
    """[(sparsity, accuracy or BLEU)] of all runs."""
    name, sparsity, quality = FILES[network][technique]
    thresholds = THRESHOLDS if "{}" in sparsity else [""]
    return [(float(row[sparsity.format(t)]), float(row[quality.format(t)]))
            for row in rows(name) for t in thresholds]


def best_at(network, technique, target):
    """(sparsity, accuracy or BLEU) of the best run at least as sparse, or None.

    The best of many runs, chosen by the number that is reported.
    """
    fitting = [(quality, sparsity) for sparsity, quality in runs(network, technique)
               if sparsity >= target - SHORT]
    return max(fitting)[::-1] if fitting else None


def best(network, technique):
    """[(sparsity, accuracy or BLEU)]: `best_at` each target, without repetition."""
    found = [best_at(network, technique, target) for target in TARGETS]
    return list(dict.fromkeys(filter(None, found)))


def best_by_regularization(sparsity):
    """{regularization: BLEU of the best Transformer under magnitude pruning at least so sparse}."""
    found = {}
    for row in rows("transformer_magnitude_pruning"):
        if float(row["Sparsity"]) >= sparsity - SHORT:
            kind = row["regularization"]
            found[kind] = max(found.get(kind, 0.0), float(row["Moses BLEU"]))
    return found


def second_lives(network, sparsity):
    """{what: accuracies or BLEU of its runs} under the masks of magnitude runs, with plain initial
    weights."""
    if network == "Transformer":
        return {what: [float(row["MOSES BLEU"]) for row in rows(f"transformer_{file}")
                       if abs(float(row["Sparsity"]) - sparsity) < SHORT]
                for what, file in SECOND_LIVES.items()}
    found = {"lottery": [float(row["accuracy"]) for row in rows("rn50_lottery_ticket")
                         if float(row["sparsity"]) == sparsity]}
    for row in rows("rn50_scratch_lr_scaled"):
        if float(row["sparsity"]) == sparsity and row["init method"] == "baseline":
            what = {"1": "scratch_e", "2": "scratch_b"}[row["time multiplier"]]
            found[what] = [float(row[f"Run {i}"]) for i in range(1, 10)]
    return found
