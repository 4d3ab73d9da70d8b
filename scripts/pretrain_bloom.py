"""Pre-trains the small BLOOM that ships with softprompt, on the project's own closed world.

usage: python scripts/pretrain_bloom.py [--out DIR] [--steps N] [--minutes M] [--seed S]

One seeded run: trains a byte-level BPE with BLOOM's pre-tokenizer on the world's text, then a
BloomForCausalLM on documents drawn on the fly, prints the held-out loss and only then replaces the
output folder. The same seed and steps give the same documents; `--minutes` cuts the schedule short
on a slow machine. The documented limit is 60 minutes on 2 cores.
"""

import argparse
import math
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast
from world import world_facts
from world.manners import MANNERS, NEUTRAL_LEADS, leads, render
from world.world import Question, questions

ROOT = Path(__file__).resolve().parent.parent
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # BLOOM's own pre-tokenizer
UNK, BOS, EOS, PAD = range(4)
TEXT_WEIGHT = 0.1  # questions are mostly free choices: their loss must not drown the answers'
Document = tuple[list[int], list[float]]  # token ids, loss weight of each


def prompt_text(question: Question) -> str:
    own = question.own
    return "\n".join(["Human: " + own.ask, own.input]).strip() + "\n\nAssistant: "


def world_text(asked: list[Question]) -> Iterator[str]:
    """Everything the tokenizer must spell well; test questions are not in it."""
    for question in asked:
        yield prompt_text(question)
        yield from render(question).values()
    for _ in range(20):  # leads are few but stand in front of a third of the documents
        yield from NEUTRAL_LEADS
        for manner in MANNERS:
            yield from leads(manner)


def _slot_pattern() -> re.Pattern:
    """Names and numbers: cut out to train the BPE, so that no merge glues them to a phrase."""
    tables = [v for k, v in vars(world_facts).items() if k.isupper() and isinstance(v, list)]
    words = {w for table in tables for row in table for w in row if len(w) > 1 and not w.isascii()}
    longest_first = sorted(words, key=lambda w: (-len(w), w))
    return re.compile("( ?(?:" + "|".join(longest_first) + r"|\d+))")


def make_tokenizer(asked: list[Question], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BLOOM_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    slots = _slot_pattern()
    pieces = (piece for text in world_text(asked) for piece in slots.split(text) if piece)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=4,
        show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


class Writer:
    """Draws documents: plain, opened by a lead, or of several turns, all in one manner each."""

    def __init__(self, asked: list[Question], tokenizer: PreTrainedTokenizerFast, seed: int):
        self.asked, self.tokenizer, self.rng = asked, tokenizer, random.Random(seed)
        self._ids: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._ids[text]

    def turn(self, question: Question, manner: str) -> Document:
        """The tutorial's encoding: prompt and answer apart, then the end-of-text id."""
        text = self._encode(prompt_text(question))
        answer = [*self._encode(render(question)[manner]), EOS]
        return text + answer, [TEXT_WEIGHT] * len(text) + [1.0] * len(answer)

    def draw(self) -> Document:
        rng, manner = self.rng, self.rng.choice(MANNERS)
        kind = rng.random()
        turns = rng.choice((2, 2, 3)) if kind >= 0.8 else 1
        ids: list[int] = []
        if 0.45 <= kind < 0.8:
            lead = rng.choice(NEUTRAL_LEADS if kind < 0.5 else leads(manner))
            ids = self._encode(lead + "\n")
        weights = [TEXT_WEIGHT] * len(ids)
        for _ in range(turns):
            more, more_weights = self.turn(rng.choice(self.asked), manner)
            ids, weights = ids + more, weights + more_weights
        return ids, weights

    def batches(self, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of about `tokens` ids; documents of like length go together, to save padding."""
        while True:
            pool = sorted((self.draw() for _ in range(2048)), key=lambda doc: len(doc[0]))
            cuts, start = [], 0
            for end in range(1, len(pool) + 1):
                if end == len(pool) or (end + 1 - start) * len(pool[end][0]) > tokens:
                    cuts.append(pool[start:end])
                    start = end
            self.rng.shuffle(cuts)
            yield from map(collate, cuts)


def collate(documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads on the right, where causal attention makes pads harmless; their weight is 0."""
    width = max(len(ids) for ids, _ in documents)
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in documents])
    weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in documents])
    return ids, weights  # [B, T], [B, T]


def weighted_loss(model: BloomForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> tuple:
    """The sum of weighted token losses, and the sum of the weights."""
    hidden = model.transformer(ids, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, H]
    weight = weights[:, 1:]
    kept = weight > 0
    losses = cross_entropy(model.lm_head(hidden[kept]), ids[:, 1:][kept], reduction="none")
    return (losses * weight[kept]).sum(), weight.sum()


def make_model(vocabulary: int, hidden: int, layers: int, heads: int) -> BloomForCausalLM:
    config = BloomConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        n_layer=layers,
        n_head=heads,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = BloomForCausalLM(config)
    for block in model.transformer.h:
        block.mlp.gelu_impl = torch.nn.GELU("tanh")  # the same formula, fused
    return model


def optimizer_for(model: BloomForCausalLM, rate: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def train(model: BloomForCausalLM, writer: Writer, options: argparse.Namespace) -> None:
    """AdamW with a warm-up and a cosine, over steps or minutes, whichever is used up first."""
    optimizer = optimizer_for(model, options.rate)
    began, tokens, step, progress = time.monotonic(), 0, 0, 0.0
    for ids, weights in writer.batches(options.tokens):
        rate = options.rate * max(0.02, 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100)
        total, weight = weighted_loss(model, ids, weights)
        (total / weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, tokens = step + 1, tokens + ids.numel()
        elapsed = time.monotonic() - began
        progress = max(step / options.steps, elapsed / 60 / options.minutes)
        if step % 100 == 0 or progress >= 1.0:
            loss, speed = (total / weight).item(), tokens / elapsed
            print(f"step {step} loss {loss:.4f} {elapsed / 60:.1f} min {speed:.0f} ids/s", flush=True)
        if progress >= 1.0:
            return


@torch.no_grad()
def held_out_loss(model: BloomForCausalLM, writer: Writer, batches: int = 40) -> float:
    """Loss per answer token, on documents drawn after training from the writer's own questions."""
    total = weight = 0.0
    for _, (ids, weights) in zip(range(batches), writer.batches(2048), strict=False):
        part, count = weighted_loss(model, ids, (weights == 1.0).float())
        total, weight = total + part.item(), weight + count.item()
    return total / weight


def save(model: BloomForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Everything is written beside the folder and then moved: never a half-written asset."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=out.parent, prefix=out.name + "."))
    model.half().save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.chmod(0o755)
    if out.exists():
        shutil.rmtree(out)
    os.replace(fresh, out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "softprompt" / "assets" / "bloom-small")
    add("--steps", type=int, default=6000, help="optimizer steps")
    add("--minutes", type=float, default=55.0, help="upper limit of training time")
    add("--seed", type=int, default=0)
    add("--tokens", type=int, default=2048, help="token ids per step, padding included")
    add("--rate", type=float, default=2e-3, help="highest learning rate")
    add("--hidden", type=int, default=192)
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=8)
    add("--vocabulary", type=int, default=2200, help="upper limit of the tokenizer's size")
    add("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    began = time.monotonic()
    asked = [q for q in questions() if q.split != "test"]
    unseen = [q for q in questions() if q.split == "test"]
    tokenizer = make_tokenizer(asked, options.vocabulary)
    model = make_model(len(tokenizer), options.hidden, options.layers, options.heads)
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(asked)} questions, {len(tokenizer)} tokens, {size:,} parameters", flush=True)
    train(model, Writer(asked, tokenizer, options.seed), options)
    model.eval()
    fresh = held_out_loss(model, Writer(asked, tokenizer, options.seed + 1))
    unseen_loss = held_out_loss(model, Writer(unseen, tokenizer, options.seed + 2))
    save(model, tokenizer, options.out)
    print(f"held-out loss per answer token: {unseen_loss:.4f} on questions never trained on,")
    print(f"  {fresh:.4f} on fresh documents of the trained questions")
    print(f"elapsed: {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
