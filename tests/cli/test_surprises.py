"""Input that is unusual and right, or wrong in an unusual way: each of these once went wrong."""

import json
import shutil

import pandas
import pytest
import torch
from helpers.commands import assert_one_line, run_command, snapshot
from helpers.models import VOCAB_SIZE, make_model, make_tokenizer
from helpers.rows import ROWS
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from softprompt import SoftPromptEmbedding, UserError, load_prompt, save_prompt
from softprompt.config.commands import TrainConfig
from softprompt.data.splits import load_splits


@pytest.fixture
def train(capfd, tmp_path, model_folder, rows_file, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv, model=model_folder, data=rows_file):
        return run_command(capfd, "train", "--model", model, "--data", data, "--max-steps", 2, *argv)

    return run


def rows_of(path):
    return load_splits(str(path), eval_data=None, eval_fraction=0.0, seed=1).train_rows


def test_answers_while_training_stay_within_a_short_context(train, tmp_path):
    rows = [{"instruction": f"Say {place}", "output": "x" * (30 + place % 3)} for place in range(10)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=80, vocab_size=VOCAB_SIZE)).save_pretrained(
        tmp_path / "short"
    )
    make_tokenizer().save_pretrained(tmp_path / "short")
    words = ["--eval-fraction", 0.3, "--virtual-tokens", 4, "--eval-generate", 2]
    result = train(*words, model=tmp_path / "short", data="long.jsonl")
    assert result.status == 0, result.err
    answers = [json.loads(line) for line in (tmp_path / "prompt.run" / "answers.jsonl").read_text("utf-8").splitlines()]
    exact = sum(row["answer"].strip() == row["reference"] for row in answers)
    assert len(answers) == 2 and f"exact match: {exact} of 2 greedy answers to held-out rows" in result.out
    assert {row["reference"] for row in answers} <= {row["output"] for row in rows}
    assert result.out.splitlines()[-1].startswith(("prompt written", "note", "warning"))
    assert train(*words[:4], "--overwrite", model=tmp_path / "short", data="long.jsonl").status == 0
    assert not (tmp_path / "prompt.run" / "answers.jsonl").exists()  # they were the replaced prompt's


def test_test_rows_that_also_are_held_out_or_trained_on_are_left_out(train, tmp_path):
    chosen, fresh = ({"instruction": "Say up", "output": word} for word in ("up up", "no"))
    (tmp_path / "held.jsonl").write_text(json.dumps(chosen) + "\n")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (chosen, ROWS[0], fresh)))
    result = train("--eval-data", "held.jsonl", "--test-data", "test.jsonl")
    assert result.status == 0, result.err
    assert "\nheld out: 1 row, 6 supervised tokens\n" in result.out
    assert "\ntest: 1 row, 3 supervised tokens; 2 that are also rows of another split left out\n" in result.out


def test_dates_stay_text(tmp_path):
    rows = [{"instruction": "2024-01-01", "output": "null"}, {"instruction": "2024-01-02", "output": "007"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert [(row.columns["instruction"], row.output) for row in rows_of(tmp_path / "rows.json")] == [
        ("2024-01-01", "null"),
        ("2024-01-02", "007"),
    ]


def test_nan_is_a_missing_value(tmp_path):
    frame = pandas.DataFrame({"instruction": ["a", "b"], "input": [float("nan")] * 2, "output": ["c", "d"]})
    frame.to_parquet(tmp_path / "rows.parquet")
    assert [row.columns["input"] for row in rows_of(tmp_path / "rows.parquet")] == ["", ""]


def test_csv_with_the_index_that_pandas_writes(tmp_path):
    pandas.DataFrame(ROWS).to_csv(tmp_path / "rows.csv")
    assert [row.output for row in rows_of(tmp_path / "rows.csv")] == [row["output"] for row in ROWS]


def test_brackets_in_a_name(rows_file, tmp_path):
    shutil.copy(rows_file, tmp_path / "rows[1].jsonl")
    assert len(rows_of(tmp_path / "rows[1].jsonl")) == len(ROWS)


def test_folder_with_an_empty_split(rows_file, tmp_path):
    (tmp_path / "data").mkdir()
    shutil.copy(rows_file, tmp_path / "data" / "train.jsonl")
    (tmp_path / "data" / "validation.jsonl").touch()
    with pytest.raises(UserError, match="validation.jsonl: the file is empty"):
        load_splits(str(tmp_path / "data"), seed=1)


def test_checkpoints_of_another_program_are_kept(train, tmp_path):
    (tmp_path / "hf" / "checkpoint-500").mkdir(parents=True)
    (tmp_path / "hf" / "checkpoint-500" / "model.bin").write_text("precious")
    before = snapshot(tmp_path)
    assert_one_line(train("--run-dir", "hf", "--overwrite"), "--run-dir hf", "checkpoint-500")
    assert snapshot(tmp_path) == before


def test_metrics_of_another_program_are_kept(train, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "metrics.jsonl").write_text('{"mine": 1}\n')
    assert_one_line(train("--run-dir", "logs"), "--run-dir logs", "already there")
    assert (tmp_path / "logs" / "metrics.jsonl").read_text() == '{"mine": 1}\n'


def test_names_with_dots_have_run_folders_of_their_own():
    folders = {str(TrainConfig(prompt_file=name).run_folder) for name in ("a/v1.0", "a/v1.1", "a/v1.0.safetensors")}
    assert folders == {"a/v1.0.run", "a/v1.1.run"}


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert TrainConfig(prompt_file="~/p.safetensors").prompt_file == "/somewhere/p.safetensors"


def test_tokenizer_with_more_ids_than_the_base(train, tmp_path):
    config = BloomConfig(vocab_size=100, hidden_size=32, n_layer=1, n_head=2, eos_token_id=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "small")
    make_tokenizer().save_pretrained(tmp_path / "small")
    assert_one_line(train(model="small"), "--model small", "its embedding has 100 rows")


def test_weights_pickled_the_old_way(train, tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    state = make_model("bloom").state_dict()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    result = train(model="old")
    assert (result.status, result.err) == (0, "")
    assert "note: pytorch_model.bin: no safetensors there" in result.out


def test_an_index_that_is_none(train, tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors.index.json").write_text("{}")
    assert_one_line(train(model="cut"), "model.safetensors.index.json", "not an index")


def test_settings_of_the_base_do_not_leak_into_generation(train, capfd, tmp_path, model_folder):
    train()
    plain = run_command(capfd, "generate", "--no-do-sample", "--max-new-tokens", 8)
    settings = {"num_beams": 4, "min_length": 60, "no_repeat_ngram_size": 1, "eos_token_id": [2]}
    shutil.copytree(model_folder, tmp_path / "beams")
    (tmp_path / "beams" / "generation_config.json").write_text(json.dumps(settings))
    words = ["--no-do-sample", "--max-new-tokens", 8, "--model", "beams"]
    assert run_command(capfd, "generate", *words).out == plain.out != ""


def test_resume_with_another_start_is_refused(train, capfd):
    train()
    assert train("--init", "random", "--prompt-file", "random.safetensors", "--virtual-tokens", 54).status == 0
    result = train("--resume", "--init-from", "random.safetensors")
    assert_one_line(result, "--resume", "--init-from: the run started from another prompt")


def test_a_prompt_that_does_not_say_its_weights(capfd, tmp_path, model_folder):
    path = tmp_path / "mine.safetensors"
    save_prompt(path, SoftPromptEmbedding.from_tensor(torch.ones(2, 32)), {"base": str(model_folder)})
    assert load_prompt(path).weight.shape == (2, 32)
    words = ["--prompt-file", path, "--max-new-tokens", 2]
    assert_one_line(run_command(capfd, "generate", *words), path, f"--model {model_folder}")
    words += ["--model", model_folder]
    refused = run_command(capfd, "generate", *words)
    assert_one_line(refused, path, "does not say which weights", "--allow-other-base")
    assert run_command(capfd, "generate", *words, "--allow-other-base").status == 0


def test_a_base_that_has_moved_is_blamed_on_the_prompt_file(train, capfd, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "here")
    train(model="./here")
    shutil.rmtree(tmp_path / "here")
    result = run_command(capfd, "generate")
    assert_one_line(result, "prompt.safetensors was trained on ./here", "pass --model")
