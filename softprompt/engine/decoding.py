"""Decoding behind a front whose keys and values are computed once: prefill the texts, then add one token at a time.

transformers' `generate` prepares everything: the settings and their checks, logits processors, stopping criteria and
repeated rows. It then calls `decode` in place of its own loop, through its argument `custom_generate`. The ids and the
random draws are therefore those of transformers' own loop.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import (
    BloomForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from softprompt.engine.cache import Cache, slot_positions
from softprompt.errors import NotFiniteLogits, UserError
from softprompt.packs import bloom
from softprompt.packs.attention import Rules
from softprompt.packs.cpu_kernels import ThinLinear
from softprompt.packs.families import can_pack, own_attention

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
# a forward pass: the embeddings `[B, L, H]` for the slots that the cache has begun -> logits `[B, V]` at the last one
Run = Callable[[Cache, Tensor], Tensor]


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


def front_cache(base_model: PreTrainedModel, embeds: Tensor) -> Cache:
    """Run a front's embeddings `[F, H]`, in the base's dtype, through the base: a cache of one row and F slots.

    An empty front has an empty cache. Every later batch copies from this cache.
    """
    slots = torch.arange(len(embeds), device=embeds.device)
    cache = Cache(slots[None])
    if len(embeds) == 0:
        return cache
    cache.begin(slots, len(embeds))
    with running(base_model) as run:
        run(cache, embeds[None])
    return cache


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
    lengths = [front.positions.shape[1] for front in fronts]
    start, limit = max(lengths), generation_config.max_length
    mask = model_inputs["attention_mask"]
    mask = torch.ones_like(input_ids) if mask is None else mask
    cache = Cache(slot_positions(mask.repeat_interleave(members, dim=0), lengths, limit - length), fronts)
    choose = _draw if generation_config.do_sample else functools.partial(torch.argmax, dim=-1)
    # the annotation is for type checkers: transformers' own asks for a LongTensor, and no tensor is of that class
    processors: Callable[..., Tensor] = LogitsProcessorList(each for each in logits_processor if not _idle(each))
    pad = generation_config._pad_token_tensor
    ids = torch.cat([input_ids, input_ids.new_zeros(rows, limit - length)], dim=1)  # [B, T + new]
    unfinished = torch.ones(rows, dtype=torch.bool, device=ids.device)
    with running(base_model) as run:
        slots = torch.arange(start, start + length, device=ids.device)
        logits = feed(base_model, run, cache, input_ids.repeat_interleave(members, dim=0), slots, start + length)
        step = one_token_steps(base_model, run, cache, ids[:, 0].repeat_interleave(members))
        for end in range(length, limit):
            require_finite(logits)
            logits = logits if members == 1 else mean_distribution(logits, members)
            chosen = choose(processors(ids[:, :end], logits.to(torch.float32, copy=True)))  # [B]
            ids[:, end] = chosen if pad is None else torch.where(unfinished, chosen, pad)
            unfinished &= ~stopping_criteria(ids[:, : end + 1], None)
            if streamer is not None:
                streamer.put(ids[:, end].cpu())
            if not unfinished.any():
                break
            logits = step(ids[:, end].repeat_interleave(members), start + end)
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


def feed(
    base_model: PreTrainedModel, run: Run, cache: Cache, ids: Tensor, slots: Tensor, seen: int | None = None
) -> Tensor:
    """Run `ids` `[B, L]` through the base, with their keys and values in `slots` `[L]`: logits `[B, V]` at the last id.

    `seen` is that of `Cache.begin`.
    """
    cache.begin(slots, seen)
    return run(cache, base_model.get_input_embeddings()(ids))


def one_token_steps(
    base_model: PreTrainedModel, run: Run, cache: Cache, ids: Tensor
) -> Callable[[Tensor, int], Tensor]:
    """Make a function from one id per row, `[B]`, and their slot to logits `[B, V]`.

    On CUDA it replays a recorded graph of kernels; if recording fails, it warns and runs the kernels one by one.

    Args:
        ids: any ids `[B]` of the batch, to record with.
    """
    slots = torch.arange(cache.positions.shape[1], device=ids.device)

    def step(ids: Tensor, slot: int) -> Tensor:
        return feed(base_model, run, cache, ids[:, None], slots[slot : slot + 1], slot + 1)

    # recorded by hand: torch.compile would take longer to compile than one answer takes to decode
    if ids.device.type != "cuda":
        return step
    try:
        return CudaGraph(functools.partial(feed, base_model, run, cache), ids[:, None], slots[-1:])
    except RuntimeError as error:
        warnings.warn(f"decoding without a CUDA graph ({str(error).splitlines()[0]})", stacklevel=2)
        return step


class CudaGraph:
    """The forward pass of one token per row, recorded once and replayed: one launch instead of hundreds."""

    def __init__(self, feed: Callable[[Tensor, Tensor], Tensor], ids: Tensor, slots: Tensor) -> None:
        """Record `feed(ids [B, 1], slots [1])`.

        Recording fills `slots`; the cache hides them until the replay for these slots fills them again.
        """
        self.ids, self.slots = ids.clone(), slots.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            feed(self.ids, self.slots)  # libraries allocate their workspaces outside the graph
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = feed(self.ids, self.slots)

    def __call__(self, ids: Tensor, slot: int) -> Tensor:
        """Return logits `[B, V]` behind one id per row, `[B]`; the next call overwrites this tensor."""
        self.ids.copy_(ids[:, None])
        self.slots.fill_(slot)
        self.graph.replay()
        return self.logits


@contextlib.contextmanager
def running(base_model: PreTrainedModel) -> Iterator[Run]:
    """Give the function that runs this base on a `Cache`; it is valid inside this context."""
    if bloom.is_bloom(base_model):
        with ThinLinear():
            yield functools.partial(_run_bloom, base_model, bloom.attention_rules(base_model))
        return
    with own_attention(base_model), ThinLinear():
        yield functools.partial(_run_interface, base_model)


def _run_bloom(model: BloomForCausalLM, rules: Rules, cache: Cache, embeds: Tensor) -> Tensor:
    base, (rows, length, _) = model.transformer, embeds.shape
    hidden = base.word_embeddings_layernorm(embeds).flatten(0, 1)  # [B * L, H]
    last = torch.arange(length - 1, rows * length, length, device=embeds.device) if length > 1 else None
    for depth, layer in enumerate(base.h):
        attend = functools.partial(_attend_flat, cache, depth, rows)
        hidden = bloom.layer_output(layer, hidden, [hidden], attend, rules, last if depth == len(base.h) - 1 else None)
    return model.lm_head(base.ln_f(hidden))


def _attend_flat(
    cache: Cache, layer: int, rows: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules
) -> Tensor:
    """Call `Cache.attend` with rows that are joined, as `bloom.layer_output` has them.

    `query` is `[Q, B * L, D]`, and so are key and value; the result is `[B * L, Q, D]`.
    """
    query, key, value = (x.unflatten(1, (rows, -1)).transpose(0, 1) for x in (query, key, value))
    return cache.attend(layer, query, key, value, rules).transpose(1, 2).flatten(0, 1)


def _run_interface(base_model: PreTrainedModel, cache: Cache, embeds: Tensor) -> Tensor:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        return cache.attend(layer, query, key, value, rules).transpose(1, 2).contiguous()

    settings = {"position_ids": cache.position_ids, "use_cache": False, "logits_to_keep": 1, "attend": attend}
    return base_model(inputs_embeds=embeds, **settings).logits[:, -1]


def _draw(scores: Tensor) -> Tensor:
    """Draw one id per row from scores `[B, V]`, in the same way as transformers: int64 `[B]`."""
    return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)


def _idle(processor: LogitsProcessor) -> bool:
    """Whether a processor changes nothing: a min-p of 0 sorts the whole vocabulary and removes no id."""
    return isinstance(processor, MinPLogitsWarper) and processor.min_p == 0


def _configs(base_model: PreTrainedModel, settings: dict) -> list[dict]:
    """The settings in the caller's generation config, if there is one, and in the base's own."""
    return [vars(c) for c in (settings.get("generation_config"), base_model.generation_config) if c is not None]
