import json

import mlx.core as mx
import numpy as np
import pytest

from hubsae import activation_cache
from hubsae import dataset as dataset_room
from hubsae.activations import harvest
from hubsae.dataset import ActivationDataset
from hubsae.errors import ConfigError, DataError, SiteError
from hubsae.sites import Site
from hubsae.tokens import TokenConfig

SITE = "layers.1.residual"


def rows_of(dataset: ActivationDataset) -> np.ndarray:
    return np.concatenate(list(dataset.blocks()))


def test_rows_are_the_residuals_of_each_text_alone(demo_model, demo_texts):
    texts = demo_texts[:7]
    rows = rows_of(ActivationDataset(demo_model, [SITE, "layers.2.mlp_in"], texts))
    expected = []
    for text in texts:
        a = demo_model.run([demo_model.encode(text)], read=[SITE, "layers.2.mlp_in"]).activations
        expected.append(np.array(mx.concatenate([a[Site(1)], a[Site(2, "mlp_in")]], axis=-1))[0, 1:])
    expected = np.concatenate(expected)
    assert rows.shape == expected.shape
    order, want = (np.lexsort(np.round(r[:, :3], 3).T) for r in (rows, expected))
    assert np.allclose(rows[order], expected[want], atol=2e-4)


def test_every_row_is_served_once_whatever_the_buffer(demo_model, demo_texts):
    texts = demo_texts[:60]
    all_rows = rows_of(ActivationDataset(demo_model, SITE, texts))
    for capacity in (10**6, 300):
        dataset = ActivationDataset(demo_model, SITE, texts)
        dataset.capacity = capacity
        served = [np.array(batch) for batch in dataset.batches(128, seed=1)]
        assert [len(b) for b in served[:-1]] == [128] * (len(served) - 1)
        served = np.concatenate(served)
        assert np.array_equal(np.sort(served[:, 0]), np.sort(all_rows[:, 0]))
        assert not np.array_equal(served[:, 0], all_rows[:, 0])


def test_max_rows_is_kept_to_the_row(demo_model, demo_texts):
    dataset = ActivationDataset(demo_model, SITE, iter(demo_texts), max_rows=1234)
    assert len(rows_of(dataset)) == 1234


def test_a_source_without_length_needs_a_number_of_rows(demo_model, demo_texts):
    with pytest.raises(ConfigError, match="training_tokens"):
        ActivationDataset(demo_model, SITE, iter(demo_texts))


def test_settings_are_refused_before_any_work(demo_model, demo_texts):
    with pytest.raises(SiteError, match="layers 0 to 3"):
        ActivationDataset(demo_model, "layers.9", demo_texts)
    with pytest.raises(ConfigError, match="held_out"):
        ActivationDataset(demo_model, SITE, demo_texts, held_out=1.0)
    with pytest.raises(ConfigError, match="positions"):
        ActivationDataset(demo_model, SITE, demo_texts, tokens_config=TokenConfig(context_size=10**6))


def test_a_value_that_is_not_finite_is_refused_with_its_place(demo_model, demo_texts, monkeypatch):
    dataset = ActivationDataset(demo_model, SITE, demo_texts[:5])
    layer = demo_model.layers[1].mlp.down_proj
    weight = layer.weight
    try:
        layer.weight = mx.where(mx.arange(weight.shape[0])[:, None] == 3, mx.array(np.inf), weight)
        with pytest.raises(DataError, match=r"layers\.1\.residual, column 3: .* at document \d+, position \d+ \(token"):
            rows_of(dataset)
    finally:
        layer.weight = weight


def test_epochs_that_do_not_fit_in_memory_need_a_cache(demo_model, demo_texts, tmp_path):
    dataset = ActivationDataset(demo_model, SITE, demo_texts[:40])
    dataset.capacity = 100
    with pytest.raises(ConfigError, match="cache_dir"):
        next(dataset.batches(64, epochs=2))
    cached = ActivationDataset(demo_model, SITE, demo_texts[:40], cache_dir=tmp_path / "c")
    cached.capacity = 100
    assert sum(len(b) for b in cached.batches(64, epochs=2)) == 2 * cached.n_rows


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("hubsae.activation_cache._SHARD_BYTES", 300_000)


def test_a_cache_gives_back_the_same_rows_without_the_model(
    demo_model, demo_texts, tmp_path, small_shards, monkeypatch
):
    fresh = rows_of(ActivationDataset(demo_model, SITE, demo_texts[:80], cache_dir=tmp_path / "c"))
    calls = []
    monkeypatch.setattr(dataset_room, "harvest", lambda *a: calls.append(len(a[2])) or harvest(*a))
    again = rows_of(ActivationDataset(demo_model, SITE, demo_texts[:80], cache_dir=tmp_path / "c"))
    assert np.array_equal(fresh, again)
    assert calls == [1]  # the one chunk by which the model is recognised


def test_an_interrupted_cache_is_continued(demo_model, demo_texts, tmp_path, small_shards, monkeypatch):
    whole = rows_of(ActivationDataset(demo_model, SITE, demo_texts[:80]))
    blocks = ActivationDataset(demo_model, SITE, demo_texts[:80], cache_dir=tmp_path / "c").blocks()
    next(blocks)
    next(blocks)
    del blocks
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert not manifest["complete"]
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "c").glob("*.safetensors")}
    rows = rows_of(ActivationDataset(demo_model, SITE, demo_texts[:80], cache_dir=tmp_path / "c"))
    assert np.allclose(np.sort(rows[:, 0]), np.sort(whole[:, 0]), atol=1e-4)
    done = [shard["file"] for shard in manifest["shards"]]
    assert done
    assert all((tmp_path / "c" / name).stat().st_mtime_ns == kept[name] for name in done)


@pytest.mark.parametrize("change", ["texts", "more texts", "site", "options", "model"])
def test_a_cache_of_something_else_is_refused(demo_model, demo_texts, tmp_path, small_shards, change):
    folder = tmp_path / "c"
    rows_of(ActivationDataset(demo_model, SITE, demo_texts[:30], cache_dir=folder))
    texts, site, config, model = demo_texts[:30], SITE, None, demo_model
    if change == "texts":
        texts = texts[1:]
    if change == "more texts":
        texts = demo_texts[:31]
    if change == "site":
        site = "layers.2"
    if change == "options":
        config = TokenConfig(skip_positions=2)
    if change == "model":
        from hubsae import InterpretableModel
        from hubsae.demo.run import load_model

        model = InterpretableModel((load_model().model, demo_model.tokenizer))
    with pytest.raises(DataError, match="cache"):
        rows_of(ActivationDataset(model, site, texts, tokens_config=config, cache_dir=folder))


def test_a_folder_of_something_else_is_not_touched(demo_model, demo_texts, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        rows_of(ActivationDataset(demo_model, SITE, demo_texts[:5], cache_dir=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_epochs_over_a_bounded_stream_read_the_cache(demo_model, demo_texts, tmp_path):
    dataset = ActivationDataset(demo_model, SITE, iter(demo_texts), max_rows=2000, cache_dir=tmp_path / "c")
    dataset.capacity = 100
    rows = np.concatenate([np.array(b) for b in dataset.batches(64, epochs=3)])
    assert len(rows) == 6000
    assert np.array_equal(np.sort(rows[:2000, 0]), np.sort(rows[4000:, 0]))


@pytest.mark.parametrize("damage", ["values", "manifest", "shard", "probe"])
def test_a_damaged_cache_is_refused(demo_model, demo_texts, tmp_path, small_shards, damage):
    folder = tmp_path / "c"
    rows_of(ActivationDataset(demo_model, SITE, demo_texts[:30], cache_dir=folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    if damage == "values":
        shard = folder / manifest["shards"][0]["file"]
        shard.write_bytes(shard.read_bytes()[:-4096] + bytes(4096))
    changes = {"manifest": {"shards": None}, "shard": {"shards": [{}]}, "probe": {"probe": []}}
    if damage in changes:
        (folder / "manifest.json").write_text(json.dumps({**manifest, **changes[damage]}))
    with pytest.raises(DataError, match="cache"):
        rows_of(ActivationDataset(demo_model, SITE, demo_texts[:30], cache_dir=folder))


def test_a_cache_stopped_before_its_first_shard_was_named_is_continued(demo_model, demo_texts, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    dataset = ActivationDataset(demo_model, SITE, demo_texts[:30], cache_dir=folder)
    save = activation_cache.ActivationCache._save

    def killed(self, manifest):
        if manifest["shards"]:
            raise KeyboardInterrupt
        save(self, manifest)

    monkeypatch.setattr(activation_cache.ActivationCache, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        rows_of(dataset)
    monkeypatch.undo()
    rows = rows_of(ActivationDataset(demo_model, SITE, demo_texts[:30], cache_dir=folder))
    assert len(rows) == dataset.n_rows


def test_two_settings_cannot_share_a_folder_even_before_the_first_shard(demo_model, demo_texts, tmp_path):
    first = ActivationDataset(demo_model, SITE, demo_texts[:30], cache_dir=tmp_path / "c")
    first._cache(tmp_path / "c")._open()
    with pytest.raises(DataError, match="sites"):
        rows_of(ActivationDataset(demo_model, "layers.2", demo_texts[:30], cache_dir=tmp_path / "c"))


def test_a_generator_with_a_complete_cache_is_read_again(demo_model, demo_texts, tmp_path):
    dataset = ActivationDataset(demo_model, SITE, iter(demo_texts), max_rows=2000, cache_dir=tmp_path / "c")
    one, two = (np.concatenate([np.array(b) for b in dataset.batches(64)]) for _ in range(2))
    assert np.array_equal(one, two)
    once = ActivationDataset(demo_model, SITE, iter(demo_texts), max_rows=2000)
    list(once.batches(64))
    with pytest.raises(DataError, match="streamed once already"):
        list(once.batches(64))
