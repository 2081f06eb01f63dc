"""GELU without a tanh, and softmax of a few columns: the numbers of torch's own kernels."""

import pytest
import torch
from torch.nn import functional as F

from pixart_core.models.gelu import gelu_tanh
from pixart_core.models.layers import attend

# In units of the last place of the type, of the value or of 1, whichever is larger.
ROUNDINGS = {torch.bfloat16: 1.0, torch.float16: 1.0, torch.float32: 24.0}


def values(dtype: torch.dtype) -> torch.Tensor:
    spread = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 300.0, -300.0, 6e4])])
    return spread.to(dtype)


def assert_rounded(found: torch.Tensor, exact: torch.Tensor) -> None:
    unit = torch.finfo(found.dtype).eps * exact.abs().clamp(min=1.0)
    assert ((found.double() - exact).abs() <= ROUNDINGS[found.dtype] * unit).all()


@pytest.mark.parametrize("dtype", ROUNDINGS)
@pytest.mark.parametrize("trained", [False, True])
def test_gelu_and_its_derivative_are_torchs_in_double_precision(dtype, trained) -> None:
    x = values(dtype).requires_grad_(trained)
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    found = gelu_tanh(x)
    assert found.dtype == dtype
    assert_rounded(found.detach(), expected.detach())
    if trained:
        expected.sum().backward()
        found.sum().backward()
        assert_rounded(x.grad, wide.grad)


def test_the_derivative_is_that_of_differences() -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gelu_tanh, x)


def test_gelu_keeps_as_much_memory_as_torchs() -> None:
    kept: dict[str, int] = {}
    for name, function in {"torch": lambda x: F.gelu(x, approximate="tanh"), "ours": gelu_tanh}.items():
        tensors: list[torch.Tensor] = []
        x = torch.randn(64, 64, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, own=tensors: own.append(t) or t, lambda t: t):
            function(x)
        kept[name] = sum(t.nbytes for t in tensors)
    assert kept["ours"] == kept["torch"]


@pytest.mark.parametrize("length", [1, 17, 32, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_equals_the_formula_in_double_precision(length, dtype) -> None:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (24, length, length))
    bias = torch.zeros(2, 1, 1, length, dtype=dtype)
    bias[0, ..., length // 2 + 1 :] = -10_000.0
    scores = q.double() @ k.double().mT / 8**0.5 + bias.double()
    expected = scores.softmax(-1) @ v.double()
    found = attend(q, k, v, bias)
    assert found.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
