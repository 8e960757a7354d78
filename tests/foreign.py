"""Dictionaries that other libraries saved, with what those libraries compute of them (tests/fixtures/formats).

`scripts/write_format_fixtures.py` made them; each case's folder says by which library and version.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from hubsae import load_sae

FIXTURES = Path(__file__).parent / "fixtures" / "formats"
MLP = {"reads": "layers.5.mlp_in", "writes": "layers.5.mlp"}
TWO = {"reads": ["layers.13.residual", "1:layers.13.residual"]}
# what the files leave out, or name a place before a norm's gain, which needs the language model
GIVEN: dict[str, dict] = {
    **{f"circuit_tracer_{kind}": MLP for kind in ("relu", "relu_skip", "jumprelu", "jumprelu_skip")},
    **{f"saelens_{kind}transcoder": MLP for kind in ("", "skip_", "jumprelu_", "jumprelu_skip_")},
    **{f"finetuning_crosscoder_{kind}": TWO for kind in ("relu", "normalised", "batchtopk", "batchtopk_normalised")},
    "ckkissane_crosscoder": {"input_scales": (1, 1)},
    "gemma_scope_transcoder": MLP,
    "llamascopium_transcoder": {"writes": "layers.5.mlp"},
    "llamascopium_transcoder_dataset_wise": {"writes": "layers.5.mlp"},
    "llama_scope_lxtc": MLP,
    "llama_scope_r1_distill": {"input_scales": 0.5},
    "qwen_scope": {"k": 6},
}
# their code is of features in other units than ours, which choose by pre-code times decoder norm
IN_DECODER_NORMS = ("llamascopium_topk", "llamascopium_transcoder")


@dataclass(frozen=True)
class Case:
    """One folder of the fixtures."""

    name: str

    @property
    def folder(self) -> Path:
        return FIXTURES / self.name

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "case.json").read_text())

    @property
    def expected(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "expected.npz") as file:
            return {name: file[name] for name in file.files}

    def copied(self, to: Path) -> Path:
        """The files under the name of their repository, which some formats put settings into."""
        folder = to / self.info.get("repo_id", "org/repo")
        shutil.copytree(self.folder / "repo", folder)
        return folder

    def load(self, to: Path, **given: Any) -> Any:
        """The dictionary, from a copy in the folder `to`."""
        return load_sae(self.copied(to), subfolder=self.info.get("subfolder"), **{**GIVEN.get(self.name, {}), **given})


def cases(*, refused: bool | None = None) -> list[Case]:
    """All cases, or those that are refused or not."""
    found = [Case(path.name) for path in sorted(FIXTURES.iterdir())]
    return [case for case in found if refused is None or bool(case.info.get("refused")) == refused]


@dataclass(frozen=True)
class Distance:
    """Largest differences from the library: of code and reconstruction, each over the largest value (or 1)."""

    code: float
    y: float
    same_features: bool


def distance(dictionary: Any, x: np.ndarray, code: np.ndarray, y: np.ndarray, units: Any = 1) -> Distance:
    """How far a dictionary is from what a library computes on rows x; their code times `units` is ours."""
    found = np.array(dictionary.encode(mx.array(x)))
    sparse = dictionary.encode_sparse(mx.array(x)).csr.toarray()
    rebuilt = np.array(dictionary(mx.array(x)))
    largest = max(float(np.abs(found - code * units).max()), float(np.abs(sparse - code * units).max()))
    same = bool(np.array_equal(found != 0, code != 0) and np.array_equal(sparse != 0, code != 0))
    y_scale = max(1.0, float(np.abs(y).max()))
    return Distance(
        largest / max(1.0, float(np.abs(code * units).max())), float(np.abs(rebuilt - y).max()) / y_scale, same
    )


def units_of(case: Case, dictionary: Any) -> Any:
    """By what their code is multiplied to be ours: 1, but for features in units of their decoder's norm."""
    if case.name not in IN_DECODER_NORMS:
        return 1
    from safetensors.numpy import load_file

    (file,) = (case.folder / "repo").rglob("sae_weights.safetensors")
    return np.linalg.norm(load_file(file)["W_D"], axis=1)
