"""Anchors: tokens of two tokenizers that end together have read the same text, whatever the text is."""

import functools
import hashlib
import itertools
import re
import unicodedata

import anchor_tokenizers as tiny
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hubsae.activations import harvest
from hubsae.anchors import (
    RULES,
    SPLITS,
    AnchorConfig,
    AnchorSet,
    anchors,
    paired_chunks,
    read_anchors,
    text_id,
    token_ends,
)
from hubsae.demo import atlas
from hubsae.demo.run import load_model
from hubsae.errors import ConfigError, DataError
from hubsae.sites import Site
from hubsae.tokens import TokenConfig, special_ids

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
            found = tokenizers["bpe"](text, **options)
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


def letters(text: str) -> str:
    return "".join(text.replace("▁", " ").replace("#", "").split())  # the marks of Metaspace and of WordPiece


def read_text(kind: str, ids: np.ndarray) -> str | None:
    """What these tokens say, white space aside unless they are of bytes; None where one of them is unknown."""
    tokenizer = tiny.tokenizer(kind)
    if tokenizer.unk_token_id in ids:
        return None
    pieces = tokenizer.convert_ids_to_tokens(list(ids[int(ids[0] in special_ids(tokenizer)) :]))
    if kind in tiny.BYTE_LEVEL:
        return tokenizer.backend_tokenizer.decoder.decode(pieces)
    is_byte = kind == "fallback"
    codes = [bytes([int(p[3:5], 16)]) if is_byte and p.startswith("<0x") else p.encode() for p in pieces]
    return letters(b"".join(codes).decode("utf-8", "replace"))


def hard_texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return tiny.FRAGMENTS + [tiny.random_text(rng) for _ in range(n)]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_tokens_up_to_an_end_have_read_the_text_up_to_there_and_nothing_after(kind):
    normalizer = tiny.tokenizer(kind).backend_tokenizer.normalizer
    n = 0
    for text in hard_texts(20):
        ids, ends = token_ends(tiny.tokenizer(kind), text, PLAIN, 10**6)
        assert (np.diff(ends[ends >= 0]) > 0).all()
        for i in np.flatnonzero(ends >= 0)[:: 1 + len(ids) // 100]:
            before = text[: ends[i]]
            found = read_text(kind, ids[: i + 1])
            wanted = letters(normalizer.normalize_str(before)) if normalizer else before
            assert found is None or found == wanted
            n += found is not None
    assert n > 500


@pytest.mark.parametrize(("text", "kind", "missing"), [("e\u0301x", "metaspace", 1), ("ｶﾞx", "unigram", 1)])
def test_a_character_is_not_read_before_its_marks(text, kind, missing):
    for name in (kind, "bytes"):
        ends = token_ends(tiny.tokenizer(name), text, PLAIN, 100)[1]
        assert missing not in ends
        assert 3 in ends
    assert missing in token_ends(tiny.tokenizer("bytes"), text[0] + "x", PLAIN, 100)[1]


def test_a_token_whose_white_space_was_trimmed_away_has_no_end():
    tokenizer, text = tiny.tokenizer("trimmed"), tiny.FRAGMENTS[2]
    encoded = tokenizer(text, return_offsets_mapping=True)
    _, ends = token_ends(tokenizer, text, PLAIN, 100)
    trimmed = [i for i, t in enumerate(encoded.tokens()) if t.startswith("Ċ") and t.endswith("Ġ")]
    start, end = encoded["offset_mapping"][trimmed[0]]
    assert text[start:end] == "\n"
    assert ends[trimmed[0]] == -1


def test_tokens_that_stand_for_no_text_of_their_own_have_no_end():
    ids, ends = token_ends(tiny.tokenizer("llama3"), "the <s> cat", PLAIN, 100)
    assert (ends[ids == 0] == -1).all()
    assert (ids == 0).sum() == 2  # the one in front, and the one that the text spells
    tokenizer = tiny.tokenizer("wordpiece")
    ids, ends = token_ends(tokenizer, "the ☃ cat", PLAIN, 100)
    assert (ends[ids == tokenizer.unk_token_id] == -1).all()
    assert tokenizer.unk_token_id in ids
    assert ends[0] == ends[-1] == -1


def test_a_tokenizer_that_cuts_on_the_left_is_read_from_the_left():
    left = tiny.tokenizer("gpt2").__class__(
        tokenizer_object=tiny.tokenizer("gpt2").backend_tokenizer, truncation_side="left"
    )
    text = tiny.FRAGMENTS[0] * 3
    for found, wanted in zip(
        token_ends(left, text, PLAIN, 7), token_ends(tiny.tokenizer("gpt2"), text, PLAIN, 7), strict=True
    ):
        assert len(found) == 7
        assert np.array_equal(found, wanted)


# Sets of anchors

KIND_PAIRS = [
    ("gpt2", "llama3"),
    ("bytes", "metaspace"),
    ("trimmed", "unigram"),
    ("wordpiece", "llama3"),
    ("superwords", "fallback"),
    ("collapsed", "gpt2"),
]
CONTEXTS = (40, 56)


@functools.cache
def corpus(n: int = 24, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"Document {chr(0x4E00 + i)}. " + tiny.random_text(rng, 12) for i in range(n)]


def read(texts, kinds=("gpt2", "llama3"), contexts=CONTEXTS, **settings) -> AnchorSet:
    return read_anchors(texts, [tiny.tokenizer(kind) for kind in kinds], AnchorConfig(**settings), contexts)


def places_of(found: AnchorSet, model: int) -> list[tuple[int, int]]:
    """(chunk, position) of each row as one model reads it."""
    return [(c, int(p)) for c, chunk in enumerate(found.chunks) for p in np.flatnonzero(chunk.of(model).keep)]


@pytest.mark.parametrize("kinds", KIND_PAIRS)
def test_rows_of_a_set_are_the_places_where_tokens_of_all_models_end(kinds):
    texts = corpus()
    found = read(texts, kinds)
    raw = {text_id(text): text for text in texts}
    assert found.n == len(found.document) == len(found.level) == len(found.word) == sum(c.n_rows for c in found.chunks)
    assert [len(texts) - found.n_without, 0] == [len(found.texts), found.n_duplicates]
    assert np.array_equal(found.document, np.concatenate([[c.document] * c.n_rows for c in found.chunks]))
    begin: dict[int, int] = {}  # where each piece begins: the first model of the loop, of bytes, tells
    for model in sorted((0, 1), key=lambda model: kinds[model] not in tiny.BYTE_LEVEL):
        kind, n_read = kinds[model], 0
        normalizer = tiny.tokenizer(kind).backend_tokenizer.normalizer
        assert all(len(chunk.of(model).ids) <= CONTEXTS[model] for chunk in found.chunks)
        for row, (c, position) in enumerate(places_of(found, model)):
            text, end = raw[found.texts[found.document[row]]], int(found.end[row])
            chunk = found.chunks[c].of(model)
            assert position >= 4
            assert chunk.ids[position] not in special_ids(tiny.tokenizer(kind))
            said = read_text(kind, chunk.ids[: position + 1])
            if said is not None:
                begin.setdefault(c, end - len(said))
                wanted = text[begin[c] : end]
                assert said == (letters(normalizer.normalize_str(wanted)) if normalizer else wanted)
                n_read += 1
        assert n_read > 0.5 * found.n


@pytest.mark.parametrize("kinds", KIND_PAIRS)
def test_a_stricter_rule_gives_the_rows_of_that_level(kinds):
    every = read(corpus(), kinds)
    before = set(every.ids())
    for level, rule in enumerate(RULES):
        found = read(corpus(), kinds, rule=rule)
        assert set(found.ids()) <= before
        assert found.level.min() >= level
        ids = np.array(every.ids(), object)[every.level >= level]
        assert found.ids() == [(text, end) for text, end in ids]
        assert sum(c.n_rows for c in found.chunks) == found.n
        assert found.coverage[0] == pytest.approx(every.coverage[0] * found.n / every.n)
        before = set(found.ids())
    assert set(every.level) == {0, 1, 2}


@pytest.mark.parametrize("kinds", KIND_PAIRS)
def test_word_ends_are_never_inside_a_word_and_exact_spans_say_the_same(kinds):
    texts = corpus()
    raw = {text_id(text): text for text in texts}
    found = read(texts, kinds)
    for (name, end), level in zip(found.ids(), found.level, strict=True):
        before, after = raw[name][:end], raw[name][end : end + 1]
        while unicodedata.category(before[-1])[0] == "M":
            before = before[:-1]
        goes_on = re.match(r"\w", after) or (after and unicodedata.category(after)[0] == "M")
        assert bool(level) != bool(goes_on and re.match(r"\w", before[-1]))
    rows = [places_of(found, model) for model in (0, 1)]
    for i in np.flatnonzero(found.level == 2):
        said = []
        for model, kind in enumerate(kinds):
            c, position = rows[model][i]
            token = tiny.tokenizer(kind).convert_ids_to_tokens(int(found.chunks[c].of(model).ids[position]))
            if kind in tiny.BYTE_LEVEL:
                token = tiny.tokenizer(kind).backend_tokenizer.decoder.decode([token])
            said.append(letters(unicodedata.normalize("NFKC", str(token))).casefold())
        if "wordpiece" not in kinds and not any(s.startswith("<0x") for s in said):
            assert said[0] == said[1]


def test_levels_and_words_of_a_case_by_hand():
    texts = [f"We saw it: can't {number} naïve" for number in "abcdef"] + corpus()
    found = read(texts, ("bytes", "bytes"), (64, 64), skip_positions=0)
    rows = np.flatnonzero(found.document == 0)
    text = texts[0]
    assert list(found.end[rows]) == list(range(1, len(text) + 1))
    at = {int(found.end[i]): i for i in rows}
    for piece, level in (("W", 0), ("We", 2), ("We ", 2), ("We saw it", 2), ("We saw it: can", 2), (text, 0)):
        expected = level if piece != text else 2
        assert found.level[at[len(piece)]] == expected
    word = {end: int(found.word[i]) for end, i in at.items()}
    same = {}
    for end in word:
        run = re.search(r"\w+$", text[:end])
        same.setdefault(run.group() if run else text[end - 1], set()).add(word[end])
    assert all(len(numbers) == 1 for numbers in same.values())
    assert len({n for numbers in same.values() for n in numbers}) == len(same)
    assert word[1] != int(found.word[at[len("We saw i")]])


def test_a_mark_goes_on_with_the_word_it_stands_in():
    texts = ["हिन्दी " + name for name in "abcdefgh"] + corpus()
    found = read(texts, ("bytes", "bytes"), (64, 64), skip_positions=0)
    rows = found.document == 0
    assert set(found.end[rows & (found.level > 0)]) == {6, 7, 8}


def test_sets_are_rebuilt_by_anyone_in_any_order():
    texts = corpus()
    a, b = read(texts), read(iter(texts))
    other = read(texts[::-1])
    assert a.ids() == b.ids()
    assert a.digest == b.digest != other.digest
    assert sorted(a.ids()) == sorted(other.ids())
    sides = [dict(zip(s.texts, s.split.tolist(), strict=True)) for s in (a, other)]
    assert sides[0] == sides[1]
    total = hashlib.sha256()
    for number, name in enumerate(a.texts):
        total.update(name.encode() + a.end[a.document == number].astype("<i8").tobytes())
    assert a.digest == total.hexdigest()
    assert read(texts, seed=1).split.tolist() != a.split.tolist()


def test_splits_share_no_document_and_together_are_the_set():
    found = read(corpus(300), fit_share=0.6, match_share=0.1, max_anchors=10_000)
    parts = [found.of(name) for name in SPLITS]
    for number, part in enumerate(parts):
        assert set(found.split[part.document]) == {number}
        assert part.n == sum(c.n_rows for c in part.chunks) == len(part.word) == len(part.ids())
        assert np.array_equal(part.document, np.concatenate([[c.document] * c.n_rows for c in part.chunks]))
    assert sorted(i for part in parts for i in part.ids()) == sorted(found.ids())
    assert len({part.digest for part in parts}) == 3
    assert np.bincount(found.split) / len(found.split) == pytest.approx([0.6, 0.1, 0.3], abs=0.1)
    with pytest.raises(ConfigError, match="expected one of fit, match, eval"):
        found.of("test")


def test_alike_documents_are_kept_once_and_alike_beginnings_share_a_side():
    texts = corpus(30)
    changed = [t.upper().replace(" ", "  ").replace("1,234", "77") for t in texts if "ẞ" not in t]
    found = read(texts + changed + ["... " + t + "!" for t in texts])
    assert found.n_duplicates == len(changed) + len(texts)
    assert found.ids() == read(texts).ids()
    head = "A notice that stands before many documents of the same site, in 2024. " * 4
    for seed in range(3):
        twins = [head + text for text in texts[:8]] + [head.upper().replace("2024", "1999") + "and more of it"]
        found = read(texts + twins, seed=seed)
        assert len(set(found.split[len(texts) :])) == 1
        assert len(set(found.groups[len(texts) :])) == 1
        assert len(found.groups) == len(found.split) == len(texts) + len(twins)


def test_coverage_is_the_share_of_tokens_that_are_anchors():
    texts = [f"{c} cat sat, {d} 🙂 mat" for c, d in zip("abcdefghijklmnop", "ponmlkjihgfedcba", strict=True)]
    found = read(texts, ("bytes", "bytes"), (64, 64), skip_positions=3)
    n_characters = sum(map(len, texts))
    n_bytes = sum(len(text.encode()) for text in texts)
    assert found.n == n_characters - 3 * len(texts)
    assert found.coverage == (found.n / (n_bytes - 3 * len(texts)),) * 2
    for kinds in KIND_PAIRS:
        assert all(0.1 < share <= 1 for share in read(corpus(), kinds).coverage)


def test_first_positions_are_left_out_in_any_of_the_models():
    for skip in (0, 1, 6):
        found = read(corpus(), skip_positions=skip)
        positions = [min(p for _, p in places_of(found, model)) for model in (0, 1)]
        assert min(positions) >= skip
        assert min(positions) == max(skip, 1) - (skip == 0)


def test_no_document_is_read_once_there_are_enough():
    taken = []

    def stream():
        for text in corpus(300):
            taken.append(text)
            yield text

    found = read(stream(), max_anchors=1500)
    assert found.n >= 1500
    assert len(taken) == len(found.texts) + found.n_without < 100
    assert (found.document < len(found.texts) - 1).sum() < 1500  # it was the last document that reached it
    assert found.ids() == read(taken).ids()


def test_activations_of_row_i_are_those_at_anchor_i():
    models = [load_model(name) for name in ("atlas-llama", "atlas-neox")]
    texts = [document.text for document in atlas.generate(60, seed=3)]
    contexts = (32, 40)
    for rule in RULES:
        config = AnchorConfig(rule=rule)
        found = read_anchors(texts, [model.tokenizer for model in models], config, contexts).of("fit")
        sites = [Site(1, "residual", 0), Site(1, "residual", 1)]
        block = harvest(models, sites, found.chunks)
        assert len(block.rows) == found.n
        assert np.array_equal(np.array([c.document for c in found.chunks])[block.chunk], found.document)
        width = models[0].width(Site(1))
        for i in np.random.default_rng(0).choice(found.n, 12, replace=False):
            chunk = found.chunks[block.chunk[i]]
            for number, model in enumerate(models):
                own = chunk.of(number)
                nth = int((np.flatnonzero(chunk.keep) < block.position[i]).sum())
                place = int(np.flatnonzero(own.keep)[nth])
                read_so_far = own.ids[: place + 1]
                alone = np.array(model.run([read_so_far.tolist()], read=[Site(1)]).activations[Site(1)])[0, -1]
                row = block.rows[i, :width] if number == 0 else block.rows[i, width:]
                assert np.allclose(row, alone, atol=1e-3)
                raw = {text_id(text): text for text in texts}[found.texts[found.document[i]]]
                said = model.tokenizer.decode(read_so_far, skip_special_tokens=True)
                assert letters(raw[: found.end[i]]).endswith(letters(said))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "word"}, "rule='word': expected one of end, word_end, exact_span"),
        ({"fit_share": 0.0}, "fit_share, match_share=(0.0, 0.25): expected more than 0"),
        ({"fit_share": 0.8, "match_share": 0.2}, "some left for eval"),
        ({"max_anchors": 0}, "max_anchors=0"),
        ({"skip_positions": -1}, "skip_positions=-1"),
        ({"context_size": 1}, "context_size=1"),
        ({"seed": "a"}, "seed='a': expected a value of type int"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        AnchorConfig(**settings)


def test_sources_that_make_no_set_are_refused_with_what_they_lack():
    with pytest.raises(DataError, match="no texts"):
        read(["", "  "])
    with pytest.raises(DataError, match="half a character"):
        read(["fine", "a\ud800b"])
    with pytest.raises(DataError, match=r"in 9 texts all anchors are at the skip_positions=900"):
        read(corpus(9), skip_positions=900)
    with pytest.raises(DataError, match=r"in 2 texts no anchor passes rule='exact_span'"):
        read(["🙂" * 9, "🙃" * 8], ("bytes", "bytes"), rule="exact_span")
    with pytest.raises(DataError, match=r"3 documents with anchors make \d fit, \d match, \d eval.*give more texts"):
        read(corpus(3))


def test_a_source_without_anchors_is_not_read_to_its_end():
    endless = (f"{'x' * (i % 7)} {chr(0x4E00 + i)}" for i in itertools.count())
    with pytest.raises(DataError, match="in 100 texts"):
        read(endless, skip_positions=900)


def test_documents_without_anchors_are_counted_and_get_no_number():
    texts = corpus(20)
    found = read(["🙂", *texts[:10], "hm", *texts[10:]])
    assert found.n_without == 2
    assert found.texts == tuple(map(text_id, texts))
    assert set(found.document) == set(range(20))


def test_marks_that_normal_forms_reorder_are_no_exact_span():
    text = "س\u064e\u05b9 x"
    assert unicodedata.normalize("NFKC", text) == "س\u05b9\u064e x"
    assert len(tiny.tokenizer("trimmed")("\u05b9")["input_ids"]) == 1
    found = read([text, *corpus()], ("trimmed", "unigram"), skip_positions=0)
    level = dict(zip(found.end[found.document == 0].tolist(), found.level, strict=False))
    assert 2 not in level  # one of them has read the other mark there
    assert level[3] == 1
