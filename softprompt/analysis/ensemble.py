"""What prompts make of the rows together: a majority vote over choices, and answers by the mean of distributions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.analysis.comparison import EvalSet, Outcome, memory_named
from softprompt.analysis.statistics import Estimate, bootstrap_interval, exact_match, macro_f1
from softprompt.answering.batch import front_of
from softprompt.answering.greedy import greedy_answers
from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_NEW_TOKENS, EvaluateConfig
from softprompt.engine.model import SoftPromptModel
from softprompt.prompt.bank import PromptBank, load_members


@dataclass(frozen=True)
class EnsembleResult:
    """What the members make of the rows together; the figures are None for what was not asked for.

    Attributes:
        votes: the choice of every row.
        answers: the greedy answers to the questions.
    """

    names: list[str]
    votes: list[str]
    answers: list[str]
    exact_match: Estimate | None
    choice_accuracy: Estimate | None
    macro_f1: float | None


def evaluate_ensemble(
    base: Base, eval_set: EvalSet, outcomes: Sequence[Outcome], config: EvaluateConfig
) -> EnsembleResult:
    """Let the members vote with what they found alone, and answer the questions together.

    Args:
        outcomes: of all sides, among which the members are.

    Raises:
        UserError: the members' rows are not written alike, the base's rows run one by one, or memory runs out.
    """
    members = load_members(PromptBank(base, allow_other=config.allow_other_base), config.ensemble)
    places = [[outcome.side.name for outcome in outcomes].index(name) for name in config.ensemble]
    votes = majority_votes([outcomes[place].log_probabilities for place in places], config.choices)
    encoder, fronts = members[0].encoder, [front_of(member) for member in members]
    model = SoftPromptModel(base.model, members[0].prompt, encoder.before_ids, encoder.after_ids)
    with memory_named(config):
        answers = greedy_answers(
            model,
            encoder,
            eval_set.sets[places[0]].questions,
            max_new_tokens=config.max_new_tokens or DEFAULT_NEW_TOKENS,
            batch_size=max(config.per_device_eval_batch_size // len(members), 1),
            ensemble=fronts,
        )

    def share(right: Sequence[bool]) -> Estimate | None:
        draws = {"samples": config.bootstrap_samples, "seed": config.seed}
        return bootstrap_interval(right, [1] * len(right), **draws) if right else None

    return EnsembleResult(
        list(config.ensemble),
        votes,
        answers,
        exact_match=share(exact_match(answers, eval_set.references[: len(answers)])),
        choice_accuracy=share([a == b for a, b in zip(votes, eval_set.actual, strict=True)]),
        macro_f1=macro_f1(votes, eval_set.actual, config.choices) if votes else None,
    )


def majority_votes(log_probabilities: Sequence[Sequence[Sequence[float]]], choices: Sequence[str]) -> list[str]:
    """Return the label of every row that most members find most probable.

    Of labels with as many votes, the one of the highest mean log-probability over the members wins.

    Args:
        log_probabilities: `[member][row][label]`.
    """
    found = []
    for members in zip(*log_probabilities, strict=True):
        places = range(len(choices))
        votes = Counter(max(places, key=each.__getitem__) for each in members)
        means = [sum(each[place] for each in members) for place in places]
        found.append(choices[max(places, key=lambda place: (votes[place], means[place]))])
    return found
