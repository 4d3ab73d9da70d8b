"""The prompt that a run starts from: text, the answers' tokens, vocabulary rows, noise or an earlier prompt file."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompt.base.loading import Base
from softprompt.config.commands import DEFAULT_INIT_TEXT, TrainConfig
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding, start_ids
from softprompt.prompt.file import load_prompt
from softprompt.prompt.fit import check_same_base
from softprompt.prompt.metadata import PromptMetadata, is_count
from softprompt.tokens.encoding import IGNORE_INDEX, EncodedRow


def initial_prompt(
    config: TrainConfig, base: Base, train_rows: Sequence[EncodedRow] = (), text_ids: Sequence[int] = ()
) -> SoftPromptEmbedding:
    """Make the prompt that `init_from`, or else `init`, asks for, with `virtual_tokens` vectors.

    Without `virtual_tokens`, P is that of the file `init_from`, or else the number of tokens in `init_text`.

    Args:
        train_rows: only `init` "answers" needs them. It starts from their most frequent labels, as Lester et al. (2021,
            section 3.2) start from the class labels.
        text_ids: the ids of a text to distil, which is the init text if no other is given.

    Raises:
        UserError: the file `init_from` cannot be read or does not fit the base or P, `init_text` has no token, or P is
            out of range.
    """
    embedding = base.model.get_input_embeddings()
    if config.init_from is not None:
        return _from_file(config.init_from, config, base)
    if config.init == "text" and text_ids and config.init_text == DEFAULT_INIT_TEXT:
        return SoftPromptEmbedding.from_ids(text_ids, embedding, config.virtual_tokens or len(text_ids))
    if config.init == "text":
        return SoftPromptEmbedding.from_text(config.init_text, base.tokenizer, embedding, config.virtual_tokens)
    count = config.virtual_tokens or len(start_ids(config.init_text, base.tokenizer))
    if count == 0:
        raise UserError(f"`init_text` {config.init_text!r} gives no token to count; pass `virtual_tokens`")
    if config.init == "answers":
        return SoftPromptEmbedding.from_ids(frequent_labels(train_rows, count), embedding, count)
    generator = torch.Generator().manual_seed(config.seed)
    start = SoftPromptEmbedding.from_vocab if config.init == "vocab" else SoftPromptEmbedding.from_random
    return start(embedding, count, generator)


def frequent_labels(rows: Sequence[EncodedRow], count: int) -> list[int]:
    """The ids that are most frequent among the rows' labels, at most `count`; ties go to the smaller id."""
    labels = Counter(label for row in rows for label in row.labels if label != IGNORE_INDEX)
    return sorted(labels, key=lambda label: (-labels[label], label))[:count]


def _from_file(name: str, config: TrainConfig, base: Base) -> SoftPromptEmbedding:
    """Read the prompt of an earlier run on the same base."""
    earlier = load_prompt(name)
    check_same_base(earlier, base, prompt_file=name, allow_other=config.allow_other_base)
    if config.virtual_tokens not in (None, len(earlier.weight)):
        raise UserError(
            f"`virtual_tokens` {config.virtual_tokens}: `init_from` {name} has {len(earlier.weight)};"
            " leave the flag out"
        )
    return SoftPromptEmbedding.from_tensor(earlier.weight)


def why_no_start(facts: PromptMetadata) -> str:
    """The reason why the prompt that training started from cannot be made again, or "" if it can."""
    if facts.init == "text":
        return "" if facts.init_text else "the file does not say the text that it started from"
    if facts.init == "file":
        return "it started from another prompt file (`init_from`)"
    if facts.init == "answers":
        return "" if facts.init_ids else "the file does not say the tokens of the answers that it started from"
    if facts.init in ("vocab", "random"):
        known = is_count(facts.training.get("seed"))
        return "" if known else f"the file does not say the seed of its {facts.init} start"
    return "the file does not say what it started from"


def start_of(facts: PromptMetadata, base: Base, num_virtual_tokens: int) -> Tensor:
    """Make the prompt that training started from again, fp32 `[P, H]`, on the CPU; `why_no_start` must return "".

    Its numbers are rounded to the dtype of `base`, which may differ from the dtype during training.
    """
    if facts.init == "answers":
        embedding = base.model.get_input_embeddings()
        return SoftPromptEmbedding.from_ids(facts.init_ids, embedding, num_virtual_tokens).weight.detach().cpu()
    options: dict[str, Any] = {"init": facts.init, "virtual_tokens": num_virtual_tokens}
    options |= {"init_text": facts.init_text} if facts.init == "text" else {"seed": facts.training["seed"]}
    return initial_prompt(TrainConfig(**options), base).weight.detach().cpu()
