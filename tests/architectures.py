"""Tiny random builds of mlx-lm's model classes, one for each architecture that the window is checked on."""

import importlib
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

VOCAB = 64

_GENERIC = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {},
    "gpt2": {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 128},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25, "num_key_value_heads": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    "mamba": {
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
        "tie_word_embeddings": True,
    },
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 1e9],
        "time_step_rank": 4,
        "chunk_size": 8,
        "tie_word_embeddings": True,
        "ssm_state_size": 8,
        "max_sequence_length": 128,
        "residual_in_fp32": False,
        "rms_norm": True,
    },
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "rope_theta": 10000.0, "num_key_value_heads": 4},
    "starcoder2": {"norm_epsilon": 1e-5},
    "cohere": {"logit_scale": 0.0625, "use_qk_norm": False},
    "cohere2": {"logit_scale": 0.0625, "sliding_window": 8, "sliding_window_pattern": 2},
    "granite": {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.35,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
    },
    "internlm2": {"bias": False},
    "glm4": {"partial_rotary_factor": 0.5},
    "exaone4": {"sliding_window": None, "sliding_window_pattern": None, "rope_scaling": None},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "deepseek": {
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_key_value_heads": 4,
    },
    "smollm3": {"no_rope_layer_interval": 2, "no_rope_layers": [1, 0, 1]},
    "helium": {},
    "nemotron": {"hidden_act": "relu2", "partial_rotary_factor": 0.5, "norm_eps": 1e-5},
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 12},
    "seed_oss": {"attention_bias": True, "attention_out_bias": False, "attention_dropout": 0.0},
    "hunyuan": {
        "attention_bias": False,
        "moe_topk": 1,
        "num_experts": 2,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1.0, "factor": 1.0, "type": "dynamic"},
    },
}


def build(name: str) -> Any:
    """A random model of that architecture, weights large enough that every part matters, evaluated."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    args = module.ModelArgs.from_dict({"model_type": name, **_GENERIC, **SETTINGS[name]})
    mx.random.seed(0)
    model = module.Model(args)
    model.update(tree_map(lambda a: a + 0.05 * mx.random.normal(a.shape).astype(a.dtype), model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model
