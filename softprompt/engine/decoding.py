"""Decoding behind a front whose keys and values are computed once: prefill the texts, then add one token at a time.

transformers' `generate` prepares everything: the settings and their checks, logits processors, stopping criteria and
repeated rows. It then calls `decode` in place of its own loop, through its argument `custom_generate`. The ids and the
random draws are therefore those of transformers' own loop.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from softprompt.engine.cache import Cache
from softprompt.engine.running import feed, one_token_steps, running
from softprompt.errors import NotFiniteLogits, UserError
from softprompt.packs.families import can_pack

# the settings that `decode` obeys, by itself or through the processors and criteria that it gets
IMPLEMENTED = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "do_sample", "temperature", "top_k",
    "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "renormalize_logits", "forced_bos_token_id",
    "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "num_return_sequences", "pad_token_id", "bos_token_id", "eos_token_id", "streamer",
    "generation_config",
}  # fmt: skip
# values that, like None and False, change nothing; with any other setting transformers' own loops decode
NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "use_cache": True, "guidance_scale": 1, "encoder_repetition_penalty": 1,
    "length_penalty": 1, "diversity_penalty": 0, "encoder_no_repeat_ngram_size": 0, "cache_implementation": "hybrid",
}  # fmt: skip


def can_decode(base_model: PreTrainedModel, settings: dict) -> bool:
    """Whether `decode` can do all that these settings and the base's own generation config ask for."""
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    sources = [settings, *_configs(base_model, settings)]
    for name in (known | settings.keys()) - IMPLEMENTED:
        value = next((source[name] for source in sources if source.get(name) is not None), None)
        if value is not None and value is not False and value != NEUTRAL.get(name):
            return False
    return can_pack(base_model)


def text_lengths(base_model: PreTrainedModel, settings: dict, text_length: int) -> dict:
    """Turn `max_length` and `min_length`, which count text ids, into `max_new_tokens` and `min_new_tokens`.

    Limits on new tokens do not depend on how the front is fed. What the caller passes wins over the caller's
    generation config, and that wins over the base's; within each of them, a limit on new tokens wins over a length. If
    none of them has a limit, there are 20 new tokens, as in transformers.

    Raises:
        UserError: the limit leaves no room for a new token.
    """
    sources = [settings, *_configs(base_model, settings)]
    settings, config = dict(settings), settings.get("generation_config")
    for limit, fallback in (("max", 20), ("min", None)):
        new, total = f"{limit}_new_tokens", f"{limit}_length"
        name, value = next(((k, s[k]) for s in sources for k in (new, total) if s.get(k) is not None), (new, fallback))
        settings.pop(total, None)
        if value is not None:
            value = value - text_length if name == total else value
            settings[new] = value if limit == "max" else max(value, 0)
    if settings["max_new_tokens"] < 1:
        raise UserError(f"max_length leaves no room behind {text_length} text tokens; raise it or give max_new_tokens")
    if config is not None:
        neither = {"max_length": None, "min_length": None}
        settings["generation_config"] = GenerationConfig.from_dict(config.to_dict() | neither)
    return settings


def decode(
    base_model: PreTrainedModel,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    fronts: Sequence[Cache],
    streamer: BaseStreamer | None,
    members: int = 1,
    **model_inputs: Tensor | None,
) -> Tensor:
    """Decode in place of the loop of `generate`, which prepares and passes all but `fronts`, `streamer` and `members`.

    Args:
        input_ids: int64 `[B, T]`, left-padded; no row consists of pads alone.
        fronts: caches that `front_cache` made: one for all rows, or one for each row before `generate` repeated rows,
            or those of the members of an ensemble.
        members: how many there are. Each row then runs behind all of them, and its next id is chosen from the mean of
            their distributions.
        model_inputs: contains `attention_mask`, `[B, T]` with 0 at pads, or None if there are no pads.

    Returns:
        int64 `[B, T + new]`.
    """
    rows, length = input_ids.shape
    fronts = [*fronts] * rows if members > 1 else [front for front in fronts for _ in range(rows // len(fronts))]
    mask = model_inputs["attention_mask"]
    kept = [slice(None)] * rows if mask is None else mask != 0
    texts = [row[own].tolist() for row, own in zip(input_ids, kept, strict=True) for _ in range(members)]
    cache, limit = Cache(), generation_config.max_length
    cache.join(fronts)
    processors = LogitsProcessorList(each for each in logits_processor if not _idle(each))
    choose = functools.partial(_choose, processors, generation_config.do_sample)
    pad = generation_config._pad_token_tensor
    ids = torch.cat([input_ids, input_ids.new_zeros(rows, limit - length)], dim=1)  # [B, T + new]
    unfinished = torch.ones(rows, dtype=torch.bool, device=ids.device)
    with running(base_model) as run:
        logits = feed(base_model, run, cache, None, texts)
        step = one_token_steps(base_model, run, cache, limit - length)
        for end in range(length, limit):
            require_finite(logits)
            logits = logits if members == 1 else mean_distribution(logits, members)
            chosen = choose(ids[:, :end], logits)  # [B]
            ids[:, end] = chosen if pad is None else torch.where(unfinished, chosen, pad)
            unfinished &= ~stopping_criteria(ids[:, : end + 1], None)
            if streamer is not None:
                streamer.put(ids[:, end].cpu())
            if not unfinished.any():
                break
            logits = step(ids[:, end] if members == 1 else ids[:, end].repeat_interleave(members))
    if streamer is not None:
        streamer.end()
    return ids[:, : end + 1].contiguous()


def require_finite(logits: Tensor) -> None:
    """Raise `NotFiniteLogits` if a row of `[B, V]` holds NaN, or has no largest finite logit."""
    usable = logits.amax(dim=-1).isfinite()  # the maximum is NaN if one of them is; single ids may be at -infinity
    if not usable.all():
        raise NotFiniteLogits(int(usable.logical_not().nonzero()[0]))


def mean_distribution(logits: Tensor, members: int) -> Tensor:
    """Return the logarithm of the mean of the distributions of every `members` neighbours: `[B * M, V]` -> `[B, V]`."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(-1, dtype=wide).unflatten(0, (-1, members)).logsumexp(1) - math.log(members)


def _choose(processors: LogitsProcessorList, sample: bool, ids: Tensor, logits: Tensor) -> Tensor:
    """Choose the next id of every row, int64 `[B]`, from its ids so far, `[B, t]`, and its logits `[B, V]`."""
    if not (sample or processors):
        return logits.argmax(dim=-1)
    process: Callable[..., Tensor] = processors  # it asks for a LongTensor, and no tensor is of that class
    scores = process(ids, logits.to(torch.float32, copy=True))
    return _draw(scores) if sample else scores.argmax(dim=-1)


def _draw(scores: Tensor) -> Tensor:
    """Draw one id per row from scores `[B, V]`, in the same way as transformers: int64 `[B]`."""
    return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)


def _idle(processor: LogitsProcessor) -> bool:
    """Whether a processor changes nothing: a min-p of 0 sorts the whole vocabulary and removes no id."""
    return isinstance(processor, MinPLogitsWarper) and processor.min_p == 0


def _configs(base_model: PreTrainedModel, settings: dict) -> list[dict]:
    """The settings in the caller's generation config, if there is one, and in the base's own."""
    return [vars(c) for c in (settings.get("generation_config"), base_model.generation_config) if c is not None]
