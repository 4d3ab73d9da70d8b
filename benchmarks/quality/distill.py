"""How much of a text's effect a few virtual tokens keep: `train --distill-text` on SmolLM2-135M-Instruct.

usage: python benchmarks/quality/distill.py --model FOLDER [--work DIR] [--out FILE] [--steps N] [--only NAME ...]
       [--plot FILE]

Every job appends one line to the results file, and a job that is there is not run again; a job that was cut short goes
on from its last checkpoint. Jobs with `+` in their name vary one thing. The sides beside the distilled prompt: the
text itself, the base as its users run it, the text cut to P tokens, cross-entropy on the same answers, and LoRA r=8 by
the same KL with the same rows and steps.
"""

import argparse
import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import paths  # noqa: F401
import torch
from distill_tasks import NAMES, TEXTS, questions, write_questions

from softprompt.answering.batch import ANSWERED_TOGETHER, generate_batch, text_of
from softprompt.config.commands import Sampling, TrainConfig
from softprompt.data.row import Row
from softprompt.distillation import inputs
from softprompt.distillation.answers import TEACHER_NAME, kept_splits
from softprompt.distillation.report import forgotten_by, judge, to_json
from softprompt.distillation.text import place_text, read_text, teacher_model
from softprompt.engine.divergence import head_divergence
from softprompt.engine.front import Front
from softprompt.engine.loss import Head
from softprompt.engine.model import SoftPromptModel
from softprompt.engine.passes import total_score
from softprompt.engine.teacher import Teacher, divergence_scores
from softprompt.optim.schedule import rows_of_step
from softprompt.packs.batches import pack_rows, plan_batches
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.prompt.file import save_prompt
from softprompt.tokens.encoding import Encoder
from softprompt.training.objective import Objective
from softprompt.training.report import Report
from softprompt.training.run import note_run, prepare_run

NEW_TOKENS = 32
ANSWERED = 24  # test questions that are answered greedily; the KL is of all 40
LORA_RATE = 1e-3


class Work:
    """The folders and settings of all jobs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, Path(options.work)

    def config(self, name: str, job: str, **changes: object) -> TrainConfig:
        """The options of a run on one text; its answers are those that were sampled once."""
        run = self.folder / job
        settings = {
            "model": self.options.model,
            "data": str(write_questions(name, self.folder / f"{name}.questions")),
            "distill_text": str(TEXTS / f"{name}.txt"),
            "distill_new_tokens": NEW_TOKENS,
            "virtual_tokens": 16,
            "max_steps": self.options.steps,
            "save_steps": 20,
            "eval_steps": 20,
            "seed": 0,
            "prompt_file": str(self.folder / f"{job}.safetensors"),
            "run_dir": str(run),
            "resume": True,
        }
        kept = self.folder / name / TEACHER_NAME
        if kept.exists() and not (run / TEACHER_NAME).exists():
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(kept, run / TEACHER_NAME)
        return TrainConfig(**settings | changes)

    def load(self, name: str, job: str, **changes: object):
        """Options, base, rows and objective; the first job of a text samples its answers."""
        if not (self.folder / name / TEACHER_NAME).exists():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            inputs.load_all_inputs(self.config(name, name))
        config, base, rows, objective = inputs.load_all_inputs(self.config(name, job, **changes))
        text = place_text(config.distill_text, read_text(config.distill_text), rows.encoder, base)
        return config, base, rows, objective, text


def kept_rate(name: str, model: object, encoder: Encoder) -> float:
    """The share of greedy answers to the test questions that keep the rule of the text."""
    asked = questions(name)["test"][:ANSWERED]
    ids = encoder.questions([Row.asked(question) for question, _ in asked])
    answers: dict[int, str] = {}
    sampling = Sampling(do_sample=False, max_new_tokens=NEW_TOKENS)
    for places in plan_batches([len(each) for each in ids], ANSWERED_TOGETHER):
        found = generate_batch(model, encoder, sampling, questions=[ids[place] for place in places])
        answers |= {place: text_of(answer, encoder) for place, (answer,) in zip(places, found, strict=True)}
    rule = NAMES[name][1]
    return sum(rule(answers[place], label) for place, (_, label) in enumerate(asked)) / len(asked)


def sides(work: Work, name: str, job: str) -> dict:
    """What needs no training: the text, the base as its users run it and with nothing, and the text cut to P tokens."""
    _, base, rows, objective, text = work.load(name, job)
    encoder, split = rows.encoder, rows.test
    goals = [objective.teacher.states(row) for row in split.rows]
    before, after = encoder.before_ids, encoder.after_ids

    def score(front: Front, written: list) -> dict:
        found = total_score(divergence_scores(base.model, front, written, goals))
        return {"kl": found.loss, "agreement": found.accuracy}

    record = {"text_tokens": len(text.ids), "answer_tokens": sum(len(goal) for goal in goals)}
    record["text"] = {"kept": kept_rate(name, teacher_model(text, encoder, base), encoder)}
    record["users"] = score(Front(), split.for_base) | {"kept": kept_rate(name, base.model, encoder.baseline)}
    record["nothing"] = score(Front([*before, *after]), split.rows)
    embedding = base.model.get_input_embeddings()
    for count in (16,):
        prompt = SoftPromptEmbedding.from_ids(text.ids[:count], embedding, min(count, len(text.ids)))
        model = SoftPromptModel(base.model, prompt, before, after)
        record[f"cut{count}"] = score(model.front, split.rows) | {"kept": kept_rate(name, model, encoder)}
    record["text"]["forgotten"] = forgotten_by(base, encoder, [text.front(encoder)])[0]
    return record


def means_file(work: Work, name: str) -> Path:
    """A prompt file with the means over 16 equal stretches of the text's embeddings."""
    _, base, _, _, text = work.load(name, f"{name}+means")
    with torch.no_grad():
        embeds = base.model.get_input_embeddings()(torch.tensor(text.ids)).float()
    means = torch.stack([stretch.mean(0) for stretch in embeds.tensor_split(16)])
    path = work.folder / f"{name}-means.safetensors"
    save_prompt(path, SoftPromptEmbedding.from_tensor(means), base.metadata)
    return path


def distil(
    work: Work, name: str, job: str, *, init: str = "", ce: bool = False, replay: str = "", **changes: object
) -> dict:
    """Train, and judge on the test questions.

    Args:
        ce: by cross-entropy on the teacher's answers.
        replay: the text whose questions are replayed.
    """
    if replay:
        changes |= {"distill_replay": str(write_questions(replay, work.folder / f"{replay}.questions"))}
    if init == "means":
        changes |= {"init_from": str(means_file(work, name))}
    if init == "default":
        changes |= {"init_text": "You are a helpful assistant who follows the rules."}
    config, base, rows, objective, text = work.load(name, job, **changes)
    by = Objective(config, pad_token_id=base.pad_token_id) if ce else objective
    by.text_ids = text.ids
    trainer = prepare_run(config, base, rows, Report(), by)
    initial = trainer.weight.detach().clone()
    note_run(trainer)
    start = time.perf_counter()
    result = trainer.run()
    seconds = time.perf_counter() - start
    weight = trainer.weight.detach()
    answered = dataclasses.replace(rows.test, sources=rows.test.sources[:ANSWERED])
    worth = judge(
        base, rows.encoder, text, answered, weight, name="test", initial=initial, new_tokens=NEW_TOKENS,
    )  # fmt: skip
    record = to_json(worth) | {"kept": kept_rate(name, trainer.model, rows.encoder), "step": result.step}
    record |= {"curve": trainer.selection.curve, "seconds": round(seconds, 1), "init": config.init}
    if isinstance(objective.teacher, Teacher):
        record |= {"states_bytes": objective.teacher.bytes_of_all, "teacher_passes": objective.teacher.passes_run}
    return record


def positions(work: Work, name: str, job: str, **changes: object) -> dict:
    """How many positions the base computes in the steps of a run: ours, and as two padded passes over every row.

    A student's position counts twice, since the gradient goes back through it; a teacher's counts once.
    """
    config, _, rows, objective, _ = work.load(name, job, **changes)
    teacher, front = objective.teacher, len(rows.encoder.before_ids) + len(rows.encoder.after_ids)
    behind_text, behind_prompt = len(teacher.front), front + config.virtual_tokens
    ours = teacher.positions_of_all
    padded = 0
    for step in range(config.max_steps):
        members = [rows.train_rows[place] for place in rows_of_step(step, len(rows.train_rows), 8, config.seed)]
        ours += 2 * len(pack_rows(members, front_length=behind_prompt).position_ids)
        longest = max(len(row.input_ids) for row in members)
        padded += len(members) * (behind_text + longest + 2 * (behind_prompt + longest))
    return {"ours": ours, "padded": padded, "ratio": padded / ours}


def lora(work: Work, name: str, job: str) -> dict:
    """LoRA r=8 on all linear layers of the base as its users run it, by the same KL, rows and steps."""
    from peft import LoraConfig, get_peft_model

    config, base, rows, objective, text = work.load(name, job)
    encoder = rows.encoder
    every_row = [row for split in rows.splits for row in split.rows]
    goals = {id(row): objective.teacher.states(row) for row in every_row}  # before the base is changed
    head = Head.of(base.model)
    splits = kept_splits(config.run_folder / TEACHER_NAME)
    alone = encoder.baseline.encode(splits.train_rows, max_length=config.max_length)
    pairs = {row.number: row for row in alone}
    torch.manual_seed(config.seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft = get_peft_model(base.model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    parameters = [each for each in peft.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LORA_RATE, weight_decay=0.0)
    for step in range(config.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = LORA_RATE * (1 - step / config.max_steps)
        members = [rows.train_rows[place] for place in rows_of_step(step, len(rows.train_rows), 8, config.seed)]
        supervised = sum(row.num_supervised for row in members)
        for row in members:
            own = pairs[row.number].until(row.num_supervised)
            hidden = base.model.base_model(torch.tensor([own.input_ids]), use_cache=False).last_hidden_state[0]
            places = [place - 1 for place, label in enumerate(own.labels) if label != -100]
            targets_of = torch.tensor([own.labels[place + 1] for place in places])
            (head_divergence(hidden[places], goals[id(row)], head, targets_of) / supervised).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    base.model.eval()
    found = total_score(
        divergence_scores(base.model, Front(), rows.test.for_base, [goals[id(row)] for row in rows.test.rows])
    )
    kept = kept_rate(name, peft, encoder.baseline)
    trainable = sum(each.numel() for each in parameters)
    return {"trained": {"kl": found.loss, "agreement": found.accuracy}, "kept": kept, "parameters": trainable}


def jobs() -> dict:
    """Every job by its name, the most important ones first."""
    found = {f"{name}+P16": (distil, name, {}) for name in NAMES}
    found |= {f"{name}+sides": (sides, name, {}) for name in NAMES}
    found |= {f"{name}+positions": (positions, name, {"max_steps": 200}) for name in NAMES}
    found |= {f"{name}+steps200": (distil, name, {"max_steps": 200}) for name in NAMES}
    replayed = {"max_steps": 200, "replay": "numbered"}
    found["sentiment+replay"] = (distil, "sentiment", replayed)
    found |= {"sentiment+ce": (distil, "sentiment", {"ce": True}), "sentiment+lora": (lora, "sentiment", {})}
    found |= {f"numbered+P{count}": (distil, "numbered", {"virtual_tokens": count}) for count in (4, 64, 1)}
    seeds = [(name, seed) for name in ("sentiment", "spanish", "numbered") for seed in (1, 2)]
    found |= {f"{name}+steps200-seed{seed}": (distil, name, {"max_steps": 200, "seed": seed}) for name, seed in seeds}
    for name in ("spanish", "numbered"):
        found[f"{name}+replay"] = (distil, name, replayed | {"replay": "sentiment"})
    found |= {f"{name}+lora": (lora, name, {}) for name in NAMES}
    found |= {f"{name}+ce": (distil, name, {"ce": True}) for name in NAMES}
    for init in ("means", "text", "default"):
        found[f"numbered+start-{init}"] = (distil, "numbered", {"init": init, "max_steps": 20})
    return found


def plot(out: Path, picture: str) -> None:
    """Draw the validation KL over the steps of the runs of 200, and the share of the gap closed over P."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in out.read_text().splitlines()]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3.2), dpi=90, width_ratios=(3, 2))
    for record in records:
        if record["job"].endswith("+steps200"):
            left.plot(*zip(*record["curve"], strict=True), marker=".", label=record["task"])
    left.set(yscale="log", xlabel="steps of 8 questions, P = 16", ylabel="KL per answer token, validation")
    left.set_yticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
    left.minorticks_off()
    left.legend()
    closed = sorted(
        (record["prompt"]["tokens"], 100 * record["share_closed"])
        for record in records
        if record["job"] in {f"numbered+P{count}" for count in (1, 4, 16, 64)}
    )
    right.plot(*zip(*closed, strict=True), marker=".")
    right.set(xscale="log", xlabel="virtual tokens P, numbered, 60 steps", ylabel="% of the gap closed", ylim=(0, 100))
    right.set_xticks([count for count, _ in closed], [str(count) for count, _ in closed])
    right.minorticks_off()
    figure.tight_layout()
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", default="distill-work")
    parser.add_argument("--out", default="benchmarks/results/distill.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--plot", help="draw the results to this PNG file, and run nothing")
    options = parser.parse_args()
    out = Path(options.out)
    if options.plot:
        plot(out, options.plot)
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    work = Work(options)
    for job, (function, name, settings) in jobs().items():
        done = {json.loads(line)["job"] for line in out.read_text().splitlines()} if out.exists() else set()
        if job in done or (options.only and job not in options.only):
            continue
        print(time.strftime("%H:%M:%S"), job, flush=True)
        record = {"job": job, "task": name, "steps": options.steps} | settings | function(work, name, job, **settings)
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
