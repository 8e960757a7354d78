"""Fixtures shared by the tests; the embedded demo models stand in for real ones."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hubsae  # noqa: F401  (before mlx: loads the BLAS)

# isort: split
import browser
import mlx.core as mx
from hub_server import HubServer

from hubsae import InterpretableModel
from hubsae.api import SAE
from hubsae.demo import atlas
from hubsae.dictionary import DictionaryConfig
from hubsae.features import Label


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return Path(str(files("hubsae.demo") / "models" / "atlas-llama"))


@pytest.fixture(scope="session")
def demo_model(demo_folder) -> InterpretableModel:
    return InterpretableModel(demo_folder)


@pytest.fixture(scope="session")
def demo_texts() -> list[str]:
    return [document.text for document in atlas.generate(1500, seed=11)]


def random_sae(d: int = 16, n_features: int = 64, sparsity: dict | None = None, **config) -> SAE:
    """An SAE with random weights that is ready to use."""
    rng = np.random.default_rng(0)
    settings = {
        "reads": ("layers.1.residual",),
        "read_widths": (d,),
        "writes": ("layers.1.residual",),
        "write_widths": (d,),
        "n_features": n_features,
        "sparsity": sparsity or {"name": "topk", "k": 4},
        **config,
    }
    shapes = {"W_enc": (d, n_features), "b_enc": (n_features,), "W_dec": (n_features, d), "b_dec": (d,)}
    arrays = {name: mx.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}
    return SAE(DictionaryConfig(**settings), arrays)


@pytest.fixture
def sae() -> SAE:
    return random_sae()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub on loopback; the test fails if a token left it, or if it broke down itself."""
    with HubServer() as server:
        yield server
        assert not [r for r in server.requests if r.status == 501], "the test server itself failed"
        assert not [r for r in server.requests if r.origin == "cdn" and r.auth], "a token left the Hub"


@pytest.fixture
def alice(hub: HubServer, tmp_path: Path) -> Iterator[HubServer]:
    """The same, with the client of this process pointed at it as user alice."""
    with hub.patched(tmp_path / "alice"):
        yield hub


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from browser.chromium()


@pytest.fixture(scope="session")
def labelled_sae(demo_model, demo_texts) -> SAE:
    """A trained dictionary with labels."""
    found = demo_model.train_sae(
        0, demo_texts[:800], "residual", expansion_factor=2, k=8, batch_size=64, progress=False
    )
    found.feature_statistics(demo_texts[:200], config=browser.CONFIG, dataset_name="the atlas")
    found.relabel({7: Label("countries of the atlas", 0.93, 20, "a person"), 9: Label("months", None, 0, "a person")})
    return found
