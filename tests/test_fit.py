"""Training through the public calls: transcoders, crosscoders, several at once, two models, reports."""

import json
import sys
import types

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae import (
    ActivationDataset,
    CrosscoderConfig,
    InterpretableModel,
    SAEConfig,
    SAETrainer,
    TranscoderConfig,
    load_sae,
    train_crosscoder,
)
from hubsae.api import SAE, Crosscoder, Transcoder
from hubsae.demo.run import load_model
from hubsae.dictionary import DictionaryConfig
from hubsae.diffing import relative_norms
from hubsae.errors import ArtifactError, CompatibilityError, ConfigError, DataError, HubsaeWarning, SiteError
from hubsae.train import train

QUICK = {"expansion_factor": 2, "k": 8, "batch_size": 128, "progress": False}


@pytest.fixture(scope="module")
def demo_texts(demo_texts) -> list[str]:  # fewer of them
    return demo_texts[:500]


@pytest.fixture(scope="module")
def other_model() -> InterpretableModel:
    return load_model("atlas-neox")


@pytest.fixture(scope="module")
def pair(demo_model, other_model, demo_texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "crosscoder"
    return train_crosscoder([demo_model, other_model], demo_texts, save_path=folder, layers=[1, 2], **QUICK), folder


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_predicts_the_module_from_its_input(demo_model, demo_texts, tmp_path, skip):
    found = demo_model.train_transcoder(2, 2, demo_texts, save_path=tmp_path / "t", skip_connection=skip, **QUICK)
    assert isinstance(found, Transcoder)
    assert (found.config.reads, found.config.writes) == (("layers.2.mlp_in",), ("layers.2.mlp",))
    assert found.metrics["fvu"] < 0.4
    assert found.metrics["ce_recovered"] > 0.5
    again = load_sae(tmp_path / "t", model=demo_model, check="strict")
    assert again.config.skip == skip
    with demo_model.trace("The capital of France is") as trace:
        x, y = trace.activations["layers.2.mlp_in"], trace.activations["layers.2.mlp"]
    assert mx.array_equal(again(x), found(x))
    assert float(mx.mean(mx.square(again(x) - y))) < float(mx.mean(mx.square(y)))
    if skip:
        with pytest.raises(DataError, match="decode\\(code, x\\)"):
            again.decode(again.encode(x))
        assert mx.allclose(again.decode(again.encode_sparse(x), x), again(x), atol=1e-4)


def test_the_skip_connection_alone_is_learnt_where_the_map_is_linear():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12_800, 8)).astype(np.float32)
    y = (x @ rng.standard_normal((8, 6)) + 3).astype(np.float32)
    sites = {"reads": ("layers.0",), "read_widths": (8,), "writes": ("layers.1",), "write_widths": (6,)}
    pairs = [(mx.array(x[i : i + 64]), mx.array(y[i : i + 64])) for i in range(0, 12_800, 64)]
    fvu = []
    for skip in (True, False):
        config = TranscoderConfig(k=2, batch_size=64, skip_connection=skip)
        d = DictionaryConfig(**sites, n_features=16, sparsity=config.rule().to_dict(), skip=skip)
        error = y - np.array(train(pairs, 12_800, d, config)(mx.array(x)))
        fvu.append(np.square(error).sum() / np.square(y - y.mean(axis=0)).sum())
    assert fvu[0] < 0.05
    assert fvu[1] > 0.15


def test_a_crosscoder_of_layers_judges_every_site(demo_model, demo_texts):
    found = demo_model.train_crosscoder(demo_texts, layers=[1, 2], component="residual", **QUICK)
    assert isinstance(found, Crosscoder)
    assert list(found.metrics["fvu_per_site"]) == ["layers.1.residual", "layers.2.residual"]
    assert max(found.metrics["fvu_per_site"].values()) < 0.5
    assert found.metrics["ce_recovered"] > 0.9
    norms = found.relative_norms()
    assert norms.shape == (found.n_features, 2)
    assert np.allclose(norms.sum(axis=1), 1)


def test_a_crosscoder_of_components_and_weights(demo_model, demo_texts):
    run = {**QUICK, "component_weights": (9.0, 1.0)}
    found = demo_model.train_crosscoder(demo_texts, layer=2, components=["attn", "mlp"], **run)
    even = demo_model.train_crosscoder(demo_texts, layer=2, components=["attn", "mlp"], **QUICK)
    assert found.config.reads == ("layers.2.attn", "layers.2.mlp")
    assert found.metrics["fvu_per_site"]["layers.2.attn"] < even.metrics["fvu_per_site"]["layers.2.attn"]
    assert found.metrics["fvu_per_site"]["layers.2.mlp"] > even.metrics["fvu_per_site"]["layers.2.mlp"]


def test_two_models_with_other_tokenizers_share_a_code(pair, demo_model, other_model, demo_texts):
    found, folder = pair
    assert found.config.reads == ("layers.1.residual", "1:layers.2.residual")
    assert found.config.read_widths == (demo_model.hidden_size, other_model.hidden_size)
    assert max(found.metrics["fvu_per_site"].values()) < 0.5
    assert min(found.metrics["ce_recovered_per_model"]) > 0.9
    assert json.loads((folder / "config.json").read_text())["base_models"][1]["model_type"] == "gpt_neox"
    again = load_sae(folder, model=[demo_model, other_model], check="strict")
    assert again.evaluate(texts=demo_texts[:200]).fvu == found.evaluate(texts=demo_texts[:200]).fvu
    assert again.is_compatible([demo_model, other_model], layer=2)
    assert not again.is_compatible([other_model, demo_model])
    with pytest.raises(CompatibilityError, match="number of base models"):
        again.bind(demo_model)
    card = (folder / "README.md").read_text()
    assert "base model 1" in card
    assert "models = [" in card


def test_a_feature_that_one_site_does_not_use_is_told_by_norms_and_by_regression(pair, demo_texts):
    found = Crosscoder(pair[0].config, dict(pair[0].arrays()))
    found.models = pair[0].models
    scaling = found.latent_scaling(demo_texts[:300])
    used = np.flatnonzero(scaling.firings > 200)
    assert len(used) > 20
    f = used[0]
    # its decoder at model 1 is shrunk to nothing; the activations of model 1 still hold it, so least squares finds it
    keep = mx.ones(found.W_dec.shape)
    keep[int(f), found.config.write_widths[0] :] = 0
    found.W_dec = found.W_dec * keep
    assert found.relative_norms()[f, 1] == 0
    again = found.latent_scaling(demo_texts[:300])
    assert again.error[f, 1] > 0.5 * scaling.error[f, 1]
    assert np.isnan(scaling.error[scaling.firings < 30]).all()
    assert np.allclose(scaling.error[used].sum(axis=1), 1)


def test_those_of_one_site_know_each_other(demo_model, demo_texts):
    found = demo_model.train_sae(0, demo_texts[:700], "residual", **{**QUICK, "k": [8, 4]})
    for sae in found:
        assert [one["name"] for one in sae.metrics["beside"]] == ["topk(k=4)", "topk(k=8)"]
        assert sae.metrics["ce_recovered"] in [one["ce_recovered"] for one in sae.metrics["beside"]]
        assert "frontier" in sae.card_pictures()


def test_lists_train_one_each_in_one_pass(demo_model, demo_texts, tmp_path, monkeypatch):
    calls = []
    run = type(demo_model).run
    monkeypatch.setattr(
        type(demo_model), "run", lambda self, *a, **k: calls.append(k.get("logits")) or run(self, *a, **k)
    )
    settings = {**QUICK, "k": [4, 8], "validation_split": 0.0}
    found = demo_model.train_sae([1, 2], demo_texts, "residual", tmp_path / "many", **settings)
    alone = len(calls)
    assert [(s.config.reads[0], s.rule.k) for s in found] == [
        ("layers.1.residual", 4),
        ("layers.1.residual", 8),
        ("layers.2.residual", 4),
        ("layers.2.residual", 8),
    ]
    assert all(isinstance(sae, SAE) for sae in found)
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names == [f"layers.{n}.residual-k{k}" for n in (1, 2) for k in (4, 8)]
    calls.clear()
    one = demo_model.train_sae(1, demo_texts, "residual", **{**settings, "k": 4})
    assert len(calls) == alone
    assert all(mx.array_equal(array, found[0].arrays()[name]) for name, array in one.arrays().items())
    assert len(demo_model.train_sae(1, demo_texts, ["mlp", "attn"], **{**settings, "k": 4})) == 2


def test_the_trainer_class_and_a_dataset_give_the_same(demo_model, demo_texts):
    config = SAEConfig(**{k: v for k, v in QUICK.items() if k != "progress"})
    one = SAETrainer(config).train(model=demo_model, layer=1, component="residual", dataset=demo_texts, progress=False)
    data = ActivationDataset.from_texts(demo_texts, model=demo_model, layer=[1, 2], component="residual", held_out=0.05)
    two = demo_model.train_sae(1, data, "residual", config=config, progress=False)
    assert one.config.reads == two.config.reads
    assert one.metrics["n_tokens"] == two.metrics["n_tokens"]
    with pytest.raises(ConfigError, match=r"holds layers\.1\.residual, layers\.2\.residual, not layers\.3\.residual"):
        demo_model.train_sae(3, data, "residual", config=config)
    with pytest.raises(ConfigError, match="training_tokens: the ActivationDataset has its own"):
        demo_model.train_sae(1, data, "residual", config=config, training_tokens=5)
    with pytest.raises(ConfigError, match="another model"):
        load_model("atlas-neox").train_sae(1, data, "residual", config=config)


def test_rows_go_to_any_function(demo_model, demo_texts):
    rows = []
    found = demo_model.train_sae([1, 2], demo_texts, "mlp", report_to=rows.append, **QUICK)
    assert {row["dictionary"] for row in rows} == {"layers.1.mlp", "layers.2.mlp"}
    assert found[0].statistics["trained_together"] == 2
    assert found[0].metrics["data"]["name"] == f"texts held out from {len(demo_texts):,} texts"
    mine = [row for row in rows if row["dictionary"] == "layers.1.mlp"]
    assert [{k: v for k, v in row.items() if k not in ("dictionary", "steps")} for row in mine] == found[0].statistics[
        "log"
    ]


def test_trackio_gets_the_rows_where_it_is_installed(demo_model, demo_texts, monkeypatch):
    seen: dict = {"log": [], "finished": 0}
    module = types.ModuleType("trackio")
    module.init = lambda **options: seen.update(options)  # type: ignore[attr-defined]
    module.log = lambda metrics, step: seen["log"].append((step, metrics))  # type: ignore[attr-defined]
    module.finish = lambda: seen.update(finished=seen["finished"] + 1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    found = demo_model.train_sae(1, demo_texts, report_to="trackio", **QUICK)
    assert seen["config"]["k"] == 8
    assert [step for step, _ in seen["log"]] == [row["step"] for row in found.statistics["log"]]
    assert set(seen["log"][0][1]) == set(found.statistics["log"][0]) - {"step"}
    assert seen["finished"] == 1
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="pip install trackio"):
        demo_model.train_sae(1, demo_texts, report_to="trackio", **QUICK)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"from_layer": 9, "to_layer": 9}, SiteError, "layers 0 to 3"),
        ({"from_layer": 1, "to_layer": 1, "from_component": "mlp", "to_component": "mlp"}, ConfigError, "is an SAE"),
        ({"from_layer": 1, "to_layer": 2, "tied_weights": True}, ConfigError, "tied_weights"),
        ({"from_layer": 1, "to_layer": 2, "k": 5000}, ConfigError, "k=5000"),
        ({"from_layer": 1, "to_layer": 2, "config": CrosscoderConfig()}, ConfigError, "takes a TranscoderConfig"),
        ({"from_layer": 1, "to_layer": 2, "report_to": "nowhere"}, ConfigError, "report_to='nowhere'"),
        ({"from_layer": 1, "to_layer": 2, "batch_size": [64, 128]}, ConfigError, "share batch_size"),
        ({"from_layer": 1, "to_layer": 2, "seed": [1, 1]}, ConfigError, "different values"),
    ],
)
def test_bad_wishes_are_refused_before_training(demo_model, demo_texts, arguments, error, message, monkeypatch):
    monkeypatch.setattr("hubsae.train.Trainer.step", None)  # nothing may be trained
    with pytest.raises(error, match=message):
        demo_model.train_transcoder(**{"dataset": demo_texts, **QUICK, **arguments})


def test_bad_wishes_of_crosscoders_are_refused_before_training(demo_model, other_model, demo_texts, monkeypatch):
    monkeypatch.setattr("hubsae.train.Trainer.step", None)
    for arguments, message in [
        ({}, "either layer="),
        ({"layer": 1, "layers": [1, 2]}, "either layer="),
        ({"layer": 1}, "at least two sites"),
        ({"layers": [1, 1]}, "stands there twice"),
        ({"layers": [1, 2], "component_weights": (1.0, 2.0, 3.0)}, "expected one for each of layers.1.mlp"),
    ]:
        with pytest.raises(ConfigError, match=message):
            demo_model.train_crosscoder(demo_texts, **arguments, **QUICK)
    for arguments, message in [
        ({"layers": [1]}, "one for each of the 2 models"),
        ({"sites": ["layers.1", "layers.2"]}, "one of each model"),
        ({}, "either layers="),
    ]:
        with pytest.raises(ConfigError, match=message):
            train_crosscoder([demo_model, other_model], demo_texts, **arguments, **QUICK)
    with pytest.raises(SiteError, match="model 1 of 1"):
        ActivationDataset(demo_model, ["layers.1", "1:layers.1"], demo_texts)


def test_a_dictionary_without_scales_has_no_relative_norms():
    with pytest.raises(ConfigError, match="no write_scales"):
        relative_norms(random_sae())


def test_models_in_another_order_or_number_are_refused(pair, demo_model, other_model, demo_texts):
    found = pair[0]
    for models in ([other_model, demo_model], [demo_model], [demo_model, other_model, demo_model]):
        with pytest.raises(CompatibilityError):
            found.evaluate(models, demo_texts[:50])
        with pytest.raises(CompatibilityError):
            found.latent_scaling(demo_texts[:50], models)
    with pytest.raises(DataError, match="at least two"):
        found.latent_scaling([" ".join(demo_texts[:50])])


def test_the_share_held_out_is_the_datasets_own(demo_model, demo_texts):
    data = ActivationDataset.from_texts(demo_texts, model=demo_model, layer=1, held_out=0.2)
    with pytest.raises(ConfigError, match=r"has held_out=0\.2"):
        demo_model.train_sae(1, data, validation_split=0.5, **QUICK)
    assert demo_model.train_sae(1, data, **QUICK).statistics["recipe"]["validation_split"] == 0.2
    plain = ActivationDataset.from_texts(demo_texts, model=demo_model, layer=1)
    with pytest.warns(HubsaeWarning, match="not judged"):
        assert demo_model.train_sae(1, plain, **QUICK).metrics == {}


def test_a_list_with_fewer_tokens_than_asked_for_is_used_whole(demo_model, demo_texts):
    with pytest.warns(HubsaeWarning, match="not 200,000; all of them are used"):
        found = demo_model.train_sae(1, demo_texts, training_tokens=200_000, **QUICK)
    assert found.statistics["log"][-1]["rows"] == found.statistics["rows"] < 30_000


def test_the_threshold_is_that_of_the_k_in_the_end(demo_model, demo_texts):
    found = demo_model.train_sae(1, demo_texts, "residual", sparsity="batchtopk", k_start=64, **QUICK)
    assert found.metrics["l0"] == pytest.approx(8, rel=0.2)


def test_what_needs_no_data_is_refused_before_a_text_is_read(demo_model, tmp_path):
    class Texts(list):
        def __iter__(self):
            raise AssertionError("read")

    (tmp_path / "mine.txt").write_text("precious")
    for arguments, error in [
        ({"report_to": "wandb"}, ConfigError),
        ({"checkpoint_every": 5}, ConfigError),
        ({"checkpoint_dir": tmp_path}, ArtifactError),
        ({"checkpoint_dir": tmp_path / "a", "cache_dir": tmp_path / "a"}, ConfigError),
        ({"k": 100_000}, ConfigError),
        ({"layer": []}, ConfigError),
        ({"layer": [1, 1]}, ConfigError),
    ]:
        with pytest.raises(error):
            demo_model.train_sae(**{"layer": 1, "dataset": Texts(["a"]), **QUICK, **arguments})
    with pytest.raises(ConfigError, match="is an input"):
        demo_model.train_transcoder(1, 1, Texts(["a"]), component="mlp_in", **QUICK)
    with pytest.raises(ConfigError, match="list of at least two models"):
        train_crosscoder("some/model", Texts(["a"]), layers=[1])
