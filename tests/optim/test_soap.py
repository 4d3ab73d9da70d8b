"""SOAP on a sphere: Adam along the axes of the gradients, whatever frame they are written in, at constant norms."""

import pytest
import torch
from torch import nn

from softprompt.optim import soap
from softprompt.optim.soap import SphericalSOAP, direction, principal_axes

BETAS = (0.8, 0.9)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size, seed):
    return torch.linalg.qr(drawn(size, size, seed=seed)).Q


def optimizer_with(weight, gradients, lr=0.1):
    optimizer = SphericalSOAP(weight, lr=lr, betas=BETAS)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("tokens", "width", "steps"), [(3, 8, 6), (1, 8, 6), (5, 16, 2), (4, 4, 20)])
def test_the_frame_of_the_gradients_does_not_matter(tokens, width, steps):
    """What sets SOAP apart from Adam: turned gradients give the turned step."""
    gradients = drawn(steps, tokens, width) * torch.linspace(0.1, 3, width, dtype=torch.float64)
    left, right = rotation(tokens, 1), rotation(width, 2)
    turned = direction(left @ gradients @ right.T, BETAS)
    # float64; the floor of small axes and 1e-6 of the cut are the same in any frame
    torch.testing.assert_close(turned, left @ direction(gradients, BETAS) @ right.T, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(turned, direction(gradients, BETAS), atol=0.1)


def test_along_the_axes_it_is_adam(monkeypatch):
    """Gradients whose axes are the coordinates, against torch's Adam; only the length of the step is our own."""
    monkeypatch.setattr(soap, "RELATIVE_EPSILON", 0.0)
    diagonal = torch.tensor([3.0, 1.0, 0.3], dtype=torch.float64) * drawn(7, 3).sign() * (1 + drawn(7, 3).abs())
    gradients = torch.zeros(7, 3, 5, dtype=torch.float64)
    gradients[:, range(3), range(3)] = diagonal
    weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0, betas=BETAS, eps=1e-30)
    for count, gradient in enumerate(gradients, 1):
        before = weight.detach().clone()
        weight.grad = gradient
        adam.step()
        theirs, ours = before - weight.detach(), direction(gradients[:count], BETAS)
        torch.testing.assert_close(ours / ours.norm(), theirs / theirs.norm(), rtol=1e-9, atol=1e-12)


def test_the_first_step_evens_out_the_singular_values():
    """Of one gradient the axes are the singular vectors, and Adam's ratio is one but for the floor."""
    gradient = drawn(4, 9)
    u, values, v = torch.linalg.svd(gradient, full_matrices=False)
    floor = soap.RELATIVE_EPSILON * (values.square().sum() / 16).sqrt()  # the mean over 4 x 4 pairs of axes
    expected, step = u @ (values / (values + floor)).diag() @ v, direction(gradient[None], BETAS)
    torch.testing.assert_close(step / step.norm(), expected / expected.norm(), rtol=1e-9, atol=1e-12)
    assert step.square().mean().sqrt().item() == pytest.approx(1)


def test_a_step_is_as_long_as_gradients_agree():
    """RMS 1 for one direction; for signs that alternate, the sum of (-beta)^k over that of beta^k, a ninth at 0.8."""
    gradient = drawn(4, 9)
    lengths = []
    for sign in (1.0, -1.0):
        signs = torch.tensor([sign**k for k in range(60)], dtype=torch.float64)
        step = direction(signs[:, None, None] * gradient, BETAS)
        lengths.append(step.square().mean().sqrt().item())
    assert lengths == pytest.approx([1.0, 0.2 / 1.8], rel=1e-4)  # 60 terms leave 0.8^60 out


def test_norms_stay_and_rows_of_zeros_move():
    start = drawn(4, 6).float() * torch.tensor([1.0, 100.0, 0.01, 0.0])[:, None]
    weight = nn.Parameter(start.clone())
    optimizer_with(weight, drawn(5, 4, 6, seed=1).float())
    torch.testing.assert_close(weight[:3].norm(dim=1), start[:3].norm(dim=1))
    assert weight[3].norm() > 0.1
    assert (nn.functional.cosine_similarity(weight[:3], start[:3]) < 0.999).any()


def test_a_step_beyond_fp32_is_not_taken_for_a_prompt():
    """The norm overflows before the values do, and dividing by it would leave zeros that look like a prompt."""
    weight = nn.Parameter(drawn(3, 5).float())
    optimizer_with(weight, drawn(1, 3, 5).float(), lr=1e30)
    assert not weight.isfinite().any()


def test_without_a_gradient_nothing_moves():
    weight = nn.Parameter(drawn(3, 5).float())
    before = weight.detach().clone()
    optimizer_with(weight, torch.zeros(2, 3, 5))
    torch.testing.assert_close(weight.detach(), before)


@pytest.mark.parametrize(("tokens", "kept"), [(1, 32), (12, 32), (32, 16), (100, 5), (2000, 2)])
def test_a_step_depends_on_the_window_alone(tokens, kept):
    """Another optimizer that is given the state goes on alike, and older gradients than the window's are forgotten."""
    weight, gradients = nn.Parameter(torch.ones(tokens, 3)), drawn(40, tokens, 3).float()
    optimizer = optimizer_with(weight, gradients)
    assert torch.equal(optimizer.state[weight]["gradients"], gradients[-kept:])
    twin = nn.Parameter(weight.detach().clone())
    other = SphericalSOAP(twin, lr=0.1, betas=BETAS)
    other.load_state_dict(optimizer.state_dict())
    for one, stepping in ((weight, optimizer), (twin, other)):
        one.grad = gradients[0].clone()
        stepping.step()
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("shape", [(3, 8), (20, 8), (8, 8)])
def test_axes_are_orthonormal_and_span_the_rows(shape):
    rows = drawn(*shape).float()
    axes = principal_axes(rows)
    assert axes.shape == (8, min(shape))
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows @ axes @ axes.T, rows, rtol=0, atol=1e-5)
    covariance = axes.T @ rows.T @ rows @ axes
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4 * covariance.max()


def test_a_closure_is_called_with_gradients_on_as_by_every_optimizer_of_torch():
    weight, other = nn.Parameter(drawn(3, 8).float()), nn.Parameter(drawn(3, 8).float())
    optimizer = optimizer_with(weight, [], lr=0.1)

    def loss():
        weight.grad = None
        value = weight.square().mean() + weight.sum()
        value.backward()
        return value

    before = loss()
    assert optimizer.step(loss) == before
    optimizer_with(other, [2 * other.detach() / other.numel() + 1], lr=0.1)
    torch.testing.assert_close(weight, other)
