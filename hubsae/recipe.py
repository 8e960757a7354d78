"""How a dictionary is trained: one frozen dataclass a kind, whose defaults are a recipe that works."""

from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Self

from hubsae import sparsity
from hubsae.errors import ConfigError
from hubsae.settings import check_types
from hubsae.sparsity import SPARSITIES, Sparsity

MIN_STEPS = 100


@dataclass(frozen=True)
class SAEConfig:
    """Training settings; sizes are in rows (tokens that count), rates per step.

    expansion_factor: features per read column. sparsity: "topk" or "relu". k: active features a row under "topk".
    l1_coefficient: weight of the L1 penalty under "relu", on rows of unit mean squared norm. batch_size: None picks a
    power of two from 256 to 2048 that leaves about 1000 steps. num_epochs: passes over the data. learning_rate: Adam's
    peak rate (None: 5e-3 for up to 1000 steps, then falling with their square root); it rises over warmup_share of the
    steps and falls linearly to 0 over the last decay_share.
    gradient_clip: largest global gradient norm, None for no clipping. aux_coefficient: weight of AuxK (Gao et al. 2024;
    0 turns it off), which rebuilds the residual from up to aux_k dead features (None: half the read columns).
    dead_after_rows: a feature that did not fire for so many rows counts as dead (None: a twentieth of the data, at
    least 20 batches, at most 10 million). validation_split: share of the documents held out for evaluation. seed:
    of every random draw.
    """

    expansion_factor: int = 16
    sparsity: str = "topk"
    k: int = 32
    l1_coefficient: float = 0.1
    batch_size: int | None = None
    num_epochs: int = 1
    learning_rate: float | None = None
    warmup_share: float = 0.05
    decay_share: float = 0.3
    gradient_clip: float | None = 1.0
    aux_coefficient: float = 1 / 32
    aux_k: int | None = None
    dead_after_rows: int | None = None
    validation_split: float = 0.05
    seed: int = 42

    def __post_init__(self):
        check_types(self)
        rules: dict[str, tuple[bool, str]] = {
            "expansion_factor": (self.expansion_factor >= 1, "at least 1"),
            "sparsity": (self.sparsity in SPARSITIES, f"one of {', '.join(sorted(SPARSITIES))}"),
            "k": (self.k >= 1, "at least 1"),
            "l1_coefficient": (self.l1_coefficient >= 0, "0 or more"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1, or None"),
            "num_epochs": (self.num_epochs >= 1, "at least 1"),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "more than 0, or None"),
            "warmup_share": (0 <= self.warmup_share < 1, "a share from 0 to below 1"),
            "decay_share": (0 <= self.decay_share <= 1 - self.warmup_share, "a share that fits beside warmup_share"),
            "gradient_clip": (self.gradient_clip is None or self.gradient_clip > 0, "more than 0, or None"),
            "aux_coefficient": (self.aux_coefficient >= 0, "0 or more"),
            "aux_k": (self.aux_k is None or self.aux_k >= 1, "at least 1, or None"),
            "dead_after_rows": (self.dead_after_rows is None or self.dead_after_rows >= 1, "at least 1, or None"),
            "seed": (0 <= self.seed < 2**32, "a number from 0 to 4294967295"),
            "validation_split": (0 <= self.validation_split < 1, "a share from 0 to below 1"),
        }
        for name, (fine, expected) in rules.items():
            if not fine:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {expected}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))

    def updated(self, **changes) -> Self:
        """A copy with other values; raises `ConfigError` that suggests the nearest name for one that does not exist."""
        for name in changes:
            if name not in self.names():
                near = get_close_matches(name, self.names(), n=1)
                raise ConfigError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return type(self)(**{**asdict(self), **changes})

    def rule(self) -> Sparsity:
        """The sparsity that is trained."""
        return sparsity.from_dict({"name": "topk", "k": self.k} if self.sparsity == "topk" else {"name": self.sparsity})

    def batch_for(self, n_rows: int) -> int:
        """Rows a batch for a run over `n_rows` rows in all."""
        if self.batch_size is not None:
            return self.batch_size
        size = 256
        while size < 2048 and size * 1000 < n_rows:
            size *= 2
        return size

    def peak_rate(self, n_steps: int) -> float:
        """Adam's peak learning rate for a run of so many steps."""
        return self.learning_rate or 5e-3 * min(1.0, (1000 / n_steps) ** 0.5)

    def steps_for(self, n_rows: int) -> int:
        """Steps of a run over `n_rows` rows in each epoch; raises `ConfigError` if too few to train anything."""
        total = n_rows * self.num_epochs
        batch = self.batch_for(total)
        steps = -(-total // batch)
        if steps < MIN_STEPS:
            raise ConfigError(
                f"{n_rows:,} tokens of training data make {steps} steps of {batch} rows; at least {MIN_STEPS} are "
                f"needed, that is {MIN_STEPS * batch:,} tokens. Give more text, num_epochs="
                f"{-(-MIN_STEPS * batch // max(n_rows, 1))}, or a smaller batch_size"
            )
        return steps
