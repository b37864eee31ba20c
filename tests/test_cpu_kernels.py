"""Products by either library are the same up to rounding, and a model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from analysis.engine import kernels
from analysis.engine.kernels import onednn_is_faster, product
from analysis.engine.patches import engaged


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def library(request, monkeypatch):
    """Both libraries, whatever this processor is."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rows", [1, 28, 512])
def test_a_product_is_the_one_in_double_precision(library, rows):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, rows, 96), torch.randn(200, 96), torch.randn(200)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(product(x, weight), expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(x, weight, bias), (expected + bias).float(), rtol=1e-5, atol=1e-5)
    wide = torch.randn(1, rows, 2 * 96)[..., ::2]  # rows that are not contiguous
    found = product(wide, weight.T.contiguous().T)  # a transposed view as weight
    torch.testing.assert_close(found, (wide.double() @ weight.double().T).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("vendor", "capability", "faster"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX512_VNNI", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_the_choice_depends_on_the_processor_alone(vendor, capability, faster, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    if vendor:
        info.write_text(f"processor : 0\nvendor_id : {vendor}\n")
    monkeypatch.setattr(kernels, "_CPUINFO", info)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert onednn_is_faster.__wrapped__() is faster
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert onednn_is_faster.__wrapped__() is False


def test_linear_layers_use_the_product_inside_the_block_only(monkeypatch):
    class Own(nn.Linear):
        """Such as a layer of quantized weights."""

    seen = []
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(
        kernels, "product", lambda x, w, b: seen.append(w.shape[0]) or nn.functional.linear(x, w, b)
    )
    half, wrapped = nn.Linear(4, 4).bfloat16(), nn.Linear(4, 5)
    wrapped.forward = wrapped.forward  # as hooks of accelerate do
    model = nn.ModuleList([nn.Linear(4, 3), Own(4, 6), half, wrapped])

    def run():
        for layer in model:
            layer(torch.ones(2, 4, dtype=layer.weight.dtype))
        return seen.copy()

    assert run() == []
    with pytest.raises(KeyError), engaged(model, products=True):
        assert run() == [3]
        raise KeyError
    seen.clear()
    assert run() == [] and "forward" not in vars(model[0]) and "forward" in vars(wrapped)
