"""Crosscoders of two models: of ckkissane (`cfg.json` + `cc_weights.pt`) and of science-of-finetuning (hub mixin)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hubsae.errors import ArtifactError
from hubsae.formats.hook_names import base_model, site_of_hook
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, context, positive, refused, scalar_threshold, setting, width
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.identity import BaseModel
from hubsae.sites import Site
from hubsae.sparsity import JumpReLU, ReLU, Sparsity

CK_CONFIG, CK_WEIGHTS = "cfg.json", "cc_weights.pt"
SF_CONFIG, SF_WEIGHTS = "config.json", "model.safetensors"


def _find_ck(names: Sequence[str]) -> Iterator[str]:
    yield from folders_with(names, CK_WEIGHTS, CK_CONFIG)
    there = set(names)
    yield from (name for name in names if re.search(r"(?:^|/)\d+\.pt$", name) and f"{name[:-3]}_cfg.json" in there)


def _read_ck(files: RepoFiles, entry: str, given: Given) -> Imported:
    weights = entry if entry in files.names else beside(entry, CK_WEIGHTS)
    config = files.json(f"{entry[:-3]}_cfg.json" if entry in files.names else beside(entry, CK_CONFIG))
    d, n = width(config, "d_in"), width(config, "dict_size")
    tensors = Tensors.read(files.path(weights), weights)
    shape = tensors.shape("b_dec")
    if len(shape) != 2:
        raise ArtifactError(f"{weights}: b_dec has shape {shape}, expected (models, columns)")
    models = shape[0]
    W_dec = tensors.take("W_dec", (n, models, d)).reshape(n, models * d)
    parts = Parts(
        tensors.take("W_enc", (models, d, n)).reshape(models * d, n),
        tensors.take("b_enc", (n,)),
        W_dec,
        tensors.take("b_dec", (models, d)).reshape(-1),
    )
    tensors.finish()
    if not (scales := given.scales(models)):
        raise ArtifactError(
            f"each model's rows were scaled to a mean norm of sqrt({d}) before encoding, but the factors are not in "
            f"its files; give input_scales=, {models} numbers: sqrt({d}) / mean norm of the model's rows (1 leaves "
            "them as they are)"
        )
    parts = parts.scaled(np.repeat(np.array(scales, np.float32), d))
    name = setting(config, "model_name", str, None)
    hook = setting(config, "hook_point", str, None)
    sites = given.several(models, lambda: _of_each(hook and site_of_hook(hook, given.model_type or name), models))
    names = [base_model(name), *(BaseModel() for _ in range(max(site.model for site in sites)))]
    recorded = {k: config[k] for k in ("model_name", "hook_point", "num_tokens", "seed") if config.get(k)}
    tokens = context(config.get("seq_len"))
    return Imported(
        "crosscoder (cc_weights.pt)",
        parts,
        ReLU(),
        sites,
        sites,
        (d,) * models,
        (d,) * models,
        tuple(names),
        tokens,
        recorded,
    )


def _of_each(site: Site | str | None, n: int) -> tuple[Site, ...]:
    if not isinstance(site, Site):
        raise ArtifactError(
            f"nothing in its files says where it reads its {n} sources; give reads=, such as "
            "reads=['layers.13.residual', '1:layers.13.residual'], where 1: is the second model"
        )
    return tuple(site.of(model) for model in range(n))


def is_crosscoder(config: dict) -> bool:
    """Whether settings are those of the hub mixin's crosscoders."""
    return config.get("library_name") != "hubsae" and {"activation_dim", "dict_size", "num_layers"} <= set(config)


def _read_sf(files: RepoFiles, entry: str, given: Given) -> Imported:
    config = files.json(beside(entry, SF_CONFIG))
    name = beside(entry, SF_WEIGHTS)
    d, n, sources = width(config, "activation_dim"), width(config, "dict_size"), width(config, "num_layers")
    if config.get("encoder_layers") is not None or config.get("latent_processor") is not None:
        raise refused("encoder_layers or latent_processor", "what they change about encoding is not known here")
    if config.get("num_decoder_layers") not in (None, sources):
        raise refused("num_decoder_layers", "it writes other sources than it reads")
    tensors = Tensors.read(files.path(name), name)
    parts = Parts(
        tensors.take("encoder.weight", (sources, d, n)).reshape(sources * d, n),
        tensors.take("encoder.bias", (n,)),
        tensors.take("decoder.weight", (sources, n, d)).transpose(1, 0, 2).reshape(n, sources * d),
        tensors.take("decoder.bias", (sources, d)).reshape(-1),
    )
    rule, parts = _selection(config, tensors, parts, sources, d)
    parts = _normalised(config, tensors, parts, sources, d)
    tensors.ignore(["code_normalization_id"])
    tensors.finish()
    sites = given.several(sources, lambda: _of_each(None, sources))
    models = tuple(BaseModel() for _ in range(max(site.model for site in sites) + 1))
    recorded = {k: v for k, v in config.items() if isinstance(v, str | int | float) and not isinstance(v, bool)}
    widths = (d,) * sources
    return Imported("crosscoder (hub mixin)", parts, rule, sites, sites, widths, widths, models, {}, recorded)


def _selection(config: dict, tensors: Tensors, parts: Parts, sources: int, d: int) -> tuple[Sparsity, Parts]:
    """Which features a BatchTopK keeps at inference: those above one threshold, in units of their decoder's norm."""
    if "threshold" not in tensors:
        return ReLU(), parts
    tensors.ignore(["k"])
    threshold = tensors.number("threshold") if tensors.shape("threshold") in ((), (1,)) else None
    if threshold is None:
        raise refused("a threshold for each source", "each source has a code of its own")
    if threshold < 0:
        raise ArtifactError(f"{tensors.where}: its threshold is {threshold:g}, so none was estimated when it was saved")
    said = config.get("code_normalization") or config.get("sparsity_loss_type")
    if not isinstance(said, str):
        raise ArtifactError(
            "nothing says in which units its threshold is (code_normalization), so it cannot be applied"
        )
    by = said.upper().rpartition(".")[2]
    norms = np.linalg.norm(parts.W_dec.reshape(-1, sources, d).astype(np.float64), axis=2)
    units = {"CROSSCODER": norms.sum(axis=1), "SAE": np.sqrt((norms**2).sum(axis=1)), "NONE": np.ones(len(norms))}
    if by not in units:
        raise refused(f"code_normalization {by[:40]!r}", "what it measures features by is not known here")
    learned = {"threshold": (threshold / np.maximum(units[by], 1e-12)).astype(np.float32)}
    if by == "NONE":
        learned = scalar_threshold(threshold, parts.n_features)
    return JumpReLU(), replace(parts, learned=learned)


def _normalised(config: dict, tensors: Tensors, parts: Parts, sources: int, d: int) -> Parts:
    """Fold (x - mean) · target_rms / sqrt(sum of variances) away, where the file holds means and deviations."""
    tensors.ignore(["activation_global_scale"])
    names = ("activation_mean", "activation_std")
    if not any(name in tensors for name in (*names, "target_rms")):
        return parts
    mean, std = (tensors.statistic(name, (sources, d)) for name in names)
    target = tensors.number("target_rms") if "target_rms" in tensors else None
    if mean is None and std is None:
        return parts
    if target is None:
        target = positive(config, "target_rms")
    if mean is None or std is None or not np.all((std**2).sum(axis=1) > 0):
        raise ArtifactError(f"{tensors.where}: of {' and '.join(names)} one is off or 0, so rows cannot be normalised")
    scale = target / np.sqrt((std.astype(np.float64) ** 2).sum(axis=1))
    return parts.scaled(np.repeat(scale, d)).shifted(mean.reshape(-1))


CK_LAYOUT = Layout("crosscoder (cc_weights.pt)", _find_ck, _read_ck)
SF_LAYOUT = Layout("crosscoder (hub mixin)", lambda names: folders_with(names, SF_WEIGHTS, SF_CONFIG), _read_sf)
