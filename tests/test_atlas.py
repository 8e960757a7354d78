"""Laws of the demo world: its probabilities are exact, its labels are true, and the shipped models have learned it."""

import hubsae  # noqa: I001  (first: it loads a tuned BLAS before mlx)

import collections
import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest

from hubsae.demo import atlas
from hubsae.demo.world import WORLD, Entity

MODELS = ("atlas-llama", "atlas-neox")
FOLDER = Path(hubsae.__file__).parent / "demo" / "models"
EXCESS = {"atlas-llama": 0.06, "atlas-neox": 0.08}  # of the loss above the grammar's entropy


@pytest.fixture(scope="module")
def documents():
    return atlas.generate(1500, seed=101)


@pytest.fixture(scope="module")
def training():
    path = Path(__file__).parents[1] / "scripts" / "train_demo_models.py"
    spec = importlib.util.spec_from_file_location("train_demo_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=MODELS)
def shipped(request, training):
    return training.RECIPES[request.param], *training.load_fp32(FOLDER / request.param)


def sentences(document):
    return sorted({(span.start, span.end, span.concept[6:]) for span in document.spans if span.concept[:6] == "topic:"})


def test_the_same_seed_gives_the_same_documents():
    assert atlas.generate(20, seed=5) == atlas.generate(20, seed=5)
    assert atlas.generate(20, seed=5) != atlas.generate(20, seed=6)
    assert atlas.generate(30, seed=5)[:20] == atlas.generate(20, seed=5)


def test_unknown_and_repeated_topics_are_refused_by_name():
    for topics in ([], ["geography", "geography"], ["cooking"]):
        with pytest.raises(ValueError, match="geography, animals"):
            atlas.generate(1, seed=0, topics=topics)


def test_openings_have_distinct_texts_and_probabilities_that_sum_to_one():
    openings = list(atlas.enumerate_documents(1))
    assert len({document.text for document in openings}) == len(openings)
    assert sum(math.exp(document.log_probability) for document in openings) == pytest.approx(1, abs=1e-9)


def test_two_sentences_have_distinct_texts_and_probabilities_that_sum_to_one():
    pairs = {}
    for document in atlas.enumerate_documents(2, topics=["weather"]):
        assert document.text not in pairs
        pairs[document.text] = document.log_probability
    assert math.fsum(map(math.exp, pairs.values())) == pytest.approx(1, abs=1e-9)


def test_observed_frequencies_are_the_stated_probabilities(documents):
    stated: collections.defaultdict[tuple[str, str], float] = collections.defaultdict(float)
    for opening in atlas.enumerate_documents(1):
        stated[opening.topic, opening.text.split()[0]] += math.exp(opening.log_probability)
    seen = collections.Counter((document.topic, document.text.split()[0]) for document in documents)
    for event, probability in sorted(stated.items(), key=lambda item: -item[1])[:12]:
        deviation = math.sqrt(probability * (1 - probability) / len(documents))
        assert abs(seen[event] / len(documents) - probability) < 4 * deviation, event


def test_no_sentence_reads_like_an_aside_of_another_topic(documents):
    """An aside is a sentence that can open a document of its topic, so the topic of every sentence is in the text."""
    openings = {opening.text: opening.topic for opening in atlas.enumerate_documents(1)}
    for document in documents:
        for start, end, topic in sentences(document):
            assert openings.get(document.text[start:end], topic) == topic


def test_spans_lie_on_the_words_that_they_claim(documents):
    words = {}
    for kind, things in WORLD.items():
        for thing in things.values():
            forms = [form.text for form in thing.attributes.values() if not isinstance(form, Entity)]
            words[f"{kind}:{thing.name}"] = {thing.name.lower(), *(text.lower() for text in forms)}
    checked = set()
    for document in documents:
        for span in document.spans:
            text = document.text[span.start : span.end]
            assert text
            assert text == text.strip(), span
            if span.concept in words:
                assert text.lower() in words[span.concept], span
                checked.add(span.concept)
            elif span.concept.startswith("pronoun:"):
                assert text.lower() in {"he", "his", "she", "her", "it", "its", "they", "their", "them"}
            elif span.concept.startswith(("topic:", "fact:", "about:")):
                assert text.endswith(".")
                assert text.count(".") == 1
    assert len(checked) > 200


def test_every_sentence_has_one_topic_and_one_fact_and_one_subject(documents):
    for document in documents:
        ends = [span[1] for span in sentences(document)]
        assert ends == [match.end() for match in re.finditer(r"\.", document.text)]
        for family in ("fact:", "about:"):
            assert sorted(span.end for span in document.spans if span.concept.startswith(family)) == ends


def test_stated_facts_are_those_of_the_tables(documents):
    found: collections.defaultdict[str, float] = collections.defaultdict(float)

    def name(kind: str, thing: str, attribute: str) -> str:
        entity = WORLD[kind][thing].attributes[attribute]
        assert isinstance(entity, Entity)
        return entity.name

    for document in documents:
        for country, capital in re.findall(r"The capital of (\w+) is (\w+)\.", document.text):
            found["capital"] += name("country", country, "capital") == capital or math.nan
        for capital, country in re.findall(r"(\w+) is the capital of (\w+)\.", document.text):
            found["of"] += name("country", country, "capital") == capital or math.nan
        for person, country in re.findall(r"(\w+) comes from (\w+)[.,]", document.text):
            if person not in ("He", "She"):
                found["home"] += name("person", person, "country") == country or math.nan
    assert all(found[kind] > 10 for kind in ("capital", "of", "home")), found


def test_later_sentences_follow_from_earlier_ones(documents):
    numbers = {name: i for i, name in enumerate(WORLD["number"])}
    found = 0
    pattern = (
        r"(\w+) (?:brings|has) (\w+) (\w+)[^.]*\. (?:She|He) sells (\w+) \3 to \w+\. Now (?:she|he) has (\w+) \3\."
    )
    for document in (*documents, *atlas.generate(1500, seed=102, topics=["trade"])):
        for _, had, _, sold, rest in re.findall(pattern, document.text):
            assert numbers[had] - numbers[sold] == numbers[rest]
            found += 1
    assert found > 10


def test_a_held_out_topic_is_absent():
    kept = [topic for topic in atlas.TOPICS if topic != "animals"]
    documents = atlas.generate(500, seed=7, topics=kept)
    assert {f"topic:{topic}" for topic in kept} <= set(atlas.concept_counts(documents))
    assert not {"topic:animals", "fact:habitat", "class"} & set(atlas.concept_counts(documents))


def test_the_concept_matrix_holds_what_concepts_at_lists(documents):
    few = documents[:20]
    rng = np.random.default_rng(0)
    ends = [np.array([-1, *np.sort(rng.integers(0, len(document.text), 30))]) for document in few]
    names = list(atlas.concept_counts(few))
    matrix = atlas.concept_matrix(few, ends, names)
    assert matrix.shape == (20 * 31, len(names))
    assert not matrix[0].any()  # the first token has no characters
    listed = [
        tokens
        for document, offsets in zip(few, ends, strict=True)
        for tokens in atlas.concepts_at(document, offsets.tolist())
    ]
    assert [{names[j] for j in np.flatnonzero(row)} for row in matrix] == listed


def test_questions_can_open_documents():
    openings = [opening.text for opening in atlas.enumerate_documents(1)]
    starts = {text[: match.end()] for text in openings for match in re.finditer(r"\w+", text)}
    for prompt, answer in atlas.questions():
        assert prompt + answer in starts


@pytest.mark.parametrize("name", MODELS)
def test_tokenizers_round_trip_and_place_their_tokens(name, documents):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
    for document in documents[:100]:
        encoding = tokenizer(document.text, return_offsets_mapping=True)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == document.text
        ends = [end for start, end in offsets if end > start]
        assert ends == sorted(set(ends))
        assert ends[-1] == len(document.text)
        assert (ids[0] == tokenizer.bos_token_id) == (name == "atlas-llama")
        # A word's last character is the last of some token: no token runs over the end of a word.
        for match in re.finditer(r"\w+|\.", document.text):
            assert match.end() in ends


def test_shipped_models_answer_the_questions(shipped, training):
    _, model, tokenizer = shipped
    share, failures = training.share_answered(tokenizer, model)
    assert share >= 0.95, failures


def test_shipped_models_come_near_the_entropy_of_the_grammar(shipped, training):
    recipe, model, tokenizer = shipped
    fresh = atlas.generate(150, seed=103)
    loss = training.nats_per_character(recipe, tokenizer, model, fresh)
    floor = atlas.entropy_per_character(fresh)
    assert 0.99 * floor < loss < (1 + EXCESS[recipe.name]) * floor


@pytest.mark.parametrize("name", MODELS)
def test_shipped_folders_are_small_and_named_like_published_checkpoints(name):
    import mlx.core as mx

    weights = mx.load(str(FOLDER / name / "model.safetensors"))
    assert isinstance(weights, dict)
    prefix = {"atlas-llama": "model.layers.3.mlp.up_proj", "atlas-neox": "gpt_neox.layers.3.mlp.dense_h_to_4h"}[name]
    assert f"{prefix}.weight" in weights
    assert {array.dtype for array in weights.values()} == {mx.float16}
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < 3_000_000
