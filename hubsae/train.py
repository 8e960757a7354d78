"""The loop: it sees rows, no language model and no Hub; several dictionaries can be trained on the same rows."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import backend, threads
from hubsae.adam import Adam
from hubsae.checkpoint import Checkpoints, State
from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.distributed import ALONE, Ranks, ranks
from hubsae.entries import Array, Scratch, module_of
from hubsae.errors import BackendError, ConfigError, DataError, warn
from hubsae.losses import Moment, initial, losses
from hubsae.recipe import SAEConfig
from hubsae.resample import revived
from hubsae.rows import GivenRows, Rows
from hubsae.scaling import Scaling, fold
from hubsae.schedule import Schedule
from hubsae.sites import ranges
from hubsae.surrogates import Params, running_mean, surrogate

_SAMPLE_ROWS = 16_384
_LOG_POINTS = 200

Progress = Callable[[int, int, list[dict]], None]


@dataclass(frozen=True)
class Job:
    """One dictionary to train: what it is, how, and which columns of a row it reads and writes."""

    description: DictionaryConfig
    config: SAEConfig
    reads: tuple[slice, ...]
    writes: tuple[slice, ...]

    @property
    def same(self) -> bool:
        return self.reads == self.writes

    def to_dict(self) -> dict:
        """What a checkpoint must agree with; how often it is written does not matter."""
        described = {k: v for k, v in asdict(self.description).items() if k != "library_version"}
        return {"settings": {**asdict(self.config), "checkpoint_every": None}, "dictionary": described}


class Trainer:
    """Parameters, optimizer state and dead-feature counts of one job; `step` takes one batch of raw rows.

    On a CPU all of it is NumPy, with products by SciPy where few entries are active; on an accelerator it is MLX.
    """

    def __init__(
        self,
        job: Job,
        n_steps: int,
        n_rows: int,
        inner: Scaling,
        outer: Scaling,
        *,
        on_device: bool | None = None,
    ):
        self.job, self.config = job, job.config
        self.on_device = not backend.is_cpu() if on_device is None else on_device
        self._scale_by(inner, outer)
        d = job.description
        self.widths = d.write_widths
        self.schedule = Schedule(job.config, n_steps, d.n_features)
        self.dead_after = job.config.dead_after(n_rows)
        self.params: Params = self._placed(initial(d.d_in, self.widths, d.n_features, job.same, job.config, d.skip))
        self.adam = Adam(self.params, self.widths if job.config.unit_norm else None, job.config.gradient_clip)
        self.silent_rows = np.zeros(d.n_features, np.int64)
        self.threshold, self.n_thresholds, self.n_done = 0.0, 0, 0
        self._scratch = Scratch()

    def _scale_by(self, inner: Scaling, outer: Scaling) -> None:
        self.inner, self.outer = inner, outer
        self._scalings = (inner.on_device(), outer.on_device()) if self.on_device else (inner, outer)

    def _placed(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Arrays where training computes: MLX's, or NumPy's in memory of their own."""
        return {name: mx.array(array) if self.on_device else np.array(array) for name, array in arrays.items()}

    @property
    def dead(self) -> np.ndarray:
        """Ids of the features that did not fire for `dead_after` rows."""
        return np.flatnonzero(self.silent_rows >= self.dead_after)

    def rows(self, batch: Array) -> tuple[Array, Array]:
        """(b, columns of all jobs) raw rows -> x (b, d_in) and y (b, d_out), scaled."""
        batch = mx.array(batch) if self.on_device else np.array(batch, copy=None)
        inner, outer = self._scalings
        x = inner.apply(_columns(batch, self.job.reads))
        return x, x if self.job.same else outer.apply(_columns(batch, self.job.writes))

    def step(self, batch: Array) -> dict[str, Array]:
        """One update by a batch, which is the same in all processes; returns the batch's numbers, evaluated."""
        share = ranks() if len(batch) >= ranks().size else ALONE  # of so few rows every process takes all
        with threads.alone():
            return self._step(*self.rows(batch[share.share(len(batch))]), share)

    def _step(self, x: Array, y: Array, share: Ranks) -> dict[str, Array]:
        at, now = self.schedule, self.n_done
        dead = self.dead if self.config.aux_coefficient else self.dead[:0]
        moment = Moment(at.k(now), at.penalty(now), at.prefixes(now), dead if len(dead) else None)
        parts, gradients = losses(self.params, x, y, self.config, self.widths, moment, share, self._scratch)
        norm = self.adam.update(self.params, gradients, at.rate(now))
        if self.on_device:
            mx.eval(self.params, self.adam.first, self.adam.second, vars(parts), norm)
        if round(float(parts.n_ranks)) != share.size:
            raise BackendError(f"{share.size} processes train together, and not all of them answer; start them again")
        self.silent_rows += parts.n_rows
        self.silent_rows[np.array(parts.fired)] = 0
        threshold = float(parts.threshold)
        if moment.k == self.config.k and np.isfinite(threshold) and threshold > 0:  # not while k comes down
            self.threshold = running_mean(self.threshold, threshold, self.n_thresholds)
            self.n_thresholds += 1
        if at.resamples(now):
            self._resample(share.gathered(np.array(x)), share.gathered(np.array(y)), moment)
        self.n_done += 1
        return {"loss": parts.total, "fvu": parts.fvu, "l0": parts.l0, "gradient_norm": norm}

    def _resample(self, x: np.ndarray, y: np.ndarray, moment: Moment) -> None:
        """Start dead features anew, optimizer state included, and give them time before they count as dead again."""
        if not len(dead := self.dead):
            return
        held = {name: np.array(array) for name, array in self.params.items()}
        new = revived(held, x, y, self.config, self.widths, moment, dead, seed=self.n_done)
        self.params = self._placed(new)
        mask = np.zeros(len(self.silent_rows), bool)
        mask[dead] = True
        self.adam.forget(mx.array(mask) if self.on_device else mask)
        self.silent_rows[dead] = 0

    def finished(self, kind: type[Dictionary]) -> Any:
        """The dictionary that takes and gives raw activations."""
        folded = fold(self.params, self.inner, self.outer)
        learned = surrogate(self.config, self.job.description.d_in).learned(self.params, self.threshold)
        description = replace(self.job.description, write_scales=self.outer.site_scales)
        rule = description.rule
        dictionary = kind(description, {**folded, **rule.in_units(learned, self.outer.unit)})
        mx.eval(dictionary.arrays())
        return dictionary

    def state(self) -> State:
        """All that the next steps depend on."""
        kept = {"params": self.params, "first": self.adam.first, "second": self.adam.second}
        arrays = {f"{part}.{name}": mx.array(array) for part, group in kept.items() for name, array in group.items()}
        for side, scaling in (("inner", self.inner), ("outer", self.outer)):
            arrays |= {f"{side}.mean": mx.array(scaling.mean), f"{side}.scale": mx.array(scaling.scale)}
        arrays["silent_rows"] = mx.array(self.silent_rows)
        scales = {"inner": self.inner.site_scales, "outer": self.outer.site_scales}
        mean = {"threshold": self.threshold, "n_thresholds": self.n_thresholds}
        return State({"n_done": self.n_done, **mean, "site_scales": scales}, arrays)

    def restore(self, state: State) -> None:
        """Go on from what `state` gave."""
        arrays, values = state.arrays, state.values
        inner, outer = (
            Scaling(np.array(arrays[f"{s}.mean"]), np.array(arrays[f"{s}.scale"]), tuple(values["site_scales"][s]))
            for s in ("inner", "outer")
        )
        self._scale_by(inner, outer)
        self.params, self.adam.first, self.adam.second = (
            self._placed({name: arrays[f"{part}.{name}"] for name in self.params})
            for part in ("params", "first", "second")
        )
        self.n_done, self.threshold, self.n_thresholds = (values[k] for k in ("n_done", "threshold", "n_thresholds"))
        self.adam.n_done = self.n_done
        self.silent_rows = np.array(arrays["silent_rows"])


def _columns(rows: Array, where: Sequence[slice]) -> Array:
    """The columns side by side; a view of the rows where they stand so already."""
    if all(a.stop == b.start for a, b in pairwise(where)):
        return rows[:, where[0].start : where[-1].stop]
    return module_of(rows).concatenate([rows[:, part] for part in where], axis=1)


def train(
    batches: Iterable[mx.array | tuple[mx.array, mx.array]],
    n_rows: int,
    description: DictionaryConfig,
    config: SAEConfig,
    *,
    kind: type[Dictionary] = Dictionary,
    progress: Progress | None = None,
) -> Any:
    """A `kind` trained on `n_rows` rows (all epochs together) that arrive in `batches`.

    A batch is x (b, d_in), or (x, y) where reads and writes differ; raw activations, all of `config.batch_for` rows but
    the last. See `train_jobs`.
    """
    d_in, d_out = description.d_in, description.d_out
    same = description.reads == description.writes
    reads = ranges(description.read_widths)
    writes = reads if same else ranges(description.write_widths, d_in)
    rows = GivenRows(batches, n_rows, d_in, None if same else d_out)
    return train_jobs([Job(description, config, reads, writes)], rows, kinds=[kind], progress=progress)[0]


def train_jobs(
    jobs: Sequence[Job],
    rows: Rows,
    *,
    kinds: Sequence[type[Dictionary]],
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[Any]:
    """A dictionary for each job, trained side by side on the same rows.

    `progress` is called with (step, steps, numbers of every job). The log ends in `statistics`. With `checkpoints` the
    run goes on from the newest good one. Raises `ConfigError` where the data is too little, `DataError` where it is not
    finite or ends before half of the rows or 100 steps.
    """
    run = _Run(jobs, rows, progress, checkpoints)
    run.go()
    return [run.finished(number, kind) for number, kind in enumerate(kinds)]


class _Run:
    """One pass over the rows with all its trainers, its log and its checkpoints."""

    def __init__(self, jobs: Sequence[Job], rows: Rows, progress: Progress | None, checkpoints: Checkpoints | None):
        self.rows, self.progress, self.checkpoints = rows, progress, checkpoints
        self.started, self.seen, self.logs = time.time(), 0, [[] for _ in jobs]
        config = jobs[0].config
        self.batch_size = config.batch_for(rows.n_rows)
        self.n_steps = max(
            replace(job.config, num_epochs=1, batch_size=self.batch_size).steps_for(rows.n_rows) for job in jobs
        )
        made_for = [[job.to_dict() for job in jobs], rows.n_rows, self.batch_size]
        if not ranks().agree(json.dumps(made_for, sort_keys=True)):
            raise ConfigError("the processes were given different settings or texts; give all of them the same")
        found = checkpoints.newest() if checkpoints else None
        if not ranks().agree(str(found[0].values["seen"] if found else None)):
            raise DataError("the processes find different checkpoints; give a checkpoint_dir that all of them see")
        sample = None if found else rows.sample(_SAMPLE_ROWS)
        if sample is not None and not ranks().agree(str(float(np.abs(sample).sum(dtype=np.float64)))):
            raise DataError("the processes have different activations; give all of them the same texts and model")
        self.trainers = [self._trainer(job, sample) for job in jobs]
        if found:
            self._restore(found)
        self.kept_at = self.trainers[0].n_done if found else -1

    def _trainer(self, job: Job, sample: np.ndarray | None) -> Trainer:
        d, weights = job.description, getattr(job.config, "component_weights", None)
        scalings = []
        for where, sites, widths in (
            (job.reads, d.read_sites, d.read_widths),
            (job.writes, d.write_sites, d.write_widths),
        ):
            if sample is None:  # stands there until a checkpoint is restored
                zeros = np.zeros(sum(widths), np.float32)
                scalings.append(Scaling(zeros, zeros + 1, (1.0,) * len(widths)))
            else:
                part = np.concatenate([sample[:, s] for s in where], axis=1)
                scalings.append(Scaling.of(part, sites, widths, weights))
        inner, outer = scalings
        return Trainer(job, self.n_steps, self.rows.n_rows, inner, inner if job.same else outer)

    def go(self) -> None:
        """Train on every batch; notes some `_LOG_POINTS` log rows and always the last step."""
        every, numbers = max(1, self.n_steps // _LOG_POINTS), None
        for batch in self.rows:
            numbers = [trainer.step(batch) for trainer in self.trainers]
            self.seen += len(batch)
            if self.step % every == 0:
                self._note(numbers)
            if self.checkpoints and self.trainers[0].schedule.checkpoints(self.step - 1):
                self._keep()
        log = self.logs[0]
        if numbers is not None and (not log or log[-1]["step"] != self.step):
            self._note(numbers)
        self._check_end()
        if self.checkpoints and self.kept_at != self.step:
            self._keep()

    @property
    def step(self) -> int:
        return self.trainers[0].n_done

    def _note(self, numbers: list[dict]) -> None:
        for trainer, log, values in zip(self.trainers, self.logs, numbers, strict=True):
            row = {name: round(float(np.array(value)), 6) for name, value in values.items()}
            dead_share = round(len(trainer.dead) / len(trainer.silent_rows), 6)
            log.append({"step": self.step, "rows": self.seen, **row, "dead_share": dead_share})
            if not np.isfinite(list(row.values())).all():
                raise DataError(f"training diverged at step {self.step} ({row}); lower learning_rate")
        if self.progress:
            self.progress(self.step, self.n_steps, [log[-1] for log in self.logs])

    def _check_end(self) -> None:
        n_rows = self.rows.n_rows
        if self.seen < n_rows // 2 or self.step < min(100, self.n_steps):
            raise DataError(
                f"the data ended after {self.seen:,} of {n_rows:,} rows ({self.step} of {self.n_steps} planned steps), "
                "so the learning rate never came down; give more text or lower training_tokens"
            )
        if self.step < self.n_steps:
            warn(
                f"the data ended after {self.seen:,} of {n_rows:,} rows, so the learning rate did not come down all "
                "the way; lower training_tokens to what there is",
            )

    def _keep(self) -> None:
        assert self.checkpoints is not None
        values = {"seen": self.seen, "logs": self.logs, "seconds": time.time() - self.started}
        states = {f"job{i}": trainer.state() for i, trainer in enumerate(self.trainers)}
        done = self.step >= self.n_steps
        if ranks().first:
            self.checkpoints.keep(self.step, State(values, {}), {**states, "rows": self.rows.state(whole=not done)})
        self.kept_at = self.step

    def _restore(self, found: tuple[State, dict[str, State]]) -> None:
        run, parts = found
        for number, trainer in enumerate(self.trainers):
            trainer.restore(parts[f"job{number}"])
        self.rows.restore(parts["rows"])
        self.seen, self.logs = run.values["seen"], run.values["logs"]
        self.started -= run.values["seconds"]

    def finished(self, number: int, kind: type[Dictionary]) -> Any:
        trainer = self.trainers[number]
        dictionary = trainer.finished(kind)
        dictionary.statistics = {
            "steps": trainer.n_done,
            "rows": self.seen,
            "batch_size": self.batch_size,
            "dead_after_rows": trainer.dead_after,
            "peak_learning_rate": trainer.config.peak_rate(self.n_steps),
            "seconds": round(time.time() - self.started, 1),
            "log": self.logs[number],
        }
        return dictionary
