"""The config of a base: read without running code or fetching anything, and compared with the weights' headers.

transformers builds whatever a config claims. So the model is first built on the meta device, where it has shapes and no
memory, and only as long as it stays in proportion to what the weight files hold.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AutoHfQuantizer

from softprompt.base.checkpoint import WHOLE_NUMBERS, Stored
from softprompt.errors import UserError
from softprompt.system.foreign import foreign, read_json, visible

# transformers makes a list with an entry for each of these before it makes a single tensor
COUNTED = re.compile("layer|label|expert|head|types")
SHARES = re.compile("dropout|pdrop")  # of which transformers would say so only in the first pass
# numbers of positions, which many models never read; whoever generates reads them from any config
POSITIONS = ("max_position_embeddings", "n_positions", "seq_length", "sliding_window", "attention_chunk_size")
MOST_COUNTED = 100_000
# how much larger than the stored checkpoint the model may be: 4 bits a weight in the file, 32 in memory, and buffers
LARGER, BUFFER_BYTES = 16, 1 << 30
ADAPTER = "adapter_config.json"


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """Read the config of a causal LM, without the attention kernel that it may name.

    transformers would fetch such a kernel from the hub. Without the name it chooses one of its own.

    Raises:
        UserError: there is no usable config.json, it needs Python code, or it is not of a causal LM.
    """
    what = f"`model` {name}: no usable config.json"
    if (folder / ADAPTER).exists():  # transformers would load it, or the base that it names
        raise UserError(
            f"`model` {name}: holds an adapter ({ADAPTER}), which only fits into a base; merge it into its base and"
            " save that, or name the base alone"
        )
    raw = read_json(folder / "config.json", what)
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES if isinstance(kind, str) else kind is not None:
        refuse_own_code(raw, "config.json", name)
        raise UserError(
            f"{what}: its model_type {visible(repr(kind))} is unknown to transformers {transformers.__version__};"
            " perhaps a newer one knows it"
        )
    for key, number in _numbers(raw):
        many, share = COUNTED.search(key), SHARES.search(key)
        if (many and abs(number) > MOST_COUNTED) or (share and not 0 <= number <= 1):
            raise UserError(f"{what}: {visible(key)} is {str(number)[:20]}, which no base has")
    for key, value in _entries(raw):
        if key in POSITIONS and not (value is None or (type(value) is int and 0 <= value < 2**63)):
            raise UserError(f"{what}: {key} is {visible(repr(value)[:20])}, which is no number of positions")
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise UserError(f"{what}: architectures must be a list of names")
    _check_quantisation(raw.get("quantization_config"), what)
    with foreign(what):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        config._attn_implementation = None
        for each in {id(part): part for part in (config, config.get_text_config())}.values():
            # what a forward pass returns is what the engine reads, and not also what nothing here does
            each.return_dict, each.output_hidden_states, each.output_attentions = True, False, False
        architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")]
        causal = bool(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).intersection(architectures))
    if not causal:
        kind = config.architectures[0] if config.architectures else config.model_type
        raise UserError(
            f"`model` {name}: {visible(str(kind))} is not a causal language model; choose one such as BloomForCausalLM"
        )
    _check_padding(config, name)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not (isinstance(layers, int) and layers > 0):
        raise UserError(f"{what}: it has {visible(repr(layers))} layers")
    return config


def refuse_own_code(raw: Mapping[str, Any], file: str, name: str) -> None:
    """Raise `UserError` if a config file needs Python code beside it.

    Such code would run with the user's rights, so softprompt only loads architectures that transformers itself has.
    """
    if raw.get("auto_map"):
        raise UserError(
            f"`model` {name}: needs Python code of its own ({file}: auto_map), which softprompt never runs;"
            " choose a base that transformers knows"
        )


def check_agreement(config: PretrainedConfig, stored: Mapping[str, Stored], name: str) -> None:
    """Compare what a config claims with the tensors that the weight files hold, before anything is allocated.

    Raises:
        UserError: transformers cannot build the model, or it is far larger than the files; a tensor has another shape;
            or a weight is stored as whole numbers and the base is not quantised.
    """
    model = _build_on_meta(config, name, most=4 * len(stored) + 100)
    if model.config.is_encoder_decoder:
        raise UserError(f"`model` {name}: {type(model).__name__} is set up as an encoder and a decoder in config.json")
    tensors = [*model.parameters(), *model.buffers()]
    claimed = sum(each.numel() * each.element_size() for each in tensors)
    there = sum(torch.Size(each.shape).numel() for each in stored.values())
    for own, tensor, found in _matched(model, stored):
        if found.shape != list(tensor.shape):
            raise UserError(f"`model` {name}: {own} is {found.shape}, its config.json says {list(tensor.shape)}")
        if found.dtype in WHOLE_NUMBERS and tensor.is_floating_point():
            raise UserError(
                f"`model` {name}: {own} is stored as whole numbers ({found.dtype}), and its config.json names no"
                " quantisation; fetch the model again"
            )
    if claimed > LARGER * there + BUFFER_BYTES:
        raise UserError(
            f"`model` {name}: its config.json describes a model of {claimed / 1e9:,.1f} GB, and its weight files hold"
            f" {there:,} numbers; they do not belong together"
        )


def _matched(model: PreTrainedModel, stored: Mapping[str, Stored]) -> Iterator[tuple[str, torch.Tensor, Stored]]:
    """The parameters whose stored tensor has the same name, with or without the model's prefix.

    A quantised base stores other shapes, and some architectures are converted while they are loaded; both are left to
    transformers.
    """
    conversions = get_checkpoint_conversion_mapping(model.config.model_type) or []
    converted = any(isinstance(each, WeightConverter) for each in conversions)
    if converted or getattr(model.config, "quantization_config", None):
        return
    prefix = model.base_model_prefix + "."
    for own, tensor in model.named_parameters():
        names = (own, own.removeprefix(prefix), prefix + own)
        found = next((stored[each] for each in names if each in stored), None)
        if found is not None:
            yield own, tensor, found


def _build_on_meta(config: PretrainedConfig, name: str, *, most: int) -> PreTrainedModel:
    """Build the model without memory; after `most` parameters it can no longer be that of the weight files."""
    made = 0

    def count(module: nn.Module, parameter_name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += parameter is not None and parameter.is_meta
        if made > most:
            raise UserError(f"`model` {name}: its config.json describes many more tensors than its weight files hold")

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        what = f"`model` {name}: no model can be built from its config.json"
        with foreign(what), torch.device("meta"), no_init_weights():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    finally:
        hook.remove()


def _check_quantisation(settings: object, what: str) -> None:
    """Raise `UserError` if the weights are quantised in a way that transformers would ignore."""
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise UserError(f"{what}: quantization_config is not an object")
    with foreign(what):
        known = AutoHfQuantizer.supports_quant_method(settings)
    if not known:
        method = visible(repr(settings.get("quant_method")))
        raise UserError(f"{what}: its quant_method {method} is unknown to transformers {transformers.__version__}")


def _check_padding(config: PretrainedConfig, name: str) -> None:
    """Raise `UserError` if the pad id is beyond the vocabulary, for which transformers has only an assertion."""
    text = config.get_text_config()
    pad, size = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if pad is not None and isinstance(size, int) and not (isinstance(pad, int) and -size <= pad < size):
        raise UserError(f"`model` {name}: pad_token_id {pad!r} in config.json is not in its vocabulary of {size}")


def _entries(raw: object) -> Iterator[tuple[str, object]]:
    """Every key of a config with its value, at any depth."""
    pending = [raw]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _numbers(raw: object) -> Iterator[tuple[str, float]]:
    """The numbers of a config, at any depth, with the nearest key above each."""
    pending = [("", raw)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += [(str(name), each) for name, each in value.items()]
        elif isinstance(value, list):
            pending += [(key, each) for each in value]
        elif isinstance(value, int | float):
            yield key, value
