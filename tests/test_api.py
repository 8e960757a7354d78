"""Training through the public calls, on the embedded model."""

import datasets
import mlx.core as mx
import pytest

from hubsae import SAEConfig, load_sae
from hubsae.errors import ArtifactError, ConfigError, DataError, HubsaeWarning, SiteError

QUICK = {"expansion_factor": 2, "k": 8, "batch_size": 128, "progress": False}


@pytest.fixture(scope="module")
def trained(demo_model, demo_texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "sae_layer1.mlx"
    return demo_model.train_sae(1, demo_texts, "residual", folder, **QUICK), folder


def test_one_line_trains_judges_and_saves(trained, demo_model):
    sae, folder = trained
    assert sae.metrics["fvu"] < 0.5
    assert sae.metrics["ce_recovered"] > 0.9
    assert sae.metrics["n_tokens"] > 500
    again = load_sae(folder, model=demo_model, check="strict")
    assert again.metrics == sae.metrics
    with demo_model.trace("The capital of France is") as trace:
        x = trace.activations["layers.1"]
    assert mx.array_equal(again.encode(x), sae.encode(x))
    assert sae.encode(x).shape == (*x.shape[:2], sae.n_features)


def test_how_it_was_made_is_recorded(trained):
    statistics = trained[0].statistics
    assert statistics["recipe"]["k"] == 8
    assert statistics["recipe"]["seed"] == 42
    assert statistics["environment"]["mlx"]
    assert statistics["log"][-1]["step"] == statistics["steps"]
    assert {"fvu", "l0", "dead_share", "loss"} <= set(statistics["log"][0])


def test_the_same_call_gives_the_same_weights(trained, demo_model, demo_texts):
    again = demo_model.train_sae(1, demo_texts, "residual", **QUICK)
    assert all(mx.array_equal(a, trained[0].arrays()[n]) for n, a in again.arrays().items())


@pytest.mark.parametrize("kind", ["dataset", "stream", "generator"])
def test_other_sources_of_texts_train_too(demo_model, demo_texts, kind):
    whole = datasets.Dataset.from_dict({"text": demo_texts})
    if kind == "dataset":
        sae = demo_model.train_sae(0, whole, "mlp", **QUICK)
        assert sae.config.reads == ("layers.0.mlp",)
        return
    source = whole.to_iterable_dataset() if kind == "stream" else (text for text in demo_texts)
    sae = demo_model.train_sae(0, source, training_tokens=15_000, **QUICK)
    assert sae.statistics["rows"] == 15_000


def test_the_default_component_is_the_mlp(demo_model, demo_texts, monkeypatch):
    seen = []

    def caught(jobs, *_, **__):
        seen.extend(job.description.reads for job in jobs)
        raise Stop

    monkeypatch.setattr("hubsae.fit.train_jobs", caught)
    with pytest.raises(Stop):
        demo_model.train_sae(2, demo_texts, **QUICK)
    with pytest.raises(Stop):
        demo_model.train_transcoder(2, 2, demo_texts, **QUICK)
    with pytest.raises(Stop):
        demo_model.train_transcoder(1, 2, demo_texts, **QUICK)
    assert seen == [("layers.2.mlp",), ("layers.2.mlp_in",), ("layers.1.mlp",)]


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": 9}, SiteError, "layers 0 to 3"),
        ({"layer": "1"}, ConfigError, "layer='1'"),
        ({"expansion_factor": "16"}, ConfigError, "expansion_factor='16'"),
        ({"k": None}, ConfigError, "k='None'"),
        ({"num_epochs": 1.5}, ConfigError, "num_epochs"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"learning_rate": float("inf")}, ConfigError, "learning_rate"),
        ({"training_tokens": 0}, ConfigError, "training_tokens"),
        ({"save_path": "/proc/nowhere/sae"}, ArtifactError, "cannot write"),
        ({"component": "router"}, SiteError, "has no 'router'"),
        ({"dataset": ["one short text"]}, ConfigError, "tokens of training data"),
        ({"dataset": []}, ConfigError, "0 tokens of training data"),
        ({"dataset": "one text"}, DataError, "list of texts"),
        ({"dataset": [1, 2]}, DataError, "entry 0"),
        ({"k": 10_000}, ConfigError, "k=10000"),
        ({"expansion": 3}, ConfigError, "unknown setting 'expansion'"),
        ({"learning_rate": 0.0}, ConfigError, "learning_rate"),
    ],
)
def test_bad_input_is_refused_before_training(demo_model, demo_texts, arguments, error, message, monkeypatch):
    monkeypatch.setattr("hubsae.train.Trainer.step", None)  # nothing may be trained
    with pytest.raises(error, match=message):
        demo_model.train_sae(**{"layer": 1, "dataset": demo_texts, "component": "residual", **QUICK, **arguments})


def test_a_save_path_that_is_a_file_is_refused_first(demo_model, demo_texts, tmp_path):
    path = tmp_path / "sae.mlx"
    path.write_text("mine")
    with pytest.raises(ArtifactError, match="is a file"):
        demo_model.train_sae(1, demo_texts, "residual", path, config=SAEConfig(), progress=False)
    assert path.read_text() == "mine"


def test_a_folder_of_another_library_is_not_overwritten(demo_model, demo_texts, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ArtifactError, match="something else"):
        demo_model.train_sae(1, demo_texts, "residual", tmp_path, **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_what_cannot_be_judged_is_kept_all_the_same(demo_model, demo_texts, tmp_path):
    one_text = [" ".join(demo_texts[:700])]
    with pytest.warns(HubsaeWarning, match="trained but not judged"):
        sae = demo_model.train_sae(1, one_text, "residual", tmp_path / "d", validation_split=1e-9, **QUICK)
    assert sae.metrics == {}
    assert load_sae(tmp_path / "d").config == sae.config
