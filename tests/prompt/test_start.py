"""The starts of a prompt: the training rows' answers, a text, ids."""

import pytest
import torch
from helpers.models import make_model, make_tokenizer

from softprompt import SoftPromptEmbedding, UserError
from softprompt.config.commands import TrainConfig
from softprompt.prompt.start import initial_prompt
from softprompt.tokens.encoding import EncodedRow


class Base:
    """As much of a base as a start needs."""

    model, tokenizer = make_model("bloom"), make_tokenizer()


def ids_of(prompt):
    """The vocabulary row that each virtual token is."""
    rows = Base.model.get_input_embeddings().weight
    return [(rows == vector).all(1).nonzero().item() for vector in prompt.weight]


def test_the_answers_most_frequent_tokens_come_first_and_questions_do_not_count():
    rows = [EncodedRow([9, 9, 9, 5], [-100, -100, -100, 5]), EncodedRow([9, 7, 5, 2], [-100, 7, 5, 2])]
    config = TrainConfig(init="answers", virtual_tokens=3)
    assert ids_of(initial_prompt(config, Base, rows)) == [5, 2, 7]  # equally frequent ones by id
    config.virtual_tokens = 7
    assert ids_of(initial_prompt(config, Base, rows)) == [5, 2, 7, 5, 2, 7, 5]
    config.virtual_tokens = 1
    assert ids_of(initial_prompt(config, Base, rows)) == [5]


def test_ids_are_cut_or_repeated_and_embedded_by_the_module():
    embedding = torch.nn.Embedding(10, 4)
    prompt = SoftPromptEmbedding.from_ids([3, 1], embedding, 5)
    assert torch.equal(prompt.weight, embedding.weight[[3, 1, 3, 1, 3]])
    assert torch.equal(SoftPromptEmbedding.from_ids([3, 1], embedding, 1).weight, embedding.weight[[3]])


def test_an_id_without_an_embedding_is_one_line():
    tokenizer, embedding = make_tokenizer(), torch.nn.Embedding(10, 4)
    ids = tokenizer("a text of many letters")["input_ids"]
    wrong = next(id for id in ids if id >= 10)
    with pytest.raises(UserError, match=f"its tokenizer gives id {wrong}, its embedding has 10 rows"):
        SoftPromptEmbedding.from_text("a text of many letters", tokenizer, embedding)
    with pytest.raises(UserError, match="gives id -1,"):
        SoftPromptEmbedding.from_ids([3, -1], embedding, 2)
