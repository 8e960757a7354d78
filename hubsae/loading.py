"""`load_sae`: any dictionary of any folder or repository, ours or another library's, in one line."""

from functools import partial
from pathlib import Path
from typing import Any

from hubsae.api import SAE, BoundDictionary, Crosscoder, Transcoder, as_models
from hubsae.errors import ArtifactError, ConfigError
from hubsae.formats.imported import Given
from hubsae.formats.reading import load_dictionary
from hubsae.identity import Check, check_policy
from hubsae.members import choose, family_told, is_collection
from hubsae.norms import norm_before
from hubsae.sites import reads_there

_KINDS: dict[str, type[BoundDictionary]] = {"sae": SAE, "transcoder": Transcoder, "crosscoder": Crosscoder}


def load_sae(
    source: str | Path,
    model: Any = None,
    *,
    layer: int | None = None,
    component: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    check: Check = "warn",
    reads: Any = None,
    writes: Any = None,
    k: int | None = None,
    input_scales: Any = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Any:
    """The `SAE`, `Transcoder` or `Crosscoder` of a folder, file or Hub repository, compared with `model` if given.

    Ours, or another library's by what is in the folder (SAELens, Gemma Scope, sparsify, dictionary_learning, ...): it
    is brought to raw activations exactly, or refused with the reason. subfolder names one of several
    (`list_dictionaries`); layer, component and k choose among several too: of a folder or repository, of a family's
    index (`push_family`), or of a collection by its slug. What foreign files leave out can be said: reads and writes
    (sites), k of a TopK, input_scales (by which each site's rows are multiplied before encoding).

    A structure that does not fit raises `CompatibilityError`; other weights, tokenizer, quantisation or repository than
    recorded warn (`check="strict"` raises, `"ignore"` does neither). What reads several models takes a list of them.
    """
    check_policy(check)
    models = () if model is None else as_models(model)
    access: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    by_site = layer is not None or component is not None
    if by_site or is_collection(source):
        if subfolder is not None:
            raise ConfigError(f"subfolder={subfolder!r} names the dictionary; leave layer and component out")
        chosen = choose(source, layer, component, k, revision, **access)
        source, revision, subfolder = chosen.source, chosen.revision, chosen.subfolder
        k = None if chosen.k == k else k
    said = Given.of(reads, writes, k, input_scales, models[0].model_type if models else None)
    norm_of = partial(norm_before, models[0]) if models else None
    with family_told(source, revision, access):
        found = load_dictionary(source, said, norm_of=norm_of, revision=revision, subfolder=subfolder, **access)
    if by_site and not reads_there(found.config.read_sites, layer, component):
        raise ArtifactError(
            f"{found.source}: reads {', '.join(found.config.reads)}, not layer={layer} {component or ''}"
        )
    dictionary = _KINDS[found.config.kind].taken_from(found)
    if models:
        dictionary.bind(list(models), check)
    return dictionary
