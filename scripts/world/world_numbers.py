"""The closed world's rules: sums, units, the calendar: what can be worked out."""

from collections.abc import Iterator
from itertools import product

from world.world_facts import MONTHS, UNITS, WEEKDAYS
from world.world_say import Say, Told, Topic, draw


def _sum_steps(a: int, b: int, sign: str) -> tuple[str, str]:
    """Tens first, then ones: 17 + 12 goes 17 + 10, then 27 + 2."""
    factor = 1 if sign == "+" else -1
    tens, ones = b // 10 * 10, b % 10
    middle = a + factor * tens
    return f"{a} {sign} {tens} = {middle}", f"{middle} {sign} {ones} = {middle + factor * ones}"


def addition() -> Iterator[Told]:
    for a, b in product(range(2, 21), repeat=2):
        c, steps, about = str(a + b), _sum_steps(a, b, "+"), f"{a} + {b}"
        en = Say(f"What is {a} plus {b}?", c, f"{c} is {a} plus {b}.", about, *steps)
        zh = Say(f"{a} 加 {b} 等于多少？", c, f"{c} 等于 {a} 加 {b}。", about, *steps)
        yield about, en, zh


def subtraction() -> Iterator[Told]:
    pool = [(a, b) for a in range(5, 31) for b in range(2, min(a, 21))]
    for a, b in draw("subtraction", pool, 200):
        c, steps, about = str(a - b), _sum_steps(a, b, "-"), f"{a} - {b}"
        en = Say(f"What is {a} minus {b}?", c, f"{c} is {a} minus {b}.", about, *steps)
        zh = Say(f"{a} 减 {b} 等于多少？", c, f"{c} 等于 {a} 减 {b}。", about, *steps)
        yield about, en, zh


def multiplication() -> Iterator[Told]:
    for a, b in product(range(2, 10), range(2, 11)):
        c, before, about = str(a * b), a * (b - 1), f"{a} x {b}"
        steps = (f"{a} x {b - 1} = {before}", f"{before} + {a} = {c}")
        en = Say(f"What is {a} times {b}?", c, f"{c} is {a} times {b}.", about, *steps)
        zh = Say(f"{a} 乘 {b} 等于多少？", c, f"{c} 等于 {a} 乘 {b}。", about, *steps)
        yield about, en, zh


def comparison() -> Iterator[Told]:
    pool = [(a, b) for a, b in product(range(2, 51), repeat=2) if a != b]
    for a, b in draw("comparison", pool, 100):
        big, low = str(max(a, b)), str(min(a, b))
        en = Say(
            f"Which is larger, {a} or {b}?",
            big,
            f"{big} is larger than {low}.",
            f"{a} or {b}",
            f"compare {a} and {b}",
            f"{low} is smaller",
        )
        zh = Say(
            f"{a} 和 {b} 哪个更大？",
            big,
            f"{big} 比 {low} 更大。",
            f"{a} 或 {b}",
            f"比较 {a} 和 {b}",
            f"{low} 更小",
        )
        yield f"{a} {b}", en, zh


def parity() -> Iterator[Told]:
    for n in range(2, 51):
        word, 词 = ("Odd", "奇数") if n % 2 else ("Even", "偶数")
        end = n % 10
        en = Say(
            f"Is {n} odd or even?",
            word,
            f"{word} is the right word for {n}.",
            f"kind of {n}",
            f"{n} ends in {end}",
            f"{end} is {word.lower()}",
        )
        zh = Say(
            f"{n} 是奇数还是偶数？",
            词,
            f"{词}就是 {n} 的类型。",
            f"{n} 的类型",
            f"{n} 的末位是 {end}",
            f"{end} 是{词}",
        )
        yield str(n), en, zh


def sequence() -> Iterator[Told]:
    for start, gap in product(range(1, 13), range(1, 6)):
        a, b, c, d = (start + i * gap for i in range(4))
        steps = f"{c} + {gap} = {d}"
        en = Say(
            f"What comes next: {a}, {b}, {c}?",
            str(d),
            f"{d} comes after {a}, {b}, {c}.",
            f"after {a}, {b}, {c}",
            f"each number grows by {gap}",
            steps,
        )
        zh = Say(
            f"接下来是几：{a}、{b}、{c}？",
            str(d),
            f"{d} 排在 {a}、{b}、{c} 后面。",
            f"{a}、{b}、{c} 的后面",
            f"每次增加 {gap}",
            steps,
        )
        yield f"{start} {gap}", en, zh


def units() -> Iterator[Told]:
    for (one, many, 单位, small, 小单位, factor), n in product(UNITS, range(2, 10)):
        c = str(n * int(factor))
        product_step = f"{n} x {factor} = {c}"
        en = Say(
            f"How many {small} are {n} {many}?",
            c,
            f"{c} {small} are {n} {many}.",
            f"{n} {many} in {small}",
            f"one {one} is {factor} {small}",
            product_step,
        )
        zh = Say(
            f"{n} {单位}等于多少{小单位}？",
            c,
            f"{c} {小单位}等于 {n} {单位}。",
            f"{n} {单位}换成{小单位}",
            f"1 {单位}是 {factor} {小单位}",
            product_step,
        )
        yield f"{n} {many}", en, zh


def _calendar(names: list, unit: tuple[str, str], ask: tuple[str, str], most: int) -> Iterator[Told]:
    """Moves along a circle of names; `unit` and `ask` hold the words for both languages."""
    for i, n, ahead in product(range(len(names)), range(1, most + 1), (True, False)):
        start, end = names[i], names[(i + (n if ahead else -n)) % len(names)]
        side, 向, 方 = ("after", "往后", "后") if ahead else ("before", "往前", "前")
        length = f"{n} {unit[0]}" if n > 1 else f"{n} {unit[0][:-1]}"
        en = Say(
            f"Which {ask[0]} is {length} {side} {start[0]}?",
            end[0],
            f"{end[0]} is {length} {side} {start[0]}.",
            f"{length} {side} {start[0]}",
            f"start at {start[0]}",
            f"{length} {side} it is {end[0]}",
        )
        zh = Say(
            f"{start[1]}{向} {n} {unit[1]}是{ask[1]}？",
            end[1],
            f"{end[1]}是{start[1]}{向} {n} {unit[1]}。",
            f"{start[1]}{向} {n} {unit[1]}",
            f"从{start[1]}开始",
            f"{n} {unit[1]}{方}是{end[1]}",
        )
        yield f"{start[0]} {n if ahead else -n}", en, zh


def weekday() -> Iterator[Told]:
    yield from _calendar(WEEKDAYS, ("days", "天"), ("day", "星期几"), 8)


def month() -> Iterator[Told]:
    yield from _calendar(MONTHS, ("months", "个月"), ("month", "几月"), 5)


RULES: tuple[Topic, ...] = (
    addition,
    subtraction,
    multiplication,
    comparison,
    parity,
    sequence,
    units,
    weekday,
    month,
)
