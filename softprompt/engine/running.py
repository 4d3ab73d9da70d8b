"""How a base runs on the keys and values of its rows: one forward pass, and the pass of one token more per row.

Prefilling and decoding are the same here: a pass (`cached_pass.py`) holds one new token for each row that has its text,
and the texts of the rows that have just joined.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import BloomForCausalLM, PreTrainedModel

from softprompt.engine.cache import Cache
from softprompt.engine.cached_pass import Pass, segments_of
from softprompt.packs import bloom
from softprompt.packs.attention import Rules
from softprompt.packs.cpu_kernels import thin_linears
from softprompt.packs.families import own_attention

SLOTS_AT_A_TIME = 64  # by which a cache grows

# from a pass and the embeddings of its tokens, `[N, H]`, to the logits `[rows, V]` behind the last token of every row
Run = Callable[[Pass, Tensor], Tensor]


@contextlib.contextmanager
def running(base_model: PreTrainedModel) -> Iterator[Run]:
    """Give the function that runs this base; it is valid inside this context."""
    with thin_linears(base_model):
        if bloom.is_bloom(base_model):
            yield functools.partial(_run_bloom, base_model, bloom.attention_rules(base_model))
            return
        with own_attention(base_model):
            yield functools.partial(_run_interface, base_model)


def _run_bloom(model: BloomForCausalLM, rules: Rules, tokens: Pass, embeds: Tensor) -> Tensor:
    base = model.transformer
    hidden = base.word_embeddings_layernorm(embeds)  # [N, H]
    for depth, layer in enumerate(base.h):
        attend = functools.partial(tokens.attend, depth)
        places = tokens.last if depth == len(base.h) - 1 else None
        hidden = bloom.layer_output(layer, hidden, [hidden], attend, rules, places)
    return model.lm_head(base.ln_f(hidden))


def _run_interface(base_model: PreTrainedModel, tokens: Pass, embeds: Tensor) -> Tensor:
    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        return tokens.attend(layer, query[0], key[0], value[0], rules)[None]

    keep = 0 if tokens.last is None else tokens.last  # 0 keeps all
    settings = {"position_ids": tokens.position_ids[None], "use_cache": False, "logits_to_keep": keep}
    return base_model(inputs_embeds=embeds[None], attend=attend, **settings).logits[0]


def feed(
    base_model: PreTrainedModel, run: Run, cache: Cache, ids: Tensor | None, texts: Sequence[Sequence[int]] = ()
) -> Tensor:
    """Add one id to each of the first rows of the cache, and a text to each of the others.

    Args:
        ids: int64 `[B]`; None if all rows get a text.
        texts: at least one id each.

    Returns:
        The logits behind every row, `[rows, V]`.
    """
    count = cache.rows - len(texts)
    added = [1] * count + [len(text) for text in texts]
    ends = [length + more for length, more in zip(cache.lengths, added, strict=True)]
    if max(ends) > cache.room[1]:
        cache.reserve(cache.rows, rounded(max(ends)))
    segments = segments_of(cache, texts, count)
    tokens = Pass(cache, cache.lengths[:count], segments, device=base_model.device)
    parts = [] if ids is None else [ids]
    if tokens.ids:
        parts.append(torch.tensor(tokens.ids, device=base_model.device))
    logits = run(tokens, base_model.get_input_embeddings()(torch.cat(parts) if len(parts) > 1 else parts[0]))
    cache.lengths = ends
    return logits


def rounded(slots: int) -> int:
    """The slots that a cache gets which needs so many."""
    return -(-slots // SLOTS_AT_A_TIME) * SLOTS_AT_A_TIME


def one_token_steps(base_model: PreTrainedModel, run: Run, cache: Cache, most: int) -> Callable[[Tensor], Tensor]:
    """Make a function from one id per row, `[B]`, to the logits behind it, `[B, V]`.

    On CUDA it replays a recorded graph of kernels; if recording fails, it warns and runs the kernels one by one.

    Args:
        most: how many ids every row will get at most.
    """
    step = functools.partial(feed, base_model, run, cache)
    # recorded by hand: torch.compile would take longer to compile than one answer takes to decode
    if base_model.device.type != "cuda":
        return step
    cache.reserve(cache.rows, rounded(max(cache.lengths) + most))  # a recorded graph cannot grow
    try:
        return CudaGraph(base_model, run, cache)
    except RuntimeError as error:
        warnings.warn(f"decoding without a CUDA graph ({str(error).splitlines()[0]})", stacklevel=2)
        return step


class CudaGraph:
    """The forward pass of one token per row, recorded once and replayed: one launch instead of hundreds."""

    def __init__(self, base_model: PreTrainedModel, run: Run, cache: Cache) -> None:
        """Record the pass.

        Recording fills the next slot of every row; the cache hides it until the replay for these slots fills it again.
        """
        device, embedding = base_model.device, base_model.get_input_embeddings()
        self.ids = torch.zeros(cache.rows, dtype=torch.long, device=device)
        self.slots = torch.tensor(cache.lengths, device=device)

        def feed() -> Tensor:
            return run(Pass(cache, self.slots, device=device), embedding(self.ids))

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            feed()  # libraries allocate their workspaces outside the graph
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = feed()

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits `[B, V]` behind one id per row, `[B]`; the next call overwrites this tensor."""
        self.ids.copy_(ids)
        self.graph.replay()
        self.slots += 1
        return self.logits
