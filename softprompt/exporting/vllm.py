"""A prompt as requests to vLLM, which takes embeddings in the place of text."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.base.loading import Base
from softprompt.data.row import Row
from softprompt.engine.front import Front
from softprompt.exporting.wording import working_template
from softprompt.prompt.file import PromptFile
from softprompt.system.foreign import read_json
from softprompt.system.sources import SAMPLE_QUESTION
from softprompt.tokens.encoding import Encoder

SETTINGS = {"max_tokens": 128, "temperature": 0}
POST = """request = urllib.request.Request(
    sys.argv[1] + "{path}", json.dumps(body).encode(), {{"Content-Type": "application/json"}}
)
print(json.load(urllib.request.urlopen(request))["choices"][0]{answer})
"""
CHAT_CLIENT = '''"""Ask a vLLM server: python client.py http://localhost:8000 "a question"."""

import json
import sys
import urllib.request

body = json.load(open("request-chat.json"))
body["messages"][1]["content"] = sys.argv[2]
'''
COMPLETIONS_CLIENT = '''"""Ask a vLLM server: python client.py http://localhost:8000 "a question"."""

import base64
import io
import json
import sys
import urllib.request

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

body = json.load(open("request-completions.json"))
prompt, template = torch.load("{name}.pt"), open("template.jinja", newline="").read()
tokenizer = AutoTokenizer.from_pretrained({base!r})
embed = AutoModelForCausalLM.from_pretrained({base!r}, dtype=prompt.dtype).get_input_embeddings()
turns = [{{"role": "user", "content": sys.argv[2]}}]
settings = {{"chat_template": template, "add_generation_prompt": True, "return_dict": False}}
ids = tokenizer.apply_chat_template(turns, **settings)
buffer = io.BytesIO()
torch.save(torch.cat([prompt, embed(torch.tensor(ids)).detach()]), buffer)
body["prompt_embeds"] = base64.b64encode(buffer.getvalue()).decode()
'''


def tensor_bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    """A matrix as `torch.save` writes it: contiguous, on the CPU, in the base's dtype, which vLLM requires."""
    buffer = io.BytesIO()
    torch.save(tensor.detach().to("cpu", dtype).contiguous().clone(), buffer)
    return buffer.getvalue()


def dtype_of(folder: Path, base: Base) -> torch.dtype:
    """The dtype that a base's config states, in which it is to be served; else the one that it is loaded in."""
    config = read_json(folder / "config.json", base.name)
    stated = config.get("dtype") or config.get("torch_dtype")
    found = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    return found.get(stated, base.model.dtype) if isinstance(stated, str) else base.model.dtype


def vllm_files(
    base: Base, file: PromptFile, encoder: Encoder, *, name: str, model_name: str, dtype: torch.dtype
) -> dict[str, bytes]:
    """The tensor, requests that hold it, and a client, by the names of the files.

    The chat request is there for a prompt in the system turn only: the server writes the chat template around it.

    Args:
        name: what the tensor's file is called.
        model_name: the base as transformers and the server name it.
        dtype: that of the server, which the tensors must have.
    """
    raw = tensor_bytes(file.weight, dtype)
    data = base64.b64encode(raw).decode()
    common: dict[str, Any] = {"model": model_name, **SETTINGS, "stop_token_ids": encoder.end_ids}
    front = Front(encoder.before_ids, file.weight, encoder.after_ids)
    (question,) = encoder.questions([Row.asked(SAMPLE_QUESTION)])
    ids = torch.tensor([question], dtype=torch.long, device=base.model.device)
    with torch.no_grad():
        whole = torch.cat(front.embeds(base.model.get_input_embeddings(), ids), dim=1)[0]
    embeds = base64.b64encode(tensor_bytes(whole, dtype)).decode()
    files = {
        f"{name}.pt": raw,
        f"{name}.b64": data.encode(),
        "request-completions.json": _json({**common, "prompt": None, "prompt_embeds": embeds}),
    }
    if encoder.placement == "system":
        parts: list[dict[str, str]] = [{"type": "prompt_embeds", "data": data}]
        if encoder.template.system:
            parts.append({"type": "text", "text": encoder.template.system})
        turns = [{"role": "system", "content": parts}, {"role": "user", "content": SAMPLE_QUESTION}]
        files["request-chat.json"] = _json({**common, "messages": turns})
        post = POST.format(path="/v1/chat/completions", answer='["message"]["content"]')
        return files | {"client.py": (CHAT_CLIENT + post).encode()}
    template = working_template(base.tokenizer, encoder, [], [])
    if template:
        post = POST.format(path="/v1/completions", answer='["text"]')
        files["template.jinja"] = template.encode()
        files["client.py"] = (COMPLETIONS_CLIENT.format(name=name, base=model_name) + post).encode()
    return files


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
