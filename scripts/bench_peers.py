"""What benchmarks of all libraries share (rows, clock, judgement), and how three peers train and one reads a model.

Imports neither hubsae nor MLX, so that it runs in the peers' own environment. Peers compute on the CPU.
"""

import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

HELD_OUT_ROWS = 8192
FILE_ROWS = 131_072 + HELD_OUT_ROWS
MATCHED_RATE = 1e-3
DEAD_BATCHES = 3  # with --aux a feature is dead after so many batches, so that there are dead ones
NOT_INSTALLED = 3  # exit status of a driver whose library cannot be imported
_UNTIMED_STEPS = 2
_DIRECTIONS = 4096
_ACTIVE = 24

Rebuild = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""x (n, d) -> which features are active (n, F), and the reconstruction (n, d)."""


@dataclass(frozen=True)
class Setting:
    """What is trained, the same for every library.

    rate: Adam's learning rate (None: ours as the recipe has it, peers 1e-3, which serves them better than their own).
    default: peers with their own optimizer and rate.
    """

    features: int
    k: int
    batch: int
    steps: int
    sparsity: str = "topk"
    aux: bool = False
    default: bool = False
    rate: float | None = None

    @property
    def learning_rate(self) -> float | None:
        """Of a peer; None: the library's own."""
        return None if self.default else self.rate or MATCHED_RATE


class SyntheticRows:
    """Rows like activations: sums of few of many random unit directions, Zipf-like, around a mean that is not zero."""

    def __init__(self, d: int, seed: int = 0):
        self._rng = np.random.default_rng(seed)
        directions = self._rng.standard_normal((_DIRECTIONS, d), dtype=np.float32)
        self._directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._mean = self._rng.standard_normal(d, dtype=np.float32)
        shares = 1 / (np.arange(_DIRECTIONS) + 5.0)
        self._shares = shares / shares.sum()

    def draw(self, n: int) -> np.ndarray:
        """(n, d) in fp32, the next ones."""
        chosen = self._rng.choice(_DIRECTIONS, (n, _ACTIVE), p=self._shares)
        strengths = self._rng.gamma(4, 0.5, (n, _ACTIVE)).astype(np.float32)
        starts = np.arange(0, chosen.size + 1, _ACTIVE)
        code = scipy.sparse.csr_matrix((strengths.ravel(), chosen.ravel(), starts), (n, _DIRECTIONS))
        noise = self._rng.standard_normal((n, len(self._mean)), dtype=np.float32)
        return code @ self._directions + self._mean + np.float32(0.05) * noise

    def matrix(self, n: int) -> np.ndarray:
        """(n, d) in fp32, made in small parts, so that hardly more memory is touched than the rows take."""
        rows = np.empty((n, len(self._mean)), np.float32)
        for start in range(0, n, 1024):
            part = rows[start : start + 1024]
            part[:] = self.draw(len(part))
        return rows


def rows_for(setting: Setting) -> int:
    """Synthetic rows to make: one for each that is asked for, up to a limit, and those held out."""
    return min(setting.steps * setting.batch + HELD_OUT_ROWS, FILE_ROWS)


def training_rows(acts: Path | None, d: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled rows to train on and the last 8192, held out; of a .npy file, or synthetic ones with d columns."""
    if acts is None:
        rows = SyntheticRows(d).matrix(rows_for(setting))
    else:
        rows = np.load(acts)
        if rows.ndim != 2 or rows.dtype != np.float32:
            raise SystemExit(f"{acts}: shape {rows.shape} of {rows.dtype}; expected float32 (n, d)")
    if len(rows) < HELD_OUT_ROWS + setting.batch:
        raise SystemExit(f"{len(rows):,} rows; expected {HELD_OUT_ROWS:,} to hold out and a batch of {setting.batch:,}")
    rows, held_out = rows[:-HELD_OUT_ROWS], rows[-HELD_OUT_ROWS:]
    np.random.default_rng(0).shuffle(rows)
    return rows, held_out


def start_of(step: int, rows: np.ndarray, batch: int) -> int:
    """Where the batch of a step begins, steps counted from 0; after the last whole batch comes the first again."""
    return step % (len(rows) // batch) * batch


def batch_at(step: int, rows: np.ndarray, batch: int) -> np.ndarray:
    """The batch of a step (batch, d)."""
    start = start_of(step, rows, batch)
    return rows[start : start + batch]


class Clock:
    """When each step of a training was over, by wall clock and by CPU time of the process; step 0 is the start."""

    def __init__(self):
        self._ends: dict[int, np.ndarray] = {}
        self._paused = np.zeros(2)

    def over(self, step: int) -> None:
        """Note the time at the end of this step; only the first call counts."""
        self._ends.setdefault(step, self._now() - self._paused)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that belongs to no step."""
        began = self._now()
        yield
        self._paused += self._now() - began

    def medians(self) -> dict[str, float]:
        """Milliseconds a step over the steps whose beginning and end are known, without the first two."""
        steps = [step for step in self._ends if step > _UNTIMED_STEPS and step - 1 in self._ends]
        if not steps:
            raise SystemExit("no step could be timed; give more steps")
        wall, cpu = np.median([self._ends[step] - self._ends[step - 1] for step in steps], axis=0) * 1e3
        return {"wall_ms_median": round(wall, 3), "cpu_ms_median": round(cpu, 3), "timed_steps": len(steps)}

    @staticmethod
    def _now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def _machine_cpu_s() -> float | None:
    """CPU seconds that all processes together have taken since the machine started; None where Linux does not tell."""
    if sys.platform != "linux":
        return None
    spent = [int(ticks) for ticks in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return (sum(spent) - sum(spent[3:5])) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


_BEGAN = time.perf_counter(), time.process_time(), _machine_cpu_s()


def others_cores() -> float | None:
    """Cores that other processes kept busy while this one ran; None where that is not known.

    A thread that waits for one without a core costs a time slice, so that one busy core can make steps many times as
    long. Figures are good where this is about 0.
    """
    wall, own, machine = _BEGAN
    now = _machine_cpu_s()
    if machine is None or now is None:
        return None
    taken = now - machine - (time.process_time() - own)
    return round(max(0.0, taken / (time.perf_counter() - wall)), 2)


def judged(rebuild: Rebuild, held_out: np.ndarray, features: int) -> dict[str, float]:
    """Over all held-out rows: fraction of variance unexplained, active features a row, features never active."""
    missing, active_in_all, fired = 0.0, 0, np.zeros(features, bool)
    for start in range(0, len(held_out), 1024):
        rows = held_out[start : start + 1024]
        active, rebuilt = rebuild(rows)
        missing += float(np.square(rows - rebuilt).sum(dtype=np.float64))
        active_in_all += int(active.sum())
        fired |= active.any(axis=0)
    variance = float(np.square(held_out - held_out.mean(axis=0, dtype=np.float64)).sum())
    l0 = round(active_in_all / len(held_out), 2)
    return {"fvu": round(missing / variance, 5), "l0": l0, "never_fired": int(features - fired.sum())}


def _imported(*names: str) -> list[Any]:
    """The modules; ends the process with `NOT_INSTALLED` where one does not come."""
    try:
        return [import_module(name) for name in names]
    except Exception as error:  # a library that breaks on import is as good as none, whatever it raises
        print(f"{', '.join(names)} cannot be imported: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(NOT_INSTALLED) from error


def train_sparsify(setting: Setting, rows: np.ndarray, clock: Clock) -> Rebuild:
    """sparsify's `Trainer`, which trains on what a hook finds in a model: here one that looks rows up by number."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels need a GPU
    torch, sparsify = _imported("torch", "sparsify")

    class Lookup(torch.nn.Module):
        device, dummy_inputs = torch.device("cpu"), {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        base_model = property(lambda self: self)

        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.from_numpy(rows))
            self.rows = torch.nn.Identity()

        def forward(self, input_ids):
            return self.rows(torch.nn.functional.embedding(input_ids, self.table))

    class RowNumbers:
        """One sequence a step: the numbers of the batch's rows."""

        def __len__(self):
            return setting.steps

        def __getitem__(self, step):
            clock.over(step)
            start = start_of(step, rows, setting.batch)
            return {"input_ids": torch.arange(start, start + setting.batch)}

    matched = {} if setting.default else {"optimizer": "adam", "lr": setting.learning_rate, "lr_warmup_steps": 0}
    # More than the threshold is dead here, at least as much elsewhere.
    aux = {"auxk_alpha": 1 / 32, "dead_feature_threshold": DEAD_BATCHES * setting.batch - 1} if setting.aux else {}
    coder = sparsify.SparseCoderConfig(num_latents=setting.features, k=setting.k)
    with tempfile.TemporaryDirectory() as folder:
        own = {"batch_size": 1, "hookpoints": ["rows"], "log_to_wandb": False, "save_every": setting.steps + 1}
        config = sparsify.TrainConfig(coder, **own, **matched, **aux, save_dir=folder, run_name="bench")
        trainer = sparsify.Trainer(config, RowNumbers(), Lookup())
        trainer.fit()
    for optimizer in trainer.optimizers:
        if hasattr(optimizer, "eval"):
            optimizer.eval()  # schedule-free: brings in the averaged weights
    sae = trainer.saes["rows"]

    def rebuild(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            code = sae.encode(torch.from_numpy(x))
            active = torch.zeros(code.pre_acts.shape, dtype=torch.bool)
            active.scatter_(1, code.top_indices, code.top_acts > 0)
            return active.numpy(), sae.decode(code.top_acts, code.top_indices).numpy()

    return rebuild


def train_saelens(setting: Setting, rows: np.ndarray, clock: Clock) -> Rebuild:
    """SAELens' `SAETrainer` on its TopK SAE."""
    torch, config, topk, training = _imported(
        "torch", "sae_lens.config", "sae_lens.saes.topk_sae", "sae_lens.training.sae_trainer"
    )
    torch.manual_seed(0)
    shape = {"d_in": rows.shape[1], "d_sae": setting.features, "k": setting.k, "dtype": "float32", "device": "cpu"}
    sae = topk.TopKTrainingSAE(topk.TopKTrainingSAEConfig(**shape))
    rate = setting.learning_rate or config.SAETrainerConfig.lr
    settings = config.SAETrainerConfig(
        total_training_samples=setting.steps * setting.batch,
        train_batch_size_samples=setting.batch,
        lr=rate,
        lr_end=rate,  # asked for, though the rate is constant
        device="cpu",
        # AuxK cannot be turned off: without it no feature is silent for long enough. More than this is dead.
        dead_feature_window=DEAD_BATCHES - 1 if setting.aux else setting.steps,
        logger=config.LoggingConfig(log_to_wandb=False),
    )
    training.SAETrainer(cfg=settings, sae=sae, data_provider=_torch_batches(torch, setting, rows, clock)).fit()

    def rebuild(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            code = sae.encode(torch.from_numpy(x))
            return (code > 0).numpy(), sae.decode(code).numpy()

    return rebuild


def train_dictionary_learning(setting: Setting, rows: np.ndarray, clock: Clock) -> Rebuild:
    """dictionary_learning's `trainSAE` with its TopK trainer."""
    torch, top_k, training = _imported("torch", "dictionary_learning.trainers.top_k", "dictionary_learning.training")
    trainers = []

    def trainer(**settings) -> Any:
        trainers.append(top_k.TopKTrainer(**settings))
        if setting.aux:
            trainers[0].dead_feature_threshold = DEAD_BATCHES * setting.batch
        return trainers[0]

    config = {
        "trainer": trainer,
        "steps": setting.steps,
        "activation_dim": rows.shape[1],
        "dict_size": setting.features,
        "k": setting.k,
        "lr": setting.learning_rate,
        "warmup_steps": min(1000, setting.steps // 10) if setting.default else 0,  # it refuses fewer steps than 1000
        "auxk_alpha": 1 / 32 if setting.aux else 0,
        "layer": 0,
        "lm_name": "none",
        "device": "cpu",
        "seed": 0,
    }
    batches = _torch_batches(torch, setting, rows, clock)
    training.trainSAE(data=batches, trainer_configs=[config], steps=setting.steps, device="cpu")
    sae = trainers[0].ae

    def rebuild(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            rebuilt, code = sae(torch.from_numpy(x), output_features=True)
            return (code > 0).numpy(), rebuilt.numpy()

    return rebuild


def _torch_batches(torch: Any, setting: Setting, rows: np.ndarray, clock: Clock) -> Iterator[Any]:
    """Endless batches; asking for one ends the step before."""
    for step in count():
        clock.over(step)
        yield torch.from_numpy(batch_at(step, rows, setting.batch))


PEERS: dict[str, tuple[str, Callable[[Setting, np.ndarray, Clock], Rebuild]]] = {
    "sparsify": ("eai-sparsify", train_sparsify),
    "saelens": ("sae-lens", train_saelens),
    "dictionary_learning": ("dictionary-learning", train_dictionary_learning),
}


def build(package: str) -> dict[str, Any]:
    """Versions of a package and of torch, and what torch computes with."""
    (torch,) = _imported("torch")
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    names = {"device_name": f"CPU, {os.cpu_count()} cores", "blas_name": blas[1].upper() if blas else "unknown"}
    return {"version": version(package), "engine": f"torch {torch.__version__}", **names, "numpy": np.__version__}


class _LayerReached(Exception):
    """Ends a forward pass."""


def reader(model: Path, layer: int, at_once: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function from chunks of token ids to a block's output for all their tokens (n, d), chunk by chunk, in fp32.

    By transformers on torch. Chunks of similar length share a pass of at most `at_once` tokens, padded on the right; a
    pass ends behind the block.
    """
    torch, transformers = _imported("torch", "transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    n_layers = loaded.config.num_hidden_layers
    lists = [m for m in loaded.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers]
    if len(lists) != 1:
        raise SystemExit(f"{model}: {len(lists)} lists of {n_layers} modules; cannot tell which are the blocks")
    found = []

    def stop(module, inputs, output):
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _LayerReached

    lists[0][layer].register_forward_hook(stop)

    def read(chunks: Sequence[np.ndarray]) -> np.ndarray:
        parts: list[Any] = [None] * len(chunks)
        with torch.inference_mode():
            for members in _passes([len(chunk) for chunk in chunks], at_once):
                ids = np.zeros((len(members), max(len(chunks[i]) for i in members)), np.int64)
                for line, i in zip(ids, members, strict=True):
                    line[: len(chunks[i])] = chunks[i]
                with suppress(_LayerReached):
                    loaded(torch.from_numpy(ids), use_cache=False)
                for line, i in zip(found.pop(), members, strict=True):
                    parts[i] = line[: len(chunks[i])]
            return torch.cat(parts).numpy()

    return read


def _passes(lengths: Sequence[int], at_once: int) -> list[list[int]]:
    """Numbers of the chunks of each pass, by length, as hubsae groups them."""
    passes: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if passes[-1] and (len(passes[-1]) + 1) * lengths[i] > at_once:
            passes.append([])
        passes[-1].append(i)
    return passes
