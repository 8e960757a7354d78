"""Settings and keys that transformers 5 writes, as mlx-lm needs them."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from hubsae import lm_files
from hubsae.errors import ModelError


@pytest.mark.parametrize(
    ("config", "update"),
    [
        ({"model_type": "llama", "rope_theta": 5e5}, {}),
        (
            {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            {"rope_theta": 5e5, "rotary_emb_base": 5e5},
        ),
        (
            {"model_type": "llama", "rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}},
            {
                "rope_theta": 1e4,
                "rotary_emb_base": 1e4,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
            },
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            {"rope_theta": 1e4, "rotary_emb_base": 1e4, "partial_rotary_factor": 0.25, "rotary_pct": 0.25},
        ),
        ({"model_type": "gpt2", "n_positions": 64}, {"n_ctx": 64}),
        (
            {
                "model_type": "gemma3_text",
                "layer_types": ["sliding_attention", "full_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            },
            {
                "rope_theta": 1e6,
                "rotary_emb_base": 1e6,
                "rope_local_base_freq": 1e4,
                "sliding_window_pattern": 2,
            },
        ),
    ],
)
def test_settings_are_put_where_mlx_lm_reads_them(config, update):
    assert lm_files.mend_config(config) == update


def test_settings_inside_a_text_config_are_mended_too():
    inner = {"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    mended = lm_files.mend_config({"model_type": "outer", "text_config": inner})["text_config"]
    assert mended["rope_theta"] == 5e5
    assert mended["model_type"] == "llama"


def test_rope_settings_that_would_be_lost_are_refused():
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(ModelError, match="per layer type"):
        lm_files.mend_config({"model_type": "llama", "rope_parameters": rope})


def gpt2_folder(tmp_path, prefix: str):
    """A tiny GPT-2 as `save_pretrained` of transformers 5 lays it out: no `n_ctx`, keys under `transformer.`."""
    import json

    rng = np.random.default_rng(0)
    draw = lambda *shape: mx.array(rng.standard_normal(shape).astype(np.float32) * 0.1)  # noqa: E731
    weights = {"wte.weight": draw(64, 16), "wpe.weight": draw(32, 16), "ln_f.weight": draw(16), "ln_f.bias": draw(16)}
    for i in range(2):
        for name, shape in {"c_attn": (16, 48), "c_proj": (16, 16)}.items():
            weights |= {f"h.{i}.attn.{name}.weight": draw(*shape), f"h.{i}.attn.{name}.bias": draw(shape[1])}
        for name, shape in {"c_fc": (16, 64), "c_proj": (64, 16)}.items():
            weights |= {f"h.{i}.mlp.{name}.weight": draw(*shape), f"h.{i}.mlp.{name}.bias": draw(shape[1])}
        for name in ("ln_1", "ln_2"):
            weights |= {f"h.{i}.{name}.weight": draw(16), f"h.{i}.{name}.bias": draw(16)}
    folder = tmp_path / (prefix or "plain")
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), {prefix + k: v for k, v in weights.items()})
    config = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32, "vocab_size": 64}
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-5}))
    return folder


def test_gpt2_keys_of_transformers_5_load_like_published_ones(tmp_path):
    import json

    logits = []
    for prefix in ("", "transformer."):
        folder = gpt2_folder(tmp_path, prefix)
        config = json.loads((folder / "config.json").read_text())
        update = lm_files.mend_config(config)
        model, _ = load_model(folder, model_config=update, get_model_classes=lm_files._classes)
        logits.append(model(mx.array([[1, 2, 3]])))
    assert mx.array_equal(*logits)


def test_gpt_neox_gets_the_exact_gelu_where_its_config_asks_for_it():
    import architectures

    model = architectures.build("gpt_neox")
    x = mx.array(np.random.default_rng(0).standard_normal((1, 3, 32)).astype(np.float32)) * 3
    mlp = model.layers[0].mlp
    approximate = mlp(x)
    lm_files._use_exact_gelu(model)
    hidden = np.array(mlp.dense_h_to_4h(x), np.float64)
    from scipy.special import erf

    exact = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    expected = exact @ np.array(mlp.dense_4h_to_h.weight, np.float64).T + np.array(mlp.dense_4h_to_h.bias)
    assert np.allclose(np.array(mlp(x)), expected, atol=1e-5)
    assert not mx.allclose(mlp(x), approximate, atol=1e-6)


def test_importing_mlx_lm_leaves_the_limit_of_open_files_alone():
    import subprocess
    import sys

    code = (
        "import resource; before = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "from hubsae.lm_files import _mlx_lm\n"
        "with _mlx_lm():\n    import mlx_lm\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
