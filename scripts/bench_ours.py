"""What is measured of hubsae itself: training, its bare matrix product, encoding, loading and reading a model."""

import hubsae  # noqa: I001  (first: it loads a tuned BLAS before mlx)

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from bench_peers import DEAD_BATCHES, Clock, Rebuild, Setting, SyntheticRows, batch_at, peak_mb
from hubsae import activations, backend
from hubsae.hub_client import library_version
from hubsae.lm import LanguageModel
from hubsae.recipe import MIN_STEPS
from hubsae.tokens import Chunk
from hubsae.train import train

Figures = dict[str, Any]


class _Enough(Exception):
    """Ends a training early."""


def build() -> Figures:
    """Versions, device and BLAS."""
    found = backend.describe()
    names = {"device_name": found.device_name, "blas_name": found.blas_name, "numpy": np.__version__}
    return {"version": library_version(), "engine": f"mlx {found.mlx_version}", **names}


def trained(
    setting: Setting, d: int, batch_of: Callable[[int], np.ndarray], clock: Clock, stop_after: int | None = None
) -> Any:
    """A dictionary that `hubsae.train.train` made of the batches; `clock` knows when each step was over.

    `stop_after`: end after so many steps and return None.
    """
    aux = {"dead_after_rows": DEAD_BATCHES * setting.batch} if setting.aux else {"aux_coefficient": 0.0}
    sizes = {"sparsity": setting.sparsity, "k": setting.k, "batch_size": setting.batch}
    config = hubsae.SAEConfig().updated(**sizes, learning_rate=setting.rate, **aux)
    began = False

    def batches() -> Iterator[mx.array]:
        for step in range(setting.steps):
            if began:  # the first batches are asked for before step 1, to learn their scale from
                clock.over(step)
            yield mx.array(batch_of(step))

    def progress(step: int, n_steps: int, numbers: list[dict]) -> None:
        nonlocal began
        began = True
        clock.over(step)
        if stop_after is not None and step >= stop_after:
            raise _Enough

    described = _description(d, setting.features, config)
    try:
        return train(batches(), setting.steps * setting.batch, described, config, progress=progress)
    except _Enough:
        return None


def _description(d: int, n_features: int, config: hubsae.SAEConfig) -> hubsae.DictionaryConfig:
    """An SAE of these sizes on a site that stands for any."""
    site = ("layers.0.residual",)
    return hubsae.DictionaryConfig(site, (d,), site, (d,), n_features, config.rule().to_dict())


def train_on(setting: Setting, rows: np.ndarray, clock: Clock) -> Rebuild:
    """A training over all steps."""
    dictionary = trained(setting, rows.shape[1], lambda step: batch_at(step, rows, setting.batch), clock)

    def rebuild(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        code = dictionary.encode_sparse(mx.array(x))
        return np.array(code.dense() > 0), np.array(dictionary.decode(code))

    return rebuild


def first_steps(setting: Setting, d: int) -> Figures:
    """Time and memory of the first `setting.steps` steps of a training whose rows are made batch by batch.

    It is stopped then, so what it takes to finish a dictionary is not in the figures.
    """
    planned = replace(setting, steps=max(MIN_STEPS, setting.steps + 1))
    source, clock = SyntheticRows(d), Clock()

    def batch_of(step: int) -> np.ndarray:
        with clock.paused():
            return source.draw(setting.batch)

    trained(planned, d, batch_of, clock, stop_after=setting.steps)
    weights_mb = round(2 * 4 * d * setting.features / 1e6, 1)
    sizes = {"d": d, "F": setting.features, "k": setting.k, "batch": setting.batch, "steps": setting.steps}
    return {**clock.medians(), "peak_mb": peak_mb(), "weights_mb": weights_mb, **sizes}


def matrix_product(n: int, d: int, features: int, repeats: int) -> Figures:
    """Milliseconds of (n, d) @ (d, F) in fp32 by NumPy and by MLX; `wall_ms_median` is the faster of the two."""
    rng = np.random.default_rng(0)
    x, W = (rng.standard_normal(shape, dtype=np.float32) for shape in ((n, d), (d, features)))
    out = np.empty((n, features), np.float32)
    x_mlx, W_mlx = mx.array(x), mx.array(W)
    mx.eval(x_mlx, W_mlx)
    # One after the other: threads of one BLAS go on waiting for a while and would be in the other's way.
    numpy_ms = _seconds(lambda: np.matmul(x, W, out=out), repeats) * 1e3
    mlx_ms = _seconds(lambda: mx.eval(x_mlx @ W_mlx), repeats) * 1e3
    wall_ms = min(numpy_ms, mlx_ms)
    times = {
        "wall_ms_median": wall_ms,
        "numpy_ms": numpy_ms,
        "mlx_ms": mlx_ms,
        "gflops": n * d * features / wall_ms / 5e5,
    }
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    return {
        **{name: round(value, 3) for name, value in times.items()},
        "numpy_blas": blas,
        "rows": n,
        "d": d,
        "F": features,
    }


def encoding(n: int, d: int, features: int, k: int, repeats: int) -> Figures:
    """Rows a second of sparse and of dense encoding, and how long a saved dictionary takes to load (files cached)."""
    config = _description(d, features, hubsae.SAEConfig(k=k))
    rng = np.random.default_rng(0)
    W_dec = rng.standard_normal((features, d), dtype=np.float32) / np.float32(d**0.5)
    arrays = {"W_enc": W_dec.T, "b_enc": np.zeros(features), "W_dec": W_dec, "b_dec": np.zeros(d)}
    dictionary = hubsae.Dictionary(config, {name: mx.array(a.astype(np.float32)) for name, a in arrays.items()})
    mx.eval(dictionary.arrays())
    rows = SyntheticRows(d).matrix(n)
    parts: list[slice] = []

    def sparse() -> None:
        parts.clear()
        for part, code in dictionary.encode_slices(rows):
            assert code.csr.shape[0]  # what analysis works with
            parts.append(part)

    def dense() -> None:
        for part in parts:
            mx.eval(dictionary.encode(mx.array(rows[part])))

    rates: Figures = {}
    for name, encode in (("sparse", sparse), ("dense", dense)):
        rates[f"{name}_rows_per_s"] = round(n / _seconds(encode, repeats))
        rates[f"peak_mb_after_{name}"] = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        dictionary.save(folder)
        folder_mb = round(sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6, 1)
        load_ms = round(_seconds(lambda: mx.eval(hubsae.load_sae(folder).arrays()), repeats) * 1e3, 3)
    sizes = {"rows": n, "d": d, "F": features, "k": k, "slice_rows": parts[0].stop}
    return {**rates, "load_ms": load_ms, "folder_mb": folder_mb, **sizes}


def _seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time of a call, after one that is not timed."""
    work()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def reader(model: Path, layer: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function from chunks of token ids to a block's output for all their tokens (n, d), chunk by chunk, in fp32."""
    loaded = LanguageModel(model)

    def read(chunks: Sequence[np.ndarray]) -> np.ndarray:
        group = [Chunk(ids, np.ones(len(ids), bool), document) for document, ids in enumerate(chunks)]
        block = activations.harvest(loaded, [hubsae.Site(layer)], group)
        return block.rows[np.lexsort((block.position, block.chunk))]

    return read
