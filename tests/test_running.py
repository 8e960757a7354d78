"""What is kept while texts stream by is what a look at everything at once would keep."""

import numpy as np
import pytest
import scipy.sparse

from hubsae.running import Firings, Kept, RowSample

BEFORE, AFTER = 2, 1
WIDTH = BEFORE + 1 + AFTER


def collection(rng, n_chunks=40, n_features=15, density=0.15):
    """Chunks of tokens (the first one of each is no row) with dense codes."""
    chunks = []
    for number in range(n_chunks):
        length = int(rng.integers(2, 9))
        code = np.where(rng.random((length, n_features)) < density, rng.random((length, n_features)) + 0.1, 0)
        code[0], code[:, 3] = 0, 0
        chunks.append((rng.integers(0, 99, length), code.astype(np.float32), 100 + number // 2))
    return chunks


def firings(chunks, rng) -> tuple[Firings, scipy.sparse.csr_matrix]:
    order = rng.permutation(len(chunks))  # chunks are read in the order of their lengths, not of the texts
    chunk = np.concatenate([np.full(len(chunks[c][0]) - 1, c) for c in order])
    position = np.concatenate([np.arange(1, len(chunks[c][0])) for c in order])
    code = scipy.sparse.csr_matrix(np.concatenate([chunks[c][1][1:] for c in order]))
    columns = code.tocsc()
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids, _, _ in chunks])])
    row_of = np.full(starts[-1], -1)
    row_of[starts[chunk] + position] = np.arange(len(chunk))
    tokens = np.concatenate([ids for ids, _, _ in chunks])
    documents = np.array([document for *_, document in chunks])
    given = (columns.indptr, columns.indices, columns.data, chunk, position, tokens, starts, row_of, documents)
    return Firings(*given), code


@pytest.mark.parametrize("n_groups", [1, 5, 40])
def test_the_largest_of_each_chunk_are_kept_with_the_text_around_them(n_groups):
    rng = np.random.default_rng(1)
    chunks = collection(rng)
    kept = Kept(15, 4, BEFORE, AFTER)
    for part in np.array_split(np.arange(len(chunks)), n_groups):
        found, _ = firings([chunks[i] for i in part], rng)
        kept.add(found, found.values)
    columns = kept.columns("top")
    for f in range(15):
        best = sorted(((code[:, f].max(), i) for i, (_, code, _) in enumerate(chunks)), reverse=True)[:4]
        best = [(value, i) for value, i in best if value > 0]
        assert columns["top_value"][f][: len(best)].tolist() == [value for value, _ in best]
        assert (columns["top_value"][f][len(best) :] == 0).all()
        for place, (_, i) in enumerate(best):
            ids, code, document = chunks[i]
            at = int(code[:, f].argmax())
            start = max(0, at - BEFORE)
            window = slice(start, start + WIDTH)
            part = slice(place * WIDTH, place * WIDTH + len(ids[window]))
            assert columns["top_document"][f][place] == document
            assert columns["top_at"][f][place] == at - start
            assert columns["top_tokens"][f][part].tolist() == ids[window].tolist()
            assert columns["top_values"][f][part].tolist() == code[window, f].tolist()
            rest = slice(part.stop, (place + 1) * WIDTH)
            assert (columns["top_tokens"][f][rest] == -1).all()
            assert (columns["top_values"][f][rest] == 0).all()


def test_chance_keys_keep_every_chunk_equally_often():
    counts = np.zeros(40)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        chunks = [(np.arange(3), np.array([[0], [1.0], [0]], np.float32), i) for i in range(40)]
        kept = Kept(1, 5, 0, 0)
        for part in np.array_split(np.arange(40), 4):
            found, _ = firings([chunks[i] for i in part], rng)
            kept.add(found, rng.random(len(found.values), np.float32))
        counts[kept.document[0]] += 1
    assert counts.sum() == 400 * 5
    assert np.abs(counts - 50).max() < 5 * np.sqrt(50)


def test_a_row_sample_is_uniform_whole_and_of_the_size_asked_for():
    counts = np.zeros(100)
    rows = scipy.sparse.csr_matrix(np.eye(100, dtype=np.float32))
    for seed in range(200):
        sample = RowSample(20, np.random.default_rng(seed))
        for start in range(0, 100, 7):
            sample.add(rows[start : start + 7])
        assert sample.code.shape == (20, 100)
        counts += np.asarray(sample.code.sum(axis=0)).ravel()
    assert np.abs(counts - 40).max() < 5 * np.sqrt(40)
    small = RowSample(20, np.random.default_rng(0))
    small.add(rows[:3])
    assert (small.code.toarray() == rows[:3].toarray()).all()
