"""Curation: duplicates go, coverage grows, and what is asked for is kept."""

import numpy as np
import pytest

from hubsae import Curation
from hubsae.activations import harvest, read_chunks
from hubsae.curation import _evenly, distinct
from hubsae.dataset import ActivationDataset
from hubsae.errors import ConfigError, DataError

SITE = {"layer": 1, "component": "residual"}


def test_copies_and_near_copies_are_left_out():
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(500)]
    texts = [" ".join(rng.choice(words, 80)) for _ in range(50)]
    near = [text.replace(text.split()[40], "changed", 1) for text in texts[:20]]
    half = [" ".join(text.split()[:40] + list(rng.choice(words, 40))) for text in texts[:20]]
    found = list(distinct([*texts, texts[3].upper(), "  " + texts[4], *near, *half], 0.7))
    assert found[:50] == texts
    assert set(half) <= set(found)
    assert len(set(near) & set(found)) <= 1
    assert list(distinct([*texts, *texts, *near], None)) == [*texts, *near]


def test_clusters_are_taken_evenly_and_small_ones_whole():
    cluster = np.repeat([0, 1, 2, -1], [5, 100, 200, 50])
    taken = _evenly(cluster, 65, np.random.default_rng(0))
    assert [taken[cluster == c].sum() for c in (0, 1, 2, -1)] == [5, 30, 30, 0]
    assert _evenly(cluster, 1000, np.random.default_rng(0)).sum() == 305


@pytest.fixture(scope="module")
def skewed(demo_texts) -> list[str]:
    """Many texts of one kind, few of all others."""
    return [f"The capital of Peru is Lima. It is number {i}." for i in range(400)] + demo_texts[:40]


def shares(dataset, n: int = 400) -> float:
    """Share of the documents that are not of the frequent kind, by rows."""
    chunks = read_chunks(dataset.models, dataset.texts, dataset.config)
    documents = np.concatenate([np.full(chunk.n_rows, chunk.document) for chunk in chunks])
    return (documents >= n).mean()


@pytest.mark.parametrize("strategy", ["kmeans", "variance"])
def test_rare_kinds_of_text_gain(demo_model, skewed, strategy):
    how = Curation(strategy, n_clusters=32, near_duplicates=None, pool_factor=12)
    curated = ActivationDataset.curate(skewed, model=demo_model, max_samples=900, curation=how, **SITE)
    plain = ActivationDataset.from_texts(skewed, model=demo_model, **SITE)
    assert 0 < curated.n_rows <= 900
    assert shares(curated) > 1.5 * shares(plain)
    rows = np.concatenate(list(curated.blocks()))
    assert rows.shape == (curated.n_rows, 128)


def test_near_duplicates_go_by_default(demo_model, skewed):
    curated = ActivationDataset.curate(skewed, model=demo_model, max_samples=900, **SITE)
    assert shares(curated, 41) > 0.2 or len({c.document for c in curated.texts}) < 300


def test_rows_below_the_norm_are_left_out(demo_model, demo_texts):
    texts = demo_texts[:60]
    everything = np.concatenate(list(ActivationDataset.from_texts(texts, model=demo_model, **SITE).blocks()))
    limit = float(np.median(np.linalg.norm(everything, axis=1)))
    for strategy in ("kmeans", "variance"):
        how = Curation(strategy, min_norm=limit)
        curated = ActivationDataset.curate(texts, model=demo_model, max_samples=300, curation=how, **SITE)
        rows = np.concatenate([harvest(demo_model, curated.sites, [c]).rows for c in curated.texts])
        assert np.linalg.norm(rows, axis=1).min() >= limit * 0.999
    with pytest.raises(DataError, match="min_norm"):
        ActivationDataset.curate(texts, model=demo_model, max_samples=300, curation=Curation(min_norm=1e9), **SITE)


def test_the_same_seed_chooses_the_same_rows(demo_model, demo_texts):
    one, two = (ActivationDataset.curate(demo_texts[:100], model=demo_model, max_samples=400, **SITE) for _ in range(2))
    assert all(np.array_equal(a.keep, b.keep) for a, b in zip(one.texts, two.texts, strict=True))


def test_a_dictionary_is_trained_on_what_was_chosen(demo_model, demo_texts):
    curated = ActivationDataset.curate(demo_texts, model=demo_model, max_samples=8000, held_out=0.1, **SITE)
    sae = demo_model.train_sae(1, curated, "residual", expansion_factor=2, k=8, batch_size=64, progress=False)
    assert sae.statistics["rows"] == curated.n_rows
    assert sae.metrics["fvu"] < 0.6


@pytest.mark.parametrize(
    "change", [{"strategy": "best"}, {"pool_factor": 0}, {"n_clusters": 1}, {"near_duplicates": 0.1}, {"min_norm": -1}]
)
def test_bad_settings_never_exist(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        Curation(**change)
