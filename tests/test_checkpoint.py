"""Checkpoints: whole or not there, refused for another run, and exact after SIGKILL."""

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from hubsae import InterpretableModel, SAEConfig, load_sae
from hubsae.checkpoint import Checkpoints, State
from hubsae.dataset import ActivationDataset
from hubsae.demo.run import load_model
from hubsae.errors import ArtifactError, ConfigError, DataError, HubsaeWarning

QUICK = {"expansion_factor": 2, "k": 8, "batch_size": 128, "progress": False}
MADE_FOR = {"k": 3, "sites": ["a"]}


def state(value: float) -> tuple[State, dict[str, State]]:
    rows = {"buffer": np.full((4, 2), value, np.float32)}
    return State({"value": value}, {}), {"job0": State({}, {"w": mx.array([value])}, {}), "rows": State({}, {}, rows)}


def test_the_newest_is_found_and_older_ones_are_pruned(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", MADE_FOR)
    assert checkpoints.newest() is None
    for step in (5, 10, 15):
        checkpoints.keep(step, *state(step))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step-00000010", "step-00000015"]
    found = Checkpoints(tmp_path / "c", MADE_FOR).newest()
    assert found
    assert found[0].values == {"value": 15}
    assert found[1]["job0"].arrays["w"].item() == 15
    assert found[1]["rows"].rows["buffer"][3, 1] == 15


@pytest.mark.parametrize("file", ["state.json", "job0.safetensors", "rows-buffer.npy"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_one_is_passed_over(tmp_path, file, damage):
    checkpoints = Checkpoints(tmp_path / "c", MADE_FOR)
    for step in (5, 10):
        checkpoints.keep(step, *state(step))
    path = tmp_path / "c" / "step-00000010" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-7] if damage == "cut" else content[:-9] + b"x" * 9)
    with pytest.warns(HubsaeWarning, match="step-00000010: this checkpoint is damaged"):
        found = Checkpoints(tmp_path / "c", MADE_FOR).newest()
    assert found
    assert found[0].values == {"value": 5}


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path):
    Checkpoints(tmp_path / "c", MADE_FOR).keep(5, *state(5))
    with pytest.raises(ConfigError, match="k is 3 there, 4 here"):
        Checkpoints(tmp_path / "c", {**MADE_FOR, "k": 4})


def test_a_checkpoint_in_another_format_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("hubsae.checkpoint._FORMAT_VERSION", 1)
    Checkpoints(tmp_path / "c", MADE_FOR).keep(5000, *state(5))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"format 1, this version of hubsae has format 2; give another"):
        Checkpoints(tmp_path / "c", MADE_FOR)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ArtifactError, match="holds other files"):
        Checkpoints(tmp_path, MADE_FOR)
    with pytest.raises(ArtifactError, match="is a file"):
        Checkpoints(tmp_path / "thesis.tex", MADE_FOR)


def test_an_error_while_writing_leaves_the_older_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", MADE_FOR)
    checkpoints.keep(5, *state(5))
    with pytest.raises(DataError, match="NaN"):
        checkpoints.keep(10, *state(float("nan")))
    found = Checkpoints(tmp_path / "c", MADE_FOR).newest()
    assert found
    assert found[0].values == {"value": 5}


def test_settings_and_texts_of_another_run_are_refused_before_any_step(demo_model, demo_texts, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="give checkpoint_dir"):
        demo_model.train_sae(1, demo_texts, checkpoint_every=5, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        demo_model.train_sae(
            1, demo_texts, checkpoint_dir=tmp_path / "c", checkpoint_every=10, report_to=stop_at(30), **QUICK
        )
    monkeypatch.setattr("hubsae.train.Trainer.step", None)  # nothing may be trained
    for change, error, message in [
        ({"seed": 1}, ConfigError, "seed is 42 there, 1 here"),
        ({"layer": 2}, ConfigError, r"layers\.1\.mlp there, layers\.2\.mlp here"),
        ({"dataset": [t.replace("is", "was") for t in demo_texts], "training_tokens": 19_000}, ConfigError, "rows is"),
        ({"dataset": [t[::-1] for t in demo_texts]}, (ConfigError, DataError), "rows is|other texts"),
    ]:
        with pytest.raises(error, match=message):
            demo_model.train_sae(
                **{"layer": 1, "dataset": demo_texts, "checkpoint_dir": tmp_path / "c", **QUICK, **change}
            )


def test_the_same_number_of_tokens_of_other_texts_is_refused(demo_model, demo_texts, tmp_path):
    run = {"training_tokens": 15_000, "checkpoint_dir": tmp_path / "c", "checkpoint_every": 10, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        demo_model.train_sae(1, iter(demo_texts), report_to=stop_at(30), **run)
    with pytest.raises(DataError, match="other texts"):
        demo_model.train_sae(1, iter(demo_texts[3:]), **run)


def stop_at(step: int):
    def stop(row: dict) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("source", ["list", "stream", "small buffer", "cache and epochs"])
def test_a_run_that_was_stopped_ends_with_the_same_weights_and_numbers(demo_model, demo_texts, tmp_path, source):
    def run(**options):
        texts = demo_texts[:900]
        epochs = 2 if source == "cache and epochs" else 1
        config = SAEConfig(expansion_factor=2, k=8, batch_size=100, num_epochs=epochs, validation_split=0.1)
        if source == "list":
            return demo_model.train_sae(1, texts, "residual", config=config, progress=False, **options)
        if source == "stream":
            tokens = {"training_tokens": 10_500, "config": config, "progress": False}
            return demo_model.train_sae(1, iter(texts), "residual", **tokens, **options)
        cache = tmp_path / f"cache{options.get('checkpoint_dir') is None}" if epochs > 1 else None
        data = ActivationDataset(
            demo_model, "layers.1.residual", texts, max_rows=10_500, held_out=0.1, buffer_mb=1, cache_dir=cache
        )
        data.capacity = 2000
        return demo_model.train_sae(1, data, "residual", config=config, progress=False, **options)

    whole = run()
    kept = {"checkpoint_dir": tmp_path / "c", "checkpoint_every": 20}
    for step in (30, 55, 90):
        with pytest.raises(KeyboardInterrupt):
            run(report_to=stop_at(step), **kept)
    done = run(**kept)
    assert all(mx.array_equal(array, done.arrays()[name]) for name, array in whole.arrays().items())
    assert done.statistics["log"] == whole.statistics["log"]
    assert done.metrics == whole.metrics
    again = run(**kept)  # finished already: nothing is trained
    assert all(mx.array_equal(array, again.arrays()[name]) for name, array in whole.arrays().items())
    assert again.metrics == whole.metrics


def test_a_checkpoint_of_other_weights_is_refused(demo_model, demo_texts, tmp_path):
    changed = InterpretableModel((load_model().model, demo_model.tokenizer))
    run = {"checkpoint_dir": tmp_path / "c", "checkpoint_every": 10, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        changed.train_sae(1, demo_texts[:500], report_to=stop_at(30), **run)
    projection: Any = changed.layers[0]["mlp"]["down_proj"]
    projection.weight = projection.weight * 1.3
    with pytest.raises(DataError, match="other activations"):
        changed.train_sae(1, demo_texts[:500], **run)


def test_a_state_that_was_edited_counts_as_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", MADE_FOR)
    checkpoints.keep(5, *state(5))
    path = tmp_path / "c" / "step-00000005" / "state.json"
    path.write_text(path.read_text().replace('"rows": {', '"../rows": {'))
    with pytest.warns(HubsaeWarning, match="damaged"):
        assert Checkpoints(tmp_path / "c", MADE_FOR).newest() is None


SCRIPT = """
import sys
from hubsae.demo import atlas
from hubsae.demo.run import load_model
texts = [document.text for document in atlas.generate(800, seed=11)]
load_model().train_sae(
    [1, 2], texts, "residual", sys.argv[1], sparsity=["topk", "batchtopk"], expansion_factor=1, k=8, batch_size=64,
    aux_coefficient=0.1, dead_after_rows=1000, progress=False, report_to=lambda row: print(row["step"], flush=True),
    **({"checkpoint_dir": sys.argv[2], "checkpoint_every": 3} if len(sys.argv) > 2 else {}),
)
"""


def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path):
    def start(*arguments: str, kill_at: float = float("inf")) -> int:
        command = [sys.executable, "-c", SCRIPT, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                if int(line) >= kill_at:
                    process.kill()  # SIGKILL; often while a checkpoint is being written
                    break
            return process.wait()

    rng, kept = random.Random(0), (str(tmp_path / "killed"), str(tmp_path / "c"))
    killed = [start(*kept, kill_at=limit + rng.randrange(9)) for limit in (20, 60, 100)]
    assert killed == [-signal.SIGKILL] * 3
    assert start(*kept) == start(str(tmp_path / "whole")) == 0
    folders = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(folders) == 4
    for name in folders:
        one, two = (load_sae(Path(tmp_path) / run / name) for run in ("whole", "killed"))
        assert all(mx.array_equal(array, two.arrays()[key]) for key, array in one.arrays().items())
        assert one.metrics == two.metrics
        assert one.statistics["log"] == two.statistics["log"]
