"""One pass over texts gives what a look at all dense codes would give, for every kind, in a file that others read."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae
from hub_server import UPLOAD_WARNING

from hubsae import InterpretableModel, SurveyConfig, survey, tokens, train_crosscoder
from hubsae.activations import harvest
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.feature_view import FeatureView
from hubsae.features import Features
from hubsae.survey import Survey
from hubsae.unembed import token_weights

CONFIG = SurveyConfig(top_examples=5, random_examples=6, tokens_before=4, tokens_after=3, sampled_rows=500)


def same_sae(**config):
    """The dictionary that is analysed here, made anew; its first ten features are dead."""
    found = random_sae(128, 300, {"name": "topk", "k": 6}, **config)
    found.b_enc = mx.where(mx.arange(300) < 10, -1e4, found.b_enc)
    return found


@pytest.fixture(scope="module")
def sae(demo_model):
    found = same_sae(base_models=(demo_model.identity.to_dict(),))
    found.bind(demo_model)
    return found


@pytest.fixture(scope="module")
def analysed(sae, demo_model, demo_texts) -> Survey:
    return survey.survey(sae, demo_model, demo_texts[:200], CONFIG)


@pytest.fixture(scope="module")
def dense(sae, demo_model, demo_texts):
    """Chunks of the texts, and the dense code of every position that counts, by (chunk, position)."""
    chunks = list(tokens.chunks(demo_texts[:200], demo_model.tokenizer, tokens.TokenConfig(), 128))
    block = harvest(demo_model, sae.config.read_sites, chunks)
    code = np.array(sae.encode(mx.array(block.rows)))
    return chunks, block, code


def test_numbers_are_those_of_the_dense_code(analysed, dense):
    _, _, code = dense
    features = analysed.features
    fires = code > 0
    assert features.n_tokens == len(code)
    assert features.info["n_documents"] == 200
    assert (features.n_active == fires.sum(axis=0)).all()
    assert features.dead[:10].all()
    np.testing.assert_allclose(features.maximum, code.max(axis=0), rtol=1e-4)
    np.testing.assert_allclose(features.mean, code.sum(axis=0) / np.maximum(fires.sum(axis=0), 1), rtol=1e-4)
    for f in (11, 42):
        edges, counts = features.histogram(f)
        assert counts.sum() == features.n_active[f]
        assert edges[-1] > features.maximum[f] >= edges[-1] / 2


def test_examples_are_real_places_with_the_values_that_the_dictionary_gives_there(analysed, dense, demo_texts):
    chunks, block, code = dense
    value_at = {(c, p): row for c, p, row in zip(block.chunk, block.position, code, strict=True)}
    features = analysed.features
    for f in (15, 77, 140):
        best = sorted((code[block.chunk == c, f].max() for c in np.unique(block.chunk)), reverse=True)
        top = features.examples(f, "top")
        np.testing.assert_allclose([e.value for e in top], [v for v in best[:5] if v > 0], rtol=1e-4)
        for example in (*top, *features.examples(f, "random")):
            assert example.values[example.at] == pytest.approx(example.value)
            found = [
                c
                for c, chunk in enumerate(chunks)
                if chunk.document == example.document and _inside(chunk.ids, example.ids) is not None
            ]
            assert found
            start = _inside(chunks[found[0]].ids, example.ids)
            assert start is not None
            zeros = np.zeros(code.shape[1])
            expected = [value_at.get((found[0], start + i), zeros)[f] for i in range(len(example.ids))]
            np.testing.assert_allclose(example.values, expected, rtol=1e-3, atol=1e-5)
            text = "".join(example.tokens).replace("<s>", "").strip()
            assert text in demo_texts[example.document]


def _inside(ids: np.ndarray, part: tuple[int, ...]) -> int | None:
    n = len(part)
    return next((i for i in range(len(ids) - n + 1) if tuple(ids[i : i + n].tolist()) == part), None)


def test_quantile_examples_run_from_strong_to_weak(analysed):
    values = [e.value for e in analysed.features.examples(77, "quantile", 4)]
    assert values == sorted(values, reverse=True)
    assert len(values) == 4


def test_the_size_of_the_groups_changes_nothing_but_chance(sae, demo_model, demo_texts, analysed, monkeypatch):
    monkeypatch.setattr(survey, "_ROWS_AT_ONCE", 300)
    again = survey.survey(sae, demo_model, demo_texts[:200], CONFIG).features
    assert (again.n_active == analysed.features.n_active).all()
    for name in ("mean", "maximum", "top_value"):  # which of two equal examples comes first is rounding
        np.testing.assert_allclose(again.columns[name], analysed.features.columns[name], rtol=1e-4, atol=1e-5)


def test_promoted_tokens_are_those_of_the_unembedding_with_the_final_norm_folded_in(sae, demo_model):
    columns = token_weights(sae, [demo_model], np.arange(20, 40), 5)
    model = demo_model.model
    head = model.model.embed_tokens.weight if model.args.tie_word_embeddings else model.lm_head.weight
    expected = np.array(sae.W_dec[20:40] * model.model.norm.weight @ head.T)
    expected -= expected.mean(axis=1, keepdims=True)
    order = np.argsort(-expected, axis=1)
    assert (columns["promoted_ids"][20:40] == order[:, :5]).all()
    assert (columns["suppressed_ids"][20:40] == order[:, ::-1][:, :5]).all()
    ratio = columns["promoted_weights"][20:40] / np.take_along_axis(expected, order[:, :5], axis=1)
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(5), rtol=1e-3)
    assert (columns["promoted_ids"][:20] == -1).all()


def test_what_writes_outside_of_the_residual_stream_promotes_nothing(demo_model):
    sites = {"writes": ("layers.1.mlp.down_proj.in",), "write_widths": (demo_model.width("layers.1.mlp.down_proj.in"),)}
    assert demo_model.width("layers.1.mlp.down_proj.in") != 128
    found = random_sae(128, 20)
    config = dataclasses.replace(found.config, **sites, kind="")
    assert not token_weights(_like(config), [demo_model], np.arange(3))


def _like(config):
    from hubsae import Transcoder

    shapes = Transcoder.array_shapes(config)
    return Transcoder(config, {name: mx.zeros(shape) for name, shape in shapes.items()})


def test_saved_features_are_the_same_when_they_are_loaded(analysed, tmp_path):
    features = analysed.features
    features.save(tmp_path)
    again = Features.load(tmp_path, features.n_features)
    assert str(again) == str(features)
    assert str(FeatureView(77, again)) == str(FeatureView(77, features))
    assert again.examples(77) == features.examples(77)
    assert again.similar(77) == features.similar(77)
    assert again.cofiring(77) == features.cofiring(77)
    assert again.vocabulary == features.vocabulary
    assert [p.name for p in tmp_path.iterdir()] == ["features.parquet"]


def test_files_that_are_damaged_of_others_or_of_another_dictionary_are_refused(analysed, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "features.parquet"
    analysed.features.save(path)
    with pytest.raises(ArtifactError, match="300 features, the dictionary has 7"):
        Features.load(path, 7)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match="not written by hubsae"):
        Features.load(tmp_path / "other.parquet")
    wrong = pa.array([["a"]] * 300)
    place = table.schema.names.index("top_values")
    pq.write_table(table.set_column(place, "top_values", wrong), tmp_path / "wrong.parquet")
    with pytest.raises(ArtifactError, match="not a list of one length"):
        Features.load(tmp_path / "wrong.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not readable"):
        Features.load(path)


def changed(path, target, info=None, **columns):
    """A copy of a features.parquet with other columns, or other entries of its metadata."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    known = json.loads(table.schema.metadata[b"hubsae"])
    for name, column in columns.items():
        place = table.schema.names.index(name)
        table = table.remove_column(place) if column is None else table.set_column(place, name, column)
    known = {**known, **(info or {})}
    pq.write_table(table.replace_schema_metadata({b"hubsae": json.dumps(known).encode()}), target)
    return pa


def fixed(values, dtype: type = np.float32):
    import pyarrow as pa

    values = np.asarray(values, dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def with_gaps(values, dtype: type):
    import pyarrow as pa

    lists = fixed(values, dtype)
    gaps = pa.array([i % 2 == 0 for i in range(len(lists))])
    return pa.FixedSizeListArray.from_arrays(lists.values, 64, mask=gaps)


@pytest.mark.parametrize(
    "info",
    [
        {"window": "abc"},
        {"window": 10**9},
        {"window": 9},
        {"vocabulary": ["a"]},
        {"vocabulary": {"a": "b"}},
        {"vocabulary": {"1": 2}},
        {"n_tokens": -5},
        {"n_tokens": 10**400},
        {"version": "1"},
        {"version": 99},
        {"fingerprint": ["a"] * 32},
        {"fingerprint": {"W_dec": [10**400]}},
        {"sites": 5},
        {"sites": ["a", "b"]},
    ],
)
def test_metadata_that_lies_is_refused_at_once(analysed, tmp_path, info):
    analysed.features.save(tmp_path / "good.parquet")
    changed(tmp_path / "good.parquet", tmp_path / "bad.parquet", info)
    with pytest.raises(ArtifactError):
        Features.load(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("histogram", None),
        ("top_tokens", None),
        ("label_score", None),
        ("histogram", lambda n: fixed(np.ones((n, 3)), np.int64)),
        ("top_at", lambda n: fixed(np.full((n, 5), 10**6), np.int32)),
        ("mean", lambda n: np.full(n, np.nan)),
        ("n_active", lambda n: np.full(n, -1)),
        ("similar_ids", lambda n: fixed(np.full((n, 8), n), np.int32)),
        ("top_tokens", lambda n: fixed(np.zeros((n, 2_000)), np.int32)),
        ("label", lambda n: ["x" * 100_000] * n),
        ("mean", lambda n: [None] * 8 + [1.0] * (n - 8)),
        ("label_score", lambda n: np.full(n, 7.0)),
        ("histogram", lambda n: with_gaps(np.ones((n, 64)), np.int64)),
        ("top_at", lambda n: fixed(np.full((n, 5), 7), np.int32)),
    ],
)
def test_columns_that_could_not_have_been_written_here_are_refused(analysed, tmp_path, name, column):
    import pyarrow as pa

    from hubsae.features import Label

    features = analysed.features.labelled({77: Label("words", 0.9, 10, "somebody")})
    features.save(tmp_path / "good.parquet")
    made = None if column is None else column(features.n_features)
    made = made if made is None or isinstance(made, pa.Array) else pa.array(made)
    changed(tmp_path / "good.parquet", tmp_path / "bad.parquet", **{name: made})
    with pytest.raises(ArtifactError, match="damaged"):
        look_at_all(tmp_path / "bad.parquet")


def look_at_all(path):
    features = Features.load(path)
    return str(features), str(FeatureView(77, features)), features.mean


def test_what_was_loaded_stays_what_it_was_when_another_takes_its_place(analysed, tmp_path):
    analysed.features.save(tmp_path)
    old = Features.load(tmp_path)
    assert old.n_tokens == analysed.features.n_tokens
    analysed.features.numbers_only().save(tmp_path)
    assert old.examples(77) == analysed.features.examples(77)
    assert not Features.load(tmp_path).has_examples
    assert Features.load(tmp_path).token_weights(77, "promoted") == analysed.features.token_weights(77, "promoted")


def test_features_of_another_dictionary_are_refused_and_stale_ones_are_not_saved(sae, analysed, tmp_path):
    other = same_sae()
    other.W_dec = other.W_dec[::-1]
    with pytest.raises(DataError, match="of another dictionary"):
        other.features = analysed.features
    other.save(tmp_path / "other")
    analysed.features.save(tmp_path / "other")
    from hubsae import load_sae
    from hubsae.errors import HubsaeWarning

    loaded = load_sae(tmp_path / "other")
    with pytest.raises(ArtifactError, match="of another dictionary"):
        _ = loaded.features
    with pytest.warns(HubsaeWarning, match="going on without what is known"):
        loaded.interpret_features(np.ones(300))  # needs no names
    half = same_sae()
    half.W_dec = half.W_dec.astype(mx.bfloat16)
    half.features = analysed.features  # another precision is the same dictionary
    other_rule = random_sae(128, 300, {"name": "topk", "k": 7})
    with pytest.raises(DataError, match="of another dictionary"):
        other_rule.features = analysed.features
    encoder = same_sae()
    encoder.W_enc = -encoder.W_enc
    with pytest.raises(DataError, match="of another dictionary"):
        encoder.features = analysed.features
    half.W_dec = -half.W_dec
    with pytest.warns(HubsaeWarning, match="weights have changed"):
        half.save(tmp_path / "half")
    assert load_sae(tmp_path / "half").known_features() is None


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_features_that_could_not_be_fetched_are_not_deleted_by_a_push(analysed, alice, monkeypatch, tmp_path):
    from hubsae import hub, load_sae
    from hubsae.errors import HubError, HubsaeWarning

    own = same_sae()
    own.features = analysed.features
    own.push_to_hub("alice/kept")
    loaded = load_sae("alice/kept")
    with monkeypatch.context() as patch:
        patch.setattr(hub.Source, "file", lambda *a: (_ for _ in ()).throw(HubError("no network")))
        with pytest.warns(HubsaeWarning, match="no network"):
            loaded.interpret_features(np.ones(300))
        loaded.interpret_features(np.ones(300))  # said once
        with pytest.raises(HubError, match=r"features\.parquet of alice/kept.*no network"):
            _ = loaded.features
        loaded.push_to_hub("alice/kept")
        loaded.save(tmp_path / "copy")
    assert load_sae("alice/kept").features.has_examples
    loaded.push_to_hub("alice/kept")  # from the copy, with what is asked for again
    assert load_sae("alice/kept").features.has_examples
    assert loaded.features.has_examples


def test_what_is_known_goes_along_when_a_dictionary_changes_its_class(analysed, tmp_path):
    from hubsae import SAE, load_sae

    own = same_sae()
    own.features = analysed.features
    assert SAE.taken_from(own).features is own.features
    own.save(tmp_path)
    loaded = load_sae(tmp_path)
    loaded.features = None
    assert SAE.taken_from(loaded).known_features() is None


def test_a_file_of_a_newer_version_survives_a_save_in_its_folder(analysed, tmp_path):
    from hubsae import load_sae
    from hubsae.errors import HubsaeWarning

    own = same_sae()
    own.save(tmp_path)
    analysed.features.save(tmp_path / "good.parquet")
    changed(tmp_path / "good.parquet", tmp_path / "features.parquet", {"version": 2})
    loaded = load_sae(tmp_path)
    with pytest.warns(HubsaeWarning, match="written in format 2"):
        loaded.save(tmp_path)
    assert (tmp_path / "features.parquet").exists()


def test_what_could_not_be_read_back_is_not_written(analysed, tmp_path):
    from hubsae.features import Label

    with pytest.raises(DataError, match="letters"):
        analysed.features.labelled({77: Label("x" * 2500, None, 0, "somebody")})
    with pytest.raises(ConfigError, match="at most 4,096"):
        SurveyConfig(tokens_before=5000)
    with pytest.raises(ConfigError, match="keep fewer or shorter"):
        survey.survey(random_sae(128, 3000), [], [], SurveyConfig(top_examples=1000, tokens_before=1000))
    found = SurveyConfig(top_examples=100, tokens_before=400, tokens_after=400)
    assert found.window == 801


def test_features_can_be_dropped(analysed, tmp_path):
    from hubsae import load_sae

    own = same_sae()
    own.features = analysed.features
    own.save(tmp_path)
    assert "pieces of those texts are published here" in (tmp_path / "README.md").read_text()
    again = load_sae(tmp_path)
    again.features = None
    again.save(tmp_path)
    assert not (tmp_path / "features.parquet").exists()
    assert "features.parquet" not in (tmp_path / "README.md").read_text()


def test_promoted_tokens_of_a_second_model_are_in_its_own_words(demo_model, demo_folder, demo_texts):
    from hubsae import Transcoder
    from hubsae.dictionary import DictionaryConfig

    neox = InterpretableModel(demo_folder.parent / "atlas-neox")
    config = DictionaryConfig(
        reads=("layers.1.mlp_in",),
        read_widths=(128,),
        writes=("1:layers.1.residual",),
        write_widths=(neox.hidden_size,),
        n_features=32,
        sparsity={"name": "topk", "k": 4},
        base_models=({}, {}),
    )
    rng = np.random.default_rng(0)
    shapes = Transcoder.array_shapes(config)
    across = Transcoder(config, {k: mx.array(rng.standard_normal(s).astype(np.float32)) for k, s in shapes.items()})
    across.bind([demo_model, neox], "ignore")
    features = across.feature_statistics(demo_texts[:50], config=CONFIG)
    some = int(features.n_active.argmax())
    for weight in features.token_weights(some, "promoted"):
        assert weight.token == tokens.token_texts(neox.tokenizer, [weight.token_id])[weight.token_id]


def test_a_dictionary_of_one_feature_is_analysed(demo_model, demo_texts):
    alone = random_sae(128, 1, {"name": "relu"})
    alone.bind(demo_model, "ignore")
    assert alone.feature_statistics(demo_texts[:20], config=CONFIG).similar(0) == []


def test_a_view_says_all_and_dead_features_and_wrong_ids_are_refused(sae, analysed):
    sae.features = analysed.features
    view = str(sae.visualize_feature(77))
    for words in ("fires on", "promoted tokens", "similar decoders", "top examples", "quantile examples", "«"):
        assert words in view
    assert "<table" in sae.visualize_feature(77)._repr_html_()
    with pytest.raises(DataError, match="feature 3 is dead: it fired on none of"):
        sae.visualize_feature(3)
    for wrong in (300, -1):
        with pytest.raises(DataError, match="features 0 to 299"):
            sae.visualize_feature(wrong)


def test_an_analysis_is_kept_and_made_once_for_the_same_texts(sae, demo_texts, monkeypatch):
    some = demo_texts[:40]
    first = sae.visualize_feature(77, dataset=some).features
    monkeypatch.setattr(survey, "survey", lambda *a, **k: pytest.fail("a second pass"))
    assert sae.visualize_feature(78, dataset=some).features is first


@pytest.mark.filterwarnings(UPLOAD_WARNING)
def test_features_travel_with_their_dictionary(analysed, tmp_path, alice, demo_model):
    from hubsae import load_sae

    own = same_sae()
    own.features = analysed.features
    own.save(tmp_path / "sae")
    load_sae(tmp_path / "sae").push_to_hub("alice/explained")
    before = len(alice.requests)
    again = load_sae("alice/explained")
    assert "features.parquet" not in {r.path.split("/")[-1] for r in alice.requests[before:]}  # fetched when asked for
    assert again.features.examples(77) == analysed.features.examples(77)
    again.save(tmp_path / "copy")
    assert str(load_sae(tmp_path / "copy").features) == str(analysed.features)
    random_sae(128, 300).save(tmp_path / "copy")  # another one in its place does not inherit them
    assert load_sae(tmp_path / "copy").known_features() is None
    random_sae(128, 300).push_to_hub("alice/explained")
    assert load_sae("alice/explained").known_features() is None


def test_a_crosscoder_of_two_models_and_a_transcoder_are_analysed_alike(demo_model, demo_folder, demo_texts):
    neox = InterpretableModel(demo_folder.parent / "atlas-neox")
    settings = {"k": 8, "expansion_factor": 2, "progress": False}
    both = train_crosscoder([demo_model, neox], demo_texts[:900], layers=[1, 1], **settings)
    found = both.feature_statistics(demo_texts[:200], config=CONFIG)
    assert found.site_norms is not None
    assert found.site_norms.shape[1] == 2
    assert "decoder norms" in str(both.visualize_feature(int(found.n_active.argmax())))
    assert len(both.analyze_text("The capital of France is Paris.").top(3)) > 0
    across = demo_model.train_transcoder(1, 1, demo_texts[:900], **settings)
    assert across.feature_statistics(demo_texts[:200], config=CONFIG).has_examples


def test_training_leaves_the_numbers_of_the_held_out_texts(demo_model, demo_texts):
    trained = demo_model.train_sae(1, demo_texts[:900], "residual", k=8, expansion_factor=2, progress=False)
    assert trained.features.n_tokens == trained.metrics["n_tokens"]
    np.testing.assert_allclose(trained.features.density.sum(), trained.metrics["l0"], rtol=1e-6)
    assert not trained.features.has_examples
    with pytest.raises(DataError, match="no examples are known"):
        trained.visualize_feature(3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"top_examples": 0}, "at least 1"), ({"tokens_before": -1}, "0 or more"), ({"seed": 1.5}, "type int")],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SurveyConfig(**settings)


def test_texts_without_usable_tokens_are_refused(sae):
    with pytest.raises(DataError, match="no tokens that count"):
        sae.feature_statistics(["", " "])
    with pytest.raises(ConfigError, match="bound to no model"):
        random_sae(128, 300).feature_statistics(["A cow can walk."])
