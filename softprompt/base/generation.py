"""What a base's generation_config.json may decide: the ids that begin, end and pad a text, and nothing else.

Every other setting, from stop strings to suppressed tokens, would change the answers of every command unseen. The
options of the commands decide in their place, and a note names what is left out.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from softprompt.errors import UserError
from softprompt.system.foreign import read_json

FILE = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# what options of our own decide
OPTIONS = {
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_length", "max_new_tokens",
    "num_return_sequences", "use_cache",
}  # fmt: skip
SAME_AS_NONE = {"num_beams": 1, "num_beam_groups": 1, "length_penalty": 1, "min_length": 0, "min_new_tokens": 0}


def own_generation_config(folder: Path, config: PretrainedConfig) -> tuple[GenerationConfig, list[str]]:
    """Return a generation config with the ids of the base alone, and notes on what its file asks for besides.

    Ids are those of `generation_config.json`, or else of `config`; one that is no id of the vocabulary is left out.
    """
    text, raw, notes = config.get_text_config(), {}, []
    if (folder / FILE).exists():
        try:
            raw = read_json(folder / FILE, FILE)
        except UserError as error:
            notes.append(f"{error}; it is not used")
    size = getattr(text, "vocab_size", None)
    ids = {name: raw.get(name, getattr(text, name, None)) for name in IDS}
    known = vars(GenerationConfig()).keys() - OPTIONS - set(IDS) - {"transformers_version"}
    ignored = sorted(name for name in known & raw.keys() if not name.startswith("_") and _says(name, raw[name]))
    if ignored:
        notes.append(f"{FILE}: {', '.join(ignored)} not used; the options of softprompt decide how answers are made")
    return GenerationConfig(**{name: value for name, value in ids.items() if _are_ids(value, size)}), notes


def _says(name: str, value: object) -> bool:
    return value not in (None, False, [], {}) and value != SAME_AS_NONE.get(name)


def _are_ids(value: Any, size: int | None) -> bool:
    """Whether a value is an id of the vocabulary, or a list of some."""
    several = value if isinstance(value, list) and value else [value]
    return all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < (size or 2**63) for each in several)
