import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING

from hubsae.cli import main


@pytest.fixture(scope="module")
def trained(demo_folder, demo_texts, tmp_path_factory):
    """The folder that `hubsae train` writes, and a file of texts."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "texts.txt").write_text("\n".join(demo_texts))
    status = main(
        f"train {demo_folder} --texts {folder}/texts.txt --layer 1 --component residual --out {folder}/sae "
        "--expansion-factor 2 --k 8 --batch-size 128 --context-size 64 --no-skip-special".split()
    )
    assert status == 0
    return folder


def test_train_writes_a_dictionary_with_the_settings_of_its_flags(trained, capsys):
    from hubsae import load_sae

    sae = load_sae(trained / "sae")
    assert sae.config.n_features == 256
    assert sae.config.tokens["context_size"] == 64
    assert sae.config.tokens["skip_special"] is False
    assert sae.statistics["recipe"]["batch_size"] == 128


def test_show_says_what_it_is_and_whether_a_model_fits(trained, demo_folder, capsys):
    assert main(["show", str(trained / "sae"), "--model", str(demo_folder)]) == 0
    shown = capsys.readouterr().out
    for word in ("kind         sae", "layers.1.residual (128)", "topk(k=8)", "fvu 0.", "it fits"):
        assert word in shown
    neox = demo_folder.parent / "atlas-neox"
    assert main(["show", str(trained / "sae"), "--model", str(neox)]) == 0
    assert "it does not fit" in capsys.readouterr().out


def test_evaluate_prints_the_table(trained, demo_folder, capsys):
    texts = str(trained / "texts.txt")
    arguments = ["evaluate", str(trained / "sae"), "--model", str(demo_folder), "--texts", texts, "--max-rows", "2000"]
    assert main(arguments) == 0
    assert "loss recovered against zeros" in capsys.readouterr().out
    assert main(["evaluate", str(trained / "sae"), "--texts", texts]) == 1
    assert "give --model" in capsys.readouterr().err


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_push_publishes_and_show_reads_it_from_the_hub(trained, alice, capsys):
    assert main(["push", str(trained / "sae"), "alice/cli-sae", "--tag", "v1"]) == 0
    assert "/commit/" in capsys.readouterr().out
    assert main(["show", "alice/cli-sae", "--revision", "v1"]) == 0
    assert f"alice/cli-sae@{alice.head('alice/cli-sae')[:8]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("show /nowhere/at/all", "neither an existing folder nor a repository id"),
        ("train {model} --texts {texts} --layer 9 --out {out}", "layers 0 to 3"),
        ("train {model} --texts {texts} --layer 1 --out {out} --k 0", "k=0"),
        ("train {model} --texts {out}.bin --layer 1 --out {out}", "neither a file nor a dataset"),
    ],
)
def test_errors_are_one_line_and_status_1(trained, demo_folder, capsys, arguments, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    filled = arguments.format(model=demo_folder, texts=trained / "texts.txt", out=trained / "x")
    assert main(filled.split()) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_wrong_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train"])
    assert stopped.value.code == 2


def test_env_says_what_is_in_use(capsys):
    assert main(["env"]) == 0
    shown = capsys.readouterr().out
    assert "device" in shown
    assert "BLAS" in shown
    assert "mlx-lm" in shown


@pytest.mark.parametrize("command", ["", "train", "push"])
def test_help_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom hubsae.cli import main\n"
        f"try:\n    main({[*command.split(), '--help']!r})\nexcept SystemExit: pass\n"
        "heavy = {'mlx_lm', 'transformers', 'datasets', 'huggingface_hub', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: hubsae" in done.stdout


def test_push_of_a_folder_that_is_none_changes_nothing(alice, tmp_path, capsys):
    assert main(["push", str(tmp_path), "alice/none"]) == 1
    assert not alice.seen("POST /api/repos/create")
    assert random_sae().config.kind == "sae"


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder", "two models", "several"])
def test_every_kind_is_trained_from_the_command_line(trained, demo_folder, capsys, tmp_path, kind):
    sites = {
        "transcoder": f"train-transcoder {demo_folder} --from-layer 1 --to-layer 1 --skip-connection",
        "crosscoder": f"train-crosscoder {demo_folder} --layers 1,2 --component-weights 2,1",
        "two models": f"train-crosscoder {demo_folder} {demo_folder.parent / 'atlas-neox'} --layers 1,2",
        "several": f"train {demo_folder} --layer 1,2 --matryoshka 0.25,1",
    }[kind]
    few = tmp_path / "texts.txt"
    few.write_text("\n".join((trained / "texts.txt").read_text().splitlines()[:500]))
    rest = f"--texts {few} --out {tmp_path}/out --expansion-factor 1 --k 8 --batch-size 128"
    assert main(f"{sites} {rest} --checkpoint-dir {tmp_path}/c".split()) == 0
    said = capsys.readouterr().out
    assert said.count("metrics") == (2 if kind == "several" else 1)
    folder = tmp_path / "out" / "layers.1.mlp" if kind == "several" else tmp_path / "out"
    models = [str(demo_folder)] + ([str(demo_folder.parent / "atlas-neox")] if kind == "two models" else [])
    chosen = [argument for model in models for argument in ("--model", model)]
    assert main(["show", str(folder), *chosen]) == 0
    assert "it fits" in capsys.readouterr().out
    assert main(["evaluate", str(folder), *chosen, "--texts", str(few), "--max-rows", "2000"]) == 0
    assert "loss recovered" in capsys.readouterr().out


@pytest.fixture(scope="module")
def layers(demo_folder, demo_texts, tmp_path_factory):
    """SAEs of two layers, one folder each."""
    folder = tmp_path_factory.mktemp("layers")
    (folder / "texts.txt").write_text("\n".join(demo_texts[:900]))
    line = f"train {demo_folder} --texts {folder}/texts.txt --layer 0,2 --component residual --out {folder} "
    assert main((line + "--expansion-factor 2 --k 8").split()) == 0
    return folder


def test_features_are_analysed_kept_and_shown(layers, demo_folder, capsys):
    sae = str(layers / "layers.0.residual")
    texts = ["--texts", str(layers / "texts.txt"), "--max-tokens", "9000"]
    assert main(["features", sae, "--model", str(demo_folder), *texts]) == 0
    assert "256 features on 9,000 tokens (texts.txt)" in capsys.readouterr().out
    assert main(["features", sae]) == 0
    out = capsys.readouterr().out
    assert "256 features on 9,000 tokens (texts.txt)" in out
    some = next(
        line.split()[0] for line in out.splitlines() if line.strip()[:1].isdigit() and "features on" not in line
    )
    assert main(["feature", sae, some]) == 0
    out = capsys.readouterr().out
    assert f"feature {some}" in out
    assert "top examples" in out
    (layers / "few.txt").write_text("A cow can walk. It eats hay.")
    few = ["--model", str(demo_folder), "--texts", str(layers / "few.txt")]
    for verb in (["features", sae], ["feature", sae, some]):
        main([*verb, *few])
    capsys.readouterr()
    assert main(["features", sae]) == 0
    assert "on 9,000 tokens (texts.txt)" in capsys.readouterr().out  # a smaller one does not take its place
    assert main(["features", sae, *few]) == 0
    assert "not kept" in capsys.readouterr().out
    assert main(["feature", sae, "256"]) == 1
    assert "features 0 to 255" in capsys.readouterr().err


def test_steering_prints_both_answers(layers, demo_folder, capsys):
    start = [
        "steer",
        str(layers / "layers.0.residual"),
        "--model",
        str(demo_folder),
        "--prompt",
        "The capital of France is",
    ]
    toward = ["--toward", "The capital of Germany", "--away-from", "The capital of France", "--max-tokens", "4"]
    assert main([*start, *toward]) == 0
    as_it_is, changed = (line for line in capsys.readouterr().out.splitlines() if "->" in line)
    assert "Paris" in as_it_is
    assert "Paris" not in changed
    assert main([*start, "--add", "3=2.5", "--ablate", "4,5", "--units", "raw"]) == 0
    for wrong in ("--add=3", "--add=3=1,3=2", "--ablate=a"):
        with pytest.raises(SystemExit):
            main([*start, wrong])
        assert "expected" in (err := capsys.readouterr().err) or "twice" in err
    assert main(start) == 1
    assert "nothing to change" in capsys.readouterr().err


def test_circuits_are_printed_and_written(layers, demo_folder, capsys, tmp_path):
    saes = [str(layers / f"layers.{layer}.residual") for layer in (0, 2)]
    (tmp_path / "prompts.txt").write_text("The capital of Japan is\nThe capital of Peru is\n")
    line = ["circuits", *saes, "--model", str(demo_folder), "--prompt", "The capital of France is", "--top-k", "5"]
    outs = [tmp_path / "circuit.svg", tmp_path / "circuit.json"]
    assert main([*line, "--prompts", str(tmp_path / "prompts.txt"), *(f"--out={out}" for out in outs)]) == 0
    assert "rank correlation" in capsys.readouterr().out
    assert all(out.stat().st_size > 500 for out in outs)
    assert main(line[:5]) == 1
    assert "give --prompt" in capsys.readouterr().err
    for wrong, words in ((["--out=c.pdf"], "svg or .png"), ([f"--out={tmp_path}/none/c.svg"], "there is no folder")):
        assert main([*line, *wrong]) == 1
        assert words in capsys.readouterr().err
    assert main([*line[:2], *line[3:]]) == 1
    assert "at least two layers" in capsys.readouterr().err
    assert main([*line[:2], line[1], *line[3:]]) == 1
    assert "layer 0 was given already" in capsys.readouterr().err


def test_labels_of_a_model_that_cannot_label_are_refused_and_those_of_one_that_can_are_kept(
    layers, demo_folder, capsys, monkeypatch
):
    from hubsae import labelers, load_sae

    sae = layers / "layers.2.residual"
    line = ["label", str(sae), "--model", str(demo_folder), "--labeler", str(demo_folder), "--num-examples", "2"]
    assert main(line) == 1
    assert "no examples are known" in capsys.readouterr().err
    assert main(["features", str(sae), "--model", str(demo_folder), "--texts", str(layers / "texts.txt")]) == 0
    alive = np.flatnonzero(~load_sae(sae).features.dead)[:2].tolist()
    monkeypatch.setattr(labelers.LocalLabeler, "__call__", lambda self, prompt: "1" if "numbers" in prompt else "words")
    assert main([*line, "--features", ",".join(map(str, alive))]) == 0
    assert "2 features labelled" in capsys.readouterr().out
    assert load_sae(sae).features.label(alive[0]).text == "words"


def test_dictionaries_of_other_libraries_are_listed_shown_and_converted(capsys, tmp_path):
    from foreign import Case

    several = Case("sparsify_several").copied(tmp_path)
    assert main(["list", str(several)]) == 0
    assert "layers.2.mlp  sparsify" in capsys.readouterr().out
    assert main(["show", str(several), "--subfolder", "layers.2.mpl"]) == 1
    assert "did you mean layers.2.mlp" in capsys.readouterr().err
    assert main(["show", str(several), "--subfolder", "layers.2.mlp"]) == 0
    out = capsys.readouterr().out
    assert "made with    sparsify, read from repo/layers.2.mlp" in out
    assert "trained on   not recorded" in out
    for to, file in (("hubsae", "model.safetensors"), ("saelens", "cfg.json"), ("sparsify", "h.1/cfg.json")):
        line = ["convert", str(several), str(tmp_path / to), "--subfolder", "h.1", "--to", to]
        assert main(line) == 0
        assert (tmp_path / to / file).exists()
    assert "written to" in capsys.readouterr().out
    assert main(["convert", str(several), str(tmp_path / "x"), "--subfolder", "h.1", "--to", "neuronpedia"]) == 1
    assert "--model-id and --source-set" in capsys.readouterr().err


def test_a_set_of_transcoders_is_converted_whole(capsys, tmp_path):
    from foreign import Case

    folder = Case("circuit_tracer_relu").copied(tmp_path)
    (folder / "config.yaml").write_text("model_name: Qwen/Qwen3-0.6B\nfeature_input_hook: mlp.hook_in\n")
    assert main(["convert", str(folder), str(tmp_path / "set"), "--to", "circuit-tracer"]) == 0
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "config.yaml",
        *(f"layer_{i}.safetensors" for i in range(3)),
    ]
    assert (tmp_path / "set" / "layer_1.safetensors").exists()
    two = ["--subfolder", "layer_0", "--subfolder", "layer_1"]
    assert main(["convert", str(folder), str(tmp_path / "y"), "--to", "saelens", *two]) == 1
    assert "only circuit-tracer takes several" in capsys.readouterr().err


def test_check_prints_every_field_and_its_verdict(trained, demo_folder, capsys):
    assert main(["check", str(trained / "sae"), "--model", str(demo_folder)]) == 0
    out = capsys.readouterr().out
    for field in ("which it reads", "architecture", "residual width", "quantisation", "weights, model.safetensors"):
        assert any(field in line and line.endswith("same") for line in out.splitlines()), field
    assert "nothing known speaks against it" in out  # a local folder has no commit
    assert main(["check", str(trained / "sae"), "--model", str(demo_folder.parent / "atlas-neox")]) == 1
    found = capsys.readouterr()
    assert any("architecture" in line and line.endswith("error") for line in found.out.splitlines())
    assert "it does not fit this model" in found.err


def test_check_takes_the_recorded_model_and_strict_lets_no_doubt_pass(trained, demo_folder, capsys, tmp_path):
    shutil.copytree(trained / "sae", tmp_path / "sae")
    config = json.loads((tmp_path / "sae" / "config.json").read_text())
    config["base_models"][0]["quantization"] = {"bits": 4, "group_size": 64}
    (tmp_path / "sae" / "config.json").write_text(json.dumps(config))
    line = ["check", str(tmp_path / "sae"), "--model", str(demo_folder)]
    assert main(line) == 0
    assert "it fits, with doubts" in capsys.readouterr().out
    assert main([*line, "--check", "strict"]) == 1
    assert "it fits, with doubts" in capsys.readouterr().err
    assert main(line[:2]) == 1
    assert "names no repository of its base model; give --model" in capsys.readouterr().err


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_of_several_dictionaries_one_is_chosen_and_a_report_of_them_published(alice, capsys, tmp_path):
    for layer in (1, 2):
        sites = (f"layers.{layer}.residual",)
        sae = random_sae(reads=sites, writes=sites)
        sae.metrics = {"n_tokens": 9, "l0": 4.0, "fvu": 0.5}
        sae.save(tmp_path / "saes" / f"sae{layer}")
    assert main(["show", str(tmp_path / "saes"), "--layer", "2"]) == 0
    assert "layers.2.residual (16)" in capsys.readouterr().out
    assert main(["list", str(tmp_path / "saes" / "sae1")]) == 0
    assert ": 1 dictionary\n" in capsys.readouterr().out
    assert main(["push", str(tmp_path / "saes"), "alice/several"]) == 1
    assert "holds 2 dictionaries: --collection" in capsys.readouterr().err
    assert not alice.seen("POST /api/repos/create")
    folders = [str(tmp_path / "saes" / f"sae{layer}") for layer in (1, 2)]
    out = str(tmp_path / "report")
    how = ["--license", "mit", "--message", "Two layers", "--tag", "v1"]
    assert main(["compare", *folders, "--out", out, "--push", "alice/compared", *how]) == 0
    assert main(["push", out, "alice/again", "--license", "mit"]) == 0
    assert "license: mit" in alice.files("alice/again", repo_type="dataset")["README.md"].decode()
    one, two = (alice.files(name, repo_type="dataset")["report.json"] for name in ("alice/again", "alice/compared"))
    assert one == two
    assert alice.files("alice/compared", "v1", "dataset")


def test_a_stream_asks_for_the_flag_that_ends_it(trained, demo_folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("hubsae.tokens.read_texts", lambda *_, **__: iter(["a text"]))
    assert main(f"train {demo_folder} --texts some/stream --layer 1 --out {tmp_path}/x".split()) == 1
    assert "some/stream is streamed" in (said := capsys.readouterr().err)
    assert "--training-tokens" in said
