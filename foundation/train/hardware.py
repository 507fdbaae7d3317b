"""GPUs on which a run can be planned: what their makers' data sheets promise."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Gpu:
    """What torch sees as one device.

    peak:   floating-point operations per second of bf16 matrix products, without sparsity
    memory: bytes
    link:   bytes per second, each direction, between the GPUs of a machine
    source: data sheet
    """

    name: str
    peak: float
    memory: float
    link: float
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 312e12, 40e9, 300e9, "NVIDIA A100 data sheet, SXM"),
        Gpu("a100-80", 312e12, 80e9, 300e9, "NVIDIA A100 data sheet, SXM"),
        Gpu("l40s", 362e12, 48e9, 32e9, "NVIDIA L40S data sheet; PCIe 4.0 x16, no NVLink"),
        Gpu("h100", 989e12, 80e9, 450e9, "NVIDIA H100 data sheet, SXM"),
        Gpu("h200", 989e12, 141e9, 450e9, "NVIDIA H200 data sheet, SXM"),
        Gpu("b200", 2250e12, 180e9, 900e9, "NVIDIA DGX B200 data sheet, an eighth of it"),
        Gpu("mi250x", 191.5e12, 64e9, 150e9, "AMD MI250X data sheet, one of its two dies: a device of its own"),
        Gpu("mi300x", 1307e12, 192e9, 448e9, "AMD MI300X data sheet"),
    )
}


def gpu_named(name: str) -> Gpu:
    """A GPU of the table. Raises DataError with the nearest name."""
    if name not in GPUS:
        raise DataError(f"no GPU '{name}' in the table{did_you_mean(name, GPUS)}")
    return GPUS[name]
