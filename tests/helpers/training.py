"""A trainer as train.py builds it, and a loss to judge what it trained."""

import torch

from softprompt import SoftPromptEmbedding, SoftPromptModel
from softprompt.base.loading import load_base
from softprompt.config.commands import TrainConfig
from softprompt.data.splits import load_splits
from softprompt.engine.passes import row_scores, total_score
from softprompt.tokens.encoded_splits import encode_splits
from softprompt.tokens.encoding import Encoder
from softprompt.training.trainer import Trainer

CPU = torch.device("cpu")


def mean_loss(model, rows, *, pad_token_id=3):
    return total_score(row_scores(model, rows, pad_token_id=pad_token_id)).loss


def trainer_for(folder, rows_file, out, *, prompt=None, eval_fraction=0.0, precision="fp32", report=None, **options):
    """A trainer on the rows of a file, as train.py builds it."""
    options = {"num_train_epochs": 1, "eval_fraction": eval_fraction} | options
    config = TrainConfig(prompt_file=str(out / "p.safetensors"), **options)
    out.mkdir(exist_ok=True)
    base = load_base(str(folder), device=CPU, precision=precision)
    splits = load_splits(str(rows_file), eval_data=None, eval_fraction=eval_fraction, seed=config.seed)
    rows = encode_splits(splits, Encoder(base.tokenizer), max_length=config.max_length)
    if prompt is None:
        text = "Answer twice."
        prompt = SoftPromptEmbedding.from_text(text, base.tokenizer, base.model.get_input_embeddings(), 5)
    return Trainer(SoftPromptModel(base.model, prompt), base, rows, config, report)
