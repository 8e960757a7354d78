import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hubsae import lm_files, load_alignment, load_sae, pair_run
from hubsae.cli import main
from hubsae.errors import ConfigError, ModelError
from hubsae.pair_config import first_words
from hubsae.pair_run import PairRun, align_layers, intervene, train_saes

FEW = {"n_shifts": 49, "n_shuffles": 9, "n_bootstraps": 50, "n_refits": 2, "eval_rows": 1000}
OWN = {"run_name": "tiny", "model_a": "atlas-llama", "model_b": "atlas-neox", "dataset": "atlas", "layers": (1,)}
SMALL = {"max_documents": 1200, "expansion_factor": 1, "k": 8, "max_ctx": 64, "align_share": 0.6, "untrained": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run, what was said): SAEs and alignments of one layer of the embedded models, and of B with random weights."""
    out, said = str(tmp_path_factory.mktemp("runs")), []
    run = PairRun(**OWN, **SMALL, out=out, sae={"batch_size": 64}, alignment=FEW)
    train_saes(run, said.append)
    align_layers(run, None, said.append)
    return run, said


def written(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("expanson_factor = 3", "did you mean 'expansion_factor'"),
        ("objective = 'batch_topk'", "did you mean 'batchtopk'"),
        ("hook_point = 'resid post'", "hook_point='resid post'"),
        ("method = 'cca'", "method='cca': expected one of procrustes, ridge, svcca"),
        ("layers_a = [1]", "layers_a=(1,), layers_b=None: expected either layers"),
        ("max_ctx = 'long'", "max_ctx='long': expected a value of type int"),
        ("alpha = 0.0", "alpha=0.0: expected another length"),
        ("objective = 'l1'\nk = 8", "k=8 has no effect"),
        ("[sae]\nk = 3", "sae.k: it follows from"),
        ("[alignment]\nn_shifts = 1", "n_shifts=1 gives p of at least"),
        ("layers = [1]", "not TOML"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_name(tmp_path, line, message):
    own = 'run_name = "x"\nmodel_a = "atlas-llama"\nmodel_b = "atlas-neox"\ndataset = "atlas"\nlayers = [1]\n'
    (tmp_path / "run.toml").write_text(own)
    assert PairRun.read(tmp_path / "run.toml").layers_of("b") == (1,)
    (tmp_path / "run.toml").write_text(own + line)
    with pytest.raises(ConfigError) as raised:
        PairRun.read(tmp_path / "run.toml")
    assert message in str(raised.value)
    assert "run.toml" in str(raised.value)


def test_the_shipped_settings_are_read(request):
    folder = request.config.rootpath / "scripts"
    assert PairRun.read(folder / "pythia-gpt2.toml").layers_of("a") == (5, 6, 7)
    assert PairRun.read(folder / "small-pair.toml").site(2).component == "residual"


def test_a_repository_without_safetensors_is_refused_with_its_sibling(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    for name, words in (
        ("EleutherAI/pythia-410m-deduped-v0", r"found pytorch_model\.bin\); use EleutherAI/pythia-410m-deduped, which"),
        ("someone/model-v0", "use a repository with safetensors"),
    ):
        with pytest.raises(ModelError, match=words):
            lm_files.load(lm_files.Checkpoint(tmp_path, name))


def test_older_words_mean_what_they_meant():
    run = PairRun(**OWN, objective="l1", hook_point="resid_post", mutual=False)
    assert run.recipe.sparsity == "relu"
    assert str(run.site(6)) == "layers.6.residual"
    assert run.align_settings["matching"] == "one_to_one"


def test_no_document_is_for_training_and_for_aligning(tmp_path):
    texts = [f"document {i} has\tmany words" for i in range(300)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    run = replace(PairRun(**OWN), dataset=str(tmp_path / "texts.txt"), per_doc_words=3)
    train, other = (list(run.documents(part)) for part in ("train", "align"))
    assert sorted(train + other) == sorted(text.removesuffix("\tmany words") for text in texts)
    assert 60 < len(other) < 120
    assert first_words("one two", 5) == "one two"
    assert len(list(replace(run, max_documents=10).documents("train"))) <= 10


def test_finished_dictionaries_are_not_trained_again_and_other_settings_are_refused(finished, monkeypatch):
    run, said = finished
    monkeypatch.setattr("hubsae.pair_config.PairRun.load", lambda *_: pytest.fail("a model was loaded"))
    said = []
    train_saes(run, said.append)
    assert len(said) == 3
    assert all("not trained again" in line for line in said)
    with pytest.raises(ConfigError, match=r"trained with expansion_factor=1, these settings say expansion_factor=4"):
        train_saes(replace(run, expansion_factor=4), said.append)
    with pytest.raises(ConfigError, match=r"max_documents=1200.*say max_documents=0"):
        train_saes(replace(run, max_documents=0), said.append)


def test_a_folder_that_no_run_made_is_left_alone(finished, tmp_path):
    run, _ = finished
    other = replace(run, out=str(tmp_path))
    sae = load_sae(run.sae_folder("a", 1))
    sae.statistics = {}
    sae.save(other.sae_folder("a", 1))
    with pytest.raises(ConfigError, match="no such run made"):
        train_saes(other, lambda _: None)


def test_the_report_has_a_row_for_each_number_with_its_null(finished):
    run, said = finished
    rows = written(run.folder / "report.csv")
    assert {row["model_b"] for row in rows} == {"trained", "untrained"}
    r2 = {
        row["model_b"]: row
        for row in rows
        if (row["metric"], row["method"], row["direction"]) == ("r2", "procrustes", "a->b")
    }
    assert float(r2["trained"]["lo"]) <= float(r2["trained"]["value"]) <= float(r2["trained"]["hi"])
    assert float(r2["trained"]["null"]) < float(r2["trained"]["value"])
    kept = load_alignment(run.alignment_folder((1, 1)))
    assert float(r2["trained"]["value"]) == pytest.approx(kept.metric("r2", "procrustes", "a->b")["value"])
    pairs = written(run.folder / "pairs-a1-b1.csv")
    assert len(pairs) == len(kept.frames["pairs"])
    assert (run.folder / "alignments" / "a1-b1-untrained").is_dir()
    drawn = {path.name for path in (run.folder / "plots").glob("*.png")}
    assert {"scores-a1-b1.png", "layers.png"} <= drawn
    best = next(line for line in said if line.startswith("best on the match split"))
    assert f"{np.mean(kept.frames['pairs']['corr_match']):.3f}" in best


def test_layers_that_the_run_lacks_are_named(finished):
    run, _ = finished
    with pytest.raises(ConfigError, match=r"layers=\[2\]: the run has 1 of A and 1 of B"):
        align_layers(run, [2], lambda _: None)
    with pytest.raises(ConfigError, match="no alignment there yet"):
        intervene(replace(run, layers=(1, 2)), 2, 0, lambda _: None)
    with pytest.raises(ConfigError, match=r"train_saes\.py first"):
        align_layers(replace(run, layers=(2,)), None, lambda _: None)


def test_a_feature_is_steered_in_both_models_with_the_same_length(finished):
    run, said = finished
    feature = int(load_alignment(run.alignment_folder((1, 1))).pairs["feature_a"][0])
    found = intervene(run, 1, feature, said.append, alpha=0.5)
    frame = found.frame
    assert found.partner is not None
    assert np.allclose(frame["length"], 0.5)
    assert frame["effect_corr"][0] == pytest.approx(1)
    by_name = dict(zip(frame["condition"].tolist(), frame["effect_corr"].tolist(), strict=True))
    assert by_name["partner"] > abs(by_name["random direction"])
    assert len(written(run.folder / f"effects-a1-b1-feature{feature}-alpha0.5.csv")) == len(frame)
    assert -1 < found.chance < 1
    dosed = intervene(run, 1, feature, said.append, dose=0.2)
    assert np.allclose(dosed.frame["kl"], 0.2, rtol=0.15)


def test_the_command_line_aligns_transfers_and_verifies(finished, demo_folder, tmp_path, capsys):
    run, _ = finished
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(run.documents("align")))
    saes = [str(run.sae_folder(side, 1)) for side in ("a", "b")]
    models = ["--model-a", str(demo_folder), "--model-b", str(demo_folder.parent / "atlas-neox")]
    few = [part for name, value in FEW.items() for part in ("--" + name.replace("_", "-"), str(value))]
    out = str(tmp_path / "aligned")
    assert main(["align", *saes, "--texts", str(texts), "--out", out]) == 1
    assert "give --model-a" in capsys.readouterr().err
    assert main(["align", *saes, *models, "--texts", str(texts), "--out", out, "--method", "ridge", *few]) == 0
    said = capsys.readouterr().out
    assert "pairs of layers.1.residual" in said
    assert "mean_corr_eval" in said
    kept = load_alignment(out)
    assert kept.settings.method == "ridge"
    given = ["--sae-a", saes[0], "--sae-b", saes[1]]
    feature = str(int(kept.pairs["feature_a"][0]))
    assert main(["transfer", out, "--feature", feature, "--alpha", "0.5", "--texts", str(texts), *given, *models]) == 0
    assert "random direction" in capsys.readouterr().out
    assert main(["transfer", out, "--out", str(tmp_path / "moved"), *given]) == 0
    assert load_sae(tmp_path / "moved").config.d_in == 96
    assert main(["verify", out, "--texts", str(texts), *given, *models]) == 1
    assert "these are the texts that were aligned" in capsys.readouterr().err
    texts.write_text("\n".join(run.documents("train")))
    assert main(["verify", out, "--texts", str(texts), *given, *models]) == 0
    assert "numbers inside their interval" in capsys.readouterr().out
    for wrong, words in ((["transfer", out], "give --feature"), (["transfer", out, "--out", "x"], "give --sae-a and")):
        assert main(wrong) == 1
        assert words in capsys.readouterr().err


def test_an_interrupted_training_goes_on_with_what_is_missing(finished, tmp_path):
    run, _ = finished
    other, said = replace(run, out=str(tmp_path), untrained=False), []
    shutil.copytree(run.sae_folder("a", 1), other.sae_folder("a", 1))
    train_saes(other, said.append)
    assert "a: layers 1 are finished" in said[0]
    assert load_sae(other.sae_folder("b", 1)).config.n_features == 96


def test_what_other_layers_gave_stays_in_the_report(finished):
    run, _ = finished
    path = run.folder / "report.csv"
    lines = path.read_text().splitlines()
    other = [line.replace("1,1,", "1,2,", 1) for line in lines[1:3]]
    stale = [line.replace("1,1,", "1,77,", 1) for line in lines[1:2]]
    path.write_text("\n".join([*lines, *other, *stale]) + "\n")
    wider = replace(run, layers=(1, 2))
    report, scores = pair_run._earlier(wider, [(1, 1)])
    assert [(row["layer_a"], row["layer_b"]) for row in report] == [("1", "2")] * 2
    assert scores == {"trained": {}, "untrained": {}}
    kept, again = pair_run._earlier(wider, [(2, 2)])
    assert len(kept) == len(lines) - 1 + 2
    assert set(again["trained"]) == {(1, 1)}
    path.write_text("\n".join(lines) + "\n")
