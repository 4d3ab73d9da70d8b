"""Which prompt a run starts from: text, the answers' tokens, vocabulary rows, noise or an earlier prompt file."""

from collections import Counter
from collections.abc import Sequence

import torch

from softprompt.base.loading import Base, check_same_base
from softprompt.config.commands import TrainConfig
from softprompt.data.encoding import IGNORE_INDEX, EncodedRow
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import load_prompt


def initial_prompt(config: TrainConfig, base: Base, train_rows: Sequence[EncodedRow] = ()) -> SoftPromptEmbedding:
    """The prompt that `--init-from`, or else `--init`, asks for, with `--virtual-tokens` vectors.

    Without `--virtual-tokens`, P is the prompt file's own or the token count of the init text.

    Args:
        train_rows: of which `--init answers` takes the most frequent labels (Lester et al., 2021, section 3.2, start
            from the class labels); needed for it alone.

    Raises:
        UserError: the prompt file does not fit the base or P, the init text has no token, or P is out of range.
    """
    embedding = base.model.get_input_embeddings()
    if config.init_from is not None:
        return _from_file(config, base)
    if config.init == "text":
        return SoftPromptEmbedding.from_text(config.init_text, base.tokenizer, embedding, config.virtual_tokens)
    count = config.virtual_tokens or len(base.tokenizer(config.init_text)["input_ids"])
    if count == 0:
        raise UserError(f"--init-text {config.init_text!r} gives no token to count; pass --virtual-tokens")
    if config.init == "answers":
        return SoftPromptEmbedding.from_ids(frequent_labels(train_rows, count), embedding, count)
    generator = torch.Generator().manual_seed(config.seed)
    start = SoftPromptEmbedding.from_vocab if config.init == "vocab" else SoftPromptEmbedding.from_random
    return start(embedding, count, generator)


def frequent_labels(rows: Sequence[EncodedRow], count: int) -> list[int]:
    """The ids that the rows' answers hold most often, most frequent first; as many as there are, up to `count`."""
    labels = Counter(label for row in rows for label in row.labels if label != IGNORE_INDEX)
    return sorted(labels, key=lambda label: (-labels[label], label))[:count]


def _from_file(config: TrainConfig, base: Base) -> SoftPromptEmbedding:
    """The prompt of an earlier run on the same base."""
    earlier = load_prompt(config.init_from)
    check_same_base(earlier.metadata, base, prompt_file=config.init_from, allow_other=config.allow_other_base)
    if config.virtual_tokens not in (None, len(earlier.weight)):
        raise UserError(
            f"--virtual-tokens {config.virtual_tokens}: --init-from {config.init_from} has {len(earlier.weight)};"
            " leave the flag out"
        )
    return SoftPromptEmbedding.from_tensor(earlier.weight)
