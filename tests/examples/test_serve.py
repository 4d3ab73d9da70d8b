"""The example server: OpenAI's client is content, 64 clients at once get what each gets alone, nothing bad stops it."""

import contextlib
import http.client
import importlib.util
import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.prompts import save_for

from softprompt import load
from softprompt.answering.worker import Worker
from softprompt.base.loading import load_base
from softprompt.engine.continuous import ContinuousDecoding
from softprompt.engine.fronts import FrontCaches

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

ROOT = Path(__file__).parents[2]
GREEDY = {"temperature": 0, "max_tokens": 12}
QUESTIONS = ["Say red", "Say a much longer thing about green and blue", "Hi", "说 é", *(f"Say {n}" for n in range(6))]


@pytest.fixture(scope="module")
def serve():
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("serve", ROOT / "examples" / "serve.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve"] = module  # which its dataclasses look for
    spec.loader.exec_module(module)
    yield module
    del sys.modules["serve"]


class Server:
    """A running server on a port of its own, with a random base and the prompts of a folder."""

    def __init__(self, serve, base_folder, folder, *, token="", **changes):
        self.folder, self.token = folder, token
        base = load_base(str(base_folder), device=torch.device("cpu"), precision="fp32")
        limits = {"max_rows": 8, "max_slots": 4000, "max_waiting": 100, "max_new_tokens": 900}
        limits |= {"max_body_bytes": 100_000, "timeout": 60.0} | changes
        self.limits = serve.Limits(**limits)
        self.prompts = serve.Prompts(base, folder, allow_other=False)
        decoding = ContinuousDecoding(base.model, FrontCaches(), max_rows=limits["max_rows"], max_slots=4000)
        self.worker = Worker(decoding, max_waiting=limits["max_waiting"])
        app = serve.make_app(self.prompts, self.worker, self.limits, token=token, hosts=["127.0.0.1"])
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.worker.close()

    @property
    def base(self):
        return self.prompts.base_name

    def send(self, method, path, content=None, headers=None):
        """Status and body of one request; `content` is bytes or becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
        given = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        with contextlib.closing(connection):
            connection.request(method, path, body, given | (headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()

    def ask(self, model, text, **changes):
        """The text of a chat's answer."""
        turns = [{"role": "user", "content": text}]
        status, body = self.send(
            "POST", "/v1/chat/completions", {"model": model, "messages": turns, **GREEDY, **changes}
        )
        assert status == 200, body
        return json.loads(body)["choices"][0]["message"]["content"]

    def refused(self, status, body, path="/v1/chat/completions", **headers):
        """The message of a request that is refused with this status."""
        found, text = self.send("POST", path, body, headers)
        assert found == status, text
        error = json.loads(text)["error"]
        assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
        return error["message"]


@pytest.fixture
def open_server(serve, model_folder, tmp_path):
    """Start a server over prompts `a` and `b`; all end with the test."""
    folder, opened = tmp_path / "prompts", []
    folder.mkdir()
    for seed, name in enumerate("ab"):
        save_for(model_folder, folder / f"{name}.safetensors", count=2 + 4 * seed, seed=seed, scale=3.0)

    def start(**changes):
        opened.append(Server(serve, model_folder, folder, **changes))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def chat(model, text="Hi", **changes):
    return {"model": model, "messages": [{"role": "user", "content": text}], **GREEDY, **changes}


def alone(server, name, text):
    """What `softprompt.load` answers."""
    prompt = load(server.folder / f"{name}.safetensors", device="cpu", precision="fp32")
    return prompt.answer(text, do_sample=False, max_new_tokens=12)


def test_the_models_are_the_prompts_and_the_base(open_server, model_folder):
    server = open_server()
    status, body = server.send("GET", "/v1/models")
    assert status == 200 and [each["id"] for each in json.loads(body)["data"]] == [server.base, "a", "b"]
    save_for(model_folder, server.folder / "c.safetensors", count=3, seed=7, scale=3.0)
    (server.folder / "a.safetensors").unlink()
    body = server.send("GET", "/v1/models")[1]
    assert [each["id"] for each in json.loads(body)["data"]] == [server.base, "b", "c"]
    assert server.ask("c", "Hi") == alone(server, "c", "Hi")
    assert "'a' does not exist" in server.refused(404, chat("a"))


def test_64_clients_at_once_get_what_each_gets_alone(open_server):
    server = open_server(max_waiting=64)
    wanted = {(name, text): alone(server, name, text) for name in "ab" for text in QUESTIONS}
    assert len(set(wanted.values())) > 5
    asked = [("ab"[place % 2], QUESTIONS[place % len(QUESTIONS)]) for place in range(64)]
    base_alone = {text: server.ask(server.base, text) for text in QUESTIONS}
    models = [(name if place % 3 else server.base, text) for place, (name, text) in enumerate(asked)]
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda pair: server.ask(*pair), models))
    for (name, text), answer in zip(models, answers, strict=True):
        assert answer == (base_alone[text] if name == server.base else wanted[name, text])
    assert server.worker.passes < 64 * 11  # rows shared passes


def test_seeds_and_several_choices(open_server):
    server = open_server()
    hot = {"temperature": 3.0, "max_tokens": 8, "n": 3, "seed": 5}
    first, again, other = (
        json.loads(server.send("POST", "/v1/chat/completions", chat("a", **hot | change))[1])["choices"]
        for change in ({}, {}, {"seed": 99})
    )
    assert first == again != other and [each["index"] for each in first] == [0, 1, 2]
    assert len({each["message"]["content"] for each in first}) == 3


def events_of(text):
    blocks = text.split("\n\n")
    assert blocks[-1] == "" and blocks[-2] == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@pytest.mark.parametrize("text", QUESTIONS[:4])
def test_a_stream_adds_up_to_the_whole_answer(open_server, text):
    server = open_server()
    whole = server.ask("b", text, max_tokens=40)
    stops = [whole[len(whole) // 2 :][:3]] if len(whole) > 6 else []
    for extra, wanted in (({}, whole), ({"stop": stops}, whole.partition(stops[0])[0] if stops else whole)):
        request = chat("b", text, max_tokens=40, stream=True, stream_options={"include_usage": True}, **extra)
        *events, usage = events_of(server.send("POST", "/v1/chat/completions", request)[1])
        assert "".join(each["choices"][0]["delta"]["content"] for each in events) == wanted
        assert events[0]["choices"][0]["delta"]["role"] == "assistant" and usage["choices"] == []
        assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert server.ask("b", text, max_tokens=40, **extra) == wanted


def test_plain_completions(open_server):
    server = open_server()
    request = {"model": "a", "prompt": ["Say red", "Hi"], **GREEDY}
    status, body = server.send("POST", "/v1/completions", request)
    assert status == 200 and [each["index"] for each in json.loads(body)["choices"]] == [0, 1]
    prompt = load(server.folder / "a.safetensors", device="cpu", precision="fp32")
    for text, choice in zip(("Say red", "Hi"), json.loads(body)["choices"], strict=True):
        ids = torch.tensor([prompt.tokenizer(text, add_special_tokens=False)["input_ids"]])
        output = prompt.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=3)[0, ids.shape[1] :]
        assert choice["text"] == prompt.tokenizer.decode(output, skip_special_tokens=True)


def test_the_clients_of_openai(open_server):
    openai = pytest.importorskip("openai", reason="the client `openai` is not installed")
    server = open_server(token="secret")
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret", max_retries=0)
    assert [each.id for each in client.models.list()] == [server.base, "a", "b"]
    wanted = alone(server, "a", "Say red")
    request = {"model": "a", "messages": [{"role": "user", "content": "Say red"}], **GREEDY}
    answer = client.chat.completions.create(**request)
    assert answer.choices[0].message.content == wanted and answer.usage.completion_tokens <= 12
    pieces = [each.choices[0].delta.content or "" for each in client.chat.completions.create(stream=True, **request)]
    assert "".join(pieces) == wanted
    assert client.completions.create(model="b", prompt="Hi", **GREEDY).choices[0].text
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(**request | {"model": "gone"})
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        client.chat.completions.create(logit_bias={"5": 1}, **request)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list()


def test_a_token_is_asked_for(open_server):
    server = open_server(token="sécret")
    for header in ("", "Bearer", "Bearer wrong", "Basic sécret"):
        wrong = {"Authorization": header.encode().decode("latin-1")}
        assert server.send("GET", "/v1/models", headers=wrong)[0] == 401
        assert "bearer token" in server.refused(401, chat("a"), **wrong)
    assert server.send("GET", "/")[0] == 200  # the page asks for it


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_the_rows_of_a_client_that_vanishes_leave(open_server, stream):
    server = open_server()
    # greedy, since a drawn answer may meet the end of a text before the client is missed
    content = json.dumps(chat("a", max_tokens=900, temperature=0, stream=stream)).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    wait_until(lambda: server.worker.load[0] == 1)
    (job,) = server.worker._running.values()
    connection.close()
    wait_until(lambda: server.worker.load == (0, 0))
    assert job.error == "cancelled" and len(job.row.new_ids) < 900
    assert server.ask("a", "Hi") == alone(server, "a", "Hi")


DEEP = b'{"model":' + b"[" * 40_000 + b"]" * 40_000 + b"}"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"\xff\xfe", 400, "decode"),
        (b"[]", 400, "object"),
        (b'{"model": "a", "temperature": NaN}', 400, "NaN"),
        (DEEP, 400, "deep"),
        (b" " * 100_001, 413, "100,000 bytes"),
    ],
    ids=range(7),
)
def test_bodies_that_are_no_request(open_server, content, status, words):
    server = open_server()
    assert words in server.refused(status, content)
    assert server.ask("a", "Hi") == alone(server, "a", "Hi")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": None}, "`messages` must be a list"),
        ({"messages": []}, "`messages` must be a list"),
        ({"messages": ["Hi"]}, "turn 1: must have a `role`"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1: must have a `role`"),
        ({"messages": [{"role": "user", "content": 5}]}, "turn 1"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of text only"),
        ({"messages": [{"role": "user", "content": " "}]}, "must be the user's, and not blank"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        ({"temperature": "hot"}, "`temperature` must be a number"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": -(10**400)}, "`temperature` is too large"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": 1.5}, "`top_k` must be a number"),
        ({"max_tokens": 0}, "`max_tokens` must be a whole number from 1 to 900"),
        ({"max_tokens": 901}, "`max_tokens`"),
        ({"max_tokens": True}, "`max_tokens`"),
        ({"n": 0}, "`n` must be a whole number from 1 to 8"),
        ({"n": 10**30}, "`n`"),
        ({"seed": -1}, "`seed`"),
        ({"stop": [""]}, "`stop`"),
        ({"stop": ["a"] * 5}, "`stop`"),
        ({"stream": 1}, "`stream`"),
        ({"logprobs": True}, "'logprobs' is not supported"),
        ({"tools": [{}]}, "'tools' is not supported"),
        ({"temprature": 1}, "'temprature' is not supported"),
        ({"prompt": "Hi"}, "'prompt' is not supported"),
        ({"messages": [{"role": "user", "content": "a" * 5000}]}, "more than 4000 slots"),
    ],
    ids=str,
)
def test_requests_that_ask_for_what_is_not_there(open_server, changes, words):
    assert words in open_server().refused(400, chat("a") | changes)


def test_what_changes_nothing_is_taken(open_server):
    server = open_server()
    harmless = {"user": "me", "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"}}
    assert server.ask("a", "Hi", **harmless) == alone(server, "a", "Hi")
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert server.ask("a", parts) == alone(server, "a", "Hi")


def test_names_reach_no_other_file(open_server, model_folder):
    server = open_server()
    save_for(model_folder, server.folder.parent / "secret.safetensors")
    for name in ("../secret", str(server.folder.parent / "secret"), "", None, 5, ["a"], "a.safetensors", "a\x00"):
        assert "does not exist" in server.refused(404, chat(name))


def test_other_sites_cannot_ask(open_server):
    server = open_server()
    assert "application/json" in server.refused(415, chat("a"), **{"Content-Type": "text/plain"})
    assert server.send("GET", "/v1/models", headers={"Host": "evil.example"})[0] == 400


def test_a_full_queue_and_a_deadline(open_server):
    server = open_server(max_rows=1, max_waiting=1, timeout=3.0)
    with ThreadPoolExecutor(2) as pool:
        slow = chat("a", max_tokens=900)
        first = pool.submit(server.send, "POST", "/v1/chat/completions", slow)
        wait_until(lambda: server.worker.load[0] == 1)
        second = pool.submit(server.send, "POST", "/v1/chat/completions", slow)
        wait_until(lambda: server.worker.load[1] == 1)
        assert "wait already" in server.refused(429, chat("a"))
        statuses = {first.result()[0], second.result()[0]}
        assert statuses <= {200, 504}
    server.worker.decoding.step = lambda: time.sleep(0.2) or []
    assert "took too long" in server.refused(504, chat("a"))


def test_a_prompt_may_be_replaced_while_it_answers(open_server, model_folder):
    """A row goes on with the prompt that it began with; the next request has the new one."""
    server = open_server()
    before = alone(server, "a", "Hi")
    long_before = server.ask("a", "Hi", max_tokens=300)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.ask, "a", "Hi", max_tokens=300)
        wait_until(lambda: server.worker.load[0] == 1 or running.done())
        save_for(model_folder, server.folder / "a.safetensors", count=5, seed=11, scale=3.0)
        after = server.ask("a", "Hi")
        assert running.result() == long_before
    assert after == alone(server, "a", "Hi") != before
    whole = (server.folder / "a.safetensors").read_bytes()
    (server.folder / "a.safetensors").write_bytes(whole[:100])
    assert "cannot be used now" in server.refused(503, chat("a"))
    (server.folder / "a.safetensors").write_bytes(whole)
    assert server.ask("a", "Hi") == after
    save_for("builtin:bloom-small@1", server.folder / "other.safetensors", known=False)
    assert "trained on" in server.refused(503, chat("other"))


def test_the_page_is_whole(open_server):
    status, page = open_server().send("GET", "/")
    assert status == 200 and page.startswith("<!doctype html>") and "/v1/chat/completions" in page
    assert "innerHTML" not in page and "http" not in page.replace("http-equiv", "")  # nothing from elsewhere


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompts", "gone"], "--prompts gone: no such folder"),
        (["--prompts", "."], "holds no prompt that would name a base; pass --model"),
        (["--prompts", ".", "--model", "./gone"], "--model ./gone: no such folder"),
    ],
    ids=str,
)
def test_a_wrong_start_is_one_line(serve, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        serve.main([*words, "--device", "cpu"])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and said in err and err.count("\n") == 1
