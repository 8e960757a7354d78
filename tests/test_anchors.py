"""Anchors: tokens of two tokenizers that end together have read the same text, whatever the text is."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hubsae.anchors import anchors, paired_chunks, token_ends
from hubsae.errors import ConfigError, DataError
from hubsae.tokens import TokenConfig

TEXTS = [
    "The capital of France is Paris. Its neighbour is Spain.",
    "  two  leading spaces\r\nand a Windows line,\ttabs\n\n\nand empty lines  ",
    "naïve café — “quotes”, ﬁne ligatures, ½ and ①, Ⅷ, ẞ and İstanbul",
    "emoji 🙂, a family 👩‍👩‍👧‍👦, flags 🇫🇷🇪🇸 and skin 👍🏽!",
    "日本語のテキスト。 中文文本，混合 English words und Wörter",
    "שלום עולם and العربية with marks e\u0301 and a\u0308",
    "a" * 300,
]
PLAIN = TokenConfig(skip_positions=0)


def bpe(size: int, normalizer=None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"])
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {"bytes": bpe(256), "bpe": bpe(340), "lower": bpe(320, normalizers.Lowercase()), "unigram": unigram()}


PAIRS = [("bytes", "bpe"), ("bpe", "lower"), ("bpe", "unigram"), ("lower", "unigram"), ("bpe", "bpe")]


@pytest.mark.parametrize(("a", "b"), PAIRS)
@pytest.mark.parametrize("text", TEXTS)
def test_both_tokens_of_an_anchor_end_at_the_same_character(tokenizers, a, b, text):
    read = [token_ends(tokenizers[name], text, PLAIN, 1000) for name in (a, b)]
    pairs = anchors([ends for _, ends in read])
    assert len(pairs)
    ends = [r[1][pairs[:, i]] for i, r in enumerate(read)]
    assert np.array_equal(ends[0], ends[1])
    assert (np.diff(ends[0]) > 0).all()  # every place once, in the order of the text
    assert ends[0].max() <= len(text)
    wanted = set(read[0][1][read[0][1] > 0]) & set(read[1][1][read[1][1] > 0])
    assert set(ends[0]) == wanted


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_up_to_an_end_are_exactly_the_text_up_to_there(tokenizers, text):
    for name in ("bytes", "bpe"):  # those that lose nothing
        ids, ends = token_ends(tokenizers[name], text, PLAIN, 1000)
        for i in np.flatnonzero(ends > 0):
            assert tokenizers[name].decode(ids[: i + 1]) == text[: ends[i]]


def test_of_the_tokens_of_one_character_only_the_last_has_read_it(tokenizers):
    ids, ends = token_ends(tokenizers["bytes"], "🙂!", PLAIN, 100)
    assert len(ids) == 5
    assert list(ends) == [-1, -1, -1, 1, 2]
    _, cut = token_ends(tokenizers["bytes"], "🙂!", PLAIN, 3)  # the context ends inside the character
    assert list(cut) == [-1, -1, -1]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_pieces_of_a_long_text_fit_and_their_rows_pair_up(tokenizers, a, b):
    long = " ".join(TEXTS) + " " + TEXTS[0] * 20
    chunks = list(paired_chunks([long, TEXTS[0]], [tokenizers[a], tokenizers[b]], PLAIN, (48, 64)))
    assert {chunk.document for chunk in chunks} == {0, 1}
    for chunk in chunks:
        (partner,) = chunk.partners
        assert len(chunk.ids) <= 48
        assert len(partner.ids) <= 64
        assert chunk.n_rows == partner.n_rows > 0
        assert chunk.keep[-1]
        assert partner.keep[-1]
        cut = chunk.first(1)
        assert cut.n_rows == cut.partners[0].n_rows == 1
        some = np.arange(chunk.n_rows) % 2 == 0
        assert chunk.rows_where(some).n_rows == chunk.rows_where(some).partners[0].n_rows == some.sum()
    if "bytes" in (a, b) or a == b:
        n = sum(len(c.of((a, b).index("bytes") ^ 1 if a != b else 0).ids) for c in chunks)
        assert sum(c.n_rows for c in chunks) > 0.8 * n  # nearly every token of the coarser one


def test_texts_without_a_shared_place_are_refused(tokenizers):
    class Shifted:
        is_fast = True

        def __call__(self, text, **options):
            found = dict(tokenizers["bpe"](text, **options))
            found["offset_mapping"] = [(a + 1000, b + 1000) for a, b in found["offset_mapping"]]
            return found

    with pytest.raises(DataError, match="no anchors"):
        list(paired_chunks(TEXTS, [tokenizers["bpe"], Shifted()], PLAIN, (64, 64)))


def test_anchors_that_are_all_left_out_are_told_apart_from_none(tokenizers):
    config = TokenConfig(skip_positions=1000)
    with pytest.raises(DataError, match="skip_positions=1000"):
        list(paired_chunks(TEXTS[:1], [tokenizers["bpe"]] * 2, config, (64, 64)))


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="Slow gives no character offsets"):
        list(paired_chunks(TEXTS, [Slow(), Slow()], PLAIN, (64, 64)))
