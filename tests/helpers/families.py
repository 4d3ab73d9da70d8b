"""A tiny random model of every family that packs are tested on, with the traits that could break them switched on."""

import torch
from transformers import (
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCAB_SIZE = 260
HIDDEN_SIZE = 32
SPECIAL = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
PLAIN = {"hidden_size": HIDDEN_SIZE, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512}
FOUR = {**PLAIN, "intermediate_size": 64, **SPECIAL}
TWO_KEY_HEADS = {**FOUR, "num_key_value_heads": 2}  # grouped queries
CONFIGS = {
    "bloom": lambda: BloomConfig(hidden_size=HIDDEN_SIZE, n_layer=3, n_head=4, **SPECIAL),
    "bloom_post_norm": lambda: BloomConfig(
        hidden_size=HIDDEN_SIZE, n_layer=3, n_head=4, apply_residual_connection_post_layernorm=True, **SPECIAL
    ),
    "cohere": lambda: CohereConfig(**TWO_KEY_HEADS),  # scaled logits
    "gemma2": lambda: (
        Gemma2Config(  # two soft caps, low enough to bend the scores of so small a model; scaled embeddings
            **TWO_KEY_HEADS, head_dim=8, sliding_window=5, attn_logit_softcapping=1.0, final_logit_softcapping=3.0
        )
    ),
    "gemma3_text": lambda: Gemma3TextConfig(
        **TWO_KEY_HEADS, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: GPT2Config(n_embd=HIDDEN_SIZE, n_layer=2, n_head=4, n_positions=512, **SPECIAL),
    "gpt_neox": lambda: GPTNeoXConfig(**FOUR),
    "llama": lambda: LlamaConfig(**TWO_KEY_HEADS),
    "mistral": lambda: MistralConfig(**TWO_KEY_HEADS, sliding_window=6),
    "opt": lambda: OPTConfig(**PLAIN, ffn_dim=64, word_embed_proj_dim=HIDDEN_SIZE, **SPECIAL),
    "phi": lambda: PhiConfig(**TWO_KEY_HEADS),  # a head with a bias
    "qwen2": lambda: Qwen2Config(**TWO_KEY_HEADS, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**TWO_KEY_HEADS, head_dim=8),
    "starcoder2": lambda: Starcoder2Config(**TWO_KEY_HEADS, sliding_window=7),
}


def make_family(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A frozen random model; weights are large enough that prompts, positions and biases matter."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    for key, parameter in model.named_parameters():
        if parameter.dim() > 1 or key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval().requires_grad_(False)
