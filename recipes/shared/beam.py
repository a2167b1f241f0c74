"""Beam search with a length penalty, as tensor2tensor has it, for any model of the next word.

Wu et al. 2016, arXiv:1609.08144, section 7: sentences are ranked by log P / ((5 + n) / 6)^alpha,
n being their number of words, the end among them.
"""

import numpy as np

from recipes.networks.transformer import END, PAD

BEAM, ALPHA = 4, 0.6  # tensor2tensor's defaults, which the paper's decoding has
LONGER = 50  # words that a translation may have more than its source; tensor2tensor's
NEVER = -1e9  # the score of what is not there


def penalty(length, alpha):
    """((5 + n) / 6)^alpha."""
    return ((5.0 + length) / 6.0) ** alpha


def search(next_words, most, beam=BEAM, alpha=ALPHA):
    """The best sentences found, each as if it were searched for alone.

    Args:
      next_words: a function of prefixes, integers of shape (sentences * beam, n) that begin with
        `PAD`, that returns `(log probabilities, words)` of what may follow, both of shape
        (sentences * beam, words): all words, or the 2 * beam likeliest, among which all are that
        the search can take.
      most: for each sentence its words at most, the end among them.
      beam: how many unfinished ones, and how many finished ones, are kept for each sentence.
      alpha: of the length penalty; 0: none.

    Returns:
      (words, scores): for each sentence an array of words without `END`, and
      log P / penalty. A sentence of which nothing has ended within its length gets its best
      unfinished one.
    """
    most = np.asarray(most)
    sentences, longest = len(most), most.max()
    alive = np.full((sentences, beam, 1), PAD, "int32")
    log_p = np.full((sentences, beam), NEVER)
    log_p[:, 0] = 0.0  # all prefixes are the same at first
    ended = np.full((sentences, beam, longest), PAD, "int32")
    scores = np.full((sentences, beam), NEVER)
    found, best = [None] * sentences, np.full(sentences, NEVER)
    for length in range(1, longest + 1):
        following, words = next_words(alive.reshape(sentences * beam, -1))
        candidates = log_p[..., None] + np.asarray(following, "float64").reshape(
            sentences, beam, -1)
        # Twice as many as are kept: at most half of them end
        came_from, chosen, value = _best(candidates, 2 * beam)
        words = np.take_along_axis(
            np.asarray(words, "int32").reshape(sentences, -1), chosen, axis=1)
        grown = np.concatenate([np.take_along_axis(alive, came_from[..., None], axis=1),
                                words[..., None]], axis=2)
        at_end = words == END

        ends = at_end & (value > NEVER / 2)  # there are fewer prefixes than the beam at first
        new_scores = np.where(ends, value / penalty(length, alpha), NEVER)
        new = np.pad(grown[:, :, 1:], ((0, 0), (0, 0), (0, longest - length)))
        ended, scores = _kept(np.concatenate([ended, new], axis=1),
                              np.concatenate([scores, new_scores], axis=1), beam)
        alive, log_p = _kept(grown, np.where(at_end, NEVER, value), beam)

        # No unfinished one can come to more than it has now, under the penalty of the longest
        settled = (scores[:, -1] > log_p[:, 0] / penalty(most, alpha)) | (length == most)
        for i in np.flatnonzero(settled):
            if found[i] is None:
                found[i], best[i] = _first(alive[i], log_p[i], ended[i], scores[i], alpha)
        if all(sentence is not None for sentence in found):
            break
    return found, best


def _kept(sentences, values, beam):
    """The best `beam` of each row, and their values, in order."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :beam]
    return (np.take_along_axis(sentences, order[..., None], axis=1),
            np.take_along_axis(values, order, axis=1))


def _first(alive, log_p, ended, scores, alpha):
    """`(words, score)`: the best finished sentence, or else the best unfinished one."""
    if scores[0] > NEVER / 2:
        return ended[0, :np.argmax(ended[0] == END)], scores[0]
    return alive[0, 1:], log_p[0] / penalty(alive.shape[1] - 1, alpha)


def _best(candidates, count):
    """`(rows, places among those of all rows, values)` of the best `count` of each sentence, of
    candidates (sentences, rows, words)."""
    flat = candidates.reshape(len(candidates), -1)
    order = np.argsort(-flat, axis=1, kind="stable")[:, :count]
    return order // candidates.shape[2], order, np.take_along_axis(flat, order, axis=1)


def translate(read, write, sources, *, beam=BEAM, alpha=ALPHA, longer=LONGER, tokens=4096):
    """Translations of sentences of words, in their order.

    Args:
      read, write: models, `transformer.reader` and `transformer.writer`, of 2 * beam words.
      sources: arrays of words, each with `END`.
      beam, alpha: as in `search`.
      longer: words that a translation may have more than its source.
      tokens: words of a step that the decoder looks at, sources, beams and padding included; it
        says how many sentences are translated at once.

    Returns:
      Arrays of words, without `END`.
    """
    found = [None] * len(sources)
    for chosen, size, length in groups([len(source) for source in sources], tokens // beam):
        source = np.full((size, length), PAD, "int32")
        for row, i in enumerate(chosen):
            source[row, :len(sources[i])] = sources[i]
        source[len(chosen):] = source[0]  # of a group that is not full: one shape for all
        memory = np.repeat(read.predict_on_batch(source), beam, axis=0)
        repeated = np.repeat(source, beam, axis=0)

        def next_words(prefixes):
            count, length = prefixes.shape
            target = np.pad(prefixes, ((0, 0), (0, padded(length) - length)))
            position = np.full((count, 1), length - 1, "int32")
            return write.predict_on_batch([memory, repeated, target, position])

        words, _ = search(next_words, (source != PAD).sum(1) + longer, beam, alpha)
        for i, sentence in zip(chosen, words):
            found[i] = sentence
    return found


def padded(length):
    """The length that a sentence is padded to: 16, 32, 64 ..., so that few shapes are compiled."""
    return max(16, 1 << (length - 1).bit_length())


def groups(lengths, tokens):
    """[(indices, sentences of a full group, length)] of sentences of like length."""
    by_length = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(padded(length), []).append(i)
    return [(of[start:start + size], size, length) for length, of in sorted(by_length.items())
            for size in [max(1, tokens // length)] for start in range(0, len(of), size)]
