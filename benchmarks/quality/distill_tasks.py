"""The three texts of `distill.py`, the questions that go with each, and the rule that a program can check."""

import json
import random
from collections.abc import Callable
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"
COUNTS = {"train": 94, "validation": 16, "test": 40}

TASKS = """boil an egg|plant a tree|clean a window|write a letter|learn guitar|sleep better|save money|bake bread
paint a wall|fix a flat tyre|make coffee|train a dog|grow tomatoes|pack a suitcase|read faster|tie a tie|iron a shirt
make soup|plan a trip|learn Spanish|build a shelf|wash a car|draw a cat|take a photo|cook rice|sharpen a knife
ride a bike|start a garden|find a job|make a budget|catch a fish|light a fire|sew a button|make jam|swim faster
play chess|write a poem|choose a book|clean a carpet|keep bees|make cheese|climb a hill|send a parcel|fold a map
repair a chair|make a kite|store potatoes|feed a cat|polish shoes|make lemonade|set a table|wrap a present
buy a house|train for a race|stop a leak|make pancakes|remove a stain|charge a battery|water plants|roast a chicken
memorise a speech|host a party|make candles|bottle fruit|mend a sock|cross a river|make yoghurt|hang a picture
read a map|sort the waste|tune a piano|speak in public|pitch a tent|mow the lawn|dry herbs""".replace("\n", "|").split(
    "|"
)
TOPICS = """photosynthesis|gravity|inflation|a volcano|the moon|a battery|democracy|a glacier|bread|honey|an atom|a poem
a whale|electricity|rain|a desert|jazz|a bank|the heart|an eclipse|salt|the ocean|a bridge|paper|a vaccine|football
a comet|glass|an orchestra|a library|chess|the wind|a magnet|a novel|snow|a robot|coffee|a castle|the brain|a tree
an island|a camera|silk|a satellite|the law|a river|iron|a market|an opera|music|a virus|the sun|a forest|a clock
a bicycle|an engine|rice|a dragon|a museum|a spider|the internet|a rainbow|a telescope|the stomach|cotton|a king
an earthquake|a penguin|sugar|a train|a mirror|oil|a dictionary|the desert fox|a harbour""".replace("\n", "|").split(
    "|"
)
SUBJECTS = """The soup|This phone|The hotel|The movie|My new lamp|The staff|The jacket|This book|The taxi driver|The app
The concert|The garden chair|The bakery|The course|This camera|The museum|The delivery|The cake|The museum shop
The bicycle|The pillow|This radio|The dentist|The ferry""".replace("\n", "|").split("|")
GOOD = """was wonderful|made me very happy|was better than I had hoped|is the best that I know|was a great joy
is worth every penny|was lovely from start to finish|surprised me in the nicest way""".replace("\n", "|").split("|")
BAD = """was terrible|made me very angry|was worse than I had feared|is the worst that I know|was a waste of time
is not worth the money|was awful from start to finish|disappointed me in every way""".replace("\n", "|").split("|")
SPANISH = (" el ", " la ", " de ", " que ", " los ", " las ", " es ", " una ", " un ", " para ", " en ", " se ", " y ")
Asked = tuple[str, str]  # a question, and the label that is right, if there is one


def general() -> list[Asked]:
    """Everyday questions."""
    return [(f"How do I {task}?", "") for task in TASKS] + [(f"What is {topic}?", "") for topic in TOPICS]


def reviews() -> list[Asked]:
    """Reviews of one sentence, to be called positive or negative."""
    return [
        (f"Is this review positive or negative? {subject} {said}.", label)
        for label, phrases in (("positive", GOOD), ("negative", BAD))
        for subject in SUBJECTS
        for said in phrases
    ]


def keeps_numbers(answer: str, label: str) -> bool:
    """Whether an answer is a numbered list."""
    return answer.strip().startswith("1.")


def keeps_label(answer: str, label: str) -> bool:
    """Whether an answer is the sentence that the text asks for, with the right label."""
    return answer.strip().startswith(f"The review is {label}")


def keeps_spanish(answer: str, label: str) -> bool:
    """Whether an answer has at least two of the commonest words of Spanish."""
    text = f" {' '.join(answer.lower().split())} "
    return sum(text.count(word) for word in SPANISH) >= 2


NAMES: dict[str, tuple[Callable[[], list[Asked]], Callable[[str, str], bool]]] = {
    "numbered": (general, keeps_numbers),
    "sentiment": (reviews, keeps_label),
    "spanish": (general, keeps_spanish),
}


def questions(name: str) -> dict[str, list[Asked]]:
    """The questions of each split, in a fixed order."""
    found = NAMES[name][0]()
    random.Random(name).shuffle(found)
    splits, start = {}, 0
    for split, count in COUNTS.items():
        splits[split] = found[start : start + count]
        start += count
    assert len(splits["test"]) == COUNTS["test"]
    return splits


def write_questions(name: str, folder: Path) -> Path:
    """Write the splits of a text's questions as a folder of JSONL files, as `data` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, asked in questions(name).items():
        lines = (json.dumps({"instruction": question}) + "\n" for question, _ in asked)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder
