"""Pictures of alignments: written where asked, the same for the same numbers, and only of what is there."""

import builtins
import sys

import numpy as np
import pytest
from conftest import random_sae
from test_alignment import handmade, with_effects

from hubsae import pair_plots
from hubsae.errors import ConfigError, DataError
from hubsae.two_models import Alignment

VALUES = {(0, 0): 0.25, (0, 2): 0.5, (3, 0): -1.0}


@pytest.fixture
def alignment(sae) -> Alignment:
    return with_effects(handmade(sae, random_sae(12, 40)))


def drawings(alignment: Alignment) -> dict:
    return {
        "scores": lambda path: pair_plots.match_scores(alignment, path),
        "layers": lambda path: pair_plots.layer_heatmap(VALUES, path, "debiased CKA, in $ and |"),
        "effects": lambda path: pair_plots.effect_scatter(alignment, path),
    }


@pytest.mark.parametrize("name", ["scores", "layers", "effects"])
def test_a_picture_is_written_and_the_same_again(alignment, name, tmp_path):
    draw = drawings(alignment)[name]
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        path = draw(tmp_path / f"one.{suffix}")
        assert path == tmp_path / f"one.{suffix}"
        assert path.read_bytes().startswith(start)
        assert draw(str(tmp_path / f"two.{suffix}")).read_bytes() == path.read_bytes()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def texts_of(path) -> str:
    """What an SVG says: matplotlib notes every text beside its outlines."""
    return path.read_text(encoding="utf-8")


def test_the_pictures_name_what_they_show(alignment, tmp_path):
    scores = texts_of(pair_plots.match_scores(alignment, tmp_path / "scores.svg"))
    beats = np.mean(alignment.pairs["corr_eval"] > alignment.pairs["corr_withinword_q99"])
    for text in (
        f"3 confirmed pairs, {100 * beats:.0f} % above the shuffles within words",
        "correlation of activations at held-out anchors",
        "99 % quantile, rows moved on",
        "99 % quantile, shuffled within words",
        "threshold, 0.1",
    ):
        assert f"<!-- {text} -->" in scores
    layers = texts_of(pair_plots.layer_heatmap(VALUES, tmp_path / "layers.svg", "CKA"))
    for text in ("layer of A", "layer of B", "CKA", "0.25", "0.50", "3", "2"):
        assert f"<!-- {text} -->" in layers
    assert "nan" not in layers  # pairs of layers that were not measured stay empty
    effects = texts_of(pair_plots.effect_scatter(alignment, tmp_path / "effects.svg"))
    for text in ("procrustes", "random direction (control)", "effects of 3 features of A, in B"):
        assert f"<!-- {text} -->" in effects


def test_what_is_not_there_is_not_drawn(alignment, sae, tmp_path):
    none = handmade(sae, random_sae(12, 40), confirmed=(False, False, False))
    with pytest.raises(DataError, match="no confirmed pairs"):
        pair_plots.match_scores(none, tmp_path / "x.png")
    with pytest.raises(DataError, match="causal_transfer"):
        pair_plots.effect_scatter(none, tmp_path / "x.png")
    with pytest.raises(DataError, match="no values"):
        pair_plots.layer_heatmap({}, tmp_path / "x.png")
    for draw in drawings(alignment).values():
        with pytest.raises(ConfigError, match=r"ends with \.svg or \.png"):
            draw(tmp_path / "x.pdf")
        with pytest.raises(ConfigError, match="there is no folder"):
            draw(tmp_path / "nowhere" / "x.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_names_the_extra(alignment, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for draw in drawings(alignment).values():
        with pytest.raises(ConfigError, match=r"pip install 'hubsae\[plots\]'"):
            draw(tmp_path / "x.png")
