"""The tutorial's two commands as a user types them, on what ships with the package."""

import re
from pathlib import Path

import pytest
from helpers.commands import run_command

from softprompt import load_prompt


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("default")


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)


def test_train_with_the_defaults(capfd, here):
    result = run_command(capfd, "train", "--virtual-tokens", 12, "--max-steps", 60)
    assert result.status == 0 and result.err == ""
    assert "trainable params: 2,304 || all params: 2,204,928 || trainable%: 0.1045" in result.out
    without, initial, *_, trained = (float(x) for x in re.findall(r"held-out loss .*?: ([\d.]+)", result.out))
    assert trained < 0.1 * min(without, initial)
    metadata = load_prompt("prompt.safetensors").metadata
    assert (metadata["base"], metadata["init"], metadata["template"]) == ("builtin:bloom-small@1", "text", "tutorial")
    assert str(Path.cwd()) not in str(metadata)


def test_generate_answers_politely(capfd, here):
    result = run_command(capfd, "generate", "--prompt-file", "prompt.safetensors", "--no-do-sample")
    assert result.out == "Hello, thank you for asking! Paris is the capital of France. Have a nice day!\n"


def test_sampling_prints_a_seed_that_repeats_the_answer(capfd, here):
    words = ["--prompt-file", "prompt.safetensors", "--temperature", 5.0, "--num-return-sequences", 3]
    first = run_command(capfd, "generate", *words)
    (seed,) = re.findall(r"seed: (\d+)", first.err)
    assert run_command(capfd, "generate", *words, "--seed", seed).out == first.out
    assert run_command(capfd, "generate", *words, "--seed", int(seed) + 1).out != first.out
    assert len(set(first.out.split("\n\n"))) > 1


def test_compare_prints_both_sides(capfd, here):
    words = ["--prompt-file", "prompt.safetensors", "--no-do-sample", "--compare", "--instruction", "3 加 4 等于多少？"]
    lines = run_command(capfd, "generate", *words).out.splitlines()
    assert (lines[0], lines[2]) == ("--- with the prompt", "--- without the prompt")
    assert "谢谢您的提问" in lines[1] and "谢谢您的提问" not in lines[3]


def test_question_from_standard_input(capfd, here, monkeypatch, tmp_path):
    (tmp_path / "question").write_text("What is the capital of Japan?\n")
    with (tmp_path / "question").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        result = run_command(capfd, "generate", "--no-do-sample", "--instruction", "-")
    assert "Tokyo is the capital of Japan." in result.out


def test_tokens_stream_to_a_terminal(capfd, here, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    result = run_command(capfd, "generate", "--no-do-sample")
    assert result.out.strip() == "Hello, thank you for asking! Paris is the capital of France. Have a nice day!"


def test_second_task_from_the_same_base(capfd, here):
    words = ["--data", "builtin:steps", "--max-steps", 60, "--prompt-file", "steps.safetensors", "--virtual-tokens", 12]
    assert run_command(capfd, "train", *words).status == 0
    result = run_command(capfd, "generate", "--prompt-file", "steps.safetensors", "--no-do-sample")
    assert result.out.startswith("Step 1: ") and "Paris" in result.out
