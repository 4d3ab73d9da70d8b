"""Text in rows is only text: a `<|im_end|>` that a row holds must not become the token that ends a turn.

Before a chat template is rendered, the text of special tokens in a row is replaced by private-use characters. What the
template itself writes can then be told from what the row holds.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

SENTINEL = "\U0010fffd"  # stands for the prompt where a template writes the system text
SEPARATORS = ("\n", ".", "0")  # of which one at least is not joined to what follows it
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
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.content}
        swallowing = {text: _swallowing(text, added.get(text)) for text in self.ids}
        # stand-ins that are in a row already are hidden as well, so that nothing can be forged
        reserved = f"[{chr(FIRST_CODE)}-{chr(LAST_CODE)}{SENTINEL}]"
        self._bare = _any_of({text: re.escape(text) for text in self.ids})
        self._specials = _any_of(swallowing)
        self._added = _any_of({text: re.escape(text) for text in added})
        self._hidden = re.compile(f"{self._bare.pattern}|{reserved}")
        self._codes: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        one = next(iter(self.ids), "")
        behind = tokenizer(one + "a", add_special_tokens=False)["input_ids"]
        # whether the tokenizer treats text behind a special token as the beginning of a text
        self._starts_anew = behind[1:] == self._tokenised("a")

    def hide(self, value: Any) -> Any:
        """A value with every special token's text in it replaced, in lists and dicts at every depth, keys included."""
        if isinstance(value, str):
            return self._hidden.sub(lambda found: self._code(found[0]), value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(each) for key, each in value.items()}
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
        found = self._bare.search(text)
        return found[0] if found else ""

    def last_special_end(self, text: str) -> int:
        """Where the last special token of rendered text ends; 0 if it has none."""
        return max((found.end() for found in self._specials.finditer(text)), default=0)

    def before_token(self, text: str, place: int) -> int:
        """A place in rendered text, or the beginning of the added token that it is within."""
        inside = (found.start() for found in self._added.finditer(text) if found.start() < place < found.end())
        return next(inside, place)

    def encode(self, text: str, *, behind: str = "") -> list[int]:
        """Encode rendered text: the template's special tokens as such, and what the rows hold as plain characters.

        Args:
            behind: the text that it follows; some tokenizers put a blank in front of a text's first word.
        """
        ids: list[int] = []
        place = 0
        for found in self._specials.finditer(text):
            ids += self._plain(text[place : found.start()], behind=text[:place] or behind)
            ids.append(self.ids[found[0] if found[0] in self.ids else found[0].strip()])
            place = found.end()
        return ids + self._plain(text[place:], behind=text[:place] or behind)

    def _plain(self, text: str, *, behind: str) -> list[int]:
        """Encode text without special tokens as it would be encoded behind some other text."""
        if not text:
            return []
        restored = self.restore(text)
        anew = not behind or (self._starts_anew and self.last_special_end(behind) == len(behind))
        if not anew:
            # a tokenizer that puts a blank in front of a text's first word puts it in front of the separator
            for separator in SEPARATORS:
                alone, ids = self._tokenised(separator), self._tokenised(separator + restored)
                if ids[: len(alone)] == alone:
                    return ids[len(alone) :]
        return self._tokenised(restored)

    def _tokenised(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _code(self, hidden: str) -> str:
        if hidden not in self._codes:
            code = chr(FIRST_CODE + len(self._codes))
            self._codes[hidden], self._texts[code] = code, hidden
        return self._codes[hidden]


def _any_of(patterns: Mapping[str, str]) -> re.Pattern:
    """A pattern for any of some texts, the longest first."""
    longest_first = sorted(patterns, key=len, reverse=True)
    return re.compile("|".join(patterns[text] for text in longest_first) or "(?!)")


def _swallowing(text: str, token: AddedToken | None) -> str:
    """A pattern for a special token with the blanks around it that it takes in."""
    left, right = (r"\s*" if token and getattr(token, side) else "" for side in ("lstrip", "rstrip"))
    return left + re.escape(text) + right
