"""The Transformer recipes: network, training, data, beam search, BLEU, and runs from end to end."""

import collections
import dataclasses
import itertools
import json
import math
import resource
import sys
import time

import keras
import numpy as np
import pytest
from keras import ops

import tf_sparsity as ts
from recipes import sos_transformer_multi30k, sos_transformer_wmt14
from recipes.data import translation
from recipes.networks import transformer
from recipes.networks.transformer import END, PAD
from recipes.reporting import state_of_sparsity, tables
from recipes.running import configuration, runner, sweep
from recipes.shared import beam, bleu, sos, sos_translation

NAME = "sos_transformer_wmt14"
SIZE = transformer.Size(vocabulary=20, width=8, hidden=16, heads=2, layers=2)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return transformer.transformer(SIZE, dropout=0.1)


# ---- network


def test_numbers_of_parameters():
    """Of the paper: 61,083,648 weights in kernels, 99.87 % of all parameters."""
    base = transformer.BASE
    encoder = 6 * (4 * 512 ** 2 + 2 * 512 * 2048)
    decoder = 6 * (8 * 512 ** 2 + 2 * 512 * 2048)
    assert (encoder, decoder, base.vocabulary * base.width) == (18_874_368, 25_165_824, 17_043_456)
    # biases of 12 feed-forward blocks, 32 normalisations, 32 target spaces
    others = 12 * (2048 + 512) + 32 * 2 * 512 + 32 * 512
    full = transformer.transformer(base, dropout=0.1)
    assert ts.report(full).total("size") == 61_083_648 == encoder + decoder + 17_043_456
    assert full.count_params() == 61_083_648 + others == 61_163_520
    assert round(61_083_648 / full.count_params(), 4) == 0.9987


def test_every_kernel_is_made_sparse_and_the_words_share_one(model):
    sparse = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 0)))
    ts.update(sparse)
    rows = ts.report(sparse).rows
    # 2 layers of 4 + 2 and 2 of 8 + 2 kernels, and the words
    assert len(rows) == 2 * 6 + 2 * 10 + 1 and {row.sparsity for row in rows} == {0.5}
    assert [v.path for v in model.trainable_variables if v.shape[0] == 20] == [
        "embedding/embeddings"]


def words(*sentences):
    return np.array(sentences, "int32")


@pytest.mark.any_backend
def test_no_position_sees_the_future(model):
    source, target = words([3, 4, 5, END]), words([PAD, 6, 7, 8, 9])
    other = target.copy()
    other[0, 3:] = [10, 11]
    one, two = (model.predict_on_batch([source, t]) for t in (target, other))
    assert np.array_equal(one[:, :3], two[:, :3])
    assert np.abs(one[:, 3:] - two[:, 3:]).max() > 1e-3


@pytest.mark.any_backend
def test_padding_changes_no_output(model):
    source, target = words([3, 4, 5, END]), words([PAD, 6, 7])
    padded = [np.pad(a, ((0, 0), (0, 3))) for a in (source, target)]
    short, long = model.predict_on_batch([source, target]), model.predict_on_batch(padded)
    np.testing.assert_allclose(short, long[:, :3], atol=1e-5)  # sums of other lengths round apart
    # and the source is looked at
    assert np.abs(model.predict_on_batch([source[:, ::-1], target]) - short).max() > 1e-3


@pytest.mark.any_backend
def test_encoder_and_decoder_alone_are_the_model(model):
    source, target = words([3, 4, 5, END], [9, END, PAD, PAD]), words([PAD, 6, 7], [PAD, 5, 4])
    logits = model.predict_on_batch([source, target])
    memory = transformer.reader(model).predict_on_batch(source)
    at = np.array([[2], [1]])
    log_p, words_ = transformer.writer(model, 3).predict_on_batch([memory, source, target, at])
    expected = ops.convert_to_numpy(ops.log_softmax(logits[[0, 1], [2, 1]]))
    order = np.argsort(-expected, axis=1)[:, :3]
    assert np.array_equal(words_, order)
    np.testing.assert_allclose(log_p, np.take_along_axis(expected, order, 1), atol=1e-5)


def test_attention_is_the_formula():
    generator = np.random.default_rng(0)
    q, k, v = (generator.normal(size=(1, n, 4)).astype("float32") for n in (2, 3, 3))
    mask = np.array([True, True, False])[None, None, None]
    found = transformer.Attention(2)([q, k, v, mask])
    for head in (slice(0, 2), slice(2, 4)):
        scores = q[0, :, head] @ k[0, :2, head].T / math.sqrt(2)
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(found[0, :, head], shares @ v[0, :2, head], atol=1e-6)


def test_positions_are_the_formula():
    found = ops.convert_to_numpy(transformer.positions(3, 6))
    for position, wave in itertools.product(range(3), range(3)):
        angle = position / 1e4 ** (wave / 2)  # 1, 100 and 10,000
        assert found[position, wave] == pytest.approx(math.sin(angle), abs=1e-6)
        assert found[position, 3 + wave] == pytest.approx(math.cos(angle), abs=1e-6)


def test_padding_and_the_beginning_are_no_word():
    layer = transformer.Placed()
    found = ops.convert_to_numpy(layer([np.ones((1, 3, 4), "float32"), words([PAD, 5, PAD])]))
    waves = ops.convert_to_numpy(transformer.positions(3, 4))
    np.testing.assert_allclose(found[0] - waves, [[0] * 4, [2] * 4, [0] * 4], atol=1e-6)


# ---- training


@pytest.mark.any_backend
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_the_formula(smoothing):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    right, weights = words([1, 2, PAD], [4, 1, 3]), np.array([[1, 1, 0], [1, 1, 1]], "float32")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    q = np.full((2, 3, 5), smoothing / 4)
    np.put_along_axis(q, right[..., None], 1 - smoothing, axis=-1)
    # Kullback-Leibler divergence from q
    divergence = (q * (np.log(np.maximum(q, 1e-30)) - log_p)).sum(-1)
    loss = transformer.SmoothedCrossEntropy(smoothing)
    assert float(loss(right, logits, weights)) == pytest.approx(
        (divergence * weights).sum() / 5, rel=1e-5)
    # ... which is 0 at its best
    assert float(loss(right, np.log(np.maximum(q, 1e-30)), weights)) == pytest.approx(0, abs=1e-5)


def test_the_learning_rate_is_the_formula():
    rate = transformer.InverseSquareRoot(2.0, 512, 8000)
    found = [float(rate(step)) for step in (0, 4000, 8000, 32_000)]
    peak = 2 * 512 ** -0.5 * 8000 ** -0.5
    assert round(peak, 6) == 9.88e-4
    assert found == pytest.approx([0, peak / 2, peak, peak / 2], rel=1e-6)


# ---- published settings


def best_rows():
    """{(technique, sparsity): (settings in PRUNING or PENALTIES)} computed from the csv files."""
    found = {}
    for technique in ("magnitude", "random", "variational_dropout", "l0"):
        name, sparsity, quality = state_of_sparsity.FILES["Transformer"][technique]
        thresholds = state_of_sparsity.THRESHOLDS if "{}" in sparsity else [""]
        for target in state_of_sparsity.TARGETS:
            fitting = [(float(row[quality.format(t)]), row, t)
                       for row in state_of_sparsity.rows(name) for t in thresholds
                       if float(row[sparsity.format(t)]) >= target - state_of_sparsity.SHORT]
            _, row, threshold = max(fitting, key=lambda f: f[0])
            if technique in ("magnitude", "random"):
                numbers = tuple(int(row[k]) for k in ("begin_pruning_step", "end_pruning_step",
                                                      "pruning_frequency"))
            else:
                prefix = "dkl_weight" if technique == "variational_dropout" else "l0_norm_weight"
                numbers = (round(float(row[prefix]) * 4.5e6, 3), row[f"{prefix}_fn"],
                           int(row["dkl_weight_start"]), int(row["dkl_weight_diff"]))
            end = (float(threshold),) if threshold else ()
            found[technique, target] = (*numbers, row["regularization"], *end)
    return found


def test_the_settings_are_those_of_the_best_published_runs():
    ours = {(technique, sparsity): row
            for table in (sos_transformer_wmt14.PRUNING, sos_transformer_wmt14.PENALTIES)
            for technique, rows in table.items() for sparsity, row in rows.items()}
    assert ours == best_rows()


def parse(*given):
    return configuration.parse(sos_transformer_wmt14.Configuration, list(given))


def test_published_settings_are_the_defaults_and_what_is_given_wins():
    c = parse("technique=magnitude", "sparsity=0.95")
    assert (c.pruning_begin, c.pruning_end, c.frequency, c.regularization) == (
        0.2, 0.6, 1000, "label_smoothing")
    assert configuration.words(c) == ["sparsity=0.95"]
    ticket = parse("technique=lottery", "sparsity=0.95")
    assert dataclasses.replace(ticket, technique="magnitude") == c
    c = parse("technique=variational_dropout", "sparsity=0.8", "threshold=3", "frequency=7")
    assert (c.scale, c.ramp, c.warm_up_begin, c.warm_up) == (0.1, "cubic", 0.0, 0.6)
    assert (c.threshold, c.frequency, c.reach) == (3.0, 7, "penalty")
    again = configuration.words(c)
    assert {"threshold=3.0", "frequency=7"} <= set(again) and parse(*again) == c
    assert parse("technique=dense").regularization == "dropout+label_smoothing"
    for technique in sos.TECHNIQUES:
        c = parse(f"technique={technique}")
        assert None not in configuration.values(c).values(), technique
        assert parse(*configuration.words(c)) == c


def test_the_grid_has_the_published_runs():
    counts = collections.Counter()
    for block in sos_transformer_wmt14.GRID[4:]:
        technique, = block["technique"]
        counts[technique] += math.prod(len(values) for values in block.values())
    assert counts == {"magnitude": 504, "random": 630, "variational_dropout": 372, "l0": 930}
    for name, technique in (("magnitude_pruning", "magnitude"), ("random_pruning", "random"),
                            ("variational_dropout",) * 2, ("l0_regularization", "l0")):
        assert len(state_of_sparsity.rows(f"transformer_{name}")) == counts[technique]


@pytest.mark.parametrize("technique, count", [("magnitude", 504), ("random", 630), ("dense", 1)])
def test_a_sweep_has_the_best_runs_first_and_none_twice(technique, count):
    pytest.importorskip("keras_tuner")
    grid = sweep.Sweep(NAME, [f"technique={technique}"]).grid
    assert len(grid) == len(set(grid)) == count
    # Their settings are the published ones, so that no word says them
    asked = [] if technique == "magnitude" else [f"technique={technique}"]
    best = [" ".join([*asked, *([] if s == 0.9 else [f"sparsity={s}"])])
            for s in sos_transformer_wmt14.SPARSITIES]
    assert grid[:7] == (best if technique != "dense" else asked)


# ---- beam search


def chain(seed, vocabulary):
    """`next_words` whose word depends on the whole prefix, by a table made on the way."""
    made = {}

    def log_p(prefix):
        if prefix not in made:
            logits = np.random.default_rng([seed, *prefix]).normal(size=vocabulary) * 2
            logits[PAD] = -50  # no model writes it
            made[prefix] = logits - np.log(np.exp(logits).sum())
        return made[prefix]

    return log_p, lambda prefixes: (np.stack([log_p(tuple(p.tolist())) for p in prefixes]),
                                    np.tile(np.arange(vocabulary), (len(prefixes), 1)))


def by_brute_force(log_p, vocabulary, most, alpha):
    """(score, words) of the best sentence of at most `most` words, the end among them."""
    best = (-math.inf, None)
    for length in range(most):
        for sentence in itertools.product(range(2, vocabulary), repeat=length):
            prefix, total = (PAD,), 0.0
            for word in (*sentence, END):
                total += log_p(prefix)[word]
                prefix += (word,)
            score = total / ((5 + length + 1) / 6) ** alpha
            best = max(best, (score, sentence))
    return best


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_beam_finds_the_best_sentence(alpha):
    for seed in range(5):
        log_p, next_words = chain(seed, vocabulary=5)
        # 3 + 9 + 27 unfinished prefixes at most, 1 + 3 + 9 + 27 finished ones
        found, scores = beam.search(next_words, [4], beam=64, alpha=alpha)
        score, sentence = by_brute_force(log_p, 5, 4, alpha)
        assert tuple(found[0]) == sentence
        assert scores[0] == pytest.approx(score, rel=1e-9)


def test_sentences_of_a_batch_are_searched_for_apart():
    _, one = chain(1, vocabulary=6)
    _, two = chain(2, vocabulary=6)

    def both(prefixes):
        half = len(prefixes) // 2
        return [np.concatenate(parts) for parts in zip(one(prefixes[:half]), two(prefixes[half:]))]

    found, scores = beam.search(both, [6, 4], beam=3)
    for i, (alone, most) in enumerate(((one, 6), (two, 4))):
        words_alone, score = beam.search(alone, [most], beam=3)
        assert np.array_equal(found[i], words_alone[0]) and scores[i] == score[0]


def test_the_likeliest_words_of_each_prefix_are_enough():
    for seed in range(5):
        _, next_words = chain(seed, vocabulary=12)

        def likeliest(prefixes):
            log_p, words_ = next_words(prefixes)
            order = np.argsort(-log_p, axis=1)[:, :6]
            return np.take_along_axis(log_p, order, 1), np.take_along_axis(words_, order, 1)

        one, two = (beam.search(f, [7], beam=3) for f in (next_words, likeliest))
        assert np.array_equal(one[0][0], two[0][0]) and one[1] == two[1]


def test_a_wider_beam_finds_what_a_narrow_one_misses():
    """A is the likelier first word, 0.6 to 0.4; A then ends with 0.5, B with 0.9."""
    a, b = 2, 3
    after = {(PAD,): [0, 0, 0.6, 0.4], (PAD, a): [0, 0.5, 0.25, 0.25], (PAD, b): [0, 0.9, 0.1, 0]}

    def next_words(prefixes):
        p = np.array([after.get(tuple(prefix.tolist()), [0, 1, 0, 0]) for prefix in prefixes])
        return np.log(np.maximum(p, 1e-30)), np.tile(np.arange(4), (len(prefixes), 1))

    for beam_, word, p in ((1, a, 0.6 * 0.5), (2, b, 0.4 * 0.9)):
        found, scores = beam.search(next_words, [4], beam=beam_, alpha=0.0)
        assert found[0].tolist() == [word] and scores[0] == pytest.approx(math.log(p))


def test_what_never_ends_is_cut_off():
    def never(prefixes):
        log_p = np.full((len(prefixes), 4), -20.0)
        log_p[:, 3] = -0.5
        return log_p[:, 2:], np.tile([2, 3], (len(prefixes), 1))

    found, scores = beam.search(never, [3], beam=1, alpha=1.0)
    assert found[0].tolist() == [3, 3, 3] and scores[0] == -1.5 / (8 / 6)


def test_length_penalty():
    """Wu et al. 2016, eq. (14)."""
    assert beam.penalty(1, 0.6) == 1.0
    assert beam.penalty(7, 1.0) == 2.0 and beam.penalty(19, 0.5) == 2.0


def test_translations_do_not_depend_on_how_they_are_batched(model):
    sources = [np.array(s) for s in ([3, 4, END], [5, 6, 7, 8, 9, 10, END], [11, END])]
    read, write = transformer.reader(model), transformer.writer(model, 4)
    together, alone = (beam.translate(read, write, sources, beam=2, longer=3, tokens=tokens)
                       for tokens in (1000, 1))
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one, other)


# ---- BLEU


def test_bleu():
    pytest.importorskip("sacrebleu")
    reference = ["The cat sat on the mat .", "It is a well-known fact ."]
    assert bleu.bleu(reference, reference)[0] == pytest.approx(100)
    score, signature = bleu.bleu(["a b c d e x"], ["a b c d e f"])
    # 5 of 6, 4 of 5, 3 of 4, 2 of 3
    assert score == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert "tok:13a" in signature


def test_compounds_are_split_before_the_paper_s_bleu():
    pytest.importorskip("sacremoses")
    assert bleu.split_compounds("a well-known - fact-of-life") == (
        "a well ##AT##-##AT## known - fact ##AT##-##AT## of-life".replace(
            "of-life", "of ##AT##-##AT## life"))
    # One word of the compound is wrong: tokens x ##AT##-##AT## b, of which 2 of 3 are right
    score = bleu.tokenized_bleu(["eins zwei drei x-b"], ["eins zwei drei a-b"])
    # of 6 tokens 5; pairs 5: 3; triples 4: 1; fours 3: 0 -> none without smoothing
    assert score == 0
    score = bleu.tokenized_bleu(["eins zwei drei vier x-b"], ["eins zwei drei vier a-b"])
    # of 7 tokens 6, of 6 pairs 4, of 5 triples 2, of 4 fours 1
    assert score == pytest.approx(100 * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25)


# ---- text

NUMBERS = {"en": "one two three four five six seven eight nine ten".split(),
           "de": "eins zwei drei vier fünf sechs sieben acht neun zehn".split()}


def pairs(count, seed):
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, 10, generator.integers(1, 5)) for _ in range(count)]
    return [[" ".join(NUMBERS[language][i] for i in row) for row in rows]
            for language in ("en", "de")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made-up aligned text: numbers, in the files' names that both recipes look for."""
    folder = tmp_path_factory.mktemp("text")
    for seed, (names, count) in enumerate(((("train",), 60), (("validation", "val"), 8),
                                           (("test", "test_2016_flickr"), 6))):
        for name, (language, lines) in itertools.product(names, zip(("en", "de"),
                                                                    pairs(count, seed))):
            (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def a_row_of(lengths):
    return translation.Words([[7] * (n - 1) + [END] for n in lengths])


def test_words_are_kept_apart():
    kept = translation.Words([[3, 1], [], [4, 5, 1]])
    assert len(kept) == 3 and kept.lengths.tolist() == [2, 0, 3]
    assert [kept[i].tolist() for i in range(3)] == [[3, 1], [], [4, 5, 1]]


def test_batches_have_fixed_shapes_and_every_pair_once():
    sources, targets = a_row_of([2, 3, 4, 5, 6, 7, 30]), a_row_of([3, 3, 2, 8, 2, 2, 2])
    batches = translation.TokenBatches(sources, targets, (4, 8), tokens=16, seed=3)
    # lengths 3, 3, 4 -> 4 words, 4 pairs; 8, 6, 7 -> 8 words, 2 pairs; 30 is left out
    assert (batches.examples, batches.left_out, len(batches)) == (6, 1, 3)
    shapes, seen = [], []
    for i in range(3):
        (source, before), target, weights = batches[i]
        assert source.shape == target.shape == weights.shape == before.shape
        assert np.array_equal(before[:, 1:], target[:, :-1]) and not before[:, 0].any()
        assert np.array_equal(weights, target != PAD)
        shapes.append(source.shape)
        seen += [(a, b) for a, b in zip((source != PAD).sum(1).tolist(),
                                        (target != PAD).sum(1).tolist()) if a]
    assert sorted(shapes) == [(2, 8), (2, 8), (4, 4)]
    assert sorted(seen) == [(2, 3), (3, 3), (4, 2), (5, 8), (6, 2), (7, 2)]
    assert shapes[0] != shapes[1]  # Keras looks at these two


def test_the_order_is_a_function_of_seed_and_epoch():
    words_ = a_row_of(list(range(2, 9)) * 5)

    def epoch(number, seed=0, steps=None):
        batches = translation.TokenBatches(words_, words_, (4, 8), 16, seed, steps)
        batches.begin(number)
        return [batches[i][1].tolist() for i in range(len(batches))]

    assert epoch(2) == epoch(2) and epoch(2) != epoch(3) and epoch(2) != epoch(2, seed=1)
    of_a_pass = len(epoch(0))
    # epochs of 5 batches go through passes of of_a_pass
    endless = [batch for number in range(2 * of_a_pass) for batch in epoch(number, steps=5)]
    passes = [batch for number in range(10) for batch in epoch(number)]
    assert sorted(endless) == sorted(passes)  # in an epoch, two of them may have changed places


def test_fit_takes_batches_of_every_length_from_any_epoch_on():
    """Keras looks at two batches of the epoch that a resumed run begins with."""
    some = a_row_of([5] * 40 + [12] * 16 + [30] * 8)  # 10 + 8 + 8 batches
    batches = translation.TokenBatches(some, some, (8, 16, 32), 32, seed=0, steps=7)
    source, before = keras.Input((None,)), keras.Input((None,))
    model = keras.Model((source, before), keras.layers.Dense(8)(
        keras.layers.Embedding(8, 2)(before)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for epoch in range(batches.of_a_pass):
        batches.begin(epoch)
        assert len({batches[i][1].shape for i in range(2)}) == 2
        model.fit(batches, shuffle=False, verbose=0)


def test_files_are_read_with_and_without_compression(tmp_path):
    import gzip
    (tmp_path / "a.en").write_text("Füße\u2028one\nb\n", "utf-8")
    with gzip.open(tmp_path / "a.de.gz", "wt", encoding="utf-8") as file:
        file.write("ß\nc\n")
    assert translation.read_files(tmp_path, {"x": "a"}) == {
        "x": (["Füße\u2028one", "b"], ["ß", "c"])}
    (tmp_path / "b.en").write_text("one\n")
    (tmp_path / "b.de").write_text("eins\nzwei\n")
    with pytest.raises(ValueError, match="b.en has 1 lines and b.de 2"):
        translation.read_files(tmp_path, {"x": "b"})


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(ValueError) as error:
        translation.read_wmt14(str(tmp_path))
    assert ("python -c \"import tensorflow_datasets as tfds; tfds.load('wmt14_translate/de-en', "
            f"data_dir='{tmp_path}')\"") in str(error.value)
    with pytest.raises(ValueError, match="test_2016_flickr.en .*\n.*git clone https://github.com/"
                                         "multi30k/dataset multi30k\n"
                                         ".*data_dir=multi30k/data/task1/raw"):
        sos_transformer_multi30k.read(tmp_path)
    with pytest.raises(ValueError, match="There is no .*train.en or train.en.gz"):
        translation.read_files(tmp_path, {"train": "train"})


@pytest.mark.parametrize("package", translation.PACKAGES)
def test_a_missing_package_is_one_error_before_training(package, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    options, configured = runner.parse(NAME, ["data=files", f"data_dir={folder}",
                                              f"runs_dir={tmp_path}", "tensorboard=no"])
    with pytest.raises(ValueError, match=f"Translation needs {package}, which is not installed: "
                                         "pip install sentencepiece sacrebleu sacremoses"):
        runner.run(NAME, configured, options)


# ---- runs

# 60 pairs of at most 16 subwords in batches of 32: 2 steps go over all of them
TINY = ("data=files", "vocabulary=64", "width=8", "hidden=16", "heads=2", "layers=1", "batch=512",
        "epochs=2", "steps=3", "rate_warm_up=4", "beam=2", "tensorboard=no")


@pytest.fixture
def run(tmp_path, folder):
    pytest.importorskip("sentencepiece")

    def run(*more, callbacks=(), into=tmp_path):
        options, configured = runner.parse(NAME, [*TINY, *more, f"data_dir={folder}",
                                                  f"runs_dir={into}"])
        return runner.run(NAME, configured, options, callbacks)

    return run


class Leave(keras.callbacks.Callback):
    """Leaves training inside the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            raise KeyboardInterrupt


def test_what_is_learned_by_heart_is_translated(tmp_path):
    """Ten sentences that are trained on and tested on: encoding, training, beam search, decoding
    and BLEU together."""
    pytest.importorskip("sentencepiece")
    for name, (language, lines) in itertools.product(
            ("train", "validation", "test"), zip(("en", "de"), pairs(10, 0))):
        (tmp_path / f"{name}.{language}").write_text("\n".join(lines) + "\n", "utf-8")
    options, configured = runner.parse(NAME, [
        "data=files", "technique=dense", "regularization=none", "vocabulary=64", "width=32",
        "hidden=64", "heads=2", "layers=1", "batch=256", "epochs=1", "steps=150", "rate=1",
        "rate_warm_up=60", "tensorboard=no", f"data_dir={tmp_path}", f"runs_dir={tmp_path}"])
    report = runner.run(NAME, configured, options)["report"]
    assert round(report["bleu"], 6) == round(report["tokenized_bleu"], 6) == 100


def test_a_complete_run_on_another_text_is_not_taken(run, tmp_path, folder):
    _, c = runner.parse(NAME, [*TINY])
    path = tmp_path / NAME / configuration.digest(NAME, c) / "record.json"
    path.parent.mkdir(parents=True)
    record = {"status": "complete", "where": {"backend": "jax"}, "configuration": {}, "epochs": [],
              "report": {}, "commits": [], "data": "another"}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"the run of these settings on other data \(another, in"):
        run()
    text = translation.read_files(folder, {n: n for n in translation.WMT14_SPLITS})
    record["data"] = sos_translation.fingerprint_of(text)
    path.write_text(json.dumps(record))
    assert run() == record
    assert sos_transformer_wmt14.own_data(dataclasses.replace(c, data="wmt14"), folder) is None


def interrupted(run, tmp_path, *words_):
    """The records of a run and of the same run, left in its second epoch and called again."""
    straight = run(*words_, into=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(*words_, callbacks=[Leave()])
    resumed = run(*words_)
    assert (straight["sessions"], resumed["sessions"]) == (1, 2)
    for one, other in zip(straight["epochs"], resumed["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert straight["report"] == resumed["report"]
    return straight, resumed


@pytest.mark.slow
def test_a_dense_run_with_dropout_goes_on_bit_for_bit(run, tmp_path):
    interrupted(run, tmp_path, "technique=dense", "regularization=dropout+label_smoothing")


def test_an_interrupted_run_goes_on_bit_for_bit(run, tmp_path):
    straight, _ = interrupted(run, tmp_path, "technique=magnitude", "sparsity=0.75", "frequency=1")
    final = straight["report"]
    assert final["sparsity"] == 0.75 and final["steps"] == 6
    assert 0 <= final["bleu"] <= 100 and 0 <= final["tokenized_bleu"] <= 100
    assert "tok:13a" in final["bleu_signature"]
    assert sorted(path.name for path in (tmp_path / "vocabularies").iterdir()) == sorted(
        path.name for path in (tmp_path / "straight" / "vocabularies").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("technique", ["dense", "variational_dropout", "l0"])
def test_techniques_from_end_to_end(run, technique):
    record = run(f"technique={technique}")
    final = record["report"]
    assert len(record["epochs"]) == 2 and np.isfinite(record["epochs"][-1]["loss"])
    assert 0 <= final["bleu"] <= 100
    # 6 kernels of the encoder's and 10 of the decoder's layer, and the words
    assert len(final["kernels"]) == 6 + 10 + 1
    if technique != "dense":  # by the penalty: what it leads to is the sparsity
        assert final["natural"] is None
        assert tables.met((technique, 0.9, (("reach", "penalty"),), ""), [final]) == (
            final["sparsity"])


@pytest.mark.slow
def test_lives_of_a_mask(run):
    """Tickets and scratch runs keep the masks of the words, too."""
    few = ("sparsity=0.75", "frequency=1")
    magnitude = run("technique=magnitude", *few)
    for technique, more in (("lottery", ("rewind_step=1",)),
                            ("scratch_b", ("initialization=augmented",))):
        record = run(f"technique={technique}", "pruning_begin=0.4", *few, *more)
        assert record["report"]["sparsity"] == 0.75
        assert len(record["epochs"]) == (4 if technique == "scratch_b" else 2)
    assert magnitude["report"]["kernels"][0]["name"] == "embedding/embeddings"


def test_augmented_words_have_the_deviation_of_those_that_are_left():
    """N(0, 1 / (features (1 - s))): 1 / sqrt(16 / 4) = 1/2."""
    model = transformer.transformer(transformer.Size(500, 16, 8, 2, 1), 0.0)
    kept = {"embedding/embeddings": np.arange(500 * 16).reshape(500, 16) % 4 == 0}
    sos.augment_initial_weights(model, kept, seed=0)
    # 8,000 numbers: four standard errors are 4 / sqrt(16,000)
    assert np.std(model.get_layer("embedding").embeddings) == pytest.approx(0.5, rel=0.032)


@pytest.mark.slow
def test_multi30k_from_end_to_end(folder, tmp_path, capsys):
    words_ = ["vocabulary=64", "width=8", "hidden=16", "heads=2", "layers=1", "epochs=1",
              "batch=512", "tensorboard=no", f"data_dir={folder}", f"runs_dir={tmp_path}"]
    for technique in (["technique=dense"], ["technique=magnitude", "frequency=1"]):
        options, configured = runner.parse("sos_transformer_multi30k", [*technique, *words_])
        record = runner.run("sos_transformer_multi30k", configured, options)
        assert f"bleu {record['report']['bleu']:.4f}" in capsys.readouterr().out
        asked = 0 if "technique=dense" in technique else 0.9
        for kernel in record["report"]["kernels"]:  # each to half a weight
            assert abs(kernel["zeros"] - asked * kernel["size"]) <= 0.5, kernel["name"]
        assert len(record["epochs"]) == 1 and record["report"]["steps"] > 0


@pytest.mark.slow
def test_a_step_of_the_full_network(record_property, capsys):
    """Two steps of 8 sentences of 32 words: the rate of the first is 0. Time and memory are
    printed."""
    c = parse("technique=magnitude", "sparsity=0.9")
    model = ts.sparsify(sos_translation.network(c), ts.MagnitudePruning(
        ts.ConstantSparsity(0.9, 0), revive=True))
    ts.update(model)
    sos_translation.compile(model, c)
    generator = np.random.default_rng(0)
    source, target = generator.integers(2, c.vocabulary, (2, 8, 32))
    before = np.pad(target[:, :-1], ((0, 0), (1, 0)))
    before_step = np.array(model.get_layer("decoder5_back").theta("kernel"))
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        loss = model.train_on_batch((source, before), target, np.ones((8, 32), "float32"))[0]
        seconds.append(round(time.monotonic() - started, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 5 < loss < 20  # log 33,288 = 10.4, less the entropy of the smoothed labels
    moved = np.array(model.get_layer("decoder5_back").theta("kernel")) - before_step
    assert np.abs(moved).max() > 0
    said = {"seconds of the first step, with compilation": seconds[0],
            "seconds of the second": seconds[1], "peak memory, GiB": round(peak / 2 ** 30, 2)}
    record_property("full network", json.dumps(said))
    with capsys.disabled():
        print(f"\n{said}")
