"""`--push-to-hub` and `--prompt-file OWNER/NAME`, through huggingface_hub's own client and a stand-in of the hub."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers.commands import ROOT, assert_one_line, run_command
from helpers.prompts import save_for

from softprompt import load_prompt

TOKEN = "hf_of_this_test"


class Hub:
    """What the client asks of the hub to make a repository, to commit small files, and to download them."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}

    def post(self, path, body, token):
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "who are you?"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}" if made.get("organization") else f"me/{made['name']}"
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.address}/{name}", "id": name}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            listed = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": listed}
        assert "/commit/" in path, path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}

    def get(self, path):
        parts = path.split("?")[0].strip("/").split("/")
        if parts[0] == "api":
            name = "/".join(parts[2:4])
            files = self.files.get(name)
            if files is None:
                return 404, {"error": "no such repository"}, None
            if "tree" in parts:
                return (
                    200,
                    [{"type": "file", "path": each, "size": len(raw), "oid": "0" * 40} for each, raw in files.items()],
                    None,
                )
            siblings = [{"rfilename": each} for each in files]
            return 200, {"id": name, "sha": "0" * 40, "siblings": siblings, "private": False, "tags": []}, None
        raw = self.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
        return (404, {}, None) if raw is None else (200, None, raw)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, found = hub.post(self.path.split("?")[0], body, self.headers.get("Authorization"))
            self.send(status, json.dumps(found).encode(), {})

        def do_GET(self, *, head=False):
            status, found, raw = hub.get(self.path)
            content = json.dumps(found).encode() if raw is None else raw
            named = {} if raw is None else {"ETag": f'"{hashlib.sha1(raw).hexdigest()}"', "X-Repo-Commit": "0" * 40}
            self.send(status, content, named, head=head)

        def do_HEAD(self):
            self.do_GET(head=True)

        def send(self, status, content, headers, *, head=False):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if not head:
                self.wfile.write(content)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()


@pytest.fixture
def python(hub, work, tmp_path):
    """Run Python in a process of its own, whose hub is the stand-in."""

    def call(*words, token=TOKEN):
        import os

        settings = {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": token,
        }
        settings |= {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=work,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=200,
        )
        return done

    return call


EXPORT = ("-m", "softprompt", "export", "p.safetensors", "--to", "peft", "adapter", "--model", "big/base")


def test_a_prompt_goes_to_the_hub_and_comes_back(python, hub, model_folder, work):
    figures = {"steps": 7, "rows": 99, "held_out_loss": {"without_prompt": 2.5, "trained_prompt": 1.25}}
    save_for(model_folder, work / "p.safetensors", data="my|rows.jsonl", template="plain", training=json.dumps(figures))
    done = python(*EXPORT, "--push-to-hub", "me/polite")
    assert done.returncode == 0 and "/me/polite/commit/" in done.stdout, done.stderr
    assert sorted(hub.files["me/polite"]) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for name, raw in hub.files["me/polite"].items():
        assert raw == (work / "adapter" / name).read_bytes()
    import yaml

    _, head, card = hub.files["me/polite"]["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "peft" and yaml.safe_load(head)["base_model"] == "big/base"
    assert all(each in card for each in ("my\\|rows.jsonl", "1.25 nats", "softprompt.load", "PeftModel", "plain"))
    answers = [
        python(
            "-m", "softprompt", "generate", "--prompt-file", each, "--model", model_folder, "--no-do-sample", "what?"
        )
        for each in ("me/polite", "p.safetensors")
    ]
    assert answers[0].returncode == 0 and answers[0].stdout == answers[1].stdout != "", answers[0].stderr
    code = (
        "import peft, torch, softprompt\nfrom transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(model_folder)!r})\n"
        "model = peft.PeftModel.from_pretrained(base, 'me/polite')\n"
        "ours = softprompt.load_prompt('p.safetensors').weight\n"
        "assert torch.equal(model.prompt_encoder.default.embedding.weight, ours)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        ((*EXPORT, "--push-to-hub", "me/polite"), "wrong", "the hub does not take it"),
        (("-m", "softprompt", "inspect", "me/gone"), TOKEN, "HTTP 404"),
    ],
    ids=["token", "gone"],
)
def test_what_the_hub_refuses_is_one_line(words, token, message, python, model_folder, work):
    save_for(model_folder, work / "p.safetensors")
    done = python(*words, token=token)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr


def test_a_base_that_others_lack_is_refused(model_folder, capfd, work):
    save_for(model_folder, "p.safetensors")
    export = ("export", "p.safetensors", "--to", "peft", "adapter", "--push-to-hub")
    assert_one_line(run_command(capfd, *export, "me/it"), str(model_folder), "--model")
    assert_one_line(run_command(capfd, *export, "it"), "no hub id")
    assert not Path("adapter").exists() and load_prompt("p.safetensors")


def test_a_hub_that_cannot_be_reached_is_one_line(capfd, work):
    assert_one_line(run_command(capfd, "inspect", "me/polite"), "no file or folder of that name", "cannot be reached")
