import datasets
import numpy as np
import pytest

from hubsae import tokens
from hubsae.errors import ConfigError, DataError
from hubsae.tokens import Chunk, Split, TokenConfig

TEXTS = ["The capital of France is Paris.", "", "  ", "Anna lives in Poland. She has a cat."]


def chunks_of(model, texts, context=256, **settings):
    return list(tokens.chunks(texts, model.tokenizer, TokenConfig(**settings), context))


def test_specials_and_the_first_position_are_no_rows(demo_model):
    (chunk,) = chunks_of(demo_model, TEXTS[:1])
    assert chunk.ids[0] == demo_model.tokenizer.bos_token_id
    assert not chunk.keep[0]
    assert chunk.keep[1:].all()
    (everything,) = chunks_of(demo_model, TEXTS[:1], skip_special=False, skip_positions=0)
    assert everything.keep.all()


def test_a_long_document_is_cut_into_chunks_without_losing_a_token(demo_model):
    text = " ".join([TEXTS[0]] * 30)
    whole = demo_model.encode(text)
    parts = chunks_of(demo_model, [text], context=32)
    assert max(len(part.ids) for part in parts) <= 32
    specials = set(demo_model.tokenizer.all_special_ids)
    joined = [i for part in parts for i in part.ids.tolist() if i not in specials]
    assert joined == [i for i in whole if i not in specials]


@pytest.mark.parametrize("make", [list, iter, tuple])
def test_any_iterable_of_texts_will_do(make):
    assert list(tokens.iterate_texts(make(TEXTS))) == [TEXTS[0], TEXTS[3]]


def test_datasets_work_whole_and_streamed():
    whole = datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3, 4]})
    assert list(tokens.iterate_texts(whole)) == [TEXTS[0], TEXTS[3]]
    assert list(tokens.iterate_texts(whole.to_iterable_dataset())) == [TEXTS[0], TEXTS[3]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("one text", "list of texts"),
        ([1, 2], "entry 0 is a int"),
        ({"train": TEXTS}, "pick one split"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": TEXTS})}), "pick one"),
        (datasets.Dataset.from_dict({"content": TEXTS}), "no column 'text', only content"),
        ([{"text": None}], "entry 0, column 'text'"),
        (3, "int"),
    ],
)
def test_what_holds_no_texts_is_refused(source, message):
    with pytest.raises(DataError, match=message):
        list(tokens.iterate_texts(source))


def fake_chunks(n_documents: int, chunks_each: int = 1) -> list[Chunk]:
    rng = np.random.default_rng(0)
    make = lambda d: Chunk(rng.integers(0, 1000, 8).astype(np.int32), np.ones(8, bool), d)  # noqa: E731
    return [make(d) for d in range(n_documents) for _ in range(chunks_each)]


def test_a_document_is_held_out_whole_and_nothing_is_lost():
    stream = fake_chunks(500, chunks_each=3)
    split = Split(stream, 0.2)
    kept = {c.document for c in split}
    held = {c.document for c in split.held_out}
    assert not kept & held
    assert kept | held == set(range(500))
    assert 60 < len(held) < 140


def test_equal_documents_go_the_same_way():
    unit = fake_chunks(200)
    split = Split([*unit, *(Chunk(c.ids, c.keep, c.document + 1000) for c in unit)], 0.5)
    kept = {c.document for c in split}
    assert all((d in kept) == (d + 1000 in kept) for d in range(200))


def test_one_long_document_is_divided_by_chunk():
    split = Split(fake_chunks(1, chunks_each=400), 0.1)
    kept = list(split)
    assert 15 < len(split.held_out) < 70
    assert len(kept) + len(split.held_out) == 400


def test_taking_rows_stops_at_exactly_that_many():
    taken = list(tokens.take_rows(fake_chunks(10), 19))
    assert tokens.count_rows(taken) == 19


def test_a_context_longer_than_the_model_is_refused():
    with pytest.raises(ConfigError, match="only 128 positions"):
        TokenConfig(context_size=256).context_for(128)
    assert TokenConfig().context_for(128) == 128


def test_files_of_texts_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    found = tokens.read_texts(tmp_path / "a.txt")
    assert list(found) == list(found) == ["one", "two"]
    assert len(found) == 2
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(DataError, match=r"expected \.txt"):
        tokens.read_texts(tmp_path / "a.bin")
