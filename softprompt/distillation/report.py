"""What a distilled prompt is worth: how much of the text's effect it keeps, what it saves, and what it forgets."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.answering.batch import ANSWERED_TOGETHER, generate_batch
from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_NEW_TOKENS, Sampling
from softprompt.data.splits import load_split
from softprompt.distillation.text import Text, teacher_model
from softprompt.engine.front import Front
from softprompt.engine.fronts import front_cache
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import Score, total_score
from softprompt.engine.teacher import Teacher, divergence_scores
from softprompt.packs.batches import plan_batches
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.tokens.encoded_splits import EncodedSplit
from softprompt.tokens.encoding import EncodedRow, Encoder, encode_rows

UNRELATED = "builtin:steps"  # shipped rows that nothing was distilled on
MOST_UNRELATED, MOST_ANSWERED = 40, 40  # rows
REPEATS = 5  # of a time, of which the median is told


@dataclass(frozen=True)
class Saved:
    """What stands in front of every request, as the text and as the prompt."""

    tokens: int
    cache_bytes: int
    prefill_seconds: float


@dataclass(frozen=True)
class Worth:
    """The figures of a distilled prompt. A score's loss is the KL per answer token to the base with the text.

    Attributes:
        name: of the rows.
        rows: how many.
        nothing: the score of the base with nothing in the text's place.
        users: that of the base as its users run it, with the template's own system turn.
        initial: that of the prompt before training; None if it is not known.
        trained: that of the prompt.
        answered: how many questions were answered greedily.
        first: the share of them whose first token is the teacher's.
        whole: the share of them whose answer is the teacher's to the last token.
        text, prompt: what each costs in front of a request.
        forgotten: KL per token from the bare base on unrelated rows, with the prompt.
        forgotten_by_text: the same with the text.
    """

    name: str
    rows: int
    nothing: Score
    users: Score
    initial: Score | None
    trained: Score
    answered: int
    first: float
    whole: float
    text: Saved
    prompt: Saved
    forgotten: float
    forgotten_by_text: float

    @property
    def share(self) -> float:
        """The share of the gap that is closed: 1 - KL(trained) / KL(the base as its users run it)."""
        return 1 - self.trained.loss / self.users.loss


def judge(
    base: Base,
    encoder: Encoder,
    text: Text,
    split: EncodedSplit,
    weight: Tensor,
    *,
    name: str,
    initial: Tensor | None = None,
    teacher: Teacher | None = None,
    new_tokens: int = DEFAULT_NEW_TOKENS,
    advance: Callable[[int], object] = lambda rows: None,
) -> Worth:
    """Measure a prompt `[P, H]` beside the text on held-out rows; `split` has at least one.

    Args:
        initial: the prompt before training.
        teacher: the teacher of these rows, if there is one already.
        new_tokens: most tokens of a greedy answer.
        advance: told how many more rows are answered.
    """
    rows, before, after = split.rows, encoder.before_ids, encoder.after_ids
    teacher = teacher or Teacher(base.model, text.front(encoder), rows)
    goals = [teacher.states(row) for row in rows]

    def scored(front: Front, written: Sequence[EncodedRow] = rows) -> Score:
        return total_score(divergence_scores(base.model, front, written, goals))

    def front_of(prompt: Tensor) -> Front:
        return Front(before, prompt.to(base.device), after)

    questions = encoder.questions(list({row.key: row for row in split.sources}.values())[:MOST_ANSWERED])
    model = SoftPromptModel(base.model, SoftPromptEmbedding.from_tensor(weight), before, after)
    theirs, ours = (
        _greedy(each, encoder, questions, new_tokens, advance) for each in (teacher_model(text, encoder, base), model)
    )
    forgotten, by_text = forgotten_by(base, encoder, [front_of(weight), text.front(encoder)])
    return Worth(
        name=name,
        rows=len(rows),
        nothing=scored(Front([*before, *after])),
        users=scored(Front(), split.for_base),
        initial=None if initial is None else scored(front_of(initial)),
        trained=scored(front_of(weight)),
        answered=len(questions),
        first=_share(a[:1] == b[:1] for a, b in zip(theirs, ours, strict=True)),
        whole=_share(a == b for a, b in zip(theirs, ours, strict=True)),
        text=_saved(base.model, text.front(encoder), len(text.ids)),
        prompt=_saved(base.model, front_of(weight), len(weight)),
        forgotten=forgotten,
        forgotten_by_text=by_text,
    )


def _greedy(
    model: SoftPromptModel,
    encoder: Encoder,
    questions: Sequence[list[int]],
    new_tokens: int,
    advance: Callable[[int], object],
) -> list[list[int]]:
    """The ids of the greedy answers."""
    sampling = Sampling(do_sample=False, max_new_tokens=new_tokens)
    found: dict[int, list[int]] = {}
    for places in plan_batches([len(ids) for ids in questions], ANSWERED_TOGETHER):
        batch = generate_batch(model, encoder, sampling, questions=[questions[place] for place in places])
        found |= {place: answer for place, (answer,) in zip(places, batch, strict=True)}
        advance(len(places))
    return [found[place] for place in range(len(questions))]


def forgotten_by(base: Base, encoder: Encoder, fronts: Sequence[Front]) -> list[float]:
    """KL per token from the bare base, as its users run it, on the shipped rows behind each of `fronts`."""
    sources = load_split(UNRELATED).rows[:MOST_UNRELATED]
    rows, skipped = encode_rows(sources, encoder, max_length=1 << 30)
    alone, _ = encode_rows([row for row in sources if row.number not in skipped], encoder.baseline, max_length=1 << 30)
    bare = Teacher(base.model, Front(), rows, alone)
    goals = [bare.states(row) for row in rows]
    return [total_score(divergence_scores(base.model, front, rows, goals)).loss for front in fronts]


@torch.no_grad()
def _saved(base_model: PreTrainedModel, front: Front, tokens: int) -> Saved:
    """What a front costs: its cache, and the time to fill it."""
    none = torch.zeros(1, 0, dtype=torch.long, device=base_model.device)
    embeds = torch.cat(front.embeds(base_model.get_input_embeddings(), none), dim=1)[0]
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        cache = front_cache(base_model, embeds)
        if base_model.device.type == "cuda":
            torch.cuda.synchronize(base_model.device)
        seconds.append(time.perf_counter() - start)
    return Saved(tokens, cache.nbytes, sorted(seconds)[REPEATS // 2])


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found) if found else 0.0


def to_json(worth: Worth) -> dict[str, object]:
    """The figures as JSON has them."""
    scores = {name: getattr(worth, name) for name in ("nothing", "users", "initial", "trained")}
    figures = {
        name: None if score is None else {"kl": score.loss, "agreement": score.accuracy}
        for name, score in scores.items()
    }
    rest = {each.name: getattr(worth, each.name) for each in dataclasses.fields(worth) if each.name not in scores}
    rest |= {name: dataclasses.asdict(rest[name]) for name in ("text", "prompt")}
    return figures | {"share_closed": worth.share} | rest


def describe_worth(worth: Worth) -> str:
    """The report as lines."""
    named = [
        ("nothing in its place", worth.nothing),
        ("the base as its users run it", worth.users),
        ("the initial prompt", worth.initial),
        ("the distilled prompt", worth.trained),
    ]
    lines = [f"KL per answer token to the base with the text, on {worth.rows:,} {worth.name} rows; same next token"]
    lines += [f"  {name:30}{score.loss:#9.3g}{score.accuracy:9.1%}" for name, score in named if score is not None]
    text, prompt = worth.text, worth.prompt
    return "\n".join(
        [
            *lines,
            f"share of the gap closed: {worth.share:.1%}",
            f"greedy answers to {worth.answered} questions: {worth.first:.1%} begin with the teacher's token,"
            f" {worth.whole:.1%} are the teacher's to the end",
            f"in front of every request: {text.tokens:,} tokens become {prompt.tokens:,}; the cache of all that stands"
            f" there {_size(text.cache_bytes)} -> {_size(prompt.cache_bytes)}, its prefill"
            f" {1000 * text.prefill_seconds:.3g} ms -> {1000 * prompt.prefill_seconds:.3g} ms",
            f"forgotten: KL to the bare base on {MOST_UNRELATED} rows of {UNRELATED} is {worth.forgotten:.3g} per token"
            f" with the prompt, {worth.forgotten_by_text:.3g} with the text",
        ]
    )


def _size(count: int) -> str:
    return f"{count / 2**20:.3g} MB" if count >= 2**20 else f"{count / 2**10:.3g} KB"
