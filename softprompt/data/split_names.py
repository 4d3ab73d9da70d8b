"""The names that people give to the splits of their data, and what each stands for here."""

import re
from collections.abc import Iterable

# for every split its own name and then the others, in the order in which they are taken
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval", "evaluation", "development"),
    "test": ("test", "testing"),
}
SPLIT_WORDS = {alias: split for split, aliases in ALIASES.items() for alias in aliases}


def standard_names(names: Iterable[str]) -> dict[str, str]:
    """For every name the split that it stands for; a name that is not known, or comes second, stands for itself.

    A name is taken for the split that a word in it names, as `my-train` and `val_2024`, where no other name is that
    split by itself and only one holds the word.
    """
    names = list(names)
    found = dict.fromkeys(names, "")
    for split, aliases in ALIASES.items():
        exact = [name for alias in aliases for name in names if name.lower() == alias]
        worded = [name for name in names if words_of(name) == {split}]
        if exact:
            found[exact[0]] = split
        elif len(worded) == 1:
            found[worded[0]] = split
    return {name: split or name for name, split in found.items()}


def words_of(name: str) -> set[str]:
    """The splits that words in a name stand for."""
    words = re.findall(r"[a-z]+", name.lower())
    return {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
