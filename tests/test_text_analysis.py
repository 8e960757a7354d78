"""Questions about texts are answered by the codes that the dictionary gives."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae.errors import ConfigError, DataError

TEXT = "The capital of France is Paris."


@pytest.fixture(scope="module")
def sae(demo_model, demo_texts):
    found = demo_model.train_sae(0, demo_texts, "residual", k=8, expansion_factor=4, progress=False)
    found.feature_statistics(demo_texts[:300])
    return found


@pytest.fixture(scope="module")
def code(sae, demo_model):
    """(tokens, F) of the text by trace and encode."""
    with demo_model.trace(TEXT) as trace:
        return np.array(sae.encode(trace.activations["layers.0.residual"]))[0]


def test_the_features_of_a_text_are_the_code_of_its_activations(sae, code, demo_model):
    found = sae.analyze_text(TEXT, top_k=3)
    assert list(found.tokens) == demo_model.trace(TEXT).token_strings[0]
    assert found.read.tolist() == [False] + [True] * (len(code) - 1)
    np.testing.assert_allclose(found.code.toarray()[1:], code[1:], atol=1e-4)
    assert found.code[[0]].nnz == 0
    top = found.top(4)
    assert [f.feature for f in top] == np.argsort(-code[4])[:3].tolist()
    assert top[0].token == " France"
    assert top[0].relative == pytest.approx(top[0].value / sae.features.mean[top[0].feature])
    assert "(not read)" in str(found)
    strongest = sae.find_top_features(TEXT, top_k=4)
    assert [f.feature for f in strongest] == np.argsort(-code[1:].max(axis=0))[:4].tolist()
    assert strongest[0].position == 1 + code[1:, strongest[0].feature].argmax()
    with pytest.raises(DataError, match="features 0 to"):
        found.values(-1)


def test_a_text_as_one_code(sae, code):
    for pool, expected in (("max", code[1:].max(0)), ("mean", code[1:].mean(0)), ("last", code[-1]), (None, code[1:])):
        np.testing.assert_allclose(np.array(sae.encode_text(TEXT, pool=pool)), expected, atol=1e-4)
    np.testing.assert_allclose(np.array(sae.encode_text(TEXT, pool="sum")), code[1:].sum(0), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="expected one of max"):
        sae.encode_text(TEXT, pool="middle")


def test_a_long_text_is_read_to_its_end(sae, demo_texts):
    long = " ".join(demo_texts[:40])
    found = sae.analyze_text(long)
    assert len(found.tokens) > 600
    assert found.read.sum() > 590
    assert sae.encode_text(long, pool=None).shape[0] == found.read.sum()


def test_what_is_active_in_a_code_dense_or_sparse(sae, demo_model, code):
    with demo_model.trace(TEXT) as trace:
        x = trace.activations["layers.0.residual"][:, 1:]
    for given in (sae.encode(x), sae.encode_sparse(x), code[1:], sae.analyze_text(TEXT).code):
        found = sae.interpret_features(given, top_k=5)
        assert [f.feature for f in found] == np.argsort(-code[1:].max(axis=0))[:5].tolist()
    difference = sae.interpret_features(-mx.array(code[4]), top_k=1)[0]
    assert difference.value < 0
    with pytest.raises(DataError, match=r"expected \(..., 512\)"):
        sae.interpret_features(np.zeros(3))


def test_a_feature_is_found_by_examples_against_texts_and_against_what_is_known(sae, demo_texts):
    examples = [
        "Paris is the capital of France.",
        "The capital of Japan is Tokyo.",
        "Egypt is a country in Africa. Its capital is Cairo.",
    ]
    for against in (demo_texts[300:500], None):
        found = sae.find_feature_by_examples(examples, against=against, top_k=4)
        assert len(found) == 4
        assert found[0].on_examples == 1
        assert found[0].score > 0.9
        top = sae.features.examples(found[0].feature, "top", 10)
        assert sum("capital" in e.tokens[e.at] for e in top) >= 8
    unknown = random_sae(128, 64)
    unknown.bind(sae.model, "ignore")
    with pytest.raises(DataError, match="give against="):
        unknown.find_feature_by_examples(examples)


def test_scores_by_chance_agree_with_scores_on_texts(sae, demo_texts):
    examples = demo_texts[500:503]
    by_text = {f.feature: f for f in sae.find_feature_by_examples(examples, demo_texts[:300], top_k=512)}
    known = {f.feature: f for f in sae.find_feature_by_examples(examples, top_k=512)}
    pairs = np.array([[by_text[i].auc, known[i].auc] for i in known])
    assert np.corrcoef(pairs.T)[0, 1] > 0.9


@pytest.mark.parametrize("size", [1, 12])
def test_examples_of_chance_are_told_from_no_text_however_long_they_are(sae, demo_texts, size):
    examples, others = (
        [" ".join(demo_texts[i : i + size]) for i in range(first, last, size)]
        for first, last in ((0, 20 * size), (700, 1400))
    )
    found = sae.find_feature_by_examples(examples, others, top_k=512)
    assert 0.45 < np.mean([f.auc for f in found]) < 0.55


@pytest.mark.parametrize("text", ["", "   ", "<s>"])
def test_texts_without_usable_tokens_are_refused(sae, text):
    with pytest.raises(DataError, match=r"empty|no tokens that the dictionary reads"):
        sae.analyze_text(text)


def test_without_a_model_and_with_impossible_numbers_it_says_so(sae):
    with pytest.raises(ConfigError, match="bound to no model"):
        random_sae().analyze_text(TEXT)
    for wrong in (0, True, 2.5):
        with pytest.raises(ConfigError, match="top_k"):
            sae.analyze_text(TEXT, top_k=wrong)


def test_neighbours_groups_and_pairs(sae, demo_texts):
    for by in ("decoder", "coactivation"):
        near = sae.similar_features(7, by=by, top_k=3)
        assert 7 not in [n.feature for n in near]
        groups = sae.feature_clusters(by=by, min_similarity=0.3)
        members = [i for group in groups for i in group]
        assert len(set(members)) == len(members)
        assert len(members) + groups.alone == int((~sae.features.dead).sum())
        for group in groups:
            others = {n.feature: n.score for n in sae.similar_features(group[0], by=by, top_k=512)}
            assert all(others[i] >= 0.3 - 1e-6 for i in group[1:])
    both = sae.co_occurrence([7, 8, 9])
    np.testing.assert_allclose(np.diag(both.phi), 1, atol=1e-9)
    assert (both.counts == both.counts.T).all()
    assert "phi" in str(both)
    for call in (
        lambda: sae.similar_features(7, by="colour"),
        lambda: sae.feature_clusters(min_similarity=0),
        lambda: sae.co_occurrence([7, 7]),
        lambda: sae.similar_features(512),
        lambda: sae.similar_features("3"),
        lambda: sae.co_occurrence(3),
        lambda: sae.feature_clusters(min_similarity="0.5"),
        lambda: sae.find_feature_by_examples(None),
        lambda: sae.find_feature_by_examples(["A cow can walk."], against="A cow"),
        lambda: sae.find_feature_by_examples(["A cow can walk. " * 20], against=["A cow can walk."]),
        lambda: sae.interpret_features(np.zeros((0, 512))),
        lambda: sae.interpret_features("3"),
        lambda: sae.features.examples(7, "strongest"),
        lambda: sae.features.examples(7, "top", -1),
        lambda: sae.features.token_weights(7, "up"),
        lambda: sae.feature_statistics(["A cow can walk."], max_tokens="5"),
        lambda: sae.feature_statistics(["A cow can walk."], config={"seed": 1}),
        lambda: setattr(sae, "features", "none"),
        lambda: random_sae().co_occurrence([1, 2]),
        lambda: random_sae().feature_clusters("coactivation"),
    ):
        with pytest.raises((ConfigError, DataError)):
            call()
