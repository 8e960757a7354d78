import subprocess
import sys

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
