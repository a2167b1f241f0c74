"""Aligned text: from files or tensorflow-datasets, as subwords, in batches of so many words.

Aligned text is two files, NAME.en and NAME.de (or NAME.en.gz), a sentence a line, UTF-8.
`python -m recipes.data.translation wmt14 FOLDER` writes WMT14 as such files, which a machine
without TensorFlow reads with `data_dir=FOLDER`.
"""

import argparse
import gzip
import hashlib
import importlib
import io
import sys
from pathlib import Path

import keras
import numpy as np

from recipes.networks.transformer import END, PAD
from recipes.running import program
from recipes.running.files import replacing

SOURCE, TARGET = "en", "de"
UNKNOWN = 2  # word of what the vocabulary lacks
WMT14 = "wmt14_translate/de-en"
WMT14_SPLITS = {"train": "train", "validation": "validation", "test": "test"}
CHUNK = 10_000  # lines that are encoded at once
MOST_LINES = 2_000_000  # of both languages together, that a vocabulary is learned from

PACKAGES = ("sentencepiece", "sacrebleu", "sacremoses")  # subwords, BLEU, the paper's tokens


# ---- text


def read_files(folder, names):
    """{name: (source lines, target lines)} of aligned files.

    Args:
      folder: where they are.
      names: {name: stem}, for instance {"test": "test_2016_flickr"}.

    Raises:
      ValueError: for a missing file, or two files of different lengths.
    """
    found = {}
    for name, stem in names.items():
        sides = [_lines(Path(folder), f"{stem}.{language}") for language in (SOURCE, TARGET)]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"{stem}.{SOURCE} has {len(sides[0])} lines and {stem}.{TARGET} {len(sides[1])}, "
                f"in {folder}. Line i of one is the translation of line i of the other.")
        found[name] = tuple(sides)
    return found


def has_files(folder, stem):
    """Is NAME.en or NAME.en.gz there?"""
    return folder is not None and any(
        (Path(folder) / f"{stem}.{SOURCE}{ending}").exists() for ending in ("", ".gz"))


def _lines(folder, name):
    for path, opened in ((folder / name, open), (folder / f"{name}.gz", gzip.open)):
        if path.exists():
            with opened(path, "rt", encoding="utf-8", newline="\n") as file:
                return [line.rstrip("\r\n") for line in file]
    raise ValueError(f"There is no {folder / name} or {name}.gz.")


def read_wmt14(data_dir):
    """WMT14's pairs: from train.en, train.de and so on in `data_dir`, else tensorflow-datasets.

    Raises:
      ValueError: if the data is not there, with the command that gets it.
    """
    if has_files(data_dir, "train"):
        return read_files(data_dir, {name: name for name in WMT14_SPLITS})
    try:
        import tensorflow_datasets as tfds

        loaded = tfds.load(WMT14, split=list(WMT14_SPLITS.values()), data_dir=data_dir,
                           download=False)
    except Exception as error:  # not installed or not prepared: the way out is the same
        where = f", data_dir='{data_dir}'" if data_dir else ""
        why = "is not installed" if isinstance(error, ImportError) else "has not prepared it there"
        raise ValueError(
            f"WMT14 cannot be read: tensorflow-datasets {why}, and "
            f"{data_dir or 'FOLDER'} has no train.{SOURCE}.\n"
            "  install:  pip install tensorflow tensorflow-datasets importlib_resources\n"
            f"  download: python -c \"import tensorflow_datasets as tfds; tfds.load('{WMT14}'"
            f"{where})\"\n"
            "  without TensorFlow: python -m recipes.data.translation wmt14 FOLDER on a machine "
            "that has the data; copy the folder, and give data_dir=FOLDER") from error
    return {name: _columns(tfds.as_numpy(rows)) for name, rows in zip(WMT14_SPLITS, loaded)}


def _columns(rows):
    sides = ([], [])
    for row in rows:
        for side, language in zip(sides, (SOURCE, TARGET)):
            side.append(" ".join(row[language].decode().split()))
    return sides


# ---- subwords


class Words:
    """Sentences as integers, one after the other in one array: millions of them fit in memory.

    Args:
      sentences: an iterable of sequences of integers below 65,536.
    """

    def __init__(self, sentences):
        arrays = [np.asarray(sentence, "uint16") for sentence in sentences]
        self.ends = np.cumsum([len(array) for array in arrays], dtype="int64")
        self.flat = np.concatenate([np.empty(0, "uint16"), *arrays])

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, i):
        return self.flat[self.ends[i - 1] if i else 0:self.ends[i]]

    @property
    def lengths(self):
        return np.diff(self.ends, prepend=0)


def vocabulary(text, size, folder):
    """A sentencepiece model of both languages, learned once from the training text.

    Byte pair encoding with `PAD`, `END` and `UNKNOWN` as words 0, 1 and 2. It is kept in `folder`
    under a name that is a hash of the text and the size. Of more lines than `MOST_LINES` every
    n-th is used.

    Raises:
      ValueError: if sentencepiece is missing, or the text has fewer subwords than asked for.
    """
    pieces = package("sentencepiece")
    lines = [line for side in text for line in side]
    lines = lines[::-(-len(lines) // MOST_LINES)]
    digest = hashlib.sha256(f"{size}\n".encode())
    for line in lines:
        digest.update(line.encode() + b"\n")
    path = Path(folder) / f"{digest.hexdigest()[:12]}.model"
    if not path.exists():
        model = io.BytesIO()
        try:
            pieces.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
                vocab_size=size, character_coverage=1.0, pad_id=PAD, eos_id=END, unk_id=UNKNOWN,
                bos_id=-1, minloglevel=2)
        except RuntimeError as error:
            raise ValueError(f"vocabulary={size} does not fit {len(lines)} lines of text: {error}"
                             ) from error
        with replacing(path) as new:
            new.write_bytes(model.getvalue())
    return pieces.SentencePieceProcessor(model_file=str(path))


def package(name):
    """A module of `PACKAGES`; where it is missing, an error with the line that installs them."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"Translation needs {name}, which is not installed: pip install "
                         f"{' '.join(PACKAGES)}") from error


def encoded(subwords, lines):
    """`Words`, each sentence with `END`."""
    return Words(ids + [END] for at in range(0, len(lines), CHUNK)
                 for ids in subwords.encode(lines[at:at + CHUNK]))


# ---- batches


class TokenBatches(keras.utils.PyDataset):
    """Batches of pairs of like length, in an order that is a function of (seed, epoch) alone.

    A pair belongs to the first length that neither side exceeds, and is padded to it. A batch has
    so many pairs that they have `tokens` words with padding on either side; the last one of a
    length is filled up with empty pairs, so that a length has one shape. A pass goes over all
    pairs; an epoch is a pass, or `steps` batches of an endless row of passes.

    An item is ((source, target before each word), target, weights): weights are 0 at padding.

    Args:
      sources, targets: `Words`.
      lengths: increasing; longer pairs are left out.
      tokens: words of a batch, on either side.
      seed: integer >= 0.
      steps: of an epoch, or None for a pass.
    """

    def __init__(self, sources, targets, lengths, tokens, seed, steps=None):
        super().__init__()
        self.sources, self.targets, self.seed = sources, targets, seed
        longest = np.maximum(sources.lengths, targets.lengths)
        of = np.searchsorted(lengths, longest)
        self.groups = [(length, max(1, tokens // length), np.flatnonzero(of == i))
                       for i, length in enumerate(lengths) if (of == i).any()]
        self.examples = sum(len(pairs) for _, _, pairs in self.groups)
        if not self.examples:
            raise ValueError(f"None of {len(sources)} pairs of sentences has at most "
                             f"{max(lengths)} subwords on both sides.")
        self.left_out = len(sources) - self.examples
        self.of_a_pass = sum(-(-len(pairs) // size) for _, size, pairs in self.groups)
        self.steps = steps or self.of_a_pass
        self.begin(0)

    def begin(self, epoch):
        """Puts the batches of an epoch in their order."""
        first, last = epoch * self.steps, (epoch + 1) * self.steps
        turns = range(first // self.of_a_pass, -(-last // self.of_a_pass))
        passes = [batch for turn in turns for batch in self._pass(turn)]
        first -= turns[0] * self.of_a_pass
        self.batches = passes[first:first + self.steps]
        # Keras takes the shapes of the first two batches for all of them where they are equal
        lengths = [length for length, _, _ in self.batches]
        other = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
        if other is not None:
            self.batches[1], self.batches[other] = self.batches[other], self.batches[1]

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        length, size, pairs = self.batches[index]
        source, target = (np.full((size, length), PAD, "int32") for _ in range(2))
        for row, pair in enumerate(pairs):
            for words, into in ((self.sources[pair], source), (self.targets[pair], target)):
                into[row, :len(words)] = words
        before = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
        return (source, before), target, (target != PAD).astype("float32")

    def _pass(self, turn):
        """[(length, pairs of a full batch, pairs)] of a pass, mixed."""
        generator = np.random.default_rng([self.seed, turn])
        batches = []
        for length, size, pairs in self.groups:
            mixed = generator.permutation(pairs)
            batches += [(length, size, mixed[at:at + size]) for at in range(0, len(mixed), size)]
        return [batches[i] for i in generator.permutation(len(batches))]


# ---- from the command line


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m recipes.data.translation", description=__doc__)
    parser.add_argument("name", choices=["wmt14"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", default=None, help="where tensorflow-datasets has it")
    args = parser.parse_args(argv)
    for name, sides in read_wmt14(args.data_dir).items():
        for language, lines in zip((SOURCE, TARGET), sides):
            with replacing(args.folder / f"{name}.{language}") as path:
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"Written: {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(program.status(main))
