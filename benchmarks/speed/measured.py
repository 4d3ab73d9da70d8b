"""Run a script as `python SCRIPT ARGUMENTS` does, then print one JSON line with the peak memory of this process."""

import json
import os
import resource
import runpy
import sys
from pathlib import Path


def main() -> None:
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    print("\n" + json.dumps({"peak_bytes": peak_rss(), "peak_cuda_bytes": peak_cuda()}), flush=True)


def peak_rss() -> int:
    """Bytes. `ru_maxrss` of a child begins at its parent's size, Linux's VmHWM does not."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_cuda() -> int:
    """Bytes that PyTorch's tensors took on the GPU at most; 0 where nothing ran there."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch and torch.cuda.is_available() else 0


if __name__ == "__main__":
    main()
