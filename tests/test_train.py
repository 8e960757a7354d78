"""Training: gradients by finite differences, planted directions, the same seed, refusals."""

import mlx.core as mx
import numpy as np
import pytest

from hubsae.dictionary import DictionaryConfig
from hubsae.errors import ConfigError, DataError, HubsaeWarning
from hubsae.recipe import SAEConfig
from hubsae.train import Scaling, Trainer, aux_code, fold, initial, losses, train

SITES = ("layers.0.residual",)


def description(d: int, n_features: int, config: SAEConfig) -> DictionaryConfig:
    return DictionaryConfig(SITES, (d,), SITES, (d,), n_features, config.rule().to_dict())


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


@pytest.mark.parametrize("sparsity", ["topk", "relu"])
def test_planted_directions_are_found(sparsity):
    rows, directions = planted(20_000)
    config = SAEConfig(sparsity=sparsity, k=3, batch_size=256, l1_coefficient=0.3)
    sae = fit(rows, config, epochs=4)
    cosines = np.abs(directions @ np.array(sae.W_dec).T).max(axis=1)
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


@pytest.mark.parametrize("sparsity", ["topk", "relu"])
@pytest.mark.parametrize("with_dead", [False, True])
def test_gradients_agree_with_finite_differences(sparsity, with_dead):
    with mx.stream(mx.cpu):  # float64 exists on CPUs only
        rng = np.random.default_rng(0)
        draw = lambda *shape: mx.array(rng.standard_normal(shape), dtype=mx.float64)  # noqa: E731
        x, dead = draw(40, 6), mx.array([1, 4, 7, 9]) if with_dead else None
        config = SAEConfig(sparsity=sparsity, k=3, aux_coefficient=0.5, aux_k=2, l1_coefficient=0.3)
        params = {"W_enc": draw(6, 12), "b_enc": draw(12) * 0.1, "W_dec": draw(12, 6), "b_dec": draw(6)}
        # the residual that AuxK rebuilds counts as constant, so it is held while the rest is varied
        held = x - _y_hat(params, x, config)

        def total(p):
            parts = losses(p, x, x, config, None, 1.0).total
            if dead is None:
                return parts
            rebuilt = aux_code(p, x, dead, 2) @ mx.take(p["W_dec"], dead, axis=0)
            return parts + config.aux_coefficient * mx.sum(mx.square(held - rebuilt)) / len(x)

        gradients = mx.grad(lambda p: losses(p, x, x, config, dead, 1.0).total)(params)
        for name, value in params.items():
            direction, step = draw(*value.shape), 1e-6
            up, down = ({**params, name: value + s * direction} for s in (step, -step))
            numeric = (total(up) - total(down)).item() / (2 * step)
            assert mx.sum(gradients[name] * direction).item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)


def _y_hat(params, x, config):
    return config.rule()(x @ params["W_enc"] + params["b_enc"]) @ params["W_dec"] + params["b_dec"]


def test_auxk_reaches_the_encoder_of_dead_features_even_where_their_pre_codes_are_negative():
    x = mx.array(np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32))
    params = initial(6, 6, 12, True, 0)
    params["b_enc"] = mx.where(mx.arange(12) == 4, -100.0, 0.0)
    config = SAEConfig(k=2)
    with_aux, without = (
        mx.grad(lambda p, d=dead: losses(p, x, x, config, d, 1.0).total)(params) for dead in (mx.array([4]), None)
    )
    assert np.abs(np.array(with_aux["W_enc"][:, 4])).max() > 0
    assert np.abs(np.array(with_aux["W_dec"][4])).max() > 0
    assert mx.abs(without["W_enc"][:, 4]).max().item() == 0
    alive = mx.arange(12) != 4
    assert mx.allclose(with_aux["W_enc"] * alive, without["W_enc"] * alive, atol=1e-7)


def test_dead_features_come_back_to_life_where_the_data_has_work_for_them():
    rows, directions = planted(20_000)
    assert len(directions) == 48
    dead = []
    for coefficient in (0.0, 1 / 32):
        config = SAEConfig(k=3, aux_coefficient=coefficient)
        trainer = Trainer(config, initial(32, 32, 64, True, 0), 300, 1000)
        trainer.params["b_enc"] = mx.where(mx.arange(64) < 32, -1.0, 0.0)
        scaling = Scaling.of(rows, "read")
        for batch in list(batches(rows, 256, epochs=4))[:300]:
            scaled = scaling.apply(batch)
            trainer.step(scaled, scaled)
        dead.append(len(trainer.dead))
    assert dead[0] == 32
    assert dead[1] <= 22  # 16 of 64 have no direction left to stand for


def test_folding_changes_nothing_but_the_units():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 8)).astype(np.float32) * 9 + 40
    params = initial(8, 8, 24, True, 3)
    params["b_enc"] = mx.array(rng.standard_normal(24).astype(np.float32))
    params["b_dec"] = mx.array(rng.standard_normal(8).astype(np.float32))
    scaling, config = Scaling.of(rows, "read"), SAEConfig(k=4)
    inside = _y_hat(params, scaling.apply(mx.array(rows)), config) / scaling.scale + scaling.mean
    outside = _y_hat(fold(params, scaling, scaling), mx.array(rows), config)
    assert mx.allclose(inside, outside, rtol=1e-4, atol=1e-3)


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
    [{"k": 0}, {"learning_rate": -1.0}, {"sparsity": "none"}, {"decay_share": 0.99}, {"validation_split": 1.0}],
)
def test_a_bad_setting_never_exists(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        SAEConfig(**change)


def test_a_misspelt_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="expansion_factor"):
        SAEConfig().updated(expansion_facto=8)


def test_the_learning_rate_rises_stays_and_falls():
    trainer = Trainer(SAEConfig(learning_rate=1.0), initial(4, 4, 8, True, 0), 1000, 100)
    rates = [trainer.rate(step) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == 1.0
    assert rates[500] == 1.0
    assert 0 < rates[-1] < 0.01
