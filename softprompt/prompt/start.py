"""Which prompt a run starts from: text, the answers' tokens, vocabulary rows, noise or an earlier prompt file."""

import json
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.base.loading import Base
from softprompt.config.commands import TrainConfig
from softprompt.data.encoding import IGNORE_INDEX, EncodedRow
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import load_prompt
from softprompt.prompt.fit import check_same_base


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


def why_no_start(metadata: dict[str, str], seed: object) -> str:
    """Why the prompt that training started from cannot be made again; "" if it can."""
    init = metadata.get("init")
    if init == "text":
        return "" if metadata.get("init_text") else "the file does not say the text that it started from"
    if init == "file":
        return "it started from another prompt file (--init-from)"
    if init == "answers":
        return "" if _init_ids(metadata) else "the file does not say the tokens of the answers that it started from"
    if init in ("vocab", "random"):
        return "" if _is_seed(seed) else f"the file does not say the seed of its {init} start"
    return "the file does not say what it started from"


def start_of(metadata: dict[str, str], seed: object, base: Base, num_virtual_tokens: int) -> Tensor:
    """The prompt `[P, H]` that training started from, where `why_no_start` finds nothing.

    Its embeddings are rounded to the precision that the base is loaded in, which may not be that of the training.
    """
    if metadata["init"] == "answers":
        embedding = base.model.get_input_embeddings()
        return SoftPromptEmbedding.from_ids(_init_ids(metadata), embedding, num_virtual_tokens).weight.detach().cpu()
    settings = {"init": metadata["init"], "virtual_tokens": num_virtual_tokens}
    settings |= {"init_text": metadata["init_text"]} if metadata["init"] == "text" else {"seed": seed}
    return initial_prompt(TrainConfig(**settings), base).weight.detach().cpu()


def _init_ids(metadata: dict[str, str]) -> list[int]:
    """The ids that an answers' start was made of; empty if the file does not say them."""
    try:
        ids = json.loads(metadata.get("init_ids") or "[]")
    except ValueError:
        return []
    return ids if isinstance(ids, list) and all(map(_is_id, ids)) else []


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_seed(seed: object) -> bool:
    return isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63
