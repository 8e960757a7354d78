"""The window's hooks on tiny random builds of many architectures."""

from typing import Any

import architectures
import mlx.core as mx
import numpy as np
import pytest

from hubsae.errors import SiteError
from hubsae.lm import LanguageModel
from hubsae.sites import Site
from hubsae.taps import Taps

TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6]]


@pytest.fixture(scope="module", params=sorted(architectures.SETTINGS))
def window(request) -> LanguageModel:
    return LanguageModel((architectures.build(request.param), object()))


def classes(window: LanguageModel) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in window.model.named_modules()]


def test_at_least_twenty_architectures_are_checked():
    assert len(architectures.SETTINGS) >= 20


def test_reading_leaves_logits_unchanged_and_everything_restored(window):
    from mlx_lm.models.cache import make_prompt_cache

    before = classes(window)
    plain = window.model(mx.array(TOKENS), cache=make_prompt_cache(window.model))
    run = window.run(TOKENS, read=tuple(window.sites()))
    assert mx.array_equal(plain, run.logits)
    assert classes(window) == before
    assert all("_hubsae_taps" not in vars(module) for _, module in window.model.named_modules())


def test_a_layers_output_is_the_next_layers_input(window):
    run = window.run(TOKENS, read=tuple(window.sites()))
    for i in range(window.n_layers - 1):
        assert mx.array_equal(run.activations[Site(i)], run.activations[Site(i + 1, "residual_in")])


def test_early_stop_reads_the_same(window):
    whole = window.run(TOKENS, read=["layers.1"])
    short = window.run(TOKENS, read=["layers.1"], logits=False)
    assert short.logits is None
    assert mx.array_equal(whole.activations[Site(1)], short.activations[Site(1)])


def test_editing_an_output_equals_editing_the_next_input(window):
    change = mx.array(np.random.default_rng(0).standard_normal(window.hidden_size).astype(np.float32))
    plain = window.run(TOKENS).logits
    after = window.run(TOKENS, edit={"layers.0": lambda x: x + change}).logits
    before = window.run(TOKENS, edit={"layers.1.residual_in": lambda x: x + change}).logits
    assert mx.array_equal(after, before)
    assert not mx.allclose(after, plain, atol=1e-3)


def test_cached_steps_see_the_same_as_one_pass(window):
    from mlx_lm.models.cache import make_prompt_cache

    whole = window.run(TOKENS, read=["layers.2"]).activations[Site(2)]
    cache = make_prompt_cache(window.model)
    steps = [window.run([TOKENS[0][i : i + 1]], read=["layers.2"], cache=cache) for i in range(len(TOKENS[0]))]
    stepwise = mx.concatenate([step.activations[Site(2)] for step in steps], axis=1)
    scale = float(np.abs(np.array(whole)).max())
    assert np.abs(np.array(stepwise - whole)).max() < 2e-4 * scale


def test_right_padding_changes_nothing(window):
    short = [[*TOKENS[0][:5], 0, 0, 0], TOKENS[0]]
    batch = window.run(short, read=["layers.2"]).activations[Site(2)]
    alone = window.run([TOKENS[0][:5]], read=["layers.2"]).activations[Site(2)]
    scale = float(np.abs(np.array(alone)).max())
    assert np.abs(np.array(batch[:1, :5] - alone)).max() < 2e-4 * scale


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel((architectures.build("llama"), object()))


def test_module_outputs_add_up_to_the_residual(llama):
    a = llama.run(TOKENS, read=tuple(llama.sites())).activations
    total = a[Site(1, "residual_in")] + a[Site(1, "attn")] + a[Site(1, "mlp")]
    assert mx.allclose(total, a[Site(1)], atol=1e-5)


def test_inputs_and_outputs_of_inner_modules_can_be_read(llama):
    sites = ["layers.1.mlp_in", "layers.1.mlp", "layers.1.mlp.down_proj.in", "layers.1.self_attn.o_proj.in"]
    a = llama.run(TOKENS, read=sites, logits=False).activations
    mlp = llama.layers[1].mlp
    assert mx.array_equal(mlp(a[Site(1, "mlp_in")]), a[Site(1, "mlp")])
    assert mx.allclose(mlp.down_proj(a[Site(1, "mlp.down_proj.in")]), a[Site(1, "mlp")], atol=1e-6)


def test_an_exception_in_an_edit_restores_the_model(llama):
    before = classes(llama)

    def fail(x):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        llama.run(TOKENS, edit={"layers.1.mlp": fail})
    assert classes(llama) == before


def test_nested_contexts_stack_and_unstack(llama):
    before = classes(llama)
    with Taps(llama.layers, [Site(1)]) as outer:
        with Taps(llama.layers, (), {Site(1): lambda x: x * 0}) as inner:
            llama.model(mx.array(TOKENS))
            assert inner.visits
        llama.model(mx.array(TOKENS))
    assert Site(1) in outer.values
    assert classes(llama) == before


def test_captured_values_are_snapshots(llama):
    seen = llama.run(TOKENS, read=["layers.0"]).activations[Site(0)]
    first = np.array(seen)
    llama.run(TOKENS, edit={"layers.0": lambda x: x.__iadd__(1.0)})
    assert np.array_equal(first, np.array(seen))


def test_a_quantised_model_reads_the_same_way(llama):
    import mlx.nn as nn

    model = architectures.build("llama")
    nn.quantize(model, group_size=32, bits=8)
    window = LanguageModel((model, object()))
    assert window.identity.quantization == {"bits": 8, "group_size": 32, "mode": "affine"}
    seen = window.run(TOKENS, read=["layers.1"]).activations[Site(1)]
    exact = llama.run(TOKENS, read=["layers.1"]).activations[Site(1)]
    error = np.linalg.norm(np.array(seen - exact)) / np.linalg.norm(np.array(exact))
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("layers.7.mlp", "layers 0 to 2"),
        ("layers.1.nothing", "it has input_layernorm, mlp, post_attention_layernorm, self_attn"),
        ("layers.1.mlp.nothing.in", "down_proj, gate_proj, up_proj"),
        ("layers.1.self_attn.scale", "has no"),
        ("mlp", "is no site"),
        ("layers.1.", "is no site"),
    ],
)
def test_an_unknown_site_is_refused_and_what_exists_is_listed(llama, site, message):
    with pytest.raises(SiteError, match=message):
        llama.run(TOKENS, read=[site])


def test_a_module_that_never_runs_is_named():
    window = LanguageModel((architectures.build("gpt2"), object()))
    layers: Any = window.layers
    layers[1].unused, layers[0].mlp.c_fc = layers[0].mlp.c_fc, layers[1].mlp.c_fc
    with pytest.raises(SiteError, match="never calls it"):
        window.run(TOKENS, read=["layers.1.unused"])
    with pytest.raises(SiteError, match="never calls it"):
        window.run(TOKENS, edit={"layers.1.unused": lambda x: x})


def test_a_stream_that_is_not_one_vector_a_token_is_refused(llama):
    with pytest.raises(SiteError, match="not one vector for each of the"):
        llama.run(TOKENS, read=["layers.1.self_attn.rope"])


def test_an_edit_of_another_shape_is_refused(llama):
    with pytest.raises(SiteError, match=r"shape \(1, 8, 32\)"):
        llama.run(TOKENS, edit={"layers.1": lambda x: x[:, :1]})


def test_a_model_whose_layers_are_never_called_is_refused():
    from hubsae.errors import ModelError

    model = architectures.build("llama")

    class Bypass(type(model)):
        def __call__(self, inputs, cache=None):
            return self.lm_head(self.model.embed_tokens(inputs))

    model.__class__ = Bypass
    with pytest.raises(ModelError, match="never calls its layers"):
        LanguageModel((model, object())).sites()


def test_two_names_of_one_place_edit_before_they_read(llama):
    run = llama.run(TOKENS, read=["layers.0.attn"], edit={"layers.0.self_attn": lambda x: x * 0})
    assert np.abs(np.array(run.activations[Site(0, "attn")])).max() == 0
    with pytest.raises(SiteError, match="same place"):
        llama.run(TOKENS, edit={"layers.0.attn": lambda x: x, "layers.0.self_attn": lambda x: x})


def test_an_outer_read_sees_an_inner_edit(llama):
    with Taps(llama.layers, [Site(1)]) as outer, Taps(llama.layers, (), {Site(1): lambda x: x * 0}):
        llama.model(mx.array(TOKENS))
    assert np.abs(np.array(outer.values[Site(1)])).max() == 0


def test_an_intervention_may_run_the_model_itself(llama):
    other = llama.run([[7, 7, 7]], read=["layers.1"]).activations[Site(1)]

    def edit(x):
        inner = llama.run([[7, 7, 7]], read=["layers.1"]).activations[Site(1)]
        return x + mx.mean(inner - other)

    run = llama.run(TOKENS, read=["layers.1"], edit={"layers.1": edit})
    assert mx.allclose(run.activations[Site(1)], llama.run(TOKENS, read=["layers.1"]).activations[Site(1)])


def test_an_intervention_that_is_no_function_is_refused(llama):
    with pytest.raises(SiteError, match="has to be a function"):
        llama.run(TOKENS, edit={"layers.1": 3})


def test_two_spellings_of_one_site_are_refused_rather_than_one_lost(llama):
    with pytest.raises(SiteError, match="has two interventions"):
        llama.run(TOKENS, edit={"layers.1": lambda x: x * 0, "model.layers.1.residual": lambda x: x})
