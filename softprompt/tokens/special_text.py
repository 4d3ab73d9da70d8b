"""Text in rows is only text: a `<|im_end|>` that a row holds must not become the token that ends a turn.

Before a chat template is rendered, the text of special tokens in a row is replaced by private-use characters. What the
template itself writes can then be told from what the row holds.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

SENTINEL = "\U0010fffd"  # stands for the prompt where a template writes the system text
FIRST_CODE, LAST_CODE = 0xF0000, 0xFFFFD  # the private-use plane from which the stand-ins are taken


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The text and the id of every special token of a tokenizer."""
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return added | {text: id for text, id in named.items() if isinstance(id, int)}


class SpecialText:
    """Hides the text of special tokens in values, and encodes rendered text with the hidden values put back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ids = {text: id for text, id in special_tokens(tokenizer).items() if text}
        longest_first = sorted(self.ids, key=len, reverse=True)
        specials = "|".join(map(re.escape, longest_first))
        self._specials = re.compile(f"({specials})" if specials else "(?!)")
        # stand-ins that are in a row already are hidden as well, so that nothing can be forged
        reserved = f"[{chr(FIRST_CODE)}-{chr(LAST_CODE)}{SENTINEL}]"
        self._hidden = re.compile("|".join(filter(None, [specials, reserved])))
        self._codes: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def hide(self, value: Any) -> Any:
        """A value with every special token's text in it replaced, in lists and dicts at every depth."""
        if isinstance(value, str):
            return self._hidden.sub(lambda found: self._code(found[0]), value)
        if isinstance(value, Mapping):
            return {key: self.hide(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(each) for each in value]
        return value

    def holds_hidden(self, text: str) -> bool:
        """Whether rendered text has a stand-in for something that a row holds."""
        return any(code in text for code in self._texts)

    def restore(self, text: str) -> str:
        """Rendered text with the rows' own text in place of the stand-ins."""
        return text.translate({ord(code): hidden for code, hidden in self._texts.items()})

    def first_special(self, text: str) -> str:
        """The first special token that stands in rendered text; "" if none does."""
        found = self._specials.search(text)
        return found[0] if found else ""

    def last_special_end(self, text: str) -> int:
        """Where the last special token of rendered text ends; 0 if it has none."""
        return max((found.end() for found in self._specials.finditer(text)), default=0)

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Encode rendered text: the template's special tokens as such, and what the rows hold as plain characters.

        Args:
            first: whether the text begins a sequence; some tokenizers put a blank in front of the first word.
        """
        ids: list[int] = []
        for place, piece in enumerate(self._specials.split(text)):
            if place % 2:
                ids.append(self.ids[piece])
            elif piece:
                ids += self._plain(self.restore(piece), first=first and not ids)
        return ids

    def _plain(self, text: str, *, first: bool) -> list[int]:
        """Encode text without special tokens, as it would be encoded at the beginning or in the middle of a text."""
        settings = {"add_special_tokens": False, "split_special_tokens": True}
        if not first:
            # a tokenizer that puts a blank in front of a text's first word puts it in front of this line break
            newline, ids = (self.tokenizer(each, **settings)["input_ids"] for each in ("\n", "\n" + text))
            if ids[: len(newline)] == newline:
                return ids[len(newline) :]
        return self.tokenizer(text, **settings)["input_ids"]

    def _code(self, hidden: str) -> str:
        if hidden not in self._codes:
            code = chr(FIRST_CODE + len(self._codes))
            self._codes[hidden], self._texts[code] = code, hidden
        return self._codes[hidden]
