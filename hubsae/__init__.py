"""Sparse dictionaries (SAEs, transcoders, crosscoders) of language models on MLX, shared through the Hugging Face Hub.

Start with `InterpretableModel` and `load_sae`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hubsae import backend

backend.prepare()  # before anything imports mlx.core

if TYPE_CHECKING:
    from hubsae.align_config import AlignConfig
    from hubsae.anchors import AnchorConfig
    from hubsae.api import SAE, Crosscoder, InterpretableModel, SAETrainer, Transcoder, train_crosscoder
    from hubsae.causal import CausalConfig
    from hubsae.circuits import Circuit, find_feature_circuits
    from hubsae.comparing import compare, load_report
    from hubsae.curation import Curation
    from hubsae.dataset import ActivationDataset
    from hubsae.dictionary import Dictionary, DictionaryConfig
    from hubsae.errors import HubsaeError, HubsaeWarning
    from hubsae.evaluate import Evaluation
    from hubsae.family import Family, push_family
    from hubsae.features import Features
    from hubsae.formats.reading import list_dictionaries
    from hubsae.formats.writing import export_transcoder_set
    from hubsae.labelers import EndpointLabeler
    from hubsae.loading import load_sae
    from hubsae.metric_report import Report
    from hubsae.recipe import CrosscoderConfig, SAEConfig, TranscoderConfig
    from hubsae.sites import Site
    from hubsae.sparse import SparseCode
    from hubsae.survey import SurveyConfig
    from hubsae.tokens import TokenConfig
    from hubsae.two_models import Alignment, align, load_alignment, verify
    from hubsae.verification import Verification

_HOMES = {
    "ActivationDataset": "dataset",
    "AlignConfig": "align_config",
    "Alignment": "two_models",
    "AnchorConfig": "anchors",
    "CausalConfig": "causal",
    "Circuit": "circuits",
    "Crosscoder": "api",
    "CrosscoderConfig": "recipe",
    "Curation": "curation",
    "Dictionary": "dictionary",
    "DictionaryConfig": "dictionary",
    "EndpointLabeler": "labelers",
    "Evaluation": "evaluate",
    "Family": "family",
    "Features": "features",
    "HubsaeError": "errors",
    "HubsaeWarning": "errors",
    "InterpretableModel": "api",
    "Report": "metric_report",
    "SAE": "api",
    "SAEConfig": "recipe",
    "SAETrainer": "api",
    "Site": "sites",
    "SparseCode": "sparse",
    "SurveyConfig": "survey",
    "TokenConfig": "tokens",
    "Transcoder": "api",
    "TranscoderConfig": "recipe",
    "Verification": "verification",
    "align": "two_models",
    "compare": "comparing",
    "export_transcoder_set": "formats.writing",
    "find_feature_circuits": "circuits",
    "load_alignment": "two_models",
    "load_report": "comparing",
    "list_dictionaries": "formats.reading",
    "load_sae": "loading",
    "push_family": "family",
    "train_crosscoder": "api",
    "verify": "two_models",
}

__all__ = [
    "SAE",
    "ActivationDataset",
    "AlignConfig",
    "Alignment",
    "AnchorConfig",
    "CausalConfig",
    "Circuit",
    "Crosscoder",
    "CrosscoderConfig",
    "Curation",
    "Dictionary",
    "DictionaryConfig",
    "EndpointLabeler",
    "Evaluation",
    "Family",
    "Features",
    "HubsaeError",
    "HubsaeWarning",
    "InterpretableModel",
    "Report",
    "SAEConfig",
    "SAETrainer",
    "Site",
    "SparseCode",
    "SurveyConfig",
    "TokenConfig",
    "Transcoder",
    "TranscoderConfig",
    "Verification",
    "align",
    "compare",
    "export_transcoder_set",
    "find_feature_circuits",
    "list_dictionaries",
    "load_alignment",
    "load_report",
    "load_sae",
    "push_family",
    "train_crosscoder",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Rooms are imported when a name of theirs is first used, so that `import hubsae` stays quick."""
    if name in _HOMES:
        return getattr(import_module(f"hubsae.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hubsae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
