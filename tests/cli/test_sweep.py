"""The search: which trials there are, what the rounds cost, what a sweep writes, and that a stopped one goes on."""

import json
import os
import re
import shlex
import shutil
import signal

import pytest
from helpers.commands import Result, assert_one_line, main_of, snapshot

from softprompt import load_prompt
from softprompt.cli import sweep as sweep_command
from softprompt.cli.program import run as run_program
from softprompt.config.commands import SweepConfig
from softprompt.training import sweep
from softprompt.training.run import load_inputs
from softprompt.training.trainer import Trainer

GRID = ["--virtual-tokens", "2", "5", "--relative-rates", "0.01", "1", "--init", "text", "random"]


@pytest.fixture
def searched(capfd, model_folder, rows_file, tmp_path, monkeypatch):
    """A sweep of eight trials in `tmp_path`, as a user runs it."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capfd.readouterr()
        fixed = [
            "--model",
            model_folder,
            "--data",
            rows_file,
            "--eval-fraction",
            0.3,
            "--max-steps",
            12,
            "--precision",
            "fp32",
        ]
        argv = [str(word) for word in [*fixed, *GRID, *words]]
        status = run_program(lambda: sweep_command.main(argv), prog="softprompt")
        return Result(status, *capfd.readouterr())

    return run


def held_out_loss(file):
    return json.loads(load_prompt(file).metadata["training"])["held_out_loss"]["trained_prompt"]


def test_trials_are_a_seeded_choice_of_the_grid():
    first, again, other = (sweep.choose_trials(SweepConfig(seed=seed, max_trials=10)) for seed in (1, 1, 2))
    assert first == again != other and len(set(first)) == 10
    assert len(sweep.choose_trials(SweepConfig(max_trials=100))) == 18
    assert len(sweep.choose_trials(SweepConfig(virtual_tokens=(3, 3), init=("text",), relative_rates=(0.3,)))) == 1


@pytest.mark.parametrize(
    ("trials", "rounds"),
    [(12, [(12, 50), (6, 100), (3, 200)]), (3, [(3, 200)]), (1, [(1, 200)]), (7, [(7, 50), (4, 100), (2, 200)])],
)
def test_every_round_has_half_the_trials_and_twice_the_steps(trials, rounds):
    assert sweep.plan_rounds(trials, 200) == rounds
    assert all(steps >= 1 for _, steps in sweep.plan_rounds(64, 2))


def test_the_best_trial_of_the_last_round_is_written_and_its_command_repeats_it(searched, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/softprompt", "sweep"])
    result = searched()
    assert result.status == 0 and result.err == ""
    finals = {path: held_out_loss(path) for path in (tmp_path / "prompt.sweep").glob("*-12.safetensors")}
    assert len(finals) == 2
    best = min(finals, key=finals.get)
    written = (tmp_path / "prompt.safetensors").read_bytes()
    assert written == best.read_bytes()
    (words,) = re.findall(r"to train it by itself: (.*)", result.out)
    program, command, *argv = shlex.split(words)
    assert (program, command) == ("softprompt", "train")
    main_of("train")([*argv, "--prompt-file", "again.safetensors"])
    again, lane = load_prompt("again.safetensors").weight, load_prompt(best).weight
    # a trial shares its passes with others, and twelve steps of SOAP enlarge roundings to some per cent of a prompt;
    # the first held-out loss is before all steps, and the learning rate is that of the command
    again, lane = load_prompt("again.safetensors"), load_prompt(best)
    assert again.weight.shape == lane.weight.shape
    for name in ("learning_rate", "seed", "rows_per_step", "held_out_rows"):
        assert again.facts.training[name] == lane.facts.training[name]
    assert held_out_loss("again.safetensors") == pytest.approx(held_out_loss(best), rel=0.02)
    assert again.facts.training["curve"][0] == lane.facts.training["curve"][0]


def test_a_round_keeps_the_better_half(searched, tmp_path):
    searched()
    losses = [
        {
            path.name.rsplit("-", 1)[0]: held_out_loss(path)
            for path in (tmp_path / "prompt.sweep").glob(f"*-{steps}.safetensors")
        }
        for steps in (3, 6, 12)
    ]
    assert [len(one) for one in losses] == [8, 4, 2]
    for before, after in zip(losses, losses[1:], strict=False):
        assert set(after) == set(sorted(before, key=before.get)[: len(after)])


def stop_at(monkeypatch, step, of, signum=signal.SIGTERM):
    """Stop the sweep while its trials of `of` steps take step `step + 1`."""
    real = Trainer.next_rows

    def next_rows(self):
        if (self.step, self.total) == (step, of) and self.stop_signal is None:
            os.kill(os.getpid(), signum)
        return real(self)

    monkeypatch.setattr(Trainer, "next_rows", next_rows)


def trials_of(folder):
    """What the trials of a sweep wrote: prompts, and metrics without the clock."""
    prompts = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    lines = {}
    for path in folder.rglob("metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        lines[str(path.relative_to(folder))] = [
            {name: value for name, value in record.items() if name != "supervised_tokens_per_second"}
            for record in records
        ]
    return prompts, lines


@pytest.mark.parametrize(("step", "of"), [(0, 3), (2, 3), (1, 6), (5, 12)])
def test_a_stopped_sweep_goes_on_to_the_same_bits(searched, tmp_path, monkeypatch, step, of):
    whole = searched("--prompt-file", "whole.safetensors")
    with monkeypatch.context() as patched:
        stop_at(patched, step, of)
        assert searched().status == 143
    assert not (tmp_path / "prompt.safetensors").exists()
    assert_one_line(searched(), "--sweep-dir", "--resume", "--overwrite")
    assert_one_line(searched("--resume", "--max-steps", 16), "--resume", "--max-steps")
    first_steps = []
    real = Trainer.next_rows
    monkeypatch.setattr(Trainer, "next_rows", lambda self: first_steps.append((self.total, self.step)) or real(self))
    resumed = searched("--resume")
    assert resumed.status == whole.status == 0
    assert first_steps[0] == (of, step)  # nothing before it is computed again
    assert (tmp_path / "prompt.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert trials_of(tmp_path / "prompt.sweep") == trials_of(tmp_path / "whole.sweep")
    assert rounds(resumed.out) == rounds(whole.out)


@pytest.mark.parametrize("lost", ["one trial's last checkpoint", "one trial's checkpoints", "the losses of the round"])
def test_trials_of_a_round_go_on_from_a_step_that_all_of_them_have(searched, tmp_path, lost):
    """As after a kill between the checkpoints, or the prompt files, of the trials of one round."""
    assert searched("--prompt-file", "whole.safetensors").status == searched().status == 0
    (tmp_path / "prompt.safetensors").unlink()
    folder = tmp_path / "prompt.sweep"
    (folder / "round-12.json").unlink()
    first, *_ = sorted(folder.glob("*-12.run"))
    if lost == "one trial's checkpoints":
        shutil.rmtree(first)
    elif lost == "one trial's last checkpoint":
        shutil.rmtree(first / "checkpoint-12")
        first.with_suffix(".safetensors").unlink()
    resumed = searched("--resume")
    assert resumed.status == 0, resumed.err
    assert (tmp_path / "prompt.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert trials_of(folder) == trials_of(tmp_path / "whole.sweep")


def test_a_resumed_sweep_keeps_the_length_of_its_passes(searched, tmp_path, monkeypatch):
    """Which trials share a pass decides their bits, so it must not depend on the memory that is free by then."""
    assert searched("--prompt-file", "whole.safetensors").status == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 6)
        assert searched().status == 143
    monkeypatch.setattr(sweep, "tokens_that_fit", lambda *arguments: 1)
    assert searched("--resume").status == 0
    assert trials_of(tmp_path / "prompt.sweep") == trials_of(tmp_path / "whole.sweep")


def test_a_stopped_overwrite_does_not_take_the_old_sweeps_trials_for_its_own(searched, tmp_path, monkeypatch):
    """Trials of the old sweep, whose seed drew other rows, lie where `--resume` looks for those of the new one."""
    whole = searched("--prompt-file", "whole.safetensors", "--seed", 7)
    assert whole.status == searched().status == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 0, 3)
        assert searched("--overwrite", "--seed", 7).status == 143
    resumed = searched("--resume", "--seed", 7)
    assert resumed.status == 0, resumed.err
    assert rounds(resumed.out) == rounds(whole.out)
    assert (tmp_path / "prompt.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def rounds(out):
    """The tables that a sweep prints."""
    return out[out.index("round of") : out.index("test loss") if "test loss" in out else out.index("prompt written")]


def test_a_trial_that_diverges_loses_and_ends_nothing(searched):
    result = searched("--relative-rates", 1, 1e38, "--init", "text")
    assert result.status == 0 and result.err == ""
    first, second = result.out.split("round of ")[1:]
    assert first.startswith("4 trials") and first.count(" inf\n") == 2
    assert second.startswith("2 trials") and second.count("(1 x RMS)") == 3 and "inf" not in second
    assert_one_line(searched("--overwrite", "--relative-rates", 1e38, "--init", "text"), "--relative-rates", "diverged")


def test_the_prompt_files_folder_is_made(searched, tmp_path):
    assert searched("--prompt-file", "new/best.safetensors", "--sweep-dir", "trials").status == 0
    assert (tmp_path / "new" / "best.safetensors").is_file()


def test_places_that_cannot_hold_the_prompt_are_refused_before_the_search(searched, tmp_path):
    assert_one_line(searched("--prompt-file", "same", "--sweep-dir", "same"), "--sweep-dir", "same")
    os.mkfifo(tmp_path / "pipe")
    assert_one_line(searched("--prompt-file", "pipe", "--overwrite"), "--prompt-file", "no plain file")


def test_resume_replaces_only_the_prompt_file_of_its_sweep(searched, tmp_path):
    assert searched().status == 0
    (tmp_path / "precious.safetensors").write_text("another run's")
    result = searched("--resume", "--sweep-dir", "prompt.sweep", "--prompt-file", "precious.safetensors")
    assert_one_line(result, "--resume", "--prompt-file", "precious.safetensors")
    assert (tmp_path / "precious.safetensors").read_text() == "another run's"


def test_nothing_that_is_there_is_replaced(searched, tmp_path):
    (tmp_path / "prompt.safetensors").write_text("precious")
    before = snapshot(tmp_path)
    assert_one_line(searched(), "--prompt-file", "--overwrite")
    (tmp_path / "prompt.safetensors").unlink()
    (tmp_path / "prompt.sweep").mkdir()
    (tmp_path / "prompt.sweep" / "mine.txt").write_text("mine")
    assert_one_line(searched("--overwrite"), "--sweep-dir", "no sweep wrote")
    assert (tmp_path / "prompt.sweep" / "mine.txt").read_text() == "mine" and before


def test_without_held_out_rows_there_is_nothing_to_choose_by(searched, model_folder, rows_file, capfd):
    argv = ["--model", str(model_folder), "--data", str(rows_file)]
    status = run_program(lambda: sweep_command.main(argv), prog="softprompt")
    assert_one_line(Result(status, *capfd.readouterr()), "--eval-data", "--eval-fraction")


def test_the_bar_ends_full_also_when_trials_were_done_before_or_diverged(
    model_folder, rows_file, tmp_path, monkeypatch
):
    class Bar(sweep.SweepReport):
        """Counts as the terminal's bar does."""

        total = done = 0

        def begin(self, first_step, total_steps):
            self.total, self.done = total_steps, 0

        def step(self, *figures):
            self.done += 1

        def trial(self, result, steps_done):
            assert self.done <= steps_done
            self.done = steps_done

    options = {"model": str(model_folder), "data": str(rows_file), "eval_fraction": 0.3, "max_steps": 4}
    options |= {"virtual_tokens": (2, 3), "relative_rates": (0.1, 1e30), "init": ("text",), "precision": "fp32"}
    options |= {"prompt_file": str(tmp_path / "p.safetensors"), "gradient_accumulation_steps": 2}
    for resume in (False, True):
        config, bar = SweepConfig(**options, resume=resume), Bar()
        base, rows = load_inputs(config)
        sweep.Search(config, base, rows, bar).run()
        assert bar.done == bar.total > 0


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"options": 3}', '{"options": {"seed": 9}}', "[" * 100_000])
def test_a_damaged_recipe_is_one_line_and_nothing_is_lost(searched, tmp_path, content):
    searched()
    recipe = tmp_path / "prompt.sweep" / "sweep.json"
    recipe.write_text(content)
    before = snapshot(tmp_path)
    assert_one_line(searched("--resume"), "--resume", "--overwrite")
    assert snapshot(tmp_path) == before
