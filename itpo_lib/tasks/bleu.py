"""BLEU of one document against one reference: by words, and the way the released code counts, by characters."""

from __future__ import annotations


def word_bleu(document: str, reference: str, tokenize: str = "13a") -> float:
    """Sentence BLEU of up to four words (sacrebleu's 13a tokens; "none": between spaces), smoothed, in [0, 1]."""
    from sacrebleu import sentence_bleu

    return in_unit(sentence_bleu(document, [reference], tokenize=tokenize).score)


def character_bleu(document: str, reference: str) -> float:
    """BLEU of up to four characters, not smoothed, in [0, 1]: a bad reward, here to show why.

    The released code hands two strings to NLTK's `sentence_bleu`, which takes each character, spaces
    included, for a word. All English shares its short runs of letters, so unrelated texts score high.
    """
    from sacrebleu import BLEU

    spelled, truth = (" ".join(str(ord(character)) for character in text) for text in (document, reference))
    return in_unit(BLEU(tokenize="none", smooth_method="none").corpus_score([spelled], [[truth]]).score)


def in_unit(score: float) -> float:
    """A score out of 100 as a number in [0, 1]; rounding may leave it a little above 100."""
    return min(1.0, max(0.0, score / 100))
