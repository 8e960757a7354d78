"""The loss terms and the loop. It sees rows (x, y), no language model and no Hub."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from hubsae import sparse
from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ConfigError, DataError, warn
from hubsae.recipe import SAEConfig
from hubsae.sparsity import ReLU

Params = dict[str, mx.array]
Batch = mx.array | tuple[mx.array, mx.array]
_SAMPLE_ROWS = 16_384
_LOG_POINTS = 200


@dataclass(frozen=True)
class Scaling:
    """Brings raw rows to zero mean and unit mean squared norm: x' = (x - mean) * scale."""

    mean: mx.array
    scale: float

    @classmethod
    def of(cls, sample: np.ndarray, name: str) -> "Scaling":
        mean = sample.mean(axis=0, dtype=np.float64)
        power = float(np.square(sample - mean).sum(axis=1).mean())
        if power <= 0:
            raise DataError(f"the {name} rows do not vary: every one of {len(sample)} is the same")
        return cls(mx.array(mean.astype(np.float32)), power**-0.5)

    def apply(self, rows: mx.array) -> mx.array:
        return (rows - self.mean) * self.scale


@dataclass(frozen=True)
class Losses:
    """Parts of the loss of one batch, still lazy: `fvu` of the batch, `l0`, and which features fired (F,)."""

    total: mx.array
    fvu: mx.array
    l0: mx.array
    fired: mx.array


def losses(params: Params, x: mx.array, y: mx.array, config: SAEConfig, dead: mx.array | None, warm: float) -> Losses:
    """Loss of scaled rows x (n, d_in), y (n, d_out): FVU + L1 (relu) + AuxK on the `dead` features' ids (m,).

    The rows' mean squared norm is 1, so squared error per row is the fraction of the data's variance left unexplained.
    AuxK (Gao et al. 2024, A.2): the residual y - y_hat, held constant, is rebuilt by the aux_k dead features with the
    largest pre-codes. They enter unrectified: a dead feature's pre-code is often negative, and would get no gradient.
    """
    rule = config.rule()
    pre = x @ params["W_enc"] + params["b_enc"]
    code = rule(pre)
    y_hat = code @ params["W_dec"] + params["b_dec"]
    error = mx.stop_gradient(y - y_hat)
    fvu = mx.sum(mx.square(y - y_hat)) / len(y)
    total = fvu
    if isinstance(rule, ReLU):
        norms = mx.linalg.norm(params["W_dec"], axis=1)
        total = total + warm * config.l1_coefficient * mx.mean(code @ norms)
    if dead is not None:
        aux_k = config.aux_k or max(1, x.shape[1] // 2)
        rebuilt = aux_code(params, x, dead, aux_k) @ mx.take(params["W_dec"], dead, axis=0)
        weight = config.aux_coefficient * min(dead.size / aux_k, 1.0)  # fewer dead than aux_k: weaker (EleutherAI)
        total = total + weight * mx.sum(mx.square(error - rebuilt)) / len(y)
    active = code > 0
    return Losses(total, fvu, mx.mean(mx.sum(active, axis=1)), mx.any(active, axis=0))


def aux_code(params: Params, x: mx.array, dead: mx.array, k: int) -> mx.array:
    """(n, m) pre-codes of the `dead` features with all but each row's k largest set to 0."""
    pre = x @ mx.take(params["W_enc"], dead, axis=1) + mx.take(params["b_enc"], dead)
    if k >= dead.size:
        return pre
    kth = mx.min(sparse.top_k(mx.stop_gradient(pre), k)[1], axis=-1, keepdims=True)
    return mx.where(pre >= kth, pre, 0)


def initial(d_in: int, d_out: int, n_features: int, same: bool, seed: int) -> Params:
    """Unit-norm decoder rows in random directions; the encoder is the decoder's transpose where both sides agree.

    Biases start at 0: rows are centred, so b_dec stands at the data's mean.
    """
    key_dec, key_enc = mx.random.split(mx.random.key(seed))
    W_dec = _unit(mx.random.normal((n_features, d_out), key=key_dec))
    W_enc = mx.contiguous(W_dec.T) if same else _unit(mx.random.normal((n_features, d_in), key=key_enc)).T
    zeros = {"b_enc": mx.zeros(n_features), "b_dec": mx.zeros(d_out)}
    return {"W_enc": mx.contiguous(W_enc), "W_dec": W_dec, **zeros}


def _unit(rows: mx.array) -> mx.array:
    return rows / mx.maximum(mx.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def fold(params: Params, inner: Scaling, outer: Scaling) -> Params:
    """The same map on raw rows: mean and scale of both sides go into the weights, decoder rows keep their norm.

    With x' = (x - m) s and y = y' / t + c: codes become code / t, in the units of the raw activations.
    """
    s, t = inner.scale, outer.scale
    return {
        "W_enc": params["W_enc"] * (s / t),
        "b_enc": (params["b_enc"] - s * (inner.mean @ params["W_enc"])) / t,
        "W_dec": params["W_dec"],
        "b_dec": params["b_dec"] / t + outer.mean,
    }


class Trainer:
    """Parameters, optimizer state and dead-feature counts of one run; `step` takes one batch."""

    def __init__(self, config: SAEConfig, params: Params, n_steps: int, dead_after: int):
        self.config, self.params = config, params
        self.n_steps, self.dead_after = n_steps, dead_after
        self.peak_rate = config.peak_rate(n_steps)
        self.optimizer = optim.Adam(learning_rate=self.peak_rate, bias_correction=True)
        self.optimizer.init(params)
        self.silent_rows = np.zeros(params["b_enc"].size, np.int64)
        self.n_done = 0
        self._gradients = mx.value_and_grad(self._loss)

    def _loss(self, params: Params, x: mx.array, y: mx.array, dead: mx.array | None, warm: float):
        parts = losses(params, x, y, self.config, dead, warm)
        return parts.total, parts

    @property
    def dead(self) -> np.ndarray:
        """Ids of the features that did not fire for `dead_after` rows."""
        return np.flatnonzero(self.silent_rows >= self.dead_after)

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, linear decay to 0."""
        c, position = self.config, (step + 1) / (self.n_steps + 1)
        up = position / c.warmup_share if c.warmup_share else 1.0
        down = (1 - position) / c.decay_share if c.decay_share else 1.0
        return self.peak_rate * max(0.0, min(1.0, up, down))

    def step(self, x: mx.array, y: mx.array) -> dict[str, mx.array]:
        """One update on scaled rows; returns the batch's numbers, evaluated."""
        dead = self.dead if self.config.aux_coefficient else self.dead[:0]
        warm = min(1.0, (self.n_done + 1) / max(1.0, 0.05 * self.n_steps))
        (_, parts), gradients = self._gradients(
            self.params, x, y, mx.array(dead.astype(np.int32)) if len(dead) else None, warm
        )
        # the part along a unit-norm row would only be undone by normalising
        W_dec = self.params["W_dec"]
        gradients["W_dec"] = gradients["W_dec"] - mx.sum(gradients["W_dec"] * W_dec, axis=1, keepdims=True) * W_dec
        norm = mx.sqrt(sum((mx.sum(mx.square(g)) for g in gradients.values()), mx.array(0.0)))
        if self.config.gradient_clip is not None:
            factor = mx.minimum(self.config.gradient_clip / (norm + 1e-12), 1.0)
            gradients = {name: g * factor for name, g in gradients.items()}
        self.optimizer.learning_rate = mx.array(self.rate(self.n_done))
        self.params = self.optimizer.apply_gradients(gradients, self.params)
        self.params["W_dec"] = _unit(self.params["W_dec"])
        mx.eval(self.params, self.optimizer.state, parts.fired, parts.fvu, parts.l0, parts.total, norm)
        self.silent_rows = np.where(np.array(parts.fired), 0, self.silent_rows + len(x))
        self.n_done += 1
        return {"loss": parts.total, "fvu": parts.fvu, "l0": parts.l0, "gradient_norm": norm}


def train(
    batches: Iterable[Batch],
    n_rows: int,
    description: DictionaryConfig,
    config: SAEConfig,
    *,
    kind: type[Dictionary] = Dictionary,
    progress: Callable[[int, int, dict], None] | None = None,
) -> Any:
    """A `kind` trained on `n_rows` rows (all epochs together) that arrive in `batches`.

    A batch is x (b, d_in), or (x, y) where reads and writes differ; raw activations, all of `config.batch_for` rows but
    the last. `progress` is called with (step, steps, numbers). The log ends in `statistics`. Raises `ConfigError`
    where the data is too little, `DataError` where it is not finite or ends before half of the rows or 100 steps.
    """
    started = time.time()
    n_steps = replace(config, num_epochs=1, batch_size=config.batch_for(n_rows)).steps_for(n_rows)
    pairs = _checked(batches, description)
    first = _first_rows(pairs)
    inner = Scaling.of(np.concatenate([np.array(x) for x, _ in first]), "read")
    same = description.reads == description.writes
    outer = inner if same else Scaling.of(np.concatenate([np.array(y) for _, y in first]), "written")
    dead_after = config.dead_after_rows or min(10_000_000, max(n_rows // 20, 20 * config.batch_for(n_rows)))
    params = initial(description.d_in, description.d_out, description.n_features, same, config.seed)
    trainer = Trainer(config, params, n_steps, dead_after)
    log = _loop(trainer, _chain(first, pairs), inner, outer, progress)
    seen = log[-1]["rows"]
    if seen < n_rows // 2 or trainer.n_done < min(100, n_steps):
        raise DataError(
            f"the data ended after {seen:,} of {n_rows:,} rows ({trainer.n_done} of {n_steps} planned steps), so the "
            "learning rate never came down; give more text or lower training_tokens"
        )
    if trainer.n_done < n_steps:
        warn(
            f"the data ended after {seen:,} of {n_rows:,} rows, so the learning rate did not come down all the way; "
            "lower training_tokens to what there is",
        )
    dictionary = kind(description, fold(trainer.params, inner, outer))
    mx.eval(dictionary.arrays())
    dictionary.statistics = {
        "steps": trainer.n_done,
        "rows": seen,
        "batch_size": config.batch_for(n_rows),
        "dead_after_rows": dead_after,
        "peak_learning_rate": trainer.peak_rate,
        "seconds": round(time.time() - started, 1),
        "log": log,
    }
    return dictionary


def _loop(
    trainer: Trainer,
    pairs: Iterator[tuple[mx.array, mx.array]],
    inner: Scaling,
    outer: Scaling,
    progress: Callable[[int, int, dict], None] | None,
) -> list[dict]:
    """Train on every pair; the log, some `_LOG_POINTS` rows of it and always the last step."""
    log: list[dict] = []
    every, seen, numbers = max(1, trainer.n_steps // _LOG_POINTS), 0, {}

    def note() -> None:
        row = {name: round(float(np.array(value)), 6) for name, value in numbers.items()}
        dead_share = round(len(trainer.dead) / len(trainer.silent_rows), 6)
        log.append({"step": trainer.n_done, "rows": seen, **row, "dead_share": dead_share})
        _check_sane(row, trainer.n_done)
        if progress:
            progress(trainer.n_done, trainer.n_steps, log[-1])

    for x, y in pairs:
        scaled = inner.apply(x)
        numbers = trainer.step(scaled, scaled if y is x else outer.apply(y))
        seen += len(x)
        if trainer.n_done % every == 0:
            note()
    if not log or log[-1]["step"] != trainer.n_done:
        note()
    return log


def _check_sane(row: dict, step: int) -> None:
    if not np.isfinite(list(row.values())).all():
        raise DataError(f"training diverged at step {step} ({row}); lower learning_rate")


def _first_rows(pairs: Iterator[tuple[mx.array, mx.array]]) -> list[tuple[mx.array, mx.array]]:
    """The first batches, enough rows to estimate mean and scale from."""
    taken, n = [], 0
    for pair in pairs:
        taken.append(pair)
        n += len(pair[0])
        if n >= _SAMPLE_ROWS:
            break
    if n < 2:
        raise DataError(f"{n} rows of training data; check that the texts are not empty")
    return taken


def _chain(first: list, rest: Iterator) -> Iterator:
    while first:
        yield first.pop(0)
    yield from rest


def _checked(batches: Iterable[Batch], description: DictionaryConfig) -> Iterator[tuple[mx.array, mx.array]]:
    """(x, y) in fp32, y being x where the batch is x alone; refuses wrong widths and what is not finite."""
    seen = 0
    for batch in batches:
        x, *rest = batch if isinstance(batch, tuple) else (batch,)
        y = rest[0] if rest else x
        sides = [("read", x, description.d_in), ("written", y, description.d_out)][: 1 + len(rest)]
        for name, rows, width in sides:
            if rows.ndim != 2 or rows.shape[1] != width:
                raise ConfigError(f"{name} rows of shape {rows.shape}, expected (b, {width})")
            if not mx.all(mx.isfinite(rows)).item():
                row, column = (int(i[0]) for i in np.nonzero(~np.isfinite(np.array(rows.astype(mx.float32)))))
                raise DataError(f"{name} rows: row {seen + row}, column {column} is {rows[row, column].item()}")
        if x.shape[0] != y.shape[0]:
            raise ConfigError(f"{x.shape[0]} read rows but {y.shape[0]} written rows in one batch")
        seen += x.shape[0]
        x = x.astype(mx.float32)
        yield x, y.astype(mx.float32) if rest else x
