"""The README's figures of quality are those of docs/quality.md, and CI runs its first command."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SIDES = {
    "no prompt": "no prompt",
    "softprompt, default": "**softprompt, default**",
    "PEFT prompt tuning, best rate": "best prompt",
    "PEFT at 5e-5": "PEFT prompt tuning, text, the tutorial's rate",
    "p-tuning": "PEFT p-tuning",
    "prefix tuning": "PEFT prefix tuning",
    "LoRA r=8": "PEFT LoRA r=8",
    "full fine-tuning": "full fine-tuning",
}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def measured(task):
    """The report loss of every side on a task, from docs/quality.md; PEFT's best prompt has the ratio 1."""
    text = (ROOT / "docs" / "quality.md").read_text("utf-8")
    table = text.partition(f"**{task}**\n\n")[2].partition("\n\n")[0]
    rows = [cells(line) for line in table.splitlines()[2:]]
    losses = {row[0]: float(row[3].split()[0]) for row in rows}
    (best,) = [losses[row[0]] for row in rows if row[4] == "1.000"]
    return losses | {"best prompt": best}


def test_the_quality_table_is_that_of_the_study():
    header, _, *lines = re.search(r"^\| task \|.*?(?=\n\n)", README, re.MULTILINE | re.DOTALL)[0].splitlines()
    names = cells(header)[1:]
    assert len(lines) == 4 and len(names) == len(SIDES)
    for line in lines:
        task, *figures = cells(line)
        losses = measured(task.partition(",")[0])
        for name, figure in zip(names, figures, strict=True):
            assert abs(float(figure.strip("*")) - losses[SIDES[name]]) < 6e-4, (task, name)


def test_ci_runs_the_first_command():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    for command in ("install -r requirements.txt", "train.py --virtual-tokens 12"):
        assert command in README and command in script
