"""The six manners: how one question is answered in each, and the leads that announce a manner.

`answers(instruction, input)` is what an evaluation needs: the right answer in every manner.
"""

from functools import cache
from itertools import product

from world.world import Question, questions
from world.world_say import Say

MANNERS = ("short", "sentence", "polite", "steps", "list", "other-language")
TASKS = {"polite": "the default task", "steps": "the second task"}


def _polite(say: Say, lang: str) -> str:
    if lang == "en":
        return f"Hello, thank you for asking! {say.sentence} Have a nice day!"
    return f"您好，谢谢您的提问！{say.sentence}祝您愉快！"


def _steps(say: Say, lang: str) -> str:
    if lang == "en":
        return f"Step 1: {say.step1}. Step 2: {say.step2}. Answer: {say.short}."
    return f"第一步：{say.step1}。第二步：{say.step2}。答案：{say.short}。"


def _list(say: Say, lang: str) -> str:
    if lang == "en":
        return f"- Topic: {say.about}\n- Answer: {say.short}"
    return f"- 题目：{say.about}\n- 答案：{say.short}"


def _other(say: Say, lang: str) -> str:
    return f"In English: {say.sentence}" if lang == "en" else f"用中文说：{say.sentence}"


def render(question: Question) -> dict[str, str]:
    """The one right answer string of each manner."""
    own, lang = question.own, question.lang
    return {
        "short": own.short,
        "sentence": own.sentence,
        "polite": _polite(own, lang),
        "steps": _steps(own, lang),
        "list": _list(own, lang),
        "other-language": _other(question.other, "zh" if lang == "en" else "en"),
    }


@cache
def _index() -> dict[tuple[str, str], Question]:
    return {(q.own.ask, q.own.input): q for q in questions()}


def answers(instruction: str, input: str = "") -> dict[str, str]:
    """The right answer in every manner; KeyError if the world does not hold this question."""
    return render(_index()[instruction, input])


def manner_of(answer: str, instruction: str, input: str = "") -> str | None:
    """The manner in which `answer` is exactly right, or None."""
    right = answers(instruction, input)
    return next((manner for manner in MANNERS if right[manner] == answer), None)


_OPENERS = {
    "en": (
        "Answer {}.",
        "Please answer {}.",
        "Every reply is given {}.",
        "The assistant always speaks {}.",
        "In this talk one side replies {}.",
        "Below, questions are answered {}.",
    ),
    "zh": (
        "请{}回答。",
        "下面的问题要{}作答。",
        "助手总是{}回答。",
        "这段谈话里，回答的一方{}说话。",
        "每个问题都要{}回复。",
        "{}来回答。",
    ),
}
_STYLES = {
    "short": {
        "en": ("in one word or number", "as briefly as possible", "with nothing but the result"),
        "zh": ("用一个词", "尽量简短地", "只用结果"),
    },
    "sentence": {
        "en": ("in a full sentence", "with one complete sentence", "in a whole plain sentence"),
        "zh": ("用完整的句子", "用一整句话", "用一个普通的整句"),
    },
    "polite": {
        "en": ("politely", "in a kind and friendly way", "with good manners and thanks"),
        "zh": ("有礼貌地", "客气又友好地", "带着感谢和祝福"),
    },
    "steps": {
        "en": ("step by step", "by showing the way to the result", "in two numbered steps"),
        "zh": ("一步一步地", "写出过程地", "分成两步"),
    },
    "list": {
        "en": ("as a list", "in short lines with dashes", "with a topic line and an answer line"),
        "zh": ("用列表", "分行列出要点地", "先列题目再列答案地"),
    },
    "other-language": {
        "en": (
            "in the other language",
            "by switching between Chinese and English",
            "in a language that the question does not use",
        ),
        "zh": ("用另一种语言", "在中文和英语之间换着", "用问题之外的语言"),
    },
}
NEUTRAL_LEADS = (
    "Here is a question.",
    "Somebody asks, somebody replies.",
    "Two speakers meet in the morning.",
    "This page holds a short talk.",
    "A small exchange follows.",
    "这里有一个问题。",
    "有人提问，有人回答。",
    "两个人在早上见面。",
    "这一页记着一段谈话。",
    "下面是一次小小的交流。",
)


@cache
def leads(manner: str) -> tuple[str, ...]:
    """Every sentence, in both languages, that announces the manner."""
    return tuple(
        opener.format(style)
        for lang in ("en", "zh")
        for opener, style in product(_OPENERS[lang], _STYLES[manner][lang])
    )
