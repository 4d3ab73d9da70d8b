"""The keys and values of the fronts that were used last, each computed once."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.engine.cache import Cache
from softprompt.engine.cached_pass import Pass, Segment
from softprompt.engine.front import Front
from softprompt.engine.running import running

KEPT = 64  # fronts; one of 100 positions takes about 20 MB in fp32 with a base of 24 layers that is 1,024 wide


@dataclass(frozen=True, eq=False)
class _Entry:
    """What was computed for a front: its embeddings `[F, H]`, and their keys and values."""

    embeds: Tensor
    cache: Cache


class FrontCaches:
    """One cache entry for each front in use; of more than `kept`, the least recently used goes.

    The entry of a front is found by its prompt's tensor. It is computed again if the embeddings or their dtype have
    changed, which is looked at every time, so a prompt may be trained between two calls.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._entries)

    def of(self, base_model: PreTrainedModel, front: Front) -> Cache:
        """Return the keys and values of a front in this base: a cache of one row and F slots."""
        key = (tuple(front.before), id(front.prompt), tuple(front.after))
        no_text = torch.zeros(1, 0, dtype=torch.long, device=base_model.device)
        with torch.no_grad():
            embeds = torch.cat(front.embeds(base_model.get_input_embeddings(), no_text), dim=1)[0]
            entry = self._entries.get(key)
            if entry is None or not _same(entry.embeds, embeds):
                entry = _Entry(embeds, front_cache(base_model, embeds))
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self.kept:
            self._entries.popitem(last=False)
        return entry.cache


def front_cache(base_model: PreTrainedModel, embeds: Tensor) -> Cache:
    """Run a front's embeddings `[F, H]`, in the base's dtype, through the base: a cache of one row and F slots."""
    cache = Cache(rows=1)
    if len(embeds):
        cache.reserve(1, len(embeds))
        whole = Segment([0], 0, [0] * len(embeds))  # the ids do not matter, since their embeddings are given
        with running(base_model) as run:
            run(Pass(cache, [], [whole], device=embeds.device), embeds)
        cache.lengths = [len(embeds)]
    return cache


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in the same dtype and on the same device."""
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
