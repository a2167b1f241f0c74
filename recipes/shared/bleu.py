"""BLEU as it is reported now, and as the paper computed it."""

import re

from recipes.data.translation import TARGET, package


def bleu(translations, references):
    """`(BLEU, signature)` of detokenised sentences by sacreBLEU (Post 2018), 0 to 100."""
    metric = package("sacrebleu").BLEU()
    score = metric.corpus_score(translations, [references]).score
    return score, str(metric.get_signature())


def tokenized_bleu(translations, references):
    """The paper's BLEU, 0 to 100: that of tokens with compounds split, upper and lower case apart.

    The paper's script (tensor2tensor's get_ende_bleu.sh) makes Unicode punctuation ASCII,
    tokenises with Moses' tokenizer.perl for German, turns a-b into a ##AT##-##AT## b on both
    sides and counts with Moses' multi-bleu.perl. Here the first two are sacremoses', a port of
    Moses' scripts to Python, and the count is sacreBLEU's without tokenisation or smoothing.
    """
    sacrebleu, sacremoses = package("sacrebleu"), package("sacremoses")
    ascii_marks = sacremoses.MosesPunctNormalizer(lang=TARGET, pre_replace_unicode_punct=True)
    tokenizer = sacremoses.MosesTokenizer(lang=TARGET)

    def tokens(line):
        line = ascii_marks.replace_unicode_punct(line)
        return split_compounds(tokenizer.tokenize(line, return_str=True))

    metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", force=True)
    return metric.corpus_score([tokens(line) for line in translations],
                               [[tokens(line) for line in references]]).score


def split_compounds(line):
    """a-b -> a ##AT##-##AT## b."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line)
