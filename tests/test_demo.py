"""The demo reaches the figures that it stands for."""

import numpy as np
import pytest
import scipy.sparse

from hubsae import features
from hubsae.demo.run import run
from hubsae.errors import DataError
from hubsae.features import Codes


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "sae"
    said: list[str] = []
    return run(folder, said.append), folder, "\n".join(said)


def test_the_demo_reaches_its_figures_and_shows_them(demo):
    (sae, matches), folder, said = demo
    assert sae.metrics["dead_share"] < 0.05
    assert sae.metrics["ce_recovered"] >= 0.95
    assert len({match.feature for match in matches if match.f1 >= 0.9}) >= 10
    assert (folder / "README.md").is_file()
    for words in ("'Berlin", "loss recovered", "F1 0.9", "loaded back"):
        assert words in said


def test_matching_finds_planted_concepts_and_scores_them_on_other_units():
    rng = np.random.default_rng(0)
    carried = rng.random((4000, 3)) < 0.1
    values = np.where(rng.random((4000, 50)) < 0.05, rng.random((4000, 50)) * 0.3, 0)
    values[:, 7] = np.where(carried[:, 0], 5 + rng.random(4000), values[:, 7])
    values[:, 9] = np.where(carried[:, 1] & (rng.random(4000) < 0.5), 5.0, 0)
    fit = np.arange(4000) % 2 == 0
    found = {
        m.concept: m for m in features.match_concepts(scipy.sparse.csr_matrix(values), carried, ["a", "b", "c"], fit)
    }
    assert found["a"].feature == 7
    assert found["a"].f1 > 0.99  # its weak firings elsewhere stay below the threshold
    assert found["b"].feature == 9
    assert found["b"].precision > 0.99
    assert 0.4 < found["b"].recall < 0.6
    assert found["c"].f1 < 0.3


def test_pooling_takes_the_largest_value_of_each_word():
    matrix = scipy.sparse.csr_matrix(np.array([[1.0, 0], [3, 0], [0, 2], [9, 9]]))
    codes = Codes(matrix, np.zeros(4, int), np.arange(4), [])
    pooled = features.pool(codes, np.array([0, 0, 2, -1]), 3)
    assert pooled.toarray().tolist() == [[3, 0], [0, 0], [0, 2]]


def test_a_feature_that_does_not_exist_is_refused(demo_model):
    codes = Codes(scipy.sparse.csr_matrix((1, 4)), np.zeros(1, int), np.zeros(1, int), [])
    with pytest.raises(DataError, match="features 0 to 3"):
        features.top_examples(codes, demo_model, 4)
