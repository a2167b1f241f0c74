"""What the recipes of the paper's Transformer have in common: settings, training, BLEU.

`recipes/shared/sos.py` says what each technique does. All kernels of the network are made sparse,
the matrix of words and softmax with them; biases and normalisation are not.
"""

import dataclasses
from pathlib import Path

import keras

from recipes.data import translation
from recipes.data.fingerprint import fingerprint
from recipes.networks import transformer
from recipes.running.configuration import setting
from recipes.running.registry import Measure
from recipes.shared import bleu, sos
from recipes.shared.beam import ALPHA, BEAM, translate

BLEU = Measure("bleu", "test BLEU")
ENDS = ("embedding/embeddings",) * 2  # one matrix holds the words and the softmax

DROPOUT = 0.1  # tensor2tensor's transformer_base: of blocks, attention and hidden units
SMOOTHING = 0.1  # of labels, the same
REGULARIZATIONS = {"none": (0.0, 0.0), "label_smoothing": (0.0, SMOOTHING),
                   "dropout+label_smoothing": (DROPOUT, SMOOTHING)}
# Of Adam, and the factor of the rate: the same
BETAS, EPSILON = (0.9, 0.997), 1e-9
FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class Settings(sos.PublishedSettings):
    """With those of a translation; each recipe sets its own defaults."""

    holdout: int = setting(0, "training pairs kept out, to choose settings by", least=0)
    batch: int = setting(16384, "words of a step with padding, on either side", least=1)
    rate: float = setting(FACTOR, "factor of the learning rate", least=0)
    rate_warm_up: int = setting(8000, "steps in which the learning rate rises", least=1)
    regularization: str = setting("dropout+label_smoothing", "what else is against overfitting",
                                  choices=tuple(REGULARIZATIONS))
    vocabulary: int = setting(33_288, "subwords of both languages together", least=8,
                              most=2 ** 16 - 1)
    width: int = setting(512, "features of a position", least=2)
    hidden: int = setting(2048, "units of a feed-forward block", least=1)
    heads: int = setting(8, "of each attention", least=1)
    layers: int = setting(6, "of the encoder, and of the decoder", least=1)
    beam: int = setting(BEAM, "translations that are looked at side by side", least=1)
    alpha: float = setting(ALPHA, "of the length penalty", least=0)


def perform(c, run, text, lengths, steps=None):
    """Does what the configuration asks for; returns the final report.

    Args:
      c: the configuration.
      run: the `Run`.
      text: {"train" | "validation" | "test": (source lines, target lines)}.
      lengths: of batches, as in `TokenBatches`.
      steps: of an epoch, or None for all pairs once.
    """
    for name in translation.PACKAGES:  # BLEU comes last: missing it would cost a training
        translation.package(name)
    run.reads(fingerprint_of(text))
    subwords = translation.vocabulary(text["train"], c.vocabulary,
                                      Path(run.options["runs_dir"]) / "vocabularies")
    train, kept_out = sos.held_out(text["train"], c.holdout, "pairs")
    batches = _batches(subwords, train, lengths, c, steps)
    if batches.left_out:
        print(f"{batches.left_out} of {len(train[0])} training pairs are longer than "
              f"{max(lengths)} subwords: left out", flush=True)

    def figures(model):
        found = judged(model, subwords, text["test"], c)
        if kept_out is not None:
            found["holdout_bleu"] = judged(model, subwords, kept_out, c)["bleu"]
        return found

    return sos.perform(c, run, sos.Task(
        lambda: network(c), batches,
        _batches(subwords, kept_out or text["validation"], lengths, c),
        lambda model, steps: compile(model, c), figures))


def fingerprint_of(text):
    """That of all lines of a text, as `perform` takes it."""
    return fingerprint(*(side for name in sorted(text) for side in text[name]))


def network(c):
    """The Transformer of a configuration, with new initial weights."""
    if c.width % 2 or c.width % c.heads:
        raise ValueError(f"width={c.width} must be even and a multiple of heads={c.heads}.")
    size = transformer.Size(c.vocabulary, c.width, c.hidden, c.heads, c.layers)
    return transformer.transformer(size, REGULARIZATIONS[c.regularization][0])


def compile(model, c):
    """Compiles it for its training; the schedule does not know how long a run is."""
    rate = transformer.InverseSquareRoot(c.rate, c.width, c.rate_warm_up)
    model.compile(keras.optimizers.Adam(rate, *BETAS, epsilon=EPSILON),
                  transformer.SmoothedCrossEntropy(REGULARIZATIONS[c.regularization][1]),
                  weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")])


def _batches(subwords, pairs, lengths, c, steps=None):
    sources, targets = (translation.encoded(subwords, side) for side in pairs)
    return translation.TokenBatches(sources, targets, lengths, c.batch, c.seed, steps)


def judged(model, subwords, pairs, c):
    """{"bleu", "tokenized_bleu", "bleu_signature"} of the model's translations."""
    sources, references = pairs
    print(f"translating {len(sources)} sentences", flush=True)
    found = translate(transformer.reader(model), transformer.writer(model, 2 * c.beam),
                      translation.encoded(subwords, sources), beam=c.beam, alpha=c.alpha)
    lines = subwords.decode([words.tolist() for words in found])
    score, signature = bleu.bleu(lines, references)
    return {"bleu": score, "tokenized_bleu": bleu.tokenized_bleu(lines, references),
            "bleu_signature": signature}
