"""Random small models of three families, and a byte-level tokenizer for them."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 260  # four special tokens and every byte
HIDDEN_SIZE = 32
FAMILIES = ("bloom", "llama", "gpt2")
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def make_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of two layers; weights are large enough that prompts and positions matter."""
    sizes = {"vocab_size": VOCAB_SIZE, **SPECIAL}
    torch.manual_seed(0)
    if family == "bloom":
        model = BloomForCausalLM(BloomConfig(hidden_size=HIDDEN_SIZE, n_layer=2, n_head=4, **sizes))
    elif family == "llama":
        shape = {"hidden_size": HIDDEN_SIZE, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, **sizes))
    else:
        model = GPT2LMHeadModel(GPT2Config(n_embd=HIDDEN_SIZE, n_layer=2, n_head=4, n_positions=512, **sizes))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, behind the four special tokens of BLOOM."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer = Tokenizer(models.BPE({token: place for place, token in enumerate(special + alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)
