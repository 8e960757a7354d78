"""Export of features to Neuronpedia: every record recomputed from the weights and from the values it stands for."""

import gzip
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import random_sae

from hubsae.choose import Places
from hubsae.dictionary import Dictionary, DictionaryConfig
from hubsae.errors import ArtifactError, ConfigError, DataError
from hubsae.features import Features, Label
from hubsae.firing import Firing
from hubsae.formats.to_neuronpedia import SEEDED_USER, write_neuronpedia

F, D, CHUNKS, WINDOW = 64, 16, 90, 5
DEAD, TOP = 11, 3
VOCABULARY = {
    0: "a",
    1: " é",
    2: "\n",
    3: '"</script>\\',
    4: "nul\0",
    5: "half \ud800",
    6: r"spelt \u0000",
    7: "\u2028",
}
NAMES: dict[str, Any] = {"model_id": "demo-1.5b", "source_set": "res-64"}
SOURCE = "1-res-64"

# columns of the tables that records are imported into
COLUMNS = {
    "release": "name visibility description descriptionShort urls creatorName creatorNameShort creatorId",
    "model": "id displayName displayNameShort creatorId dimension layers neuronsPerLayer owner website visibility",
    "sourceset": "modelId name visibility description type creatorName urls creatorId releaseName",
    "source": "modelId id setName visibility dataset num_tokens_in_prompt notes creatorId",
    "features": "modelId layer index sourceSetName creatorId maxActApprox hasVector vector hookName "
    "vectorDefaultSteerStrength topkCosSimIndices topkCosSimValues neuron_alignment_indices neuron_alignment_values "
    "neuron_alignment_l1 correlated_neurons_indices correlated_neurons_pearson correlated_neurons_l1 "
    "correlated_features_indices correlated_features_pearson correlated_features_l1 neg_str neg_values pos_str "
    "pos_values frac_nonzero freq_hist_data_bar_heights freq_hist_data_bar_values logits_hist_data_bar_heights "
    "logits_hist_data_bar_values decoder_weights_dist",
    "activations": "id modelId layer index creatorId tokens values maxValue maxValueTokenIndex minValue "
    "qualifyingTokenIndex binMin binMax binContains",
    "explanations": "id modelId layer index description authorId typeName explanationModelName notes",
}


@pytest.fixture(scope="module")
def fired() -> np.ndarray:
    """(tokens, F) values with which features fire, one of them never."""
    rng = np.random.default_rng(5)
    values = np.maximum(rng.normal(-2, 2, (CHUNKS * WINDOW, F)), 0) * rng.uniform(0.1, 30, F)
    values[:, DEAD] = 0
    return values.astype(np.float32)


def examples(prefix: str, fired: np.ndarray, ids: np.ndarray, chunks: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of examples (F, n), whole chunks; `chunks` (F, n) says which."""
    n = chunks.shape[1]
    values = np.moveaxis(fired.reshape(CHUNKS, WINDOW, F), 2, 0)[np.arange(F)[:, None], chunks]  # (F, n, window)
    found = {"value": values.max(2), "at": values.argmax(2).astype(np.int32), "document": chunks.astype(np.int32)}
    found |= {"tokens": ids.reshape(CHUNKS, WINDOW)[chunks].reshape(F, n * WINDOW)}
    found |= {"values": values.reshape(F, n * WINDOW)}
    return {f"{prefix}_{name}": column for name, column in found.items()}


@pytest.fixture(scope="module")
def features(fired) -> Features:
    rng = np.random.default_rng(6)
    rows, indices = np.nonzero(fired)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(fired)))]).astype(np.int32)
    firing = Firing(F)
    firing.add(Places(starts, indices.astype(np.int32), fired[rows, indices], F))
    ids = rng.integers(0, len(VOCABULARY), len(fired)).astype(np.int32)
    best = np.argsort(-fired.reshape(CHUNKS, WINDOW, F).max(1), axis=0)[:TOP].T
    some = np.argsort(rng.random((F, CHUNKS)), axis=1)[:, :12]
    weights = np.sort(rng.normal(0, 2, (F, 2)).astype(np.float32), axis=1)
    columns = {
        **examples("top", fired, ids, best),
        **examples("random", fired, ids, some),
        "promoted_ids": np.tile(np.array([1, -1], np.int32), (F, 1)),
        "promoted_weights": weights[:, ::-1],
        "suppressed_ids": np.tile(np.array([2, 3], np.int32), (F, 1)),
        "suppressed_weights": weights,
        "similar_ids": ((np.arange(F)[:, None] + [1, 2]) % F).astype(np.int32),
        "similar_cosine": np.tile(np.array([0.5, 0.25], np.float32), (F, 1)),
    }
    found = Features.of_firing(firing, n_documents=CHUNKS, data="made up", **columns)
    found.info.update(window=WINDOW, vocabulary={str(i): text for i, text in VOCABULARY.items()})
    return found.labelled({2: Label('of "two"\n', 0.875, 40, "some/model"), 60: Label("sixty", None, 0, "")})


def dictionary_of(reads: tuple[str, ...], writes: tuple[str, ...]) -> Dictionary:
    config = DictionaryConfig(
        reads=reads,
        read_widths=(D,) * len(reads),
        writes=writes,
        write_widths=(D,) * len(writes),
        n_features=F,
        sparsity={"name": "topk", "k": 4},
    )
    shapes = Dictionary.array_shapes(config)
    return Dictionary(config, {name: mx.ones(shape) for name, shape in shapes.items()})


def read(folder: Path) -> dict[str, list[dict]]:
    """The records by the kinds that they are of, batch after batch."""
    found: dict[str, list[dict]] = {}
    for path in (*sorted(folder.glob("*.jsonl")), *sorted(folder.glob("*/batch-?.jsonl.gz"))):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind = path.parent.name if path.suffix == ".gz" else path.stem
        found.setdefault(kind, []).extend(map(json.loads, data.decode().removesuffix("\n").split("\n")))
    return found


@pytest.fixture(scope="module")
def sae():
    return random_sae(D, F)


@pytest.fixture(scope="module")
def records(sae, features, tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("export")
    write_neuronpedia(sae, features, folder, **NAMES, batch_features=20)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        *(f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")),
        *(f"{kind}/batch-{n}.jsonl.gz" for kind in ("features", "activations") for n in range(4)),
        # there are no empty files, since the import cannot read them
        "explanations/batch-0.jsonl.gz",
        "explanations/batch-3.jsonl.gz",
    }
    return read(folder)


def test_all_records_of_a_file_have_the_columns_of_its_table(records):
    assert set(records) == set(COLUMNS)
    for kind, rows in records.items():
        for row in rows:
            assert list(row) == list(rows[0])
            assert set(row) == set(COLUMNS[kind].split()), kind
            assert json.loads(json.dumps(row, allow_nan=False)) == row
            assert row.get("creatorId", row.get("authorId")) == SEEDED_USER


def test_records_refer_to_one_another(records):
    [release], [model], [sourceset], [source] = (records[k] for k in ("release", "model", "sourceset", "source"))
    assert release["name"] == sourceset["releaseName"] == "demo-1-5b-res-64"
    assert model["id"] == sourceset["modelId"] == source["modelId"] == "demo-1.5b"
    assert sourceset["name"] == source["setName"] == "res-64"
    assert source["id"] == SOURCE
    assert [row["index"] for row in records["features"]] == [str(i) for i in range(F)]
    for kind in ("features", "activations", "explanations"):
        assert {(row["modelId"], row["layer"]) for row in records[kind]} == {("demo-1.5b", SOURCE)}
    ids = [row["id"] for kind in ("activations", "explanations") for row in records[kind]]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 25 and i[0] == "c" and i.isalnum() for i in ids)


def test_numbers_of_a_feature_are_those_of_its_values(records, fired):
    for i, row in enumerate(records["features"]):
        positive = fired[:, i][fired[:, i] > 0]
        np.testing.assert_allclose(row["maxActApprox"], fired[:, i].max(), rtol=1e-6)
        np.testing.assert_allclose(row["frac_nonzero"], len(positive) / len(fired), rtol=1e-6)
        heights, middles = row["freq_hist_data_bar_heights"], np.array(row["freq_hist_data_bar_values"])
        assert len(heights) == len(middles)
        if i == DEAD:
            assert not heights
            continue
        half = (middles[1] - middles[0]) / 2
        counts = [np.count_nonzero((positive >= m - half) & (positive < m + half)) for m in middles]
        assert heights == counts
        assert sum(heights) == len(positive)
        assert heights[-1] > 0


def test_directions_are_rows_of_the_decoder(records, sae):
    W_dec = np.array(sae.W_dec)
    for row, direction in zip(records["features"], W_dec, strict=True):
        np.testing.assert_allclose(row["vector"], direction, rtol=1e-6)
        assert row["hasVector"]
        assert row["hookName"] == "blocks.1.hook_resid_post"
        assert row["vectorDefaultSteerStrength"] == row["maxActApprox"]
        columns = sorted(range(D), key=lambda column: -direction[column])[:3]
        assert row["neuron_alignment_indices"] == columns
        np.testing.assert_allclose(row["neuron_alignment_values"], direction[columns], rtol=1e-6)
        share = np.abs(direction[columns]) / np.linalg.norm(direction, 1)
        np.testing.assert_allclose(row["neuron_alignment_l1"], share, rtol=1e-5)


def test_tokens_and_neighbours_are_the_known_ones_and_the_rest_is_empty(records, features):
    for i, row in enumerate(records["features"]):
        assert row["pos_str"] == [" é"]
        assert row["neg_str"] == ["\n", '"</script>\\']
        np.testing.assert_allclose(row["pos_values"], features.columns["promoted_weights"][i][:1], rtol=1e-6)
        np.testing.assert_allclose(row["neg_values"], features.columns["suppressed_weights"][i], rtol=1e-6)
        assert row["topkCosSimIndices"] == [i, (i + 1) % F, (i + 2) % F]
        assert row["topkCosSimValues"] == [1.0, 0.5, 0.25]
        unknown = [name for name in row if name.startswith(("correlated_", "logits_hist", "decoder_weights"))]
        assert len(unknown) == 9
        assert all(row[name] == [] for name in unknown)


def test_activations_are_the_examples(records, features):
    of = {str(i): [row for row in records["activations"] if row["index"] == str(i)] for i in range(F)}
    assert not of[str(DEAD)]
    for i in set(range(F)) - {DEAD}:
        known = features.examples(i, "top") + features.examples(i, "quantile")
        assert len(known) == len(of[str(i)])
        for row, example in zip(of[str(i)], known, strict=True):
            np.testing.assert_allclose(row["values"], example.values, rtol=1e-6)
            assert len(row["tokens"]) == len(row["values"]) == WINDOW
            assert row["maxValue"] == max(row["values"]) == row["values"][row["maxValueTokenIndex"]]
            assert row["minValue"] == min(row["values"])
            assert row["qualifyingTokenIndex"] == example.at


def test_intervals_hold_their_examples_and_the_share_of_tokens_that_they_say(records, fired):
    parts: dict[str, dict[float, float]] = {}
    for row in records["activations"]:
        values, low, high = fired[:, int(row["index"])], row["binMin"], row["binMax"]
        largest = np.isclose(high, values.max(), rtol=1e-6)
        if low == -1:
            assert row["binContains"] == -1
            assert largest
            continue
        assert low <= row["values"][row["qualifyingTokenIndex"]] <= high
        inside = (values >= low) & ((values < high) | largest)
        np.testing.assert_allclose(row["binContains"], inside.mean(), rtol=1e-6)
        parts.setdefault(row["index"], {})[low] = row["binContains"]
    complete = [shares for shares in parts.values() if len(shares) == 5]
    assert max(map(len, parts.values())) == 5
    np.testing.assert_allclose([sum(shares.values()) for shares in complete], 1, rtol=1e-6)


def test_labels_become_explanations_with_their_scores_in_words(records):
    two, sixty = records["explanations"]
    assert (two["index"], two["description"]) == ("2", 'of "two"\n')
    assert two["notes"] == "Labelled by some/model, balanced accuracy 0.875 on 40 held-out examples"
    assert (sixty["index"], sixty["description"], sixty["notes"]) == ("60", "sixty", "Labelled by unknown")
    # names that the database would have to know
    assert {row[name] for row in (two, sixty) for name in ("typeName", "explanationModelName")} == {None}


def test_texts_arrive_whole_but_for_what_a_database_cannot_hold(records, sae, features, tmp_path):
    shown = {token for row in records["activations"] for token in row["tokens"]}
    assert shown == {"a", " é", "\n", '"</script>\\', "nul�", "half ?", r"spelt \u0000", "\u2028"}
    write_neuronpedia(sae, features, tmp_path, **NAMES)
    raw = gzip.decompress((tmp_path / "activations/batch-0.jsonl.gz").read_bytes()).decode()
    assert r"\u0000" not in raw  # the import replaces these letters wherever they stand


def test_the_same_features_give_the_same_bytes(sae, features, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_neuronpedia(sae, features, tmp_path / name, **NAMES, creator="someone", release="a-paper")
    paths = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(paths) == 7
    for path in paths:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    [release] = read(tmp_path / "one")["release"]
    assert (release["name"], release["creatorName"]) == ("a-paper", "someone")


def test_a_transcoder_steers_where_it_writes_and_not_at_several_places_at_once(features, tmp_path):
    cases = {("layers.3.mlp",): "blocks.3.mlp.hook_out", ("layers.3.mlp", "layers.4.mlp"): None}
    for n, (writes, hook) in enumerate(cases.items()):
        folder = tmp_path / str(n)
        folder.mkdir()
        write_neuronpedia(dictionary_of(("layers.2.mlp_in",), writes), features, folder, **NAMES)
        row = read(folder)["features"][0]
        assert row["layer"] == "2-res-64"
        assert (row["hookName"], row["hasVector"], len(row["vector"])) == (hook, hook is not None, D if hook else 0)
        assert row["neuron_alignment_indices"] == ([0, 1, 2] if hook else [])


def test_a_trained_dictionary_is_exported_whole(labelled_sae, tmp_path):
    found = labelled_sae.features
    write_neuronpedia(labelled_sae, found, tmp_path, **NAMES)
    records = read(tmp_path)
    assert len(records["features"]) == len(found)
    assert [row["description"] for row in records["explanations"]] == ["countries of the atlas", "months"]
    assert records["model"][0]["layers"] == 4
    for row in records["features"]:
        assert row["hookName"] == "blocks.0.hook_resid_post"
        assert row["pos_values"] == sorted(row["pos_values"], reverse=True)
        assert row["neg_values"] == sorted(row["neg_values"])
    values = [row["values"][row["qualifyingTokenIndex"]] for row in records["activations"]]
    assert min(values) > 0


def test_what_neuronpedia_has_no_form_for_is_refused(sae, features, tmp_path):
    both = ("layers.1.residual", "layers.2.residual")
    with pytest.raises(ArtifactError, match=r"one site; this one reads layers\.1\.residual, layers\.2\.residual"):
        write_neuronpedia(dictionary_of(both, both), features, tmp_path, **NAMES)
    with pytest.raises(DataError, match=r"run feature_statistics\(texts\)"):
        write_neuronpedia(sae, features.numbers_only(), tmp_path, **NAMES)
    with pytest.raises(DataError, match="these are 64 features, but the dictionary has 32"):
        write_neuronpedia(random_sae(D, 32), features, tmp_path, **NAMES)
    broken = random_sae(D, F)
    broken.W_dec = broken.W_dec * float("nan")
    with pytest.raises(DataError, match="not finite"):
        write_neuronpedia(broken, features, tmp_path, **NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("model_id", "source_set", "release")
            for value in ("", "Gemma", "a/b", "a--b", "-a")
        ),
        ("model_id", "../up"),
        ("model_id", None),
        ("source_set", "a__b"),
        ("source_set", "res\n"),
        ("source_set", "x" * 129),
        ("source_set", "neurons"),
        ("source_set", "neuronpedia-resid"),
        ("creator", 3),
        ("creator_id", None),
        ("batch_features", 0),
        ("batch_features", True),
    ],
)
def test_settings_that_cannot_work_are_refused(sae, features, tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        write_neuronpedia(sae, features, tmp_path, **{**NAMES, name: value})
    assert not list(tmp_path.iterdir())
