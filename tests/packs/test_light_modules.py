"""Norms and gated MLPs that keep only their inputs give transformers' own numbers and gradients, to the bit."""

import contextlib

import pytest
import torch
from helpers.families import HIDDEN_SIZE, VOCAB_SIZE, make_family

from softprompt.engine import forward
from softprompt.engine.front import Front
from softprompt.packs.batches import pack_rows
from softprompt.packs.light_modules import light_modules
from softprompt.tokens.encoding import EncodedRow

# how many modules of two layers are replaced: Llama has two norms and an MLP in each, and a norm at the end
REPLACED = {"llama": 7, "mistral": 7, "qwen2": 7, "qwen3": 11, "gemma2": 11, "gemma3_text": 15, "cohere": 2}
OTHERS = ("bloom", "gpt2", "gpt_neox", "opt", "phi", "starcoder2")


def replaced_in(base):
    return [module for module in base.modules() if "forward" in vars(module)]


def gradient_and_kept(base):
    """The gradient of a pack's loss, and how many bytes beside the weights the forward pass keeps for it."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, VOCAB_SIZE, (length,), generator=draw).tolist() for length in (30, 7, 50)]
    pack = pack_rows([EncodedRow(ids, ids) for ids in rows], front_length=5)
    prompt = torch.randn(5, HIDDEN_SIZE, generator=draw).to(base.dtype).requires_grad_()
    own = {each.untyped_storage().data_ptr() for each in (*base.parameters(), *base.buffers())}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = forward.pack_loss(base, Front(prompt=prompt), pack)
    return torch.autograd.grad(loss, prompt)[0], sum(each.untyped_storage().nbytes() for each in kept.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", REPLACED)
def test_the_gradient_is_the_same_and_less_is_kept(family, dtype, monkeypatch):
    base = make_family(family).to(dtype)
    light, kept = gradient_and_kept(base)
    monkeypatch.setattr(forward, "light_modules", lambda base_model: contextlib.nullcontext())
    plain, most = gradient_and_kept(base)
    # 1e-6 in fp32: a residual's gradient is the sum of three, which may be added in another order
    tolerance = 1e-6 * plain.abs().max() if dtype == torch.float32 else 0
    assert (light - plain).abs().max() <= tolerance
    # an fp64 norm narrows to fp32 and keeps that, so its input is no less; nobody trains in fp64
    assert dtype == torch.float64 or kept < 0.95 * most


@pytest.mark.parametrize("family", [*REPLACED, *OTHERS])
def test_what_is_replaced_is_put_back(family):
    base = make_family(family)
    for _ in range(2):
        with pytest.raises(KeyError), light_modules(base):
            assert len(replaced_in(base)) == REPLACED.get(family, 0)
            raise KeyError
        assert not replaced_in(base)


def test_a_forward_that_somebody_replaced_is_left_alone():
    base = make_family("llama")
    norm, mlp = base.model.norm, base.model.layers[0].mlp

    def doubled(x):
        return 2 * x

    norm.forward = doubled
    with light_modules(base):
        assert norm.forward is doubled and len(replaced_in(base)) == 7
    assert norm.forward is doubled
    mlp.forward = doubled  # after the modules were looked for
    with light_modules(base):
        assert mlp.forward is doubled and len(replaced_in(base)) == 7
    assert replaced_in(base) == [mlp, norm] and mlp.forward is doubled


def test_a_norm_that_takes_a_gate_is_left_alone(monkeypatch):
    base = make_family("llama")

    def gated(self, x, gate=None):
        return x if gate is None else x * gate

    monkeypatch.setattr(type(base.model.norm), "forward", gated)
    with light_modules(base):
        assert len(replaced_in(base)) == 2


def test_an_mlp_that_computes_something_else_is_left_alone(monkeypatch):
    base = make_family("llama")

    def clamped(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=0.01) * self.up_proj(x))

    monkeypatch.setattr(type(base.model.layers[0].mlp), "forward", clamped)
    with light_modules(base):
        assert len(replaced_in(base)) == 5
