"""How a dictionary is trained: one frozen dataclass a kind, whose defaults are a recipe that works."""

from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import ClassVar, Self

from hubsae.errors import ConfigError
from hubsae.settings import check_types
from hubsae.sparsity import SPARSITIES, BatchTopK, Sparsity, TopK

MIN_STEPS = 100

RENAMED = {
    "sae_type": "sparsity",
    "lambda_sparse": "l1_coefficient",
    "normalize_input": "nothing: activations are always centred and scaled, and that is folded into the weights",
    "normalize_activations": "nothing: activations are always centred and scaled, and that is folded into the weights",
    "dead_neuron_threshold": "dead_after_rows",
    "dead_feature_window": "dead_after_rows",
    "feature_sampling_window": "dead_after_rows",
    "use_ghost_grads": "aux_coefficient (AuxK replaced ghost gradients)",
    "sparsity_warm_up_steps": "sparsity_warmup_steps",
    "text_batch_size": "nothing: passes are filled by tokens",
}
_ONLY_UNDER = {
    "k": ("topk", "batchtopk", "jumprelu"),
    "k_start": ("topk", "batchtopk"),
    "k_anneal_steps": ("topk", "batchtopk"),
    "l1_coefficient": ("relu", "gated"),
    "l0_coefficient": ("jumprelu",),
    "l0_penalty": ("jumprelu",),
    "bandwidth": ("jumprelu",),
    "sparsity_warmup_steps": ("relu", "gated", "jumprelu"),
}
PENALTIES = ("target", "l0", "tanh")
SCHEDULERS = ("linear", "cosine")


@dataclass(frozen=True)
class SAEConfig:
    """Training settings; sizes are in rows (tokens that count), durations in steps, rates per step.

    expansion_factor: features per column of the widest site read. sparsity: "topk", "batchtopk", "relu", "jumprelu" or
    "gated". k: active features a row: exactly under "topk", on average under "batchtopk", as the target of the penalty
    under "jumprelu". k_start: begin with so many and come down to k over the first k_anneal_steps (None: half of them).
    l1_coefficient: weight of the L1 penalty under "relu" and "gated", on rows of unit mean squared norm (None: 0.1 and
    0.15; a gated dictionary has two reconstruction errors to weigh it against).
    l0_penalty, l0_coefficient, bandwidth: "jumprelu", see `surrogates.JumpReLU`. sparsity_warmup_steps: a penalty rises
    over these from 0 (None: a twentieth). matryoshka: nested prefixes as shares of the features, ending with 1
    (Bussmann et al. 2025); sampled_prefixes: so many prefixes, drawn anew for every batch (Nabeshima 2024).
    unit_norm: decoder rows of fixed norm (over several sites: fixed sum of norms), else free and weighed in penalties.
    tied_weights: the encoder is the decoder's transpose.
    batch_size: None picks a power of two from 256 to 2048 that leaves about 1000 steps. num_epochs: passes over the
    data. learning_rate: Adam's peak rate (None: 5e-3 for up to 1000 steps, then falling with their square root); it
    rises over warmup_steps (None: a twentieth) and falls to 0 over the last lr_decay_steps (None: three tenths), by
    lr_scheduler "linear" or "cosine". gradient_clip: largest global gradient norm, None for no clipping.
    aux_coefficient: weight of AuxK (Gao et al. 2024; 0 turns it off), which rebuilds the residual from up to aux_k dead
    features (None: half the read columns). dead_after_rows: a feature that did not fire for so many rows counts as dead
    (None: a twentieth of the data, at least 20 batches, at most 10 million). resample_dead_every: every so many steps
    of the first half, dead features start anew from badly explained rows (Bricken et al. 2023); None for never.
    checkpoint_every: steps between checkpoints (None: a twentieth of the run) where a checkpoint_dir is given.
    validation_split: share of the documents held out for evaluation. seed: of every random draw.
    """

    expansion_factor: int = 16
    sparsity: str = "topk"
    k: int = 32
    k_start: int | None = None
    k_anneal_steps: int | None = None
    l1_coefficient: float | None = None
    l0_penalty: str = "target"
    l0_coefficient: float = 1.0
    bandwidth: float | None = None
    sparsity_warmup_steps: int | None = None
    matryoshka: tuple[float, ...] | None = None
    sampled_prefixes: int | None = None
    unit_norm: bool = True
    tied_weights: bool = False
    batch_size: int | None = None
    num_epochs: int = 1
    learning_rate: float | None = None
    warmup_steps: int | None = None
    lr_decay_steps: int | None = None
    lr_scheduler: str = "linear"
    gradient_clip: float | None = 1.0
    aux_coefficient: float = 1 / 32
    aux_k: int | None = None
    dead_after_rows: int | None = None
    resample_dead_every: int | None = None
    checkpoint_every: int | None = None
    validation_split: float = 0.05
    seed: int = 42

    kind: ClassVar[str] = "sae"

    def __post_init__(self):
        check_types(self)
        for name, (fine, expected) in self._rules().items():
            if not fine:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {expected}")
        for name, sparsities in _ONLY_UNDER.items():
            if self.sparsity not in sparsities and getattr(self, name) != self.defaults()[name]:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} has no effect under sparsity={self.sparsity!r}, "
                    f"only under {' or '.join(sparsities)}"
                )
        if self.sparsity == "jumprelu" and self.l0_penalty != "target" and self.k != self.defaults()["k"]:
            raise ConfigError(f"k={self.k} has no effect under l0_penalty={self.l0_penalty!r}, only under 'target'")
        if not self.aux_coefficient and self.aux_k is not None:
            raise ConfigError(f"aux_k={self.aux_k} has no effect with aux_coefficient=0")

    def _rules(self) -> dict[str, tuple[bool, str]]:
        """For each setting whether its value can work, and what would."""

        def at_least(low: int, *names: str) -> dict[str, tuple[bool, str]]:
            text = f"at least {low}" + (", or None" if getattr(type(self), names[0], 0) is None else "")
            return {n: (getattr(self, n) is None or getattr(self, n) >= low, text) for n in names}

        m = self.matryoshka
        nested = m is None or (len(m) > 1 and m[-1] == 1 and m[0] > 0 and list(m) == sorted(set(m)))
        return {
            "sparsity": (self.sparsity in SPARSITIES, f"one of {', '.join(sorted(SPARSITIES))}"),
            **at_least(1, "expansion_factor", "k", "num_epochs"),
            **at_least(1, "k_start", "batch_size", "aux_k", "dead_after_rows", "resample_dead_every"),
            **at_least(1, "checkpoint_every", "k_anneal_steps"),
            **at_least(0, "warmup_steps", "lr_decay_steps", "sparsity_warmup_steps"),
            **at_least(0, "l1_coefficient", "l0_coefficient", "aux_coefficient"),
            "k_start": (self.k_start is None or self.k_start >= self.k, f"at least k={self.k}, or None"),
            "k_anneal_steps": (
                self.k_anneal_steps is None or (self.k_start is not None and self.k_anneal_steps >= 1),
                "at least 1 and together with k_start, or None",
            ),
            "l0_penalty": (self.l0_penalty in PENALTIES, f"one of {', '.join(PENALTIES)}"),
            "bandwidth": (self.bandwidth is None or self.bandwidth > 0, "more than 0, or None"),
            "matryoshka": (nested, "rising shares of the features that end with 1, such as (0.0625, 0.25, 1.0)"),
            "sampled_prefixes": (
                self.sampled_prefixes is None or (self.sampled_prefixes >= 2 and m is None),
                "at least 2 and no matryoshka beside it, or None",
            ),
            "learning_rate": (self.learning_rate is None or self.learning_rate > 0, "more than 0, or None"),
            "lr_scheduler": (self.lr_scheduler in SCHEDULERS, f"one of {', '.join(SCHEDULERS)}"),
            "gradient_clip": (self.gradient_clip is None or self.gradient_clip > 0, "more than 0, or None"),
            "seed": (0 <= self.seed < 2**32, "a number from 0 to 4294967295"),
            "validation_split": (0 <= self.validation_split < 1, "a share from 0 to below 1"),
        }

    @classmethod
    def defaults(cls) -> dict:
        """Every setting with its default."""
        return {f.name: f.default for f in fields(cls)}

    def updated(self, **changes) -> Self:
        """A copy with other values; raises `ConfigError` that suggests the right name for one that does not exist."""
        known = self.defaults()
        for name in changes:
            if name in RENAMED and name not in known:
                raise ConfigError(f"unknown setting {name!r}; what stands for it here is {RENAMED[name]}")
            if name not in known:
                near = get_close_matches(name, known, n=1)
                raise ConfigError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return type(self)(**{**asdict(self), **changes})

    def rule(self) -> Sparsity:
        """The sparsity that is trained."""
        kind = SPARSITIES[self.sparsity]
        return kind(self.k) if issubclass(kind, TopK | BatchTopK) else kind()

    @property
    def l1(self) -> float:
        """The weight of the L1 penalty."""
        return {"gated": 0.15}.get(self.sparsity, 0.1) if self.l1_coefficient is None else self.l1_coefficient

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

    def dead_after(self, n_rows: int) -> int:
        """Rows without firing after which a feature counts as dead, in a run over `n_rows`."""
        return self.dead_after_rows or min(10_000_000, max(n_rows // 20, 20 * self.batch_for(n_rows)))

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
        for name in ("warmup_steps", "lr_decay_steps", "sparsity_warmup_steps", "k_anneal_steps"):
            if (getattr(self, name) or 0) > steps:
                raise ConfigError(f"{name}={getattr(self, name)}: the run has only {steps} steps")
        if (self.k_anneal_steps or 0) > 0.8 * steps:
            raise ConfigError(
                f"k_anneal_steps={self.k_anneal_steps}: at most {int(0.8 * steps)} of the {steps} steps, so that the "
                "last ones train k itself"
            )
        if (self.warmup_steps or 0) + (self.lr_decay_steps or 0) > steps:
            raise ConfigError(
                f"warmup_steps={self.warmup_steps} and lr_decay_steps={self.lr_decay_steps}: together more than the "
                f"{steps} steps of the run"
            )
        return steps


@dataclass(frozen=True)
class TranscoderConfig(SAEConfig):
    """Settings of `SAEConfig` for what reads some sites and predicts others.

    skip_connection: add a linear map from reads to writes (Paulo et al. 2025). Decoder rows are free and start at 0.
    """

    expansion_factor: int = 8
    k: int = 50
    unit_norm: bool = False
    skip_connection: bool = False

    kind: ClassVar[str] = "transcoder"

    def _rules(self) -> dict[str, tuple[bool, str]]:
        tied = (not self.tied_weights, "False: what a transcoder reads is not what it writes")
        return {**super()._rules(), "tied_weights": tied}


@dataclass(frozen=True)
class CrosscoderConfig(SAEConfig):
    """Settings of `SAEConfig` for one code of several sites.

    component_weights: weight of each site in the loss, in the order of the sites (None: all the same, each site scaled
    to the same variance).
    """

    expansion_factor: int = 24
    k: int = 64
    component_weights: tuple[float, ...] | None = None

    kind: ClassVar[str] = "crosscoder"

    def _rules(self) -> dict[str, tuple[bool, str]]:
        w = self.component_weights
        fine = w is None or (len(w) > 1 and min(w) > 0)
        return {**super()._rules(), "component_weights": (fine, "a positive weight for each site, or None")}
