"""Training: planted directions, the same seed, what several dictionaries share, refusals."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ConfigError, DataError, HubsaeWarning
from hubsae.losses import beside, encoder
from hubsae.recipe import CrosscoderConfig, SAEConfig, TranscoderConfig
from hubsae.rows import GivenRows
from hubsae.scaling import Scaling
from hubsae.schedule import Schedule
from hubsae.sites import Site
from hubsae.surrogates import surrogate
from hubsae.train import Job, Trainer, train, train_jobs

SITES = ("layers.0.residual",)
HERE = (Site(0),)


def description(d: int, n_features: int, config: SAEConfig, **changes) -> DictionaryConfig:
    settings = {"reads": SITES, "read_widths": (d,), "writes": SITES, "write_widths": (d,), **changes}
    return DictionaryConfig(**settings, n_features=n_features, sparsity=config.rule().to_dict())


def planted(n: int, d: int = 32, m: int = 48, active: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are sums of few of `m` unit directions, off centre, and the directions."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((m, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    strength = np.zeros((n, m))
    for row in strength:
        row[rng.choice(m, active, replace=False)] = rng.uniform(1, 2, active)
    return (strength @ directions * 7 + rng.standard_normal(d) * 5).astype(np.float32), directions


def batches(rows: np.ndarray, size: int, epochs: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(rows))
        for start in range(0, len(rows), size):
            yield mx.array(rows[order[start : start + size]])


def fit(rows, config, n_features=64, epochs=1):
    size = config.batch_for(len(rows) * epochs)
    return train(
        batches(rows, size, epochs), len(rows) * epochs, description(rows.shape[1], n_features, config), config
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 3},
        {"k": 3, "sparsity": "batchtopk"},
        {"k": 3, "sparsity": "jumprelu"},
        {"l1_coefficient": 0.3, "sparsity": "relu"},
        {"l1_coefficient": 0.3, "sparsity": "relu", "unit_norm": False},
        {"l1_coefficient": 0.7, "sparsity": "gated"},
        {"k": 3, "tied_weights": True},
        {"k": 3, "k_start": 12},
    ],
    ids=str,
)
def test_planted_directions_are_found(settings):
    rows, directions = planted(20_000)
    config = SAEConfig(batch_size=256, **settings)
    sae = fit(rows, config, epochs=4)
    W_dec = np.array(sae.W_dec)
    cosines = np.abs(directions @ (W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)).T).max(axis=1)
    assert (cosines > 0.9).mean() > 0.9
    error = rows - np.array(sae(mx.array(rows)))
    assert np.square(error).sum() / np.square(rows - rows.mean(0)).sum() < 0.2


def test_the_same_seed_gives_the_same_weights():
    rows, _ = planted(6000)
    config = SAEConfig(k=3, batch_size=32)
    one, two = (fit(rows, config).arrays() for _ in range(2))
    assert all(mx.array_equal(one[name], two[name]) for name in one)
    other = fit(rows, config.updated(seed=1)).arrays()
    assert not mx.array_equal(one["W_enc"], other["W_enc"])


def trainer_on(rows, config, n_features, n_steps, on_device=False) -> Trainer:
    d = rows.shape[1]
    scaling = Scaling.of(rows, HERE, (d,))
    where = (slice(0, d),)
    job = Job(description(d, n_features, config), config, where, where)
    return Trainer(job, n_steps, len(rows), scaling, scaling, on_device=on_device)


@pytest.mark.parametrize(
    "settings",
    [
        {"k": 3},
        {"k": 3, "sparsity": "batchtopk", "matryoshka": (0.25, 1.0)},
        {"sparsity": "jumprelu"},
        {"unit_norm": False},
    ],
    ids=str,
)
def test_accelerators_train_the_same(settings):
    rows, _ = planted(6000)
    config = SAEConfig(**settings, dead_after_rows=500, resample_dead_every=10)
    here, there = (trainer_on(rows, config, 64, 40, on_device=placed) for placed in (False, True))
    for batch in list(batches(rows, 100))[:40]:
        one, other = here.step(batch), there.step(batch)
        assert float(one["fvu"]) == pytest.approx(float(other["fvu"]), rel=2e-3)
    assert np.array_equal(here.silent_rows, there.silent_rows)
    one, other = (trainer.finished(Dictionary).arrays() for trainer in (here, there))
    assert all(np.allclose(np.array(one[name]), np.array(other[name]), rtol=1e-2, atol=1e-2) for name in one)


@pytest.mark.parametrize("revival", ["nothing", "aux", "resampling"])
def test_dead_features_come_back_to_life_where_the_data_has_work_for_them(revival):
    rows, directions = planted(20_000)
    assert len(directions) == 48
    chosen = SAEConfig(sparsity="relu", l1_coefficient=0.3) if revival == "resampling" else SAEConfig(k=3)
    config = chosen.updated(aux_coefficient=1 / 32 if revival == "aux" else 0.0, dead_after_rows=1000)
    config = config.updated(resample_dead_every=50 if revival == "resampling" else None)
    trainer = trainer_on(rows, config, 64, 300)
    trainer.params["b_enc"][:32] = -1.0
    for batch in list(batches(rows, 256, epochs=4))[:300]:
        trainer.step(batch)
    if revival == "nothing":
        assert len(trainer.dead) == 32
    else:
        assert len(trainer.dead) <= 22  # 16 of 64 have no direction left to stand for


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip", "crosscoder"])
def test_the_folded_dictionary_on_raw_rows_is_the_trained_one_on_scaled_rows(sparsity, kind):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 24)).astype(np.float32) * rng.uniform(1, 9, 24).astype(np.float32) + 40
    two = {"reads": ("layers.0", "layers.1"), "read_widths": (8, 16), "writes": ("layers.0", "layers.1")}
    sites = {
        "sae": {"reads": SITES, "read_widths": (24,), "writes": SITES, "write_widths": (24,)},
        "crosscoder": {**two, "write_widths": (8, 16)},
        "transcoder": {"reads": SITES, "read_widths": (24,), "writes": ("layers.1",), "write_widths": (16,)},
    }
    kind_of = {"sae": SAEConfig, "crosscoder": CrosscoderConfig}.get(kind, TranscoderConfig)
    config = kind_of(sparsity=sparsity, **({"k": 5} if sparsity in ("topk", "batchtopk") else {}), batch_size=25)
    d = description(24, 48, config, **sites["transcoder" if kind == "skip" else kind], skip=kind == "skip")
    starts = np.cumsum([0, *d.read_widths])
    reads = tuple(slice(int(a), int(b)) for a, b in pairwise(starts))
    writes = reads if kind in ("sae", "crosscoder") else (slice(8, 24),)
    inner = Scaling.of(rows, d.read_sites, d.read_widths)
    outer = inner if reads == writes else Scaling.of(rows[:, 8:], d.write_sites, d.write_widths)
    trainer = Trainer(Job(d, config, reads, writes), 120, 3000, inner, outer)
    for start in range(0, 3000, 25):
        trainer.step(mx.array(rows[start : start + 25]))
    dictionary = trainer.finished(Dictionary)
    x, _ = trainer.rows(rows[:200])
    assert np.mean(np.sum(np.square(x), axis=1)) == pytest.approx(1, abs=0.2)
    pre = mx.array(x @ encoder(trainer.params).T + trainer.params["b_enc"])
    code = np.array(dictionary.rule(pre, surrogate(config, 24).learned(trainer.params, trainer.threshold)))
    y_hat = code @ trainer.params["W_dec"] + beside(trainer.params, x)
    raw = mx.array(rows[:200])
    agree = np.array((dictionary.encode(raw) > 0) == (code > 0)).all(axis=1)  # but for rounding at a threshold
    assert agree.mean() > 0.97
    inside = y_hat / outer.scale + outer.mean
    assert np.allclose(np.array(dictionary(raw))[agree], inside[agree], rtol=1e-4, atol=2e-3)
    assert dictionary.config.write_scales == outer.site_scales


def test_site_scales_and_weights_share_the_variance():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 12)).astype(np.float32) * np.repeat([1, 100], [4, 8]).astype(np.float32) + 7
    sites, widths = (Site(0), Site(1)), (4, 8)
    for weights, share in ((None, 0.5), ((3.0, 1.0), 0.75)):
        scaling = Scaling.of(rows, sites, widths, weights)
        scaled = scaling.apply(rows)
        assert np.allclose(np.array(scaling.on_device().apply(mx.array(rows))), scaled, atol=1e-6)
        assert np.square(scaled[:, :4]).sum(axis=1).mean() == pytest.approx(share, rel=1e-3)
        assert np.square(scaled).sum(axis=1).mean() == pytest.approx(1, rel=1e-3)
        assert np.abs(scaled.mean(axis=0)).max() < 1e-4
    assert scaling.site_scales == pytest.approx((2, 100 * 8**0.5), rel=0.05)


def test_several_dictionaries_in_one_pass_are_the_same_as_one_by_one():
    rows, _ = planted(8000, d=32)
    where = (slice(0, 32),)
    jobs = [
        Job(description(32, 64, c), c, where, where)
        for c in (SAEConfig(k=3, batch_size=64), SAEConfig(k=6, batch_size=64, seed=1))
    ]
    together = train_jobs(jobs, GivenRows(batches(rows, 64), 8000, 32), kinds=[Dictionary, Dictionary])
    for job, found in zip(jobs, together, strict=True):
        alone = train(batches(rows, 64), 8000, job.description, job.config).arrays()
        assert all(mx.array_equal(alone[name], array) for name, array in found.arrays().items())


def test_tied_weights_stay_tied():
    rows, _ = planted(8000)
    sae = fit(rows, SAEConfig(k=3, batch_size=64, tied_weights=True))
    W_enc, W_dec = np.array(sae.W_enc), np.array(sae.W_dec)
    assert np.allclose(W_enc, W_dec.T * (W_enc[0] / W_dec[:, 0])[0], rtol=1e-3, atol=1e-5)


def test_the_norms_of_a_crosscoders_rows_keep_their_sum():
    rows, _ = planted(8000, d=32)
    two = {"reads": ("layers.0", "layers.1"), "read_widths": (8, 24)}
    config = CrosscoderConfig(k=3, batch_size=64)
    d = description(32, 64, config, **two, writes=two["reads"], write_widths=(8, 24))
    dictionary = train(batches(rows, 64), 8000, d, config)
    W_dec = np.array(dictionary.W_dec)
    norms = np.linalg.norm(W_dec[:, :8], axis=1) / d_scale(dictionary, 0)
    norms = norms + np.linalg.norm(W_dec[:, 8:], axis=1) / d_scale(dictionary, 1)
    assert np.allclose(norms / norms[0], 1, atol=1e-4)


def d_scale(dictionary, site: int) -> float:
    return dictionary.config.write_scales[site]


def test_decoder_rows_end_with_unit_norm_and_the_tail_is_trained():
    rows, _ = planted(6411)
    sae = fit(rows, SAEConfig(k=3, batch_size=64))
    assert np.allclose(np.linalg.norm(np.array(sae.W_dec), axis=1), 1, atol=1e-5)
    assert sae.statistics["rows"] == 6411
    assert sae.statistics["log"][-1]["rows"] == 6411


def test_a_last_batch_of_one_row_does_no_harm():
    rows, _ = planted(6401)
    sae = fit(rows, SAEConfig(k=3, batch_size=64))
    assert sae.statistics["steps"] == 101
    assert all(mx.all(mx.isfinite(array)).item() for array in sae.arrays().values())


def test_data_that_ends_somewhat_early_is_said():
    rows, _ = planted(8000)
    config = SAEConfig(k=3, batch_size=64)
    with pytest.warns(HubsaeWarning, match="8,000 of 10,000 rows"):
        train(batches(rows, 64), 10_000, description(32, 64, config), config)


def test_too_little_data_is_refused_and_says_how_much_is_needed():
    with pytest.raises(ConfigError, match="25,600 tokens"):
        SAEConfig(batch_size=256).steps_for(10_000)
    with pytest.raises(ConfigError, match="num_epochs=3"):
        SAEConfig(batch_size=256).steps_for(10_000)


def test_data_that_ends_early_is_refused():
    rows, _ = planted(2000)
    config = SAEConfig(k=3, batch_size=64)
    with pytest.raises(DataError, match="ended after"):
        train(batches(rows, 64), 100_000, description(32, 64, config), config)


def test_a_value_that_is_not_finite_is_refused_with_its_place():
    rows, _ = planted(6400)
    rows[70, 5] = np.nan
    config = SAEConfig(k=3, batch_size=64)
    stream = (mx.array(rows[i : i + 64]) for i in range(0, 6400, 64))
    with pytest.raises(DataError, match="row 70, column 5"):
        train(stream, 6400, description(32, 64, config), config)


def test_rows_that_do_not_vary_are_refused():
    config = SAEConfig(k=3, batch_size=64)
    with pytest.raises(DataError, match="do not vary"):
        train(iter([mx.ones((64, 32))] * 100), 6400, description(32, 64, config), config)


def test_more_active_features_than_features_are_refused():
    with pytest.raises(ConfigError, match="k=100"):
        description(4, 64, SAEConfig(k=100))


@pytest.mark.parametrize(
    "change",
    [{"k": 0}, {"learning_rate": -1.0}, {"sparsity": "none"}, {"lr_decay_steps": -1}, {"validation_split": 1.0}],
)
def test_a_bad_setting_never_exists(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        SAEConfig(**change)


def test_a_misspelt_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="expansion_factor"):
        SAEConfig().updated(expansion_facto=8)


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
def test_the_learning_rate_rises_stays_and_falls(scheduler):
    schedule = Schedule(SAEConfig(learning_rate=1.0, lr_scheduler=scheduler), 1000, 64)
    rates = [schedule.rate(step) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == 1.0
    assert rates[60:690] == [1.0] * 630
    assert all(a >= b for a, b in pairwise(rates[690:]))
    assert 0 < rates[-1] < 0.05


def test_durations_in_steps_are_kept():
    config = SAEConfig(learning_rate=1.0, warmup_steps=10, lr_decay_steps=0, k_start=64, k_anneal_steps=100)
    schedule = Schedule(config, 1000, 128)
    assert [schedule.rate(step) for step in (4, 9, 999)] == [0.5, 1.0, 1.0]
    assert [schedule.k(step) for step in (0, 50, 100, 999)] == [64, 48, 32, 32]


def test_prefixes_are_fixed_or_drawn_anew_but_the_same_for_a_seed():
    assert Schedule(SAEConfig(matryoshka=(0.25, 0.5, 1.0)), 100, 64).prefixes(3) == (16, 32, 64)
    drawn = Schedule(SAEConfig(sampled_prefixes=5), 100, 64)
    assert drawn.prefixes(3) == drawn.prefixes(3)
    assert drawn.prefixes(3) != drawn.prefixes(4)
    assert all(p[-1] == 64 and list(p) == sorted(set(p)) and p[0] >= 1 for p in map(drawn.prefixes, range(100)))


def test_settings_without_effect_and_seed_names_are_refused():
    with pytest.raises(ConfigError, match="k=64 has no effect under sparsity='relu'"):
        SAEConfig(sparsity="relu", k=64)
    with pytest.raises(ConfigError, match=r"l1_coefficient=0\.5 has no effect"):
        SAEConfig(l1_coefficient=0.5)
    with pytest.raises(ConfigError, match="what stands for it here is l1_coefficient"):
        SAEConfig().updated(lambda_sparse=0.1)
    with pytest.raises(ConfigError, match="has only 100 steps"):
        SAEConfig(batch_size=10, warmup_steps=1000).steps_for(1000)
