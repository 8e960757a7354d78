"""The window on the embedded models: trace, generation, predictions, identity, refusals."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from hubsae import InterpretableModel
from hubsae.demo.run import MODELS, load_model
from hubsae.errors import ConfigError, DataError, HubError, ModelError, SiteError

PROMPT = "The capital of Germany is"


@pytest.mark.parametrize("name", MODELS)
def test_a_trace_shows_activations_under_any_spelling_of_a_site(name):
    model = load_model(name)
    with model.trace(PROMPT) as trace:
        a = trace.activations["layers.2.mlp"]
        assert a.shape == (1, len(trace.token_strings[0]), model.hidden_size)
        assert mx.array_equal(a, trace.activations["model.model.layers.2.mlp"])
        assert "layers.2.mlp" in trace.activations
        assert "layers.9.mlp" not in trace.activations
        assert len(trace.activations) == 6 * model.n_layers
    best = model.get_token_predictions(trace.logits)
    assert len(best) == 10
    assert " Berlin".startswith(" " + best[0].token.strip())
    assert 1 >= best[0].probability >= best[1].probability


def test_inner_paths_cost_another_pass_and_give_the_same(demo_model):
    with demo_model.trace(PROMPT) as trace:
        inner = trace.activations["layers.1.mlp.down_proj"]
        assert mx.allclose(inner, trace.activations["layers.1.mlp"], atol=1e-5)


def test_several_texts_are_padded_on_the_right_without_effect(demo_model):
    with demo_model.trace([PROMPT, "Anna lives in Poland. She has a cat."]) as both:
        pass
    with demo_model.trace(PROMPT) as one:
        pass
    n = one.lengths[0]
    assert both.lengths[0] == n
    together, alone = both.activations["layers.3"][:1, :n], one.activations["layers.3"]
    assert mx.allclose(together, alone, atol=1e-3)


def test_an_intervention_changes_the_trace_and_is_gone_after_it(demo_model):
    plain = demo_model.trace(PROMPT).logits
    with demo_model.trace(PROMPT, interventions={"layers.1": lambda x: x * 0}) as trace:
        assert not mx.allclose(trace.logits, plain, atol=1e-2)
        assert mx.abs(trace.activations["layers.2.residual_in"]).max().item() == 0
    assert mx.array_equal(demo_model.trace(PROMPT).logits, plain)


def test_generation_answers_and_interventions_steer_it(demo_model):
    assert "Berlin" in demo_model.generate(PROMPT, max_tokens=4)
    with demo_model.trace("The capital of France is") as trace:
        france = trace.activations["layers.0.residual_in"][0, -2]

    def to_france(x):
        return mx.concatenate([x[:, :-1], mx.broadcast_to(france, x[:, -1:].shape)], axis=1) if x.shape[1] > 1 else x

    steered = demo_model.generate(PROMPT, max_tokens=4, interventions={"layers.0.residual_in": to_france})
    assert "Paris" in steered
    assert "Berlin" in demo_model.generate(PROMPT, max_tokens=4)


def test_steered_generation_equals_recomputing_the_whole_text_at_every_step(demo_model):
    push = mx.array(np.random.default_rng(0).standard_normal(demo_model.hidden_size).astype(np.float32))
    edit = {"layers.1": lambda x: x + 0.3 * push}
    ids = demo_model.encode(PROMPT)
    text = demo_model.generate(PROMPT, max_tokens=8, interventions=edit)
    stops = set(demo_model.tokenizer.eos_token_ids)
    expected: list[int] = []
    for _ in range(8):
        logits = demo_model.run([ids + expected], edit=edit).logits
        best = demo_model.get_token_predictions(logits, 1)[0].token_id
        if best in stops:
            break
        expected.append(best)
    assert text.strip() == demo_model.tokenizer.decode(expected).strip()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.run([[1] * 2000]), DataError, "2,000 tokens: this model has only"),
        (lambda m: m.trace("word " * 3000).logits, DataError, "this model has only"),
        (lambda m: m.generate(PROMPT, max_tokens=10**6), DataError, "this model has only"),
        (lambda m: m.generate(PROMPT, temperature=-1), ConfigError, "temperature"),
        (lambda m: m.trace(PROMPT, interventions={"layers.9": lambda x: x}), SiteError, "layers 0 to 3"),
        (lambda m: m.trace([1]), DataError, "texts only"),
        (lambda m: m.run([[10**6]]), DataError, "ids go from 0 to 895"),
        (lambda m: m.run([[-1]]), DataError, "token id -1"),
        (lambda m: m.run([]), DataError, "expected token ids"),
        (lambda m: m.run([[0.5]]), DataError, "expected token ids"),
        (lambda m: m.token_to_str(896), DataError, "from 0 to 895"),
        (lambda m: m.trace([]), DataError, "at least one text"),
        (lambda m: m.generate(PROMPT, max_tokens=0), ConfigError, "max_tokens"),
        (lambda m: m.generate(PROMPT, interventions={"layers.9": lambda x: x}), SiteError, "layers 0 to 3"),
        (lambda m: m.get_token_predictions(mx.zeros((2, 3, 896))), DataError, "pick one text"),
        (lambda m: m.get_token_predictions(mx.zeros(5)), DataError, "expected"),
        (lambda m: m.get_token_predictions(mx.zeros(896), top_k=0), ConfigError, "top_k"),
    ],
)
def test_bad_input_is_refused_with_what_exists(demo_model, call, error, message):
    with pytest.raises(error, match=message):
        call(demo_model)


def test_token_texts_spell_the_prompt(demo_model):
    ids = demo_model.encode(PROMPT)
    assert "".join(demo_model.token_to_str(i) for i in ids[1:]) == PROMPT


def test_the_identity_says_what_was_loaded(demo_model, demo_folder):
    found = demo_model.identity
    assert (found.model_type, found.n_layers, found.hidden_size, found.vocab_size) == ("llama", 4, 128, 896)
    assert found.quantization is None
    assert found.dtype == "float16"
    assert set(found.files) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    pair = InterpretableModel((demo_model.model, demo_model.tokenizer)).identity
    assert (pair.model_type, pair.files, pair.repo_id) == ("llama", {}, None)


def test_on_a_cpu_a_low_precision_model_computes_in_fp32(demo_model):
    from hubsae.backend import is_cpu

    wanted = mx.float32 if is_cpu() else mx.float16
    assert demo_model.run([[1, 2]], read=["layers.1"]).activations.popitem()[1].dtype == wanted


@pytest.mark.parametrize("source", [3, None, ("a", "b", "c"), ("model", "tokenizer")])
def test_what_is_no_model_is_refused(source):
    with pytest.raises(ConfigError, match=r"\(model, tokenizer\) pair"):
        InterpretableModel(source)


@pytest.fixture
def copied(demo_folder, tmp_path):
    return shutil.copytree(demo_folder, tmp_path / "model")


def test_folders_that_are_no_model_say_why(tmp_path, copied):
    with pytest.raises(ModelError, match=r"no config\.json"):
        InterpretableModel(tmp_path)
    with pytest.raises(ModelError, match="local folder"):
        InterpretableModel(copied, revision="main")
    with pytest.raises(HubError):
        InterpretableModel("a/b/c")
    (copied / "tokenizer.json").rename(copied / "tokenizer.bak")
    with pytest.raises(ModelError, match="tokenizer"):
        InterpretableModel(copied)
    (copied / "tokenizer.bak").rename(copied / "tokenizer.json")
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"found pytorch_model\.bin"):
        InterpretableModel(copied)


def rewritten(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in {**config, **changes}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def test_an_architecture_that_mlx_lm_lacks_is_named(copied):
    rewritten(copied, model_type="perceptron")
    with pytest.raises(ModelError, match="perceptron"):
        InterpretableModel(copied)


def test_code_in_a_repository_is_never_run(copied):
    (copied / "evil.py").write_text("raise SystemExit('ran')")
    rewritten(copied, model_file="evil.py")
    with pytest.raises(ModelError, match="custom module"):
        InterpretableModel(copied)


def test_rope_settings_where_transformers_5_writes_them_are_read(copied, demo_model):
    theta = json.loads((copied / "config.json").read_text())["rope_theta"]
    rewritten(copied, rope_theta=..., rope_parameters={"rope_theta": theta, "rope_type": "default"})
    expected = demo_model.trace(PROMPT).logits
    assert mx.array_equal(InterpretableModel(copied).trace(PROMPT).logits, expected)
    rewritten(copied, rope_parameters={"rope_theta": 50 * theta, "rope_type": "default"})
    assert not mx.allclose(InterpretableModel(copied).trace(PROMPT).logits, expected, atol=1e-2)


def test_a_site_of_another_model_is_refused(demo_model):
    with pytest.raises(SiteError, match="a site of model 1, but this is one model"):
        demo_model.run([[1, 2]], read=["1:layers.1.residual"])
    with pytest.raises(SiteError, match="a site of model 1"), demo_model.trace("Hi") as trace:
        _ = trace.activations["1:layers.1.residual"]
