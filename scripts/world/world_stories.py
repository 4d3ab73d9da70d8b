"""The closed world's dialogues and stories: who, what and where must be read from the text."""

from collections.abc import Iterator
from itertools import product

from world.world_facts import CAPITALS, COUNTED, NAMES, OBJECTS, PETS, PLACES, TASTES
from world.world_say import Say, Told, Topic, draw

HOMES = [[row[1], row[3]] for row in CAPITALS[:12]]  # city, 城市


def introduction() -> Iterator[Told]:
    pool = list(product(NAMES, HOMES, (True, False)))
    for (name, 名), (city, 城), by_name in draw("introduction", pool, 120):
        told, 说 = f"My name is {name} and I live in {city}.", f"我叫{名}，我住在{城}。"
        steps = (f"you said {name} and {city}", f"你说了{名}和{城}")
        if by_name:
            en = Say(
                f"{told} What is my name?",
                name,
                f"{name} is your name.",
                "your name",
                steps[0],
                f"the name is {name}",
            )
            zh = Say(f"{说}我叫什么名字？", 名, f"{名}是你的名字。", "你的名字", steps[1], f"名字是{名}")
        else:
            en = Say(
                f"{told} Where do I live?",
                city,
                f"{city} is where you live.",
                "your city",
                steps[0],
                f"the city is {city}",
            )
            zh = Say(f"{说}我住在哪里？", 城, f"{城}是你住的地方。", "你的城市", steps[1], f"城市是{城}")
        yield f"{name} {city} {by_name}", en, zh


def taste() -> Iterator[Told]:
    pool = [(a, b, mine) for a, b in product(TASTES, repeat=2) if a != b for mine in (True, False)]
    for (a, 甲), (b, 乙), mine in draw("taste", pool, 100):
        told, 说 = f"I like {a} and my friend likes {b}.", f"我喜欢{甲}，我的朋友喜欢{乙}。"
        liked, 爱 = (a, 甲) if mine else (b, 乙)
        ask, 问 = ("do I", "我") if mine else ("does my friend", "我的朋友")
        who, 谁 = ("you like", "你") if mine else ("your friend likes", "你的朋友")
        en = Say(
            f"{told} What {ask} like?",
            liked.capitalize(),
            f"{liked.capitalize()} is what {who}.",
            f"what {who}",
            f"you said {a} and {b}",
            f"{who} {liked}",
        )
        zh = Say(
            f"{说}{问}喜欢什么？",
            爱,
            f"{爱}是{谁}喜欢的。",
            f"{谁}喜欢的",
            f"你说了{甲}和{乙}",
            f"{谁}喜欢{爱}",
        )
        yield f"{a} {b} {mine}", en, zh


def giving() -> Iterator[Told]:
    pool = [
        (a, b, thing, now)
        for a, b in product(NAMES, repeat=2)
        if a != b
        for thing, now in product(OBJECTS, (True, False))
    ]
    for (a, 甲), (b, 乙), (thing, 物), now in draw("giving", pool, 180):
        who, 谁 = (b, 乙) if now else (a, 甲)
        verb, 时 = ("has", "现在") if now else ("had", "原来")
        when = "now" if now else "first"
        en = Say(
            f"Who {verb} the {thing} {when}?",
            who,
            f"{who} {verb} the {thing} {when}.",
            f"the {thing} {when}",
            f"{a} gave it to {b}",
            f"{when} it was {who}" if not now else f"now it is {who}",
            f"{a} takes the {thing}. {a} gives the {thing} to {b}.",
        )
        zh = Say(
            f"{时}谁拿着{物}？",
            谁,
            f"{谁}{时}拿着{物}。",
            f"{时}的{物}",
            f"{甲}给了{乙}",
            f"{时}是{谁}",
            f"{甲}拿起{物}。{甲}把{物}给了{乙}。",
        )
        yield f"{a} {b} {thing} {now}", en, zh


def left_over() -> Iterator[Told]:
    pool = [(name, food, a, b) for name, food, a in product(NAMES, COUNTED, range(4, 13)) for b in range(2, a - 1)]
    for (name, 名), (food, 食), a, b in draw("left_over", pool, 130):
        c = a - b
        en = Say(
            f"How many {food} are left?",
            str(c),
            f"{c} {food} are left.",
            f"{food} left",
            f"{name} eats {b} of {a}",
            f"{a} - {b} = {c}",
            f"{name} has {a} {food}. {name} eats {b} {food}.",
        )
        zh = Say(
            f"还剩几个{食}？",
            str(c),
            f"{c} 个{食}还剩着。",
            f"剩下的{食}",
            f"{名}从 {a} 个里吃了 {b} 个",
            f"{a} - {b} = {c}",
            f"{名}有 {a} 个{食}。{名}吃了 {b} 个{食}。",
        )
        yield f"{name} {food} {a} {b}", en, zh


def together() -> Iterator[Told]:
    pool = [
        (x, y, food, a, b)
        for x, y in product(NAMES, repeat=2)
        if x != y
        for food, a, b in product(COUNTED, range(2, 10), range(2, 10))
    ]
    for (x, 甲), (y, 乙), (food, 食), a, b in draw("together", pool, 130):
        c = a + b
        en = Say(
            f"How many {food} are there together?",
            str(c),
            f"{c} {food} are there together.",
            f"all {food}",
            f"{x} has {a} and {y} has {b}",
            f"{a} + {b} = {c}",
            f"{x} has {a} {food}. {y} has {b} {food}.",
        )
        zh = Say(
            f"一共有几个{食}？",
            str(c),
            f"{c} 个{食}是总数。",
            f"所有的{食}",
            f"{甲}有 {a} 个，{乙}有 {b} 个",
            f"{a} + {b} = {c}",
            f"{甲}有 {a} 个{食}。{乙}有 {b} 个{食}。",
        )
        yield f"{x} {y} {food} {a} {b}", en, zh


def place() -> Iterator[Told]:
    pool = [
        (p, q, at, to, first)
        for p, q in product(PETS, repeat=2)
        if p != q
        for at, to in product(PLACES, repeat=2)
        if at != to
        for first in (True, False)
    ]
    for (p, 甲), (q, 乙), (at, 此), (to, 彼), first in draw("place", pool, 150):
        pet, 宠, spot, 处 = (p, 甲, at, 此) if first else (q, 乙, to, 彼)
        en = Say(
            f"Where is the {pet}?",
            spot.capitalize(),
            f"{spot.capitalize()} is the {pet}.",
            f"place of the {pet}",
            f"find the {pet}",
            f"it is {spot}",
            f"The {p} is {at}. The {q} is {to}.",
        )
        zh = Say(
            f"{宠}在哪里？",
            处,
            f"{处}有{宠}。",
            f"{宠}的位置",
            f"找到{宠}",
            f"它在{处}",
            f"{甲}在{此}。{乙}在{彼}。",
        )
        yield f"{p} {q} {at} {to} {first}", en, zh


STORIES: tuple[Topic, ...] = (
    introduction,
    taste,
    giving,
    left_over,
    together,
    place,
)
