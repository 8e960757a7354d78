"""What changes from step to step of a run: learning rate, weight of the penalty, k, and sampled prefixes."""

import math
from dataclasses import dataclass

import numpy as np

from hubsae.recipe import SAEConfig

_PARETO = 0.5  # exponent of sampled prefix lengths (Nabeshima 2024): short ones are drawn more often


@dataclass(frozen=True)
class Schedule:
    """The settings of `config` over a run of `n_steps` that trains `n_features`; steps count from 0."""

    config: SAEConfig
    n_steps: int
    n_features: int

    def _steps(self, name: str, share: float) -> float:
        given = getattr(self.config, name)
        return share * self.n_steps if given is None else given

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, then down to 0 on a line or half a cosine."""
        warmup, decay = self._steps("warmup_steps", 0.05), self._steps("lr_decay_steps", 0.3)
        up = (step + 1) / warmup if warmup else 1.0
        down = (self.n_steps - step) / (decay + 1) if decay else 1.0
        if self.config.lr_scheduler == "cosine":
            down = (1 - math.cos(math.pi * min(1.0, max(0.0, down)))) / 2
        return self.config.peak_rate(self.n_steps) * max(0.0, min(1.0, up, down))

    def penalty(self, step: int) -> float:
        """Factor of sparsity penalties: from 0 up to 1."""
        warmup = self._steps("sparsity_warmup_steps", 0.05)
        return min(1.0, (step + 1) / warmup) if warmup else 1.0

    def k(self, step: int) -> int:
        """Active features a row: from k_start down to k."""
        c = self.config
        if c.k_start is None:
            return c.k
        left = max(0.0, 1 - step / self._steps("k_anneal_steps", 0.5))
        return round(c.k + (c.k_start - c.k) * left)

    def prefixes(self, step: int) -> tuple[int, ...]:
        """Sizes of the nested dictionaries whose losses are averaged, the last one all features."""
        c = self.config
        if c.matryoshka is not None:
            return tuple(sorted({max(1, round(share * self.n_features)) for share in c.matryoshka}))
        if c.sampled_prefixes is None:
            return (self.n_features,)
        uniform = np.random.default_rng([c.seed, step]).random(c.sampled_prefixes - 1)
        low = 1 / self.n_features  # inverse of the truncated Pareto distribution on [low, 1]
        lengths = (1 - uniform * (1 - low**_PARETO)) ** (-1 / _PARETO) * low
        drawn = np.clip(np.ceil(lengths * self.n_features), 1, self.n_features).astype(int)
        return tuple(sorted({*map(int, drawn), self.n_features}))

    def resamples(self, step: int) -> bool:
        """Whether dead features start anew after this step: in the first half, so that they can still be trained."""
        every = self.config.resample_dead_every
        return bool(every and (step + 1) % every == 0 and step + 1 <= self.n_steps // 2)

    def checkpoints(self, step: int) -> bool:
        """Whether the state is kept after this step."""
        every = self.config.checkpoint_every or max(1, self.n_steps // 20)
        return (step + 1) % every == 0 or step + 1 == self.n_steps
