"""Hostile metadata of prompt files, each under a checksum that fits, for `fuzz.py --metadata`."""

import json
import random
from typing import Any

IDS = [[], [0], [1, 2, 3], [2199], [2200], [10**9], [2**63 - 1], [2**63], [10**30], [-1], [1.5], ["1"], [None], [[1]]]
IDS += [[5] * 3000, [7] * 200_000, {"1": 2}, "1", 5, None, True]
NUMBERS: list[Any] = [0, -1, 1, 2**63, 10**400, 1e308, float("nan"), float("inf"), -0.0, None, True, "1", [], {}, [[]]]
DEEP = "[" * 50_000 + "]" * 50_000
TEXTS = [
    "", " ", "\0", "\x1b[2J\x1b]0;title\x07", "a\u202eb", "\r\n\n", "x" * 1_000_000, "x" * 2_000_000, "\ud800",
    "</s>", "%s{}{0}", "\ufeff", "../../etc/passwd", "/dev/zero", "/proc/self/mem", "~root", "a/b", "--overwrite",
    "builtin:bloom-small@1", "builtin:bloom-small@9", "builtin:../..", "file:///etc/passwd", "https://example.com/x",
    "`model`", "null", "NaN", "{}", "[]", DEEP, '{"a": ' * 2000, "9" * 6000, "\u0645\u0631\u062d", "\U0001f600" * 50,
]  # fmt: skip
TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.mkdir('ran') }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception('\x1b[2J') }}",
    "{% if %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ messages[0]['content'] }}",
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ messages }}" * 1000,
]
SUMMARIES: list[Any] = [
    {"curve": [[1, 2.0]] * 100_000},
    {"curve": [[10**18, 1e308], [0, -1e308]]},
    {"curve": [[1, None]]},
    {"curve": [[5, 1.0], [5, 1.0], [1, 2.0]]},
    {"held_out_loss": {"\x1b[2J": 1.0, "trained_prompt": 1e308}},
    {"held_out_loss": {"trained_prompt": -5}, "test_loss": {"x" * 1000: None}},
    {"steps": 2**62, "rows": 0, "rows_per_step": 0, "seed": 2**62},
    {"learning_rate": "\x1b[2J", "relative_rate": [], "best_step": {"a": 1}, "options": DEEP[:200]},
    {"a": {"b": {"c": [1, [2, [3, {"d": None}]]]}}},
    {f"key {number}": number for number in range(20_000)},
    {"x" * 10_000: 1, "y": "z" * 900_000, "a" * 70: "b " * 5000},
]


def hostile(metadata: dict[str, str], source: random.Random) -> dict[str, Any]:
    """Metadata of which one to four keys are hostile; the checksum is left to whoever writes the file."""
    changed: dict[str, Any] = {key: value for key, value in metadata.items() if key != "sha256"}
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        key = source.choice(sorted(changed)) if source.random() < 0.95 else source.choice(["", "more", "x" * 10_000])
        changed[key] = hostile_value(key, str(changed.get(key, "")), source)
    if source.random() < 0.2:
        del changed[source.choice(sorted(changed))]
    return changed


def hostile_value(key: str, before: str, source: random.Random) -> Any:
    """A value for one key: of its own kind most of the time, so that it is not refused at the first look."""
    kind = source.random()
    if kind < 0.05:
        return source.choice(NUMBERS)  # no text at all
    if kind < 0.25:
        return source.choice(TEXTS)
    if key.endswith("_ids"):
        return json.dumps(source.choice(IDS))
    if key == "template_text":
        return source.choice(TEMPLATES)
    if key == "template":
        return source.choice(["tutorial", "chat", "plain", "file", "text", "other"])
    if key in ("learnt_turns", "placement", "init"):
        return source.choice(["all", "last", "front", "system", "text", "answers", "random", "vocab", "file", "x"])
    if key == "template_date":
        return source.choice(["2026-01-01", "2026-13-45", "0000-00-00", "99999999-01-01", "x"])
    if key == "training":
        return json.dumps(source.choice(SUMMARIES))
    if key == "rows_sketch":
        sketches = {"train": ["x"] * 50_000, "held_out": ["\x1b"]}, {"train": [], "a": []}, {"train": [1]}
        return json.dumps(source.choice(sketches))
    if key == "base_sketch" and before:
        return changed_json(before, source)
    if key in ("num_virtual_tokens", "hidden_size", "format_version"):
        return source.choice(["0", "-1", "1", "2", "3", "192", "1" * 30, "1.0", " 2"])
    return source.choice(TEXTS)


def changed_json(text: str, source: random.Random) -> str:
    """JSON of which one value, at any depth, is another."""
    value = json.loads(text)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = source.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or source.random() < 0.3:
            break
        place = place[key]
    place[key] = source.choice([*NUMBERS, "", "x", [0, 1], {"a": 1}, "f" * 5000])
    return json.dumps(value)
