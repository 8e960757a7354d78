"""Two processes that train together do what one does alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hubsae import load_sae
from hubsae.distributed import ALONE, ranks

PROGRAM = """
import sys
from hubsae import ActivationDataset
from hubsae.demo import atlas
from hubsae.demo.run import load_model
from hubsae.distributed import ranks

out, cache = sys.argv[1], sys.argv[2]
model = load_model()
texts = [document.text for document in atlas.generate(500, seed=3)]
data = ActivationDataset(model, "layers.2.residual", texts, max_rows=18_001, held_out=0.05, cache_dir=cache)
model.train_sae(
    layer=2, component="residual", dataset=data, sparsity=["topk", "batchtopk", "jumprelu"], expansion_factor=2, k=8,
    batch_size=125, num_epochs=1, dead_after_rows=400, learning_rate=1e-3, seed=int(sys.argv[3]),
    save_path=out, progress=False,
)
print(ranks().size, ranks().rank, len(data.held_out_chunks))
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start(n: int, folder: Path, seeds: tuple[int, ...] = (1, 1)) -> list[tuple[int, str, str]]:
    """How each of n processes that train into `folder` ends, what it prints, and what it complains of."""
    folder.mkdir()
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(n)]))
    started = []
    for rank in range(n):
        command = [sys.executable, "-c", PROGRAM, str(folder / "out"), str(folder / "cache"), str(seeds[rank])]
        together = {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1"} if n > 1 else {}
        env = {**os.environ, **together}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def run_together(n: int, folder: Path) -> list[str]:
    """What each of n processes prints that train into `folder`."""
    ends = start(n, folder)
    assert all(code == 0 for code, _, _ in ends), ends
    return [out for _, out, _ in ends]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("together")
    one, two = folder / "one", folder / "two"
    (alone,) = run_together(1, one)
    together = run_together(2, two)
    held_out = alone.split()[2]
    assert [line.split() for line in together] == [["2", "0", held_out], ["2", "1", held_out]]
    return one / "out", two / "out"


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "jumprelu"])
def test_two_processes_give_the_loss_curve_and_the_dictionary_of_one(both, sparsity):
    one, two = (load_sae(path / f"layers.2.residual-sparsity{sparsity}", check="ignore") for path in both)
    logs = [sae.statistics["log"] for sae in (one, two)]
    assert [row["step"] for row in logs[0]] == [row["step"] for row in logs[1]]
    for name in ("loss", "fvu", "l0", "gradient_norm", "dead_share"):
        curves = np.array([[row[name] for row in log] for log in logs])
        assert np.allclose(*curves, rtol=1e-4, atol=1e-4), name
    assert any(row["dead_share"] for row in logs[0]) or sparsity != "topk"
    for name, array in one.arrays().items():
        assert np.allclose(np.array(array), np.array(two.arrays()[name]), rtol=1e-2, atol=1e-3), name
    assert one.metrics["fvu"] == pytest.approx(two.metrics["fvu"], rel=1e-3)


def test_rows_that_were_harvested_together_are_those_of_one(both):
    manifests = [json.loads((path.parent / "cache" / "manifest.json").read_text()) for path in both]
    shards = [[(s["n_rows"], s["chunks_sha256"]) for s in manifest["shards"]] for manifest in manifests]
    assert shards[0] == shards[1]
    assert all(manifest["complete"] for manifest in manifests)


def test_processes_with_different_settings_are_refused(tmp_path):
    for code, _, complaint in start(2, tmp_path / "apart", seeds=(1, 2)):
        assert code == 1
        assert "different settings" in complaint


def test_a_process_that_was_started_by_itself_is_alone():
    assert ranks() is ALONE
    assert ALONE.share(7) == slice(0, 7)
    assert ALONE.agree("anything")
