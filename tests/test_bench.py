"""The benchmark program measures what it says; how fast is not a matter of tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench.py"
SIZES = ["--features", "64", "--k", "4", "--d", "16"]


def measured(*arguments: str) -> dict:
    done = subprocess.run([sys.executable, BENCH, *arguments, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("option", [[], ["--aux"], ["--sparsity", "batchtopk"]], ids=str)
def test_a_training_is_timed_and_judged(option):
    found = measured("step", *SIZES, "--batch", "64", "--steps", "110", *option)
    assert found["wall_ms_median"] > 0
    assert found["cpu_ms_median"] > 0
    assert found["peak_mb"] > 10
    assert 0 < found["fvu"] < 1
    assert 2 < found["l0"] <= 8
    assert (found["d"], found["F"], found["k"], found["batch"], found["steps"]) == (16, 64, 4, 64, 110)


def test_the_other_measurements_give_figures(demo_folder):
    assert measured("gemm", "--rows", "64", "--d", "16", "--features", "64", "--repeats", "2")["gflops"] > 0
    assert measured("memory", *SIZES, "--batch", "64", "--steps", "4")["peak_mb"] > 10
    assert measured("encode", *SIZES, "--rows", "500", "--repeats", "1")["sparse_rows_per_s"] > 0
    found = measured("harvest", "--model", str(demo_folder), "--layer", "1", "--tokens", "500", "--rounds", "1")
    assert found["results"][0]["tokens_per_s"] > 0


def test_the_analysis_is_measured_beside_dense_codes(demo_folder, demo_texts, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(demo_texts[:60]))
    sizes = ["--features", "128", "--k", "4", "--tokens", "1000", "--dense-tokens", "500"]
    line = [sys.executable, BENCH.parent / "bench_survey.py", "--model", demo_folder, "--texts", tmp_path / "texts.txt"]
    done = subprocess.run([*line, *sizes], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sparse, dense = map(json.loads, done.stdout.splitlines())
    assert (sparse["way"], sparse["tokens"]) == ("sparse", 1000)
    assert (dense["way"], dense["tokens"]) == ("dense", 500)
    assert sparse["peak_mb"] > 10
