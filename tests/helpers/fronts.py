"""Fronts and rows on which the families are compared with themselves, and how two results are compared."""

import torch

from helpers.families import CONFIGS, HIDDEN_SIZE, VOCAB_SIZE
from softprompt.engine.front import Front
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow

ALWAYS_FP32 = set(CONFIGS) - {"gpt2", "gpt_neox", "opt", "phi", "starcoder2"}


def draw_ids(count, seed):
    return torch.randint(4, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def front_of(front, dtype=torch.float32):
    before, count, after = front
    noise = torch.randn(count, HIDDEN_SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return Front(draw_ids(before, 6), noise.to(dtype).requires_grad_(), draw_ids(after, 7))


def make_rows():
    """Rows that begin alike, the fourth without any question: its first token is a label. The last has no label."""
    rows = []
    for seed, (length, question) in enumerate([(9, 4), (14, 13), (5, 1), (6, 0), (1, 0), (3, 3)]):
        ids = [7, 8, *draw_ids(length, seed)][:length]
        rows.append(EncodedRow(ids, [IGNORE_INDEX] * question + ids[question:]))
    return rows


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
