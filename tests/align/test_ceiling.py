"""align.ceiling: no text comes to more tokens than is said, whatever its tokenizer does to it."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from align.ceiling import Ceiling
from align.config import WORLD_BASE

BYTES = [f"<0x{n:02X}>" for n in range(256)]
#: a letter whose compatible form is 18 letters long, one that grows in lower case, marks, an emoji, blanks
HARD = [
    "ﷺ", "İ", "é", "e\u0301", "👩\u200d🚀", "  ", " ", "\n", "\t",
    "1", "23", "a", "cat", "<s>", "</s>", "‰", "ﬃ", ".",
]  # fmt: skip


def built(name: str, *more: str) -> Tokenizer:
    """Of bytes alone, as SentencePiece's tokenizers fall back to, with ``more`` tokens."""
    vocab = {token: i for i, token in enumerate(["<unk>", *BYTES, *more])}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    if name == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.ByteFallback()
    elif name == "compatible forms":
        tokenizer.normalizer = normalizers.NFKC()
    elif name == "lower case, marks apart":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    elif name == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif name == "digits, each with a space ahead":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.Metaspace()])
    elif name == "bytes with spaces ahead":
        vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab, []))
        split = pre_tokenizers.Split("a", "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    return tokenizer


NAMES = [
    "plain", "llama", "compatible forms", "lower case, marks apart", "metaspace",
    "digits, each with a space ahead", "bytes with spaces ahead",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("knows_space", [False, True])
def test_no_text_has_more_tokens(name: str, knows_space: bool) -> None:
    tokenizer = built(name, "▁") if knows_space else built(name)
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    ceiling, rng = Ceiling(fast), random.Random(0)
    texts = ["", *HARD, *("".join(rng.choices(HARD, k=rng.randint(1, 30))) for _ in range(300))]
    lengths = [len(fast(text, add_special_tokens=False)["input_ids"]) for text in texts]
    most = [ceiling.of(text) for text in texts]
    assert all(n <= m for n, m in zip(lengths, most)), [t for t, n, m in zip(texts, lengths, most) if n > m]
    if name == "plain" and not knows_space:
        # of bytes alone, no more than what may stand ahead of a text and behind its special tokens
        assert ceiling.of("a cat") == len("a cat") + 3
    assert max(lengths) > 30


def test_a_real_tokenizer() -> None:
    fast = AutoTokenizer.from_pretrained(WORLD_BASE)
    ceiling, rng = Ceiling(fast), random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices(HARD, k=rng.randint(0, 30)))
        assert len(fast(text, add_special_tokens=False)["input_ids"]) <= ceiling.of(text)
