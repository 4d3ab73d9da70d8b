"""The closed world's facts: what must be known, because it cannot be worked out."""

from collections.abc import Iterator

from world.world_facts import CAPITALS, COLOURS, MONTHS, OPPOSITES, WORDS
from world.world_say import Say, Told, Topic


def capital() -> Iterator[Told]:
    for land, city, 国, 城 in CAPITALS:
        en = Say(
            f"What is the capital of {land}?",
            city,
            f"{city} is the capital of {land}.",
            f"capital of {land}",
            f"the country is {land}",
            f"its capital is {city}",
        )
        zh = Say(
            f"{国}的首都是哪里？",
            城,
            f"{城}是{国}的首都。",
            f"{国}的首都",
            f"国家是{国}",
            f"首都是{城}",
        )
        yield land, en, zh


def country() -> Iterator[Told]:
    for land, city, 国, 城 in CAPITALS:
        en = Say(
            f"Which country has the capital {city}?",
            land,
            f"{land} has the capital {city}.",
            f"country of {city}",
            f"the city is {city}",
            f"its country is {land}",
        )
        zh = Say(
            f"{城}是哪个国家的首都？",
            国,
            f"{国}的首都是{城}。",
            f"{城}的国家",
            f"城市是{城}",
            f"国家是{国}",
        )
        yield city, en, zh


def month_days() -> Iterator[Told]:
    for name, 月, days in MONTHS:
        en = Say(
            f"How many days does {name} have in a common year?",
            days,
            f"{days} days are in {name}.",
            f"days in {name}",
            f"the month is {name}",
            f"it has {days} days",
        )
        zh = Say(
            f"平年的{月}有多少天？",
            days,
            f"{days} 天是{月}的长度。",
            f"{月}的天数",
            f"月份是{月}",
            f"它有 {days} 天",
        )
        yield name, en, zh


def opposite() -> Iterator[Told]:
    for row in OPPOSITES:
        for word, anti, 词, 反 in (row, [row[1], row[0], row[3], row[2]]):
            en = Say(
                f"What is the opposite of {word}?",
                anti.capitalize(),
                f"{anti.capitalize()} is the opposite of {word}.",
                f"opposite of {word}",
                f"the word is {word}",
                f"its opposite is {anti}",
            )
            zh = Say(
                f"{词}的反义词是什么？",
                反,
                f"{反}是{词}的反义词。",
                f"{词}的反义词",
                f"词语是{词}",
                f"反义词是{反}",
            )
            yield word, en, zh


def translation() -> Iterator[Told]:
    for word, 词, _, _ in WORDS:
        for source, target, tongue, 语 in (
            (word, 词, "Chinese", "中文"),
            (词, word.capitalize(), "English", "英语"),
        ):
            en = Say(
                f"How do you say {source} in {tongue}?",
                target,
                f"{target} is the {tongue} word for {source}.",
                f"{source} in {tongue}",
                f"the word is {source}",
                f"in {tongue} it is {target}",
            )
            zh = Say(
                f"{source} 用{语}怎么说？",
                target,
                f"{target} 是 {source} 的{语}说法。",
                f"{source} 的{语}说法",
                f"词语是 {source}",
                f"{语}是 {target}",
            )
            yield source, en, zh


def group() -> Iterator[Told]:
    for word, 词, kind, 类 in WORDS:
        en = Say(
            f"Which group does {word} belong to?",
            kind.capitalize(),
            f"{kind.capitalize()} is the group of {word}.",
            f"group of {word}",
            f"the word is {word}",
            f"its group is {kind}",
        )
        zh = Say(
            f"{词}属于哪一类？",
            类,
            f"{类}是{词}的类别。",
            f"{词}的类别",
            f"词语是{词}",
            f"类别是{类}",
        )
        yield word, en, zh


def colour() -> Iterator[Told]:
    for thing, 物, tint, 色 in COLOURS:
        en = Say(
            f"Which colour is seen in {thing}?",
            tint.capitalize(),
            f"{tint.capitalize()} is the colour of {thing}.",
            f"colour of {thing}",
            f"the thing is {thing}",
            f"its colour is {tint}",
        )
        zh = Say(
            f"{物}是什么颜色？",
            色,
            f"{色}是{物}的颜色。",
            f"{物}的颜色",
            f"东西是{物}",
            f"颜色是{色}",
        )
        yield thing, en, zh


FACTS: tuple[Topic, ...] = (
    capital,
    country,
    month_days,
    opposite,
    translation,
    group,
    colour,
)
