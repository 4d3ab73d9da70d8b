"""The quality study: fixed tasks without overlap, peers that train as Trainer does, selection, and resuming."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.models import make_model
from helpers.rows import ROWS
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import study  # noqa: E402
import study_peers  # noqa: E402
import study_plan  # noqa: E402
import study_runs  # noqa: E402
import study_tasks  # noqa: E402
from study_results import Results  # noqa: E402
from study_runs import Run  # noqa: E402
from study_words import CATEGORIES, categories, past_tenses  # noqa: E402

from softprompt.base.loading import load_base  # noqa: E402
from softprompt.data.reading import Row  # noqa: E402
from softprompt.engine.passes import row_scores, total_score  # noqa: E402
from softprompt.optim.schedule import rows_of_step  # noqa: E402
from softprompt.tokens.encoding import Encoder, encode_rows  # noqa: E402

SIZES = {
    "topic": (2000, 160, 320), "record": (2000, 160, 320), "unseen": (1846, 160, 320),
    "foreign": (2000, 160, 320), "kind": (1000, 160, 200), "equation": (1000, 160, 200), "other": (688, 160, 200),
    "category": (260, 60, 100), "past": (120, 40, 40),
}  # fmt: skip
PAD = 3


def asked(rows):
    return {(row.columns["instruction"], row.columns["input"]) for row in rows}


@pytest.mark.parametrize("name", SIZES)
def test_lists_of_a_task_share_no_question(name):
    rows = study_tasks.task(name)
    lists = (rows.train, rows.select, rows.report)
    assert tuple(len(part) for part in lists) == SIZES[name]
    assert len(set().union(*map(asked, lists))) == sum(SIZES[name])
    assert all(row.output.strip() for part in lists for row in part)


def test_tasks_are_the_same_every_time():
    name = "record"
    before = study_tasks.task(name)
    study_tasks.task.cache_clear()
    study_tasks.fresh_questions.cache_clear()
    assert study_tasks.task(name) == before
    assert study_tasks.task("unseen").report[0] == study_tasks.task("unseen").report[0]


def test_tuning_tasks_share_no_question_with_reported_ones():
    def of(names):
        tasks = [study_tasks.task(name) for name in names]
        return set().union(*(asked(rows) for task in tasks for rows in (task.train, task.select, task.report)))

    reported, tuning = of(study_tasks.REPORTED["bloom"]), of(study_tasks.TUNING["bloom"])
    assert min(len(reported), len(tuning)) > 1000
    assert not reported & tuning


def test_unseen_questions_were_never_pretrained():
    from world.world import questions

    seen = {(q.own.ask, q.own.input) for q in questions() if q.split != "test"}
    for name in ("unseen", "other"):
        rows = study_tasks.task(name)
        assert not asked(rows.train + rows.select + rows.report) & seen


def test_labels_of_the_classifications():
    labels = {name: {row.output for row in study_tasks.task(name).report} for name in ("topic", "kind")}
    assert labels["kind"] == {f"- Answer: {word}" for word in ("number", "place", "name", "word")}
    assert 18 <= len(labels["topic"]) <= 22 and "- Topic: plus" in labels["topic"]


def test_words_stand_once():
    for pairs in (categories(), past_tenses()):
        assert len({word for word, _ in pairs}) == len(pairs)
    assert {len(words.split()) for words in CATEGORIES.values()} == {35}
    assert len(past_tenses()) >= 200


def encoded(tokenizer, count=24):
    """Rows of uneven length."""
    outputs = ["abcdefgh"[: 1 + place % 7] for place in range(count)]
    rows = [Row.asked(**(ROWS[place % 10] | {"output": output}), number=place) for place, output in enumerate(outputs)]
    return encode_rows(rows, Encoder(tokenizer), max_length=64)[0]


@pytest.fixture
def tiny(model_folder):
    return load_base(str(model_folder), device=torch.device("cpu"), precision="fp32")


def peer(method, tiny, model_folder, seed=5):
    torch.manual_seed(seed)
    return study_peers.peer_model(method, tiny, str(model_folder), virtual_tokens=4)


@pytest.mark.parametrize("method", ["prompt-text", "lora"])
def test_three_steps_equal_transformers_trainer(method, tiny, model_folder, tmp_path):
    rows, steps, rate = encoded(tiny.tokenizer), 3, 1e-2
    order = [rows[place] for step in range(steps) for place in rows_of_step(step, len(rows), 8, seed=7)]
    dataset = Dataset.from_list([dataclasses.asdict(row) | {"attention_mask": [1] * len(row.labels)} for row in order])
    tiny.tokenizer.padding_side = "right"
    theirs = peer(method, tiny, model_folder)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_train_epochs=1, learning_rate=rate,
        train_sampling_strategy="sequential", use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(tokenizer=tiny.tokenizer, padding=True)
    trainer = Trainer(theirs, arguments, train_dataset=dataset, data_collator=collator)
    trainer.train()
    assert trainer.state.global_step == steps

    ours = peer(method, tiny, model_folder)
    start = [weight.detach().clone() for weight in study_peers.trainable(ours)]
    losses = iter(range(20, 0, -1))  # the last evaluation is the best
    study_peers.train_peer(
        ours, rows, lambda model: float(next(losses)), rate=rate, steps=steps, seed=7, pad_token_id=PAD
    )
    moved = study_peers.trainable(ours)
    assert any((weight - before).abs().max() > 0.01 for weight, before in zip(moved, start, strict=True))
    for mine, other in zip(moved, study_peers.trainable(theirs), strict=True):
        # Adam's steps are sums of fp32 ratios near 1e-2: some roundings of 2^-24 apart
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", study_peers.METHODS)
def test_loss_of_a_padded_batch_is_that_of_its_rows_alone(method, tiny, model_folder):
    rows, model = encoded(tiny.tokenizer, 9), peer(method, tiny, model_folder).eval()
    total, supervised = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(row.input_ids) :].double()
        for place, label in enumerate(row.labels[1:]):
            if label != -100:
                total -= logits[place].log_softmax(-1)[label].item()
                supervised += 1
    assert supervised > 20
    # fp32 logits of two layers: 1e-5 relative is a few roundings times the depth of the sums
    assert study_peers.mean_loss(model, rows, PAD) == pytest.approx(total / supervised, rel=1e-5)


@pytest.mark.parametrize("method", study_peers.METHODS)
def test_training_leaves_the_weights_of_the_best_evaluation(method, tiny, model_folder):
    rows, model = encoded(tiny.tokenizer), peer(method, tiny, model_folder)
    losses, seen = iter([5.0, 4.0, 2.0, 3.0, float("nan"), 2.5, *[9.0] * 9]), []

    def evaluate(current):
        seen.append([weight.detach().clone() for weight in study_peers.trainable(current)])
        return next(losses)

    outcome = study_peers.train_peer(model, rows, evaluate, rate=1e-3, steps=10, seed=0, pad_token_id=PAD)
    assert outcome.best_step == 2 and [step for step, _ in outcome.history] == list(range(11))
    for weight, at_best in zip(study_peers.trainable(model), seen[2], strict=True):
        assert torch.equal(weight, at_best)
    assert any(not torch.equal(at_best, at_end) for at_best, at_end in zip(seen[2], seen[-1], strict=True))


def test_only_what_a_method_trains_changes(tiny, model_folder):
    before = {name: weight.clone() for name, weight in tiny.model.named_parameters()}
    for method in study_peers.METHODS:
        model = peer(method, tiny, model_folder)
        rows = encoded(tiny.tokenizer, 8)
        study_peers.train_peer(model, rows, lambda model: 1.0, rate=1e-2, steps=1, seed=0, pad_token_id=PAD)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.model.named_parameters())


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_scaled_embeddings_keep_the_function(scale, tokenizer):
    plain, scaled = make_model("bloom"), make_model("bloom")
    study_runs.scale_embeddings(scaled, scale)
    ratio = scaled.get_input_embeddings().weight / plain.get_input_embeddings().weight
    torch.testing.assert_close(ratio, torch.full_like(ratio, scale))
    rows = encoded(tokenizer)
    losses = [study_peers.mean_loss(model, rows, PAD) for model in (plain, scaled)]
    packed = total_score(row_scores(scaled, rows, pad_token_id=PAD)).loss
    # scaling and normalising again costs a rounding of every embedding
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and packed == pytest.approx(losses[0], rel=1e-5)


def test_history_leaves_out_the_base_alone_and_the_repeated_last_line(tmp_path):
    lines = [
        {"step": 0, "eval_loss": 9.0, "prompt": "none"},
        {"step": 0, "eval_loss": 8.0, "prompt": "initial"},
        {"step": 1, "loss": 5.0},
        {"step": 2, "eval_loss": 4.0, "prompt": "current"},
        {"step": 2, "eval_loss": 3.0, "prompt": "trained"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    assert study_runs.read_history(path) == [(0, 8.0), (2, 4.0)]


def test_a_run_of_softprompt_and_the_base_alone():
    (ours,) = study_runs.execute([Run("bloom", "bloom", "equation", "softprompt", None, 1, 16)], {}, threads=1)
    (none,) = study_runs.execute([Run("bloom", "bloom", "equation", "none", None, 0, 0)], {}, threads=1)
    assert "failed" not in ours, ours
    assert [step for step, _ in ours["history"]] == [0, 8, 16]
    assert ours["trainable"] == 12 * 192 and ours["learning_rate"] > 0 and not ours["diverged"]
    assert ours["best_select"] < ours["history"][0][1]
    assert "history" not in none and ours["report_loss"] < none["report_loss"]


def test_seeds_share_their_passes_and_keep_their_own_rows():
    seeds = [Run("bloom", "bloom", "equation", "softprompt", None, seed, 16) for seed in (1, 2)]
    records = study_runs.execute(seeds, {}, threads=1)
    assert [record["seed"] for record in records] == [1, 2] and not any("failed" in record for record in records)
    for run, record in zip(seeds, records, strict=True):
        (alone,) = study_runs.execute([run], {}, threads=1)
        # 16 steps of SOAP enlarge roundings; two seeds differ by far more
        assert record["best_select"] == pytest.approx(alone["best_select"], rel=1e-2)
        assert record["history"][0] == alone["history"][0] and record.keys() == alone.keys()


def test_only_seeds_of_softprompt_are_done_together():
    ours = [Run("bloom", "bloom", "topic", "softprompt", None, seed, 240) for seed in (1, 2)]
    other = dataclasses.replace(ours[0], task="unseen")
    peers = [Run("bloom", "bloom", "topic", "lora", 0.1, seed, 240) for seed in (1, 2)]
    assert study.jobs_of([*peers, ours[0], other, ours[1]]) == [[peers[0]], [peers[1]], ours, [other]]


def test_a_run_evaluates_ten_times_or_every_eight_steps():
    assert [study_runs.evaluations(steps) for steps in (240, 150, 80, 50, 16, 4)] == [10, 10, 10, 6, 2, 1]


def test_failures_are_recorded_in_one_line():
    (record,) = study_runs.execute([Run("bloom", "bloom", "equation", "nonsense", 1.0, 1, 10)], {}, threads=1)
    assert record["failed"].startswith("ValueError: no method 'nonsense'") and "\n" not in record["failed"]


def finished(run, loss=1.0, **values):
    return dataclasses.asdict(run) | {"best_select": loss, "report_loss": loss, "seconds": 1.0} | values


def test_finished_runs_are_skipped_and_failed_ones_only_retried_when_asked(tmp_path):
    runs = study_plan.search_runs("bloom", ["lora"], ["topic"])
    results = Results(tmp_path / "quality.jsonl")
    results.add(finished(runs[0]))
    results.add(finished(runs[1], failed="RuntimeError: no"))
    again = Results(results.path)
    assert again.pending(runs, retry=False) == runs[2:]
    assert again.pending(runs, retry=True) == runs[1:]


def test_a_line_that_was_cut_short_is_done_again(tmp_path):
    runs = study_plan.search_runs("bloom", ["lora"], ["topic"])
    results = Results(tmp_path / "quality.jsonl")
    results.add(finished(runs[0]))
    results.add(finished(runs[1]))
    results.path.write_text(results.path.read_text("utf-8")[:-9], "utf-8")
    again = Results(results.path)
    assert again.pending(runs, retry=False) == runs[1:]
    again.add(finished(runs[1]))
    assert Results(results.path).pending(runs, retry=False) == runs[2:]


def test_winners_of_the_search_go_on_with_three_seeds(tmp_path):
    results = Results(tmp_path / "quality.jsonl")
    search = study_plan.search_runs("bloom", ["lora"], ["topic"])
    assert [run.steps for run in search] == [80] * 7
    for run in search[:-1]:
        results.add(finished(run, loss=abs(run.rate - 1e-3)))
    assert study_plan.final_runs("bloom", ["lora"], ["topic"], results) == []  # the search is not done
    results.add(finished(search[-1], failed="RuntimeError: no"))
    final = study_plan.final_runs("bloom", ["lora", "softprompt"], ["topic"], results)
    assert [(run.method, run.rate, run.seed, run.steps) for run in final] == [
        *[("lora", 1e-3, seed, 240) for seed in (1, 2, 3)],
        *[("softprompt", None, seed, 240) for seed in (1, 2, 3, 4, 5)],
    ]


def test_more_steps_are_compared_with_the_better_start(tmp_path):
    results = Results(tmp_path / "quality.jsonl")
    search = study_plan.search_runs("bloom", study_plan.PROMPT_TUNING, ["topic"])
    for run in search[:-1]:
        results.add(finished(run, loss=abs(run.rate - 1e-3) + (run.method == "prompt-text")))
    assert study_plan.best_start("bloom", "topic", results) == (None, None)  # the searches are not done
    results.add(finished(search[-1], failed="RuntimeError: no"))
    runs = study_plan.final_runs("steps", study_plan.ALL_METHODS, [], results)
    kinds = {(run.method, run.rate, run.steps) for run in runs}
    assert kinds == {(*side, steps) for side in (("softprompt", None), ("prompt-vocab", 1e-3)) for steps in (480, 960)}
    assert {run.method for run in study_plan.final_runs("steps", ["prompt-vocab"], [], results)} == {"prompt-vocab"}


def test_records_of_before_a_field_have_its_default(tmp_path):
    (run, *_) = study_plan.search_runs("bloom", ["lora"], ["topic"])
    record = finished(run)
    del record["virtual_tokens"]
    results = Results(tmp_path / "quality.jsonl")
    results.add(record)
    longer = dataclasses.replace(run, virtual_tokens=40)
    for known in (results, Results(results.path)):
        assert run in known and longer not in known
    del record["stage"]
    results.path.write_text(json.dumps(record) + "\n[]\n", "utf-8")
    assert not list(Results(results.path))


class Inline:
    """A pool that works at once, in this process."""

    def __init__(self, jobs, **settings):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def done(monkeypatch):
    """The runs that the study has done, each in no time and the better the lower its rate."""
    runs = []

    def execute(job, folders, threads):
        runs.extend(job)
        return [finished(run, loss=run.rate or 1.0) for run in job]

    monkeypatch.setattr(study, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(study, "execute", execute)
    return runs


def test_study_goes_on_where_it_was(tmp_path, done, capsys):
    words = ["--results", str(tmp_path / "quality.jsonl"), "--tasks", "topic", "--methods", "full", "none"]
    words += ["--stage", "bloom"]
    study.main([*words, "--minutes", "0"])
    assert not done and "5 runs are left" in capsys.readouterr().out
    study.main(words)
    assert len(done) == 5 + 1 + 3 and {run.rate for run in done[6:]} == {3e-5}
    study.main(words)
    study.main([*words, "--list"])
    assert len(done) == 9 and "0 runs" in capsys.readouterr().out


def test_full_has_no_limit_and_takes_the_tasks_without_a_target_too(tmp_path, done):
    words = ["--results", str(tmp_path / "quality.jsonl"), "--methods", "none", "--stage", "bloom", "--minutes", "0"]
    study.main(words)
    assert not done
    study.main([*words, "--full"])
    assert [run.task for run in done] == ["topic", "record", "unseen", "foreign"]


def test_without_a_stage_all_run_and_the_report_is_written(tmp_path, monkeypatch, done, capsys):
    document = tmp_path / "quality.md"
    monkeypatch.setattr(study, "write_report", lambda results, path: [path])
    words = [
        "--results",
        str(tmp_path / "quality.jsonl"),
        "--document",
        str(document),
        "--methods",
        "none",
        "softprompt",
    ]
    study.main([*words, "--smollm2", str(tmp_path / "none")])
    assert {run.stage for run in done} == {"bloom", "scales", "steps", "tokens"} and {run.model for run in done} == {
        "bloom"
    }
    out = capsys.readouterr().out
    assert f"--smollm2 {tmp_path / 'none'}: not there" in out and out.splitlines()[-1] == str(document)
    study.main([*words, "--smollm2", str(tmp_path)])
    assert {run.stage for run in done} == set(study_plan.STAGES) and len(done) == len(set(done))
