"""Families that do not pack: found out before training, or answered row by row; and the table in the docs."""

from pathlib import Path

import pytest
import torch
from helpers.commands import assert_one_line, run_command
from helpers.models import HIDDEN_SIZE, VOCAB_SIZE, make_tokenizer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from softprompt import SoftPromptEmbedding, SoftPromptModel
from softprompt.answering.batch import answers_one_by_one, generate_batch
from softprompt.config.commands import Sampling
from softprompt.packs.families import THROUGH_INTERFACE
from softprompt.tokens.encoding import Encoder

IDS = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
QUESTIONS = [[9, 8], [20, 30, 40, 50, 60, 70, 80], [5, 6, 7]]


def with_large_weights(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.eval()


def rwkv():
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2, "attention_hidden_size": HIDDEN_SIZE}
    return with_large_weights(RwkvForCausalLM(RwkvConfig(**IDS, **sizes)))


def recurrent_gemma():
    torch.manual_seed(0)
    sizes = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = RecurrentGemmaConfig(**IDS, **sizes, lru_width=HIDDEN_SIZE, attention_window_size=32)
    return with_large_weights(RecurrentGemmaForCausalLM(config))


def gemma3_with_images():
    sizes = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1}
    text = IDS | sizes | {"intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 512}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": 28, "patch_size": 14}
    marks = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7, "mm_tokens_per_image": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **marks))


@pytest.mark.parametrize("make", [rwkv, recurrent_gemma])
def test_a_batch_answers_as_single_rows_do(make):
    base = make()
    model = SoftPromptModel(base, SoftPromptEmbedding.from_tensor(torch.randn(3, HIDDEN_SIZE)))
    sampling, tokenizer = Sampling(do_sample=False, max_new_tokens=6), make_tokenizer()
    for side in (model, base):
        assert answers_one_by_one(side)
        together = generate_batch(side, Encoder(tokenizer), sampling, questions=QUESTIONS)
        alone = [generate_batch(side, Encoder(tokenizer), sampling, questions=[ids])[0] for ids in QUESTIONS]
        assert together == alone and len({str(each) for each in alone}) > 1


def test_a_family_that_packs_is_answered_in_batches(base):
    assert not answers_one_by_one(base)


def test_a_family_that_cannot_answer_is_found_before_training(capfd, tmp_path, rows_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gemma3_with_images().save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    result = run_command(capfd, "train", "--model", "base", "--data", rows_file, "--virtual-tokens", 2)
    assert_one_line(result, "Gemma3ForConditionalGeneration", "could never answer")
    assert not (tmp_path / "prompt.safetensors").exists() and not (tmp_path / "prompt.run").exists()


def test_rows_answered_one_by_one_are_said_once(capfd, tmp_path, rows_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rwkv().save_pretrained("base")
    make_tokenizer().save_pretrained("base")
    options = ["--model", "base", "--data", rows_file, "--virtual-tokens", 2, "--max-steps", 1, "--max-length", 64]
    assert run_command(capfd, "train", *options).status == 0
    options = ["--instructions", rows_file, "--output-file", "a.jsonl", "--max-new-tokens", 2]
    result = run_command(capfd, "generate", *options)
    assert result.status == 0 and result.err.count("RwkvForCausalLM is not known to answer a batch") == 1


def test_the_table_of_families_names_those_that_pack():
    table = (Path(__file__).parents[2] / "docs" / "packing.md").read_text("utf-8")
    (row,) = (line for line in table.splitlines() if "packs, through transformers' attention" in line)
    named = {"".join(filter(str.isalnum, name)).lower() for name in row.split("|")[1].split(",")}
    assert named == {name.replace("_", "") for name in THROUGH_INTERFACE}
