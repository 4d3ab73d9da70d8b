"""The device that the base runs on, and its precision."""

import torch

from softprompt.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# Bases with a smaller hidden size are faster in fp32 on a CPU, since its bf16 kernels are made again for every new
# shape: a whole default run on the shipped base, 192 wide, took 8.6 s in fp32 and 13.8 in bf16.
BF16_HIDDEN_SIZE = 512


def resolve_device(name: str) -> torch.device:
    """Turn a device name into a device; `auto` is CUDA if PyTorch sees a CUDA device, else the CPU.

    Raises:
        UserError: the name is not a device, the device is neither cpu nor cuda, or PyTorch does not see it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"`device` {name}: no such device; use cpu, cuda, cuda:N or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"`device` {name}: softprompt runs on cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"`device` {name}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use `device` cpu")
    return device


def resolve_precision(precision: str, device: torch.device, hidden_size: int) -> str:
    """Turn a precision into fp32, bf16 or fp16.

    On CUDA, `auto` is bf16 if the GPU computes in it, else fp16. On a CPU it is bf16 if the CPU computes in it and
    `hidden_size` is at least 512, else fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() and hidden_size >= BF16_HIDDEN_SIZE else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16 matrices; without them, bf16 is hundreds of times slower than fp32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
