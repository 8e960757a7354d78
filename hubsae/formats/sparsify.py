"""EleutherAI sparsify: `cfg.json` + `sae.safetensors`, a folder named by the module that it reads."""

from hubsae.errors import ArtifactError, SiteError
from hubsae.formats.hook_names import base_model, input_of, site_of_module
from hubsae.formats.imported import Given, Imported
from hubsae.formats.layout import Layout, refused, setting, top_k, width
from hubsae.formats.parts import Parts
from hubsae.formats.repo_files import RepoFiles, beside, folders_with
from hubsae.formats.tensors import Tensors
from hubsae.sites import Site

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"


def _read(files: RepoFiles, entry: str, given: Given) -> Imported:
    config = files.json(beside(entry, CONFIG))
    activation = setting(config, "activation", str, "topk")
    if activation != "topk":
        raise refused(
            f"activation {activation[:40]!r}", "it keeps one feature of every group of neighbours, not the k largest"
        )
    if config.get("signed"):
        raise refused("signed", "it keeps negative values too, and codes here are not negative")
    d = width(config, "d_in")
    n = setting(config, "num_latents", int, 0) or d * width(config, "expansion_factor")
    transcodes = setting(config, "transcode", bool, False)
    name = beside(entry, WEIGHTS)
    tensors = Tensors.read(files.path(name), name)
    skips = setting(config, "skip_connection", bool, False)
    parts = Parts(
        tensors.take("encoder.weight", (n, d)).T,
        tensors.take("encoder.bias", (n,)),
        tensors.take("W_dec", (n, d)),
        tensors.take("b_dec", (d,)),
        W_skip=tensors.take("W_skip", (d, d)).T if skips else None,
    )
    tensors.finish()
    if not transcodes:
        parts = parts.subtracting(parts.b_dec)
    hook = _site(entry or files.address.rpartition("/")[2])
    reads, writes = given.places(
        lambda: input_of(hook) if transcodes and hook else hook, (lambda: hook) if transcodes else None
    )
    run = _run(files, entry)
    model, revision = setting(run, "model", str, None), setting(run, "revision", str, None)
    tokens = {"context_size": run["ctx_len"]} if isinstance(run.get("ctx_len"), int) else {}
    recorded = {k: run[k] for k in ("model", "dataset", "split", "revision") if isinstance(run.get(k), str)}
    base = base_model(model, revision)
    rule = top_k(setting(config, "k", int), n)
    return Imported("sparsify", parts, rule, reads, writes, (d,), (d,), (base,), tokens, recorded)


def _site(address: str) -> Site | None:
    """The module that a folder's name says, if it says one: `layers.3.mlp`, `h.5/seed1`."""
    for part in reversed(address.split("/")):
        try:
            Site.parse(part)
        except SiteError:
            continue
        return site_of_module(part)
    return None


def _run(files: RepoFiles, entry: str) -> dict:
    """The settings of the training run, which stand in a folder above."""
    folder = entry
    while folder:
        folder = folder.rpartition("/")[0]
        name = beside(folder, RUN)
        if name in files.names:
            try:
                return files.json(name)
            except ArtifactError:
                return {}
    return {}


LAYOUT = Layout("sparsify", lambda names: folders_with(names, CONFIG, WEIGHTS), _read)
