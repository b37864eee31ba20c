"""Matrix products on a CPU by the faster of the two libraries that PyTorch brings.

PyTorch multiplies float32 matrices with MKL, which leaves the AVX-512 units of AMD processors unused; oneDNN,
which PyTorch takes for bfloat16, uses them and is 2 to 2.5 times as fast there (tasks/benchmarks/RESULTS.md).
The choice depends on the processor alone, so that processes of one machine give the same bits.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import nn

_CPUINFO = Path("/proc/cpuinfo")


@cache
def onednn_is_faster() -> bool:
    """Return whether float32 products are faster with oneDNN than with MKL on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and _CPUINFO.exists() and "AuthenticAMD" in _CPUINFO.read_text()[:1000]


@cache
def _trim() -> Callable[[int], int]:
    """Return glibc's malloc_trim, or what does nothing where there is another library."""
    return getattr(ctypes.CDLL(None), "malloc_trim", int) if sys.platform == "linux" else int


def return_memory() -> None:
    """Give memory that was freed back to the system: what temporary tensors leave grows with their number."""
    _trim()(0)


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``rows @ weight.T + bias`` in float32.

    Args:
        rows: (..., K).
        weight: (M, K), contiguous or the transposed view of a contiguous matrix: for other strides oneDNN
            falls back to a loop that is a thousand times slower.
        bias: (M,).

    Returns:
        (..., M).
    """
    if onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(rows.contiguous(), weight, bias, "none", [], "")
    return nn.functional.linear(rows, weight, bias)


def linear(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """Return what ``layer`` makes of ``rows`` (..., K), by :func:`product`."""
    return product(rows, layer.weight, layer.bias)


def is_plain_linear(layer: nn.Module) -> bool:
    """Return whether it is a float32 linear layer on the CPU that nothing has changed.

    Quantized, offloaded and wrapped ones are not.
    """
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
