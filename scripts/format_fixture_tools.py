"""What all writers of format fixtures share: rows, weights, and how a case is laid down.

Runs in an environment of its own (see write_format_fixtures.py), which has torch and neither hubsae nor MLX.
"""

import json
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

torch = import_module("torch")

D, D_OUT, FEATURES, K = 12, 10, 24, 6
STEP = 2.0**-22  # a few units in the last place of the pre-activations tried at the threshold
THETA = 0.5  # of feature 0
NORM_FACTOR = 0.5  # of the input, where there is one
PLAIN = ("W_enc", "W_dec", "b_enc", "b_dec")
PACKAGES = {
    "saelens": "sae-lens",
    "sparsify": "eai-sparsify",
    "dictionary_learning": "dictionary-learning",
    "llamascopium": "llamascopium",
    "circuit-tracer": "circuit-tracer",
}
Arrays = dict[str, np.ndarray]


@dataclass
class Case:
    """One folder of the fixtures: what is written in its case.json, except for what the arrays say.

    subfolder: path in the repository as users of the library address it. sources: of a crosscoder, else 1.
    """

    name: str
    library: str
    format: str
    subfolder: str = ""
    kind: str = "sae"
    layer: int | None = None
    hook_in: Any = None
    hook_out: Any = None
    note: str = ""
    repo_id: str | None = None
    refused: str | None = None
    sources: int = 1
    more: dict[str, Any] = field(default_factory=dict)


def new_repo(out: Path, name: str) -> Path:
    """An empty `<out>/<name>/repo`."""
    shutil.rmtree(out / name, ignore_errors=True)
    repo = out / name / "repo"
    repo.mkdir(parents=True)
    return repo


def finish(out: Path, case: Case, arrays: Arrays | None = None) -> None:
    """Writes expected.npz and case.json beside the repository."""
    folder = out / case.name
    facts = {
        "library": case.library,
        "version": version(PACKAGES[case.library]) if case.library in PACKAGES else None,
        "format": case.format,
        "repo_id": case.repo_id,
        "subfolder": case.subfolder,
        "kind": case.kind,
        "layer": case.layer,
        "hook_in": case.hook_in,
        "hook_out": case.hook_out,
        "note": case.note,
        "refused": case.refused,
        **case.more,
    }
    if case.sources > 1:
        facts["sources"] = case.sources
    active = ""
    facts |= {"d_in": D, "d_out": D, "n_features": FEATURES}
    if arrays is not None:
        np.savez_compressed(
            folder / "expected.npz", allow_pickle=False, **{k: v.astype(np.float32) for k, v in arrays.items()}
        )
        x, code, y = (arrays[name] for name in ("x", "code", "y"))
        facts |= {"d_in": x.shape[1] // case.sources, "d_out": y.shape[1] // case.sources, "n_features": code.shape[1]}
        active = f"{np.count_nonzero(code, axis=1).mean():.1f} active"
    facts = {name: value for name, value in facts.items() if value is not None and value != ""}
    (folder / "case.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    print(f"{case.name:44} {'refused' if case.refused else active}")


def rows(seed: int, d: int = D, at: float | None = None, step: float = STEP) -> np.ndarray:
    """Half standard normal, half like activations of a model (correlated, heavy tails, two large columns, norm 20).

    at: then three rows more along the first axis: there, just above and just below.
    """
    rng = np.random.default_rng(seed)
    real = rng.standard_t(4, (17, d)) @ rng.standard_normal((d, d)) / np.sqrt(d)
    real[:, [2, d - 5]] += (9, -11)
    real *= 20 / np.linalg.norm(real, axis=1).mean()
    found = np.concatenate([rng.standard_normal((16, d)), real]).astype(np.float16).astype(np.float32)
    if at is None:
        return found
    edge = np.zeros((3, d), np.float32)
    edge[:, 0] = at, at + step, at - step
    return np.concatenate([found, edge])


def weights(seed: int, d_in: int = D, d_out: int | None = None, unit: bool = False, features: int = FEATURES) -> Arrays:
    """W_enc (d_in, F), W_dec (F, d_out), b_enc, b_dec, theta, in fp32.

    Feature 0 reads the first column alone, and all that meets it is dyadic, so that its pre-activation is exact.
    unit: decoder rows of norm 1.
    """
    rng = np.random.default_rng(1000 + seed)
    d_out = d_out or d_in
    w_enc = rng.standard_normal((d_in, features))
    w_enc *= rng.uniform(0.7, 1.3, features) / np.linalg.norm(w_enc, axis=0)
    w_enc[:, 0] = np.eye(d_in)[0]
    w_dec = rng.standard_normal((features, d_out))
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    w_dec *= 1 if unit else rng.uniform(0.4, 2.5, (features, 1))
    w_dec[0] = np.eye(d_out)[1] * (1 if unit else 2)
    b_enc = rng.uniform(-1.2, -0.4, features)
    b_dec = 0.3 * rng.standard_normal(d_out)
    theta = rng.uniform(0.3, 0.9, features)
    b_enc[0], b_dec[0], theta[0] = 0.25, 0.25, THETA
    found = {"W_enc": w_enc, "W_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "theta": theta}
    return {name: value.astype(np.float32) for name, value in found.items()}


def gated_biases(found: Arrays, seed: int) -> Arrays:
    """b_gate, b_mag and r_mag of a gated SAE with these weights; the gate of feature 0 has -0.25."""
    rng = np.random.default_rng(3000 + seed)
    gate, magnitude, r = found["b_enc"].copy(), rng.uniform(-0.5, 0.8, FEATURES), rng.normal(0, 0.3, FEATURES)
    gate[0], magnitude[0], r[0] = -0.25, 0.5, 0
    return {"b_gate": gate, "b_mag": magnitude.astype(np.float32), "r_mag": r.astype(np.float32)}


def skip_weights(seed: int, d_in: int = D, d_out: int = D) -> np.ndarray:
    """W_skip (d_out, d_in)."""
    return (np.random.default_rng(2000 + seed).standard_normal((d_out, d_in)) / 4).astype(np.float32)


def edge_input(pre: float, centred: bool, scale: float = 1.0) -> float:
    """x_0 at which feature 0 of `weights` has this pre-activation. centred: b_dec is subtracted; scale: of x."""
    return (pre - 0.25) / scale + (0.25 if centred else 0)


def tensors(arrays: Mapping[str, np.ndarray], dtype: Any = None) -> dict[str, Any]:
    """As contiguous torch tensors."""
    found = {name: torch.from_numpy(np.array(value, order="C")) for name, value in arrays.items()}
    return found if dtype is None else {name: value.to(dtype) for name, value in found.items()}


def fill(module: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The module with these parameters and buffers, which have to be all it has."""
    own = module.state_dict()
    assert set(own) == set(arrays), (sorted(own), sorted(arrays))
    with torch.no_grad():
        for name, value in tensors(arrays).items():
            own[name].copy_(value)
    return module


def encoded(model: Any, x: np.ndarray) -> Arrays:
    """What the library itself makes of x with its encode and forward."""
    with torch.no_grad():
        rows_in = torch.from_numpy(x)
        code, y = model.encode(rows_in), model(rows_in)
    return {"x": x, "code": code.numpy(), "y": y.numpy()}


def save_safetensors(path: Path, arrays: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Arrays or torch tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in arrays.items()}
    import_module("safetensors.torch").save_file({k: v.contiguous() for k, v in found.items()}, path, metadata)


def save_state(path: Path, entries: Mapping[str, Any]) -> None:
    """torch.save of what a module's state_dict() is: an ordered dict with a version on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state: Any = OrderedDict(entries)
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(state, path)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")


def relu(pre: np.ndarray) -> np.ndarray:
    return np.maximum(pre, 0)


def side_by_side(per_source: np.ndarray) -> np.ndarray:
    """(n, sources, d) -> (n, sources * d)."""
    return per_source.reshape(len(per_source), -1)


def suffixed(arrays: Sequence[Arrays]) -> Arrays:
    """Those of the first as they are, of the second x2, code2, y2, ..."""
    return {
        f"{name}{i or ''}": v
        for i, a in zip([0, *range(2, len(arrays) + 1)], arrays, strict=True)
        for name, v in a.items()
    }
