"""Answers within a question that is a list of turns are written like all others, and are not learnt."""

import dataclasses

import pytest
from helpers.models import make_tokenizer
from helpers.templates import CHATML, CHATML_DEFAULT, NO_SPECIAL

from softprompt.data.row import Row
from softprompt.tokens.encoding import IGNORE_INDEX, Encoder
from softprompt.tokens.template import Template

SYSTEM = {"role": "system", "content": "Be."}
ASKED = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "first"}]
LEARNT = [
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "second"},
    {"role": "user", "content": "Three?"},
]
TEMPLATES = {
    "tutorial": Template(),
    "plain": Template("plain"),
    "chat": Template("chat", CHATML.replace("<|im_end|>", "</s>")),
    "chat with a system text": Template("chat", CHATML.replace("<|im_end|>", "</s>"), system="Be kind."),
    "chat with a default": Template("chat", CHATML_DEFAULT.replace("<|im_end|>", "</s>")),
    "text between turns": Template("chat", NO_SPECIAL),
}


@pytest.mark.parametrize("own_system", [False, True], ids=["no system turn", "system turn"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_only_labels_change_and_those_of_given_answers_alone(template, own_system):
    tokenizer = make_tokenizer()
    given = [SYSTEM] * own_system + ASKED
    whole = Row((*given, *LEARNT), "third", 1)
    encoder = Encoder(tokenizer, template)
    all_learnt, some = encoder.encode([whole, dataclasses.replace(whole, given=len(given))], max_length=999)
    assert some.input_ids == all_learnt.input_ids
    texts = [tokenizer.decode(row.supervised_ids) for row in (all_learnt, some)]
    assert [["first" in text, "second" in text, "third" in text] for text in texts] == [[True] * 3, [False, True, True]]
    pairs = list(zip(all_learnt.labels, some.labels, strict=True))
    changed = [place for place, (one, other) in enumerate(pairs) if one != other]
    assert all(some.labels[place] == IGNORE_INDEX for place in changed)
    # what is no longer learnt is one stretch, the first answer and what ends it
    assert changed == list(range(changed[0], changed[-1] + 1))
    lost = tokenizer.decode([all_learnt.labels[place] for place in changed])
    assert lost.strip().startswith("first") and "second" not in lost


def test_with_the_last_turn_alone_nothing_else_is_learnt():
    tokenizer, row = make_tokenizer(), Row((*ASKED, *LEARNT), "third", 1, given=2)
    for template in TEMPLATES.values():
        (encoded,) = Encoder(tokenizer, template, last_turn_only=True).encode([row], max_length=999)
        assert tokenizer.decode(encoded.supervised_ids).strip().startswith("third")
