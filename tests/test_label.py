"""Labels: an honest labeler scores high, an empty one at chance, and what breaks off is kept."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from conftest import random_sae

from hubsae import EndpointLabeler, load_sae, tokens
from hubsae.errors import ArtifactError, ConfigError, DataError, LabelError
from hubsae.label import make_task, read_label, read_numbers
from hubsae.labelers import LocalLabeler, as_labeler


@pytest.fixture(scope="module")
def trained(demo_model, demo_texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    found = demo_model.train_sae(
        0, demo_texts, "residual", k=8, expansion_factor=2, progress=False, save_path=folder / "sae"
    )
    found.feature_statistics(demo_texts)
    found.save(folder / "sae")
    return folder / "sae"


@pytest.fixture
def sae(trained, demo_model):
    return load_sae(trained, model=demo_model)


@pytest.fixture
def some(sae) -> list[int]:
    """Features that fire often enough for everything, seldom enough to mean something."""
    return [int(i) for i in np.flatnonzero((sae.features.density > 0.002) & (sae.features.density < 0.02))[:12]]


def oracle(sae):
    """Knows by the dictionary itself where a feature fires; its labels are the numbers of features."""

    def answer(prompt: str) -> str:
        if "Answer with one short phrase" in prompt:
            shown = re.findall(r"^ *\d+: (.*)$", prompt, flags=re.MULTILINE)
            matches = [sum(str(e) in shown for e in sae.features.examples(i)) for i in range(sae.n_features)]
            return f"Label: feature number {int(np.argmax(matches))}."
        feature = int(re.findall(r"feature number (\d+)", prompt)[0])
        lines = re.findall(r"^(\d+)\. (.*)$", prompt, flags=re.MULTILINE)
        config = sae.config.token_config()
        yes = []
        for number, text in lines:
            chunks = list(tokens.chunks([text], sae.model.tokenizer, config, 128))
            codes = sae.analyze_text(text).values(feature) if chunks else np.zeros(1)
            yes += [number] * bool(codes.max() > 0)
        return ", ".join(yes) or "none"

    return answer


def test_one_that_knows_scores_one_and_one_that_does_not_scores_a_half(sae, some):
    found = sae.auto_label_features(oracle(sae), some, progress=False)
    assert len(found) == len(some)
    scores = [label.score for label in found.labels.values() if label.score is not None]
    assert len(scores) >= 10
    assert min(scores) == 1
    assert all(label.text == f"feature number {i}" for i, label in found.labels.items())
    for always in ("none", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"[: len("1, 2")]):
        again = sae.auto_label_features(
            lambda prompt, always=always: "words" if "short phrase" in prompt else always,
            some,
            relabel=True,
            num_scored=10,
            progress=False,
        )
        empty = np.mean([label.score for label in again.labels.values() if label.score is not None])
        assert 0.3 < empty < 0.7
        assert always != "none" or empty == 0.5


def test_texts_to_score_on_are_balanced_true_and_never_shown(sae, some, demo_model):
    from hubsae import label

    rng = np.random.default_rng(0)
    pool = label._pool(sae, demo_model, sae.features, rng)
    near = 0
    for feature in some:
        task = make_task(sae, demo_model, sae.features, feature, pool, 20, 20, rng)
        assert len(task.texts) == 2 * task.truth.sum() > 0
        shown = {label.text_of(e, pool.special) for e in task.shown}
        assert not shown & set(task.texts)
        held = {
            e.document for e in sae.features.examples(feature, "random") if label.text_of(e, pool.special) in task.texts
        }
        assert not held & {e.document for e in task.shown}
        fires = label.fired_on(sae, demo_model, task.texts)
        assert ((fires[:, [feature]].toarray()[:, 0] > 0) == task.truth).all()
        neighbours = [n.feature for n in (*sae.features.similar(feature), *sae.features.cofiring(feature))]
        near += int((fires[~task.truth][:, neighbours].max(axis=1).toarray() > 0).sum())
    assert near > 0


def test_a_run_that_breaks_off_keeps_its_labels_and_goes_on(sae, some, trained):
    asked = []

    def breaks(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) > 5:
            raise ConnectionError("the server is gone")
        return f"label {len(asked)}"

    with pytest.raises(
        LabelError, match=r"feature \d+: the labeler failed .*server is gone.*5 labels of this run are kept"
    ):
        sae.auto_label_features(breaks, some, num_scored=0, progress=False, save_path=trained)
    again = load_sae(trained, model=sae.model)
    assert len(again.features.labels) == 5
    found = again.auto_label_features(lambda prompt: "the rest", some, num_scored=0, progress=False)
    assert len(found) == len(some) - 5
    assert found.kept == 5
    assert "5 features had labels before" in str(found)
    texts = [again.features.label(i).text for i in some]
    assert texts == [f"label {i}" for i in range(1, 6)] + ["the rest"] * (len(some) - 5)
    assert "the rest" in str(again.visualize_feature(some[-1]))
    assert "label 1" in str(
        again.find_top_features("The capital of France is Paris.", top_k=200)
    ) or again.features.label(some[0])
    again.feature_statistics(["The capital of France is Paris. It lies in Europe."] * 3)
    assert again.features.label(some[0]).text == "label 1"  # a new analysis keeps them


def test_a_label_whose_scoring_cannot_be_used_is_kept_without_a_score(sae, some):
    found = sae.auto_label_features(
        lambda prompt: "fine words" if "short phrase" in prompt else "who knows", some[:2], relabel=True, progress=False
    )
    assert [(label.text, label.score, label.n_scored) for label in found.labels.values()] == [
        ("fine words", None, 0)
    ] * 2
    assert "not scored" in str(found)


def test_nonsense_is_left_out_and_said_and_only_nonsense_is_an_error(sae, some):
    answers = iter([" ", "a fine label", "***", "another"])
    found = sae.auto_label_features(lambda prompt: next(answers), some[:4], num_scored=0, progress=False, relabel=True)
    assert list(found.labels) == [some[1], some[3]]
    assert found.unusable == (some[0], some[2])
    assert f"no usable answers for {some[0]}, {some[2]}" in str(found)
    with pytest.raises(LabelError, match="none of the labeler's answers for 3 features"):
        sae.auto_label_features(lambda prompt: "?", some[:3], num_scored=0, progress=False, relabel=True)
    with pytest.raises(LabelError, match="gave a int, not a text"):
        sae.auto_label_features(lambda prompt: 7, some[:3], num_scored=0, progress=False, relabel=True)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("\n Label: 'capital cities.'\nbecause", "capital cities"),
        ("**Past tense**", "Past tense"),
        ("- a\x1b[2J", "a�[2J"),
    ],
)
def test_the_label_is_read_out_of_an_answer(answer, label):
    assert read_label(answer).lstrip("- ") == label


def test_what_a_reasoning_model_thinks_is_no_answer():
    assert read_label("<think>\nText 1 and 2 name cities.\n</think>\n\nnames of cities") == "names of cities"
    assert read_label("Sure! Here is a phrase:\nnames of cities") == "names of cities"
    assert read_label("<|channel|>analysis<|message|>We need<|end|><|channel|>final<|message|>cities") == "cities"
    assert read_numbers("<think>1, 2, 3</think> 2", 5) == [2]
    for both in ("None of the 10 texts", "1, 3 and 5. None of the others."):
        with pytest.raises(LabelError, match="both numbers and none"):
            read_numbers(both, 10)
    assert read_numbers("Texts 2-4", 5) == [2, 3, 4]
    for endless in ("<think>\nOkay, text 1", "<|channel|>analysis"):
        with pytest.raises(LabelError, match="never ends"):
            read_label(endless)


def test_labels_go_to_a_new_folder_and_a_run_goes_on_from_there(sae, some, trained, tmp_path):
    folder = tmp_path / "new" / "labels"
    calls = []

    def breaks(prompt: str) -> str:
        calls.append(prompt)
        if len(calls) > 3:
            raise ConnectionError("gone")
        return "first run"

    with pytest.raises(LabelError, match="3 labels of this run are kept"):
        sae.auto_label_features(breaks, some[:6], num_scored=0, progress=False, save_path=folder, relabel=True)
    assert [p.name for p in folder.iterdir()] == ["features.parquet"]
    fresh = load_sae(trained, model=sae.model)  # knows nothing of that run
    had = {i for i in some[:6] if fresh.features.label(i)}
    found = fresh.auto_label_features(lambda p: "second", some[:6], num_scored=0, progress=False, save_path=folder)
    assert not set(found.labels) & {*some[:3], *had}
    other = random_sae(128, 256)
    other.bind(sae.model, "ignore")
    other.feature_statistics(["A cow can walk. In the field it eats hay."] * 5)
    with pytest.raises(ArtifactError, match="another dictionary"):
        other.auto_label_features(str, [int(other.features.n_active.argmax())], progress=False, save_path=folder)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "features.parquet").unlink()
    with pytest.raises(ArtifactError, match="holds another dictionary"):
        sae.auto_label_features(str, some, progress=False, save_path=tmp_path / "other")


def test_a_fuller_analysis_in_the_folder_keeps_its_place_and_gets_the_labels(sae, some, trained, demo_texts, tmp_path):
    sae.save(tmp_path / "sae")
    before = load_sae(tmp_path / "sae").features.n_tokens
    file = tmp_path / "sae" / "features.parquet"
    old = file.read_bytes()
    with pytest.raises(ConfigError):
        sae.auto_label_features(str, some, num_examples=0, progress=False, save_path=tmp_path / "sae")
    assert file.read_bytes() == old
    fewer = demo_texts[:60]
    sae.feature_statistics(fewer)
    alive = [i for i in some if sae.features.n_active[i]][:2]
    sae.auto_label_features(
        lambda p: "new words",
        alive,
        relabel=True,
        num_scored=0,
        progress=False,
        dataset=fewer,
        save_path=tmp_path / "sae",
    )
    again = load_sae(tmp_path / "sae").features
    assert again.n_tokens == before
    assert [again.label(i).text for i in alive] == ["new words"] * len(alive)


def test_numbers_are_read_out_of_an_answer():
    assert read_numbers("Texts 1, 3 and 10", 10) == [1, 3, 10]
    assert read_numbers("None.", 5) == []
    for wrong in ("I cannot say", "11", "0"):
        with pytest.raises(LabelError):
            read_numbers(wrong, 10)


def test_a_local_model_and_an_endpoint_answer_prompts(demo_model, demo_folder):
    local = LocalLabeler(demo_folder, max_tokens=5)
    assert local("The capital of France is").strip().startswith("Paris")
    assert as_labeler(demo_folder)[1] == "atlas-llama"
    seen = {}

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.update(path=self.path, key=self.headers.get("Authorization"), body=body)
            message = {"role": "assistant", "content": "capitals"}
            reply = json.dumps(
                {
                    "id": "1",
                    "created": 0,
                    "model": "m",
                    "system_fingerprint": "",
                    "object": "chat.completion",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert EndpointLabeler(url, "tiny", "secret")("What is this?") == "capitals"
        assert seen["path"] == "/v1/chat/completions"
        assert seen["key"] == "Bearer secret"
        assert seen["body"]["model"] == "tiny"
        assert seen["body"]["messages"][0]["content"] == "What is this?"
        assert as_labeler(url)[0]("again") == "capitals"
        assert "hf_" not in (seen["key"] or "")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_cannot_label_or_be_labelled_is_refused(sae, some, trained):
    with pytest.raises(ConfigError, match="expected a function from prompt to text"):
        sae.auto_label_features(7, some, progress=False)
    with pytest.raises(DataError, match="features 0 to"):
        sae.auto_label_features(str, [99999], progress=False)
    with pytest.raises(ConfigError, match="num_examples"):
        sae.auto_label_features(str, some, num_examples=0, progress=False)
    with pytest.raises(ConfigError, match="bound to no model"):
        load_sae(trained).auto_label_features(str, some, progress=False)
    with pytest.raises(ConfigError, match="http://"):
        EndpointLabeler("localhost:80")
