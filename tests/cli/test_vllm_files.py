"""`export --to vllm`: what a server that takes embeddings finds in the requests is what the prompt computes.

No vLLM runs here. A stand-in of its two requests reads the tensors as its documentation says, and answers with
transformers.
"""

import base64
import io
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.commands import run_command
from helpers.prompts import save_for
from helpers.tokenizers import small_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from softprompt import load

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARK = "<think>"  # an added token, in the place of which the stand-in puts the embeddings


def decoded(text):
    """The tensor of a request, under the conditions that vLLM states."""
    tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
    assert (
        tensor.dim() == 2 and tensor.is_contiguous() and tensor.device.type == "cpu" and tensor.layout == torch.strided
    )
    return tensor


class Server:
    """Answers greedily from embeddings."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.embed = self.model.get_input_embeddings()

    def answer(self, path, body):
        if path == "/v1/completions":
            assert body["prompt"] is None
            embeds = decoded(body["prompt_embeds"])
        else:
            system, user = body["messages"]
            (part, *texts) = system["content"]
            assert part["type"] == "prompt_embeds" and {each["type"] for each in texts} <= {"text"}
            turns = [{"role": "system", "content": MARK + "".join(each["text"] for each in texts)}, user]
            ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            (place,) = [place for place, id in enumerate(ids) if id == self.tokenizer.convert_tokens_to_ids(MARK)]
            before, behind = (self.embed(torch.tensor(each)) for each in (ids[:place], ids[place + 1 :]))
            embeds = torch.cat([before, decoded(part["data"]), behind])
        assert embeds.dtype == self.model.dtype
        settings = {"max_new_tokens": body["max_tokens"], "do_sample": body["temperature"] > 0, "pad_token_id": 3}
        ids = self.model.generate(inputs_embeds=embeds[None], eos_token_id=body["stop_token_ids"], **settings)[0]
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture
def serve():
    servers = []

    def start(folder):
        server = Server(folder)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = server.answer(self.path, body)
                choice = {"text": text} if self.path == "/v1/completions" else {"message": {"content": text}}
                raw = json.dumps({"choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *words):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for each in servers:
        each.shutdown()


@pytest.fixture
def base(tmp_path):
    tokenizer = small_tokenizer("bytes", CHATML)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else None
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def train(capfd, base, rows_file, placement):
    options = ("--max-steps", 1, "--virtual-tokens", 4, "--eval-fraction", 0, "--prompt-file", "p.safetensors")
    words = ("--system", "be kind", "--placement", placement)
    done = run_command(capfd, "train", "--model", base, "--data", rows_file, *options, *words)
    assert done.status == 0, done.err


@pytest.mark.parametrize("placement", ["front", "system"])
def test_the_client_gets_the_answers_of_the_prompt(placement, base, serve, capfd, work, rows_file):
    train(capfd, base, rows_file, placement)
    done = run_command(capfd, "export", "p.safetensors", "--to", "vllm", "out")
    assert done.status == 0 and "--enable-prompt-embeds" in done.out, done.err
    assert Path("out/request-chat.json").exists() == (placement == "system")
    question = "Where is Rome?"
    expected = load("p.safetensors", model=base).answer(question, do_sample=False, max_new_tokens=128)
    client = [sys.executable, "client.py", serve(base), question]
    asked = subprocess.run(client, cwd="out", capture_output=True, text=True, timeout=100)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip() == expected.strip() != ""


@pytest.mark.parametrize("placement", ["front", "system"])
def test_the_requests_hold_the_prompt(placement, base, capfd, work, rows_file):
    train(capfd, base, rows_file, placement)
    assert run_command(capfd, "export", "p.safetensors", "--to", "vllm", "out").status == 0
    loaded = load("p.safetensors", model=base)
    tensor = torch.load("out/p.pt", weights_only=True)
    assert torch.equal(tensor, loaded.prompt.weight.detach())
    assert torch.equal(decoded(Path("out/p.b64").read_text()), tensor)
    body = json.loads(Path("out/request-completions.json").read_text())
    expected = loaded.answer("What is the capital of France?", do_sample=False, max_new_tokens=128)
    assert Server(base).answer("/v1/completions", body).strip() == expected.strip()


def test_the_tensor_has_the_dtype_of_the_base(base, capfd, work):
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    save_for(base, "p.safetensors")
    done = run_command(capfd, "export", "p.safetensors", "--to", "vllm", "out")
    assert done.status == 0, done.err
    assert torch.load("out/p.pt").dtype == torch.bfloat16
