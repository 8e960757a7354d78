"""Checkpoint folders of language models: finding them, and loading with mlx-lm what transformers 5 saved.

transformers 5 moved RoPE settings into `rope_parameters`, which most of mlx-lm's model files do not read: they would
fall back to defaults without a word. Its GPT-2 files carry other key names and lack `n_ctx`.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from hubsae import backend, hub_client
from hubsae.errors import ModelError


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a model's files; `repo_id` and `revision` (40 hex digits) when it came from the Hub."""

    folder: Path
    repo_id: str | None = None
    revision: str | None = None
    requested_revision: str | None = None


def locate(source: str | Path, revision: str | None = None) -> Checkpoint:
    """The checkpoint of a local folder or a repository id; an existing folder wins over a repository of that name."""
    folder = hub_client.local_folder(source)
    if folder is not None:
        if revision is not None:
            raise ModelError(f"{source}: this is a local folder; revision={revision!r} only works with a repository id")
        if not (folder / "config.json").is_file():
            raise ModelError(f"{source}: no config.json in this folder; it holds {_listing(folder)}")
        return Checkpoint(folder, revision=_local_dir_commit(folder))
    with _mlx_lm():
        from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS
    patterns = [p for p in DEFAULT_ALLOW_PATTERNS if p != "*.py"]  # no code from repositories
    folder = hub_client.snapshot(str(source), revision=revision, allow_patterns=patterns, what="language model")
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
    if not (folder / "config.json").is_file():
        raise ModelError(f"{source}: no config.json in this repository; it is no language model that mlx-lm can load")
    return Checkpoint(folder, str(source), commit, revision)


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


def _local_dir_commit(folder: Path) -> str | None:
    """The commit that a `local_dir` download left behind, if this folder is one."""
    note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
    if note.is_file():
        first = note.read_text(encoding="utf-8").splitlines()[:1]
        if first and re.fullmatch(r"[0-9a-f]{40}", first[0]):
            return first[0]
    return None


def load(checkpoint: Checkpoint) -> tuple[nn.Module, Any, dict]:
    """(model, tokenizer, config as read). On CPUs quantised and low-precision weights are brought to fp32."""
    with _mlx_lm():
        from mlx_lm.utils import dequantize_model, load_model, load_tokenizer
    folder = checkpoint.folder
    name = checkpoint.repo_id or str(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name}: config.json is not valid JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"{name}: config.json names no model_type, so it is no language model that mlx-lm can load")
    if not any(folder.glob("model*.safetensors")):
        others = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".gguf", ".npz")))
        raise ModelError(f"{name}: no model*.safetensors (found {others or 'no weights'}); {_instead_of(name)}")
    try:
        model, _ = load_model(folder, model_config=mend_config(config), get_model_classes=_classes)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, OSError) as error:
        raise ModelError(
            f"{name} (model_type {config.get('model_type')!r}): mlx-lm cannot load this model: {error}"
        ) from error
    if backend.is_cpu():  # low precision is computed without BLAS on CPUs: 10 to 30 times slower than fp32
        if config.get("quantization") or config.get("quantization_config"):
            model = dequantize_model(model)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    if config.get("model_type") == "gpt_neox" and config.get("hidden_act") == "gelu":
        _use_exact_gelu(model)
    try:
        tokenizer = load_tokenizer(folder, eos_token_ids=config.get("eos_token_id"))
        empty = not tokenizer.encode("hello world")
    except Exception as error:  # transformers raises what it likes
        raise ModelError(f"{name}: its tokenizer cannot be loaded: {error}") from error
    if empty:
        raise ModelError(
            f"{name}: its tokenizer turns 'hello world' into nothing; tokenizer files are missing from {folder}. "
            "Add tokenizer.json, or give InterpretableModel((model, tokenizer))"
        )
    return model, tokenizer, config


def _instead_of(name: str) -> str:
    """What to do about a repository whose weights are in no safetensors file."""
    if match := re.fullmatch(r"(EleutherAI/pythia-[\w.-]+)-v0", name):
        return (
            f"use {match[1]}, which has them: the same architecture and data, trained anew, so other weights. Or save "
            "these with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
        )
    return (
        "use a repository with safetensors weights, or save them so with transformers: "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
    )


def mend_config(config: dict) -> dict:
    """The settings that mlx-lm needs and transformers 5 writes elsewhere, as an update for `config`.

    Settings that are already where mlx-lm looks are left alone. Raises `ModelError` for per-layer-type RoPE settings
    of an architecture whose rule is not known here.
    """
    update = _mended(config)
    inner = config.get("text_config")
    if isinstance(inner, dict) and (inner_update := _mended(inner)):
        update["text_config"] = {**inner, **inner_update}
    return update


def _mended(config: dict) -> dict:
    update: dict[str, Any] = {}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope:
        if all(isinstance(value, dict) for value in rope.values()):
            update.update(_by_layer_type(config, rope))
        else:
            update.update(_flat_rope(rope))
    if config.get("model_type") == "gpt2" and "n_positions" in config:
        update["n_ctx"] = config["n_positions"]
    types = config.get("layer_types")
    if types and "full_attention" in types and str(config.get("model_type", "")).startswith("gemma3"):
        update["sliding_window_pattern"] = types.index("full_attention") + 1
    return {key: value for key, value in update.items() if config.get(key) is None}


def _flat_rope(rope: dict) -> dict:
    flat: dict[str, Any] = {}
    if "rope_theta" in rope:
        flat["rope_theta"] = flat["rotary_emb_base"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        flat["partial_rotary_factor"] = flat["rotary_pct"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        flat["rope_scaling"] = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return flat


def _by_layer_type(config: dict, rope: dict) -> dict:
    if _reads_rope_parameters(config):
        return {}
    if not str(config.get("model_type", "")).startswith("gemma3"):
        raise ModelError(
            f"model_type {config.get('model_type')!r}: RoPE settings per layer type ({', '.join(rope)}) that "
            "mlx-lm's model does not read; loading it would compute something else. Use an mlx-community conversion"
        )
    flat = _flat_rope(rope.get("full_attention", {}))
    if "rope_theta" in rope.get("sliding_attention", {}):
        flat["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return flat


def _reads_rope_parameters(config: dict) -> bool:
    from mlx_lm.utils import _get_classes

    return "rope_parameters" in getattr(_get_classes(config)[1], "__dataclass_fields__", {})


def _classes(config: dict) -> tuple[type, type]:
    """mlx-lm's classes for a config; GPT-2's also takes the keys that `save_pretrained` writes."""
    from mlx_lm.utils import _get_classes

    model_class, args_class = _get_classes(config)
    if config.get("model_type") != "gpt2":
        return model_class, args_class

    def sanitize(self, weights):
        weights = {key.removeprefix("transformer."): value for key, value in weights.items()}
        weights.pop("lm_head.weight", None)  # tied to wte
        return model_class.sanitize(self, weights)

    return type(model_class.__name__, (model_class,), {"sanitize": sanitize}), args_class


def _use_exact_gelu(model: Any) -> None:
    """GPT-NeoX checkpoints use the exact GELU; mlx-lm computes the tanh form (2.5e-4 relative in the residual)."""
    from mlx_lm.models.gpt_neox import MLP

    class ExactMLP(MLP):
        def __call__(self, x):
            return self.dense_4h_to_h(nn.gelu(self.dense_h_to_4h(x)))

    for layer in model.layers:
        layer.mlp.__class__ = ExactMLP


@contextlib.contextmanager
def _mlx_lm() -> Iterator[None]:
    """Context for a first import of mlx-lm, which otherwise lowers the process's limit of open files to 4096."""
    if "mlx_lm" in sys.modules or sys.platform == "win32":
        yield
        return
    import resource

    keep = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = keep
