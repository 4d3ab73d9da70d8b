"""What takes the spread over seeds apart: the noise of a sample, and a twin of SOAP that does not enlarge roundings."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import seed_spread  # noqa: E402
from study_runs import Splits, loaded  # noqa: E402
from study_tasks import task  # noqa: E402
from updates import UPDATES, disturb, whitened  # noqa: E402
from variants import VARIANTS  # noqa: E402


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_of_the_sample_is_what_rows_and_runs_do_not_explain():
    rows, runs = 1000, 5
    noise = 0.3 * drawn(runs, rows)
    losses = 5 * drawn(1, rows, seed=1) + drawn(runs, 1, seed=2) + noise
    # 4 x 999 squares: the estimate of 0.3 sqrt(rows) / tokens has a standard error of 1 %
    assert seed_spread.sample_deviation(list(losses), 2 * rows) == pytest.approx(0.3 / (2 * rows**0.5), rel=0.05)
    assert seed_spread.sample_deviation(list(losses - noise), 2 * rows) == pytest.approx(0, abs=1e-12)


def test_a_line_gives_every_deviation_in_relation_to_the_loss(monkeypatch, capsys):
    def losses_of(name, seed, base, splits, optim, draw=None):
        change = 0.1 * (seed - 2) if draw is None else 1.0 + 0.02 * (draw - 2)  # seeds lie around 1, roundings around 2
        return torch.tensor([float(row.num_supervised) for row in splits.report], dtype=torch.float64) * (1 + change)

    monkeypatch.setattr(seed_spread, "losses_of", losses_of)
    seed_spread.main(["--tasks", "topic", "--runs", "3"])
    found = capsys.readouterr().out.splitlines()[-1].replace("|", " ").split()
    # seeds end at 0.9, 1.0, 1.1; roundings at 1.98, 2.00, 2.02; longer rows carry the seeds' change, which is no noise
    assert found[:5] == ["topic", "1.0000", "20.0%", "10.0%", "1.0%"]


def test_runs_are_those_of_the_study_and_a_disturbed_one_starts_elsewhere(monkeypatch):
    monkeypatch.setitem(seed_spread.STEPS, "bloom", 8)
    base, _ = loaded("bloom", 1.0, None)
    splits = Splits.of(task("topic"), base)
    parts = {"train": splits.train[:64], "select": splits.select[:8], "report": splits.report[:16]}
    short = dataclasses.replace(splits, **parts)
    first, again, other, disturbed = (
        seed_spread.losses_of("topic", seed, base, short, "adamw", draw)
        for seed, draw in ((1, None), (1, None), (2, None), (1, 1))
    )
    assert torch.equal(first, again) and first.shape == (16,)
    # after eight steps a millionth is below a thousandth of the loss; another order of rows makes more
    assert 0 < (disturbed - first).abs().max() < 1e-3 * first.max() < (other - first).abs().max()


@pytest.mark.parametrize("words", [["--runs", "1"], ["--tasks", "past"], ["--optim", "sgd"]])
def test_words_that_make_no_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        seed_spread.main(words)
    assert stop.value.code == 2 and words[0] in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(3, 8), (20, 8)])
def test_whitening_is_the_damped_inverse_root(shape):
    rows = drawn(*shape)
    matrix = drawn(5, shape[0], seed=1) @ rows
    covariance = rows.T @ rows
    values, vectors = torch.linalg.eigh(covariance / torch.linalg.matrix_norm(covariance, 2))
    expected = matrix @ (vectors * (values + 1e-3).rsqrt()) @ vectors.T
    torch.testing.assert_close(whitened(rows, matrix, 1e-3), expected, rtol=1e-7, atol=1e-9)  # float64


def trained(name, gradients, seed=None):
    weight = nn.Parameter(drawn(4, 24, seed=9).float())
    if seed is not None:
        disturb(weight, seed)
    update = UPDATES[VARIANTS[name].update](weight, VARIANTS[name])
    for gradient in gradients:
        weight.grad = gradient + 0.1 * weight.detach().roll(1, dims=1)  # what a step changes comes back
        update.step(1.0)
    return weight.detach()


def test_shampoo_keeps_norms_and_roundings_small():
    gradients = drawn(20, 4, 24, seed=3).float() * torch.logspace(0, -3, 24)
    start, end = drawn(4, 24, seed=9).float(), trained("shampoo", gradients)
    torch.testing.assert_close(end.norm(dim=1), start.norm(dim=1))
    change = (end - start).abs().max()
    assert change > 0.1
    # a millionth of the start; a root is damped to 58 times at most on either side
    assert 0 < (trained("shampoo", gradients, seed=1) - end).abs().max() < 1e-3 * change
