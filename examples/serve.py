"""Serve prompts of one base over OpenAI's HTTP interface: requests of different prompts share the base's passes.

usage: python examples/serve.py --prompts FOLDER [--model BASE] [--port 8000]      (pip install "softprompt[serve]")

`model` of a request names a prompt, which is a file NAME.safetensors of the folder, or the base itself. The folder is
looked at for every request, so a prompt may be added, replaced or taken away while this runs. `GET /` is a page to try
prompts beside the base. docs/many-prompts.md says what is taken of OpenAI's interface, and what a request may ask for.
"""

import argparse
import asyncio
import copy
import hmac
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers import PreTrainedTokenizerBase

from softprompt import UserError
from softprompt.answering.batch import front_of
from softprompt.answering.worker import Job, QueueFull, Worker, chooser
from softprompt.base.device import resolve_device
from softprompt.base.loading import Base, load_base, require_known_ids
from softprompt.config.commands import Sampling
from softprompt.config.options import flags_in
from softprompt.data.row import Row, RowKinds
from softprompt.engine.continuous import ContinuousDecoding, RunningRow
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches
from softprompt.prompt.bank import PromptBank
from softprompt.prompt.encoder import encoder_for
from softprompt.prompt.file import load_prompt
from softprompt.prompt.fit import load_prompt_base, require_room
from softprompt.system.foreign import parse_json
from softprompt.system.process import silence_libraries
from softprompt.tokens.encoding import Encoder, decode_text, encode_text

SUFFIX = ".safetensors"
PAGE = Path(__file__).with_name("serve.html")
MOST_CHOICES, MOST_STOPS, MOST_STOP_CHARACTERS, DEFAULT_TOKENS = 8, 4, 200, 128
LOCAL = ("127.0.0.1", "localhost", "::1")
MOST_NUMBER = 10**6
BODY_SECONDS = 30  # within which a body must have come
TOKEN = "SOFTPROMPT_TOKEN"  # the environment variable; a flag would show in the list of processes
ROLES = ("system", "user", "assistant")
# what both routes take; `user`, `metadata` and `store` change no answer
COMMON = {"model", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "n", "seed", "stop", "stream"}
COMMON |= {"stream_options", "user", "metadata", "store"}
# values with which these change no answer either, so that clients may send them
NEUTRAL = {"frequency_penalty": (0, None), "presence_penalty": (0, None), "logprobs": (False, None), "echo": (False,)}
NEUTRAL |= {"logit_bias": ({}, None), "best_of": (1, None), "tools": ([], None), "response_format": ({"type": "text"},)}


class Refused(Exception):
    """A request that gets no answer: the HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how much of the machine all of them may take."""

    max_rows: int
    max_slots: int
    max_waiting: int
    max_new_tokens: int
    max_body_bytes: int
    timeout: float


@dataclass(frozen=True)
class Target:
    """What `model` names: how its rows are written, and what stands in front of them."""

    encoder: Encoder
    front: Front


class Prompts:
    """The prompts of a folder, and the base; may be called from several threads."""

    def __init__(self, base: Base, folder: Path, *, allow_other: bool) -> None:
        self.base, self.folder = base, folder
        self.base_name = base.name.rstrip("/").rsplit("/", 1)[-1]
        self._bank = PromptBank(base, allow_other=allow_other)
        self._alone = Target(encoder_for(base, RowKinds()), Front())
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names of the prompts, in order."""
        return sorted(path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}") if path.is_file())

    def target(self, name: object) -> Target:
        """Return what a request means by `model`; raises `Refused` if there is no such prompt or it cannot be used."""
        if name == self.base_name:
            return self._alone
        if not isinstance(name, str) or name not in self.names():
            raise Refused(404, f"the model {str(name)[:80]!r} does not exist; GET /v1/models lists those that do")
        with self._lock:
            try:
                prompt = self._bank.load(str(self.folder / f"{name}{SUFFIX}"))
            except UserError as error:
                raise Refused(503, f"the prompt {name} cannot be used now: {error}") from error
        return Target(prompt.encoder, front_of(prompt))

    def ids(self, target: Target, messages: list[dict[str, str]] | None, text: str) -> list[int]:
        """Return the ids of a conversation or, without one, of a plain text behind bos."""
        with self._lock:
            try:
                if messages is not None:
                    (ids,) = target.encoder.questions([Row(tuple(messages))])
                else:
                    bos = [] if target.encoder.bos_id is None else [target.encoder.bos_id]
                    ids = [*bos, *encode_text(text, self.base.tokenizer)]
            except UserError as error:
                raise Refused(400, str(error)) from error
        if not ids:
            raise Refused(400, "the prompt is empty")
        return ids


@dataclass(frozen=True)
class Asked:
    """A request that was read and checked."""

    target: Target
    ids: list[list[int]]
    sampling: Sampling
    seed: int
    max_new_tokens: int
    stops: tuple[str, ...]
    choices: int
    streams: bool
    with_usage: bool


@dataclass(eq=False)
class Answer:
    """One choice of a response, as far as it has come."""

    index: int
    tokenizer: PreTrainedTokenizerBase
    end_ids: Sequence[int]
    stops: tuple[str, ...]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    sent: str = ""
    reason: str | None = None

    def take(self, ids: list[int], *, is_done: bool) -> str:
        """Take all ids so far, and return the text that is new and will not change any more."""
        ended = bool(ids) and ids[-1] in self.end_ids
        self.ids = ids
        self.text = decode_text(ids[:-1] if ended else ids, self.tokenizer, skip_special_tokens=True)
        cut = min((place for stop in self.stops if (place := self.text.find(stop)) >= 0), default=None)
        if cut is not None:
            self.text, self.reason = self.text[:cut], "stop"
        elif is_done:
            self.reason = "stop" if ended else "length"
        settled = self.text
        if self.reason is None:  # the last character may be a part of one, and the end may begin a stop
            held = max((len(stop) - 1 for stop in self.stops), default=0)
            settled = settled.rstrip("\ufffd")
            settled = settled[: max(len(settled) - held, 0)]
        if not settled.startswith(self.sent):
            return ""
        new, self.sent = settled[len(self.sent) :], settled
        return new


def read_asked(body: dict[str, Any], prompts: Prompts, limits: Limits, *, is_chat: bool) -> Asked:
    """Check a request's body; raises `Refused`."""
    own = {"messages", "max_completion_tokens"} if is_chat else {"prompt"}
    for name, value in body.items():
        if name not in COMMON | own and not any(value == neutral for neutral in NEUTRAL.get(name, ())):
            raise Refused(400, f"{name[:80]!r} is not supported here, or not with this value; leave it out")
    target = prompts.target(body.get("model"))
    if is_chat:
        ids = [prompts.ids(target, read_messages(body.get("messages")), "")]
    else:
        given = body.get("prompt")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise Refused(400, "`prompt` must be text, or a list of texts")
        ids = [prompts.ids(target, None, text) for text in texts[: MOST_CHOICES + 1]]
    given_limits = (body.get("max_completion_tokens"), body.get("max_tokens"))
    limit = next((each for each in given_limits if each is not None), min(DEFAULT_TOKENS, limits.max_new_tokens))
    limit = whole(limit, "max_tokens", 1, limits.max_new_tokens)
    choices = whole(1 if body.get("n") is None else body["n"], "n", 1, MOST_CHOICES)
    if choices * len(ids) > MOST_CHOICES:
        raise Refused(400, f"more than {MOST_CHOICES} answers in one request")
    stops = body.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    usable = isinstance(stops, list) and all(isinstance(each, str) and each for each in stops)
    if not usable or len(stops) > MOST_STOPS or any(len(each) > MOST_STOP_CHARACTERS for each in stops):
        raise Refused(400, f"`stop` must be at most {MOST_STOPS} texts of at most {MOST_STOP_CHARACTERS} characters")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or not isinstance(body.get("stream") or False, bool):
        raise Refused(400, "`stream` must be true or false, and `stream_options` an object")
    seed = body.get("seed")
    seed = secrets.randbelow(2**31) if seed is None else whole(seed, "seed", 0, 2**62)
    asked = Asked(
        target,
        ids,
        read_sampling(body),
        seed,
        limit,
        tuple(stops),
        choices,
        streams=body.get("stream") or False,
        with_usage=options.get("include_usage") is True,
    )
    for each in ids:
        try:
            require_known_ids(prompts.base, each)
            require_room(prompts.base.model, len(target.front), len(each) + limit, option="max_tokens")
        except UserError as error:
            raise Refused(400, str(error)) from error
    return asked


def read_messages(messages: object) -> list[dict[str, str]]:
    """Check the turns of a chat; raises `Refused`."""
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "`messages` must be a list of at least one turn")
    turns = []
    for place, message in enumerate(messages):
        where = f"`messages`, turn {place + 1}"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Refused(400, f"{where}: must have a `role` of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
            if len(parts) != len(content) or not all(isinstance(part, str) for part in parts):
                raise Refused(400, f"{where}: its `content` may hold parts of text only")
            content = "".join(parts)
        if not isinstance(content, str) or message.keys() - {"role", "content", "name", "refusal"}:
            raise Refused(400, f"{where}: must have `role` and `content`, which is text, and nothing more")
        turns.append({"role": message["role"], "content": content})
    if turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise Refused(400, "`messages`: the last turn must be the user's, and not blank")
    return turns


def read_sampling(body: dict[str, Any]) -> Sampling:
    """Return how ids are chosen, by OpenAI's defaults: drawn from all, at temperature 1; raises `Refused`."""
    given: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    for name, default in given.items():
        value = body.get(name)
        if value is None:
            continue
        kind = int if name == "top_k" else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise Refused(400, f"`{name}` must be a number")
        if not -MOST_NUMBER <= value <= MOST_NUMBER:
            raise Refused(400, f"`{name}` is too large")
        given[name] = type(default)(value)
    try:
        return Sampling(**given, do_sample=True, max_new_tokens=1)
    except UserError as error:
        raise Refused(400, str(error)) from error


def whole(value: object, name: str, least: int, most: int) -> int:
    """Return a whole number within its bounds; raises `Refused`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refused(400, f"`{name}` must be a whole number from {least} to {most}")
    return value


class Exchange:
    """One request and the rows that answer it."""

    def __init__(
        self,
        asked: Asked,
        worker: Worker,
        limits: Limits,
        device: torch.device,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Put the rows into the worker's queue; raises `Refused`."""
        self.asked, self._worker = asked, worker
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue[tuple[int, list[int], bool, str]]()
        self.answers: list[Answer] = []
        self.jobs: list[Job] = []
        deadline = time.monotonic() + limits.timeout
        for place in range(len(asked.ids) * asked.choices):
            choose = chooser(asked.sampling, asked.seed + place, device)
            ids, target = asked.ids[place // asked.choices], asked.target
            row = RunningRow(ids, target.front, asked.max_new_tokens, target.encoder.end_ids, choose)
            self.answers.append(Answer(place, tokenizer, target.encoder.end_ids, asked.stops))
            self.jobs.append(Job(row, deadline, self._teller(place)))
        try:
            worker.submit(*self.jobs)
        except QueueFull as error:
            raise Refused(429, str(error)) from error
        except UserError as error:
            raise Refused(400, str(error)) from error

    def _teller(self, place: int) -> Callable[[Job], None]:
        """What the worker calls, in its own thread."""

        def tell(job: Job) -> None:
            if not self._loop.is_closed():
                news = (place, list(job.row.new_ids), job.is_done, job.error)
                self._loop.call_soon_threadsafe(self._news.put_nowait, news)

        return tell

    async def pieces(self) -> AsyncIterator[tuple[Answer, str]]:
        """Yield what is new of each answer, until all have ended; raises `Refused` where one cannot end."""
        left = len(self.jobs)
        while left:
            place, ids, is_done, error = await self._news.get()
            answer = self.answers[place]
            waits = not (self.asked.streams or self.asked.stops or is_done)  # all of its text is wanted at the end
            if answer.reason is not None or waits:
                continue
            if error:
                raise Refused(504 if error == "took too long" else 500, error)
            new = answer.take(ids, is_done=is_done)
            if answer.reason is not None:
                left -= 1
                self._worker.cancel(self.jobs[place])
            if new or answer.reason is not None:
                yield answer, new

    def cancel(self) -> None:
        """Give up what still runs."""
        for job in self.jobs:
            self._worker.cancel(job)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of text; virtual tokens are not counted."""
        asked, new = sum(map(len, self.asked.ids)), sum(len(answer.ids) for answer in self.answers)
        return {"prompt_tokens": asked, "completion_tokens": new, "total_tokens": asked + new}


def make_app(prompts: Prompts, worker: Worker, limits: Limits, *, token: str, hosts: Sequence[str]) -> FastAPI:
    """Make the application; `token` is "" where everybody may ask, and `hosts` are the names it answers to."""
    app = FastAPI(title="softprompt", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    created = int(time.time())
    # a fast tokenizer may not decode in one thread while another sets how it encodes
    tokenizer = copy.deepcopy(prompts.base.tokenizer)

    def check(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
        if token and not right:
            raise Refused(401, "a bearer token is needed, and this is not the one")

    async def answer(request: Request, *, is_chat: bool) -> Response:
        check(request)
        body = await read_body(request, limits.max_body_bytes)
        asked = await asyncio.to_thread(read_asked, body, prompts, limits, is_chat=is_chat)
        exchange = Exchange(asked, worker, limits, prompts.base.device, tokenizer)
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body["model"]}
        if asked.streams:
            return StreamingResponse(events(exchange, head, is_chat=is_chat), media_type="text/event-stream")
        return await whole_answer(request, exchange, head, is_chat=is_chat)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 429 else {}
        return JSONResponse(error_body(error), error.status, headers)

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text("utf-8"), headers={"Content-Security-Policy": "frame-ancestors 'none'"})

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        check(request)
        names = [prompts.base_name, *await asyncio.to_thread(prompts.names)]
        owned = {"object": "model", "created": created, "owned_by": "softprompt"}
        return {"object": "list", "data": [{"id": name, **owned} for name in names]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, is_chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, is_chat=False)

    return app


async def read_body(request: Request, most: int) -> dict[str, Any]:
    """Read a JSON object of at most `most` bytes; raises `Refused`.

    A page of another site can send a browser's request here, but not with this content type.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body must be application/json")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise Refused(413, f"the body has more than {most:,} bytes")
        body = parse_json(content.decode(), "the body")
    except TimeoutError as error:
        raise Refused(408, f"the body did not come within {BODY_SECONDS} seconds") from error
    except (ValueError, UserError) as error:
        raise Refused(400, str(error)[:200]) from error
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object")
    return body


async def whole_answer(request: Request, exchange: Exchange, head: dict[str, Any], *, is_chat: bool) -> Response:
    """Wait for all choices; gives the rows up when the client has gone."""

    async def collect() -> None:
        async for _ in exchange.pieces():
            pass

    collecting = asyncio.ensure_future(collect())
    try:
        while not (await asyncio.wait([collecting], timeout=0.5))[0]:
            if await request.is_disconnected():
                return Response(status_code=499)
        collecting.result()
    finally:
        collecting.cancel()
        exchange.cancel()
    choices = []
    for each in exchange.answers:
        said = {"message": {"role": "assistant", "content": each.text}} if is_chat else {"text": each.text}
        choices.append({"index": each.index, **said, "logprobs": None, "finish_reason": each.reason})
    kind = "chat.completion" if is_chat else "text_completion"
    return JSONResponse({**head, "object": kind, "choices": choices, "usage": exchange.usage})


async def events(exchange: Exchange, head: dict[str, Any], *, is_chat: bool) -> AsyncIterator[str]:
    """Yield server-sent events; when the client has gone, this ends here and the rows are given up."""
    head = {**head, "object": "chat.completion.chunk" if is_chat else "text_completion"}
    begun: set[int] = set()
    try:
        async for answer, new in exchange.pieces():
            role = {} if answer.index in begun else {"role": "assistant"}
            begun.add(answer.index)
            said = {"delta": {**role, "content": new}} if is_chat else {"text": new}
            choice = {"index": answer.index, **said, "logprobs": None, "finish_reason": answer.reason}
            yield event({**head, "choices": [choice]})
        if exchange.asked.with_usage:
            yield event({**head, "choices": [], "usage": exchange.usage})
        yield "data: [DONE]\n\n"
    except Refused as error:
        yield event(error_body(error))
    finally:
        exchange.cancel()


def event(content: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def error_body(error: Refused) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": None, "code": error.status}}


def open_base(options: argparse.Namespace) -> Base:
    """Load the base that `--model` names, or else that of the first prompt in the folder; raises `UserError`."""
    if not options.prompts.is_dir():
        raise UserError(f"--prompts {options.prompts}: no such folder")
    device = resolve_device(options.device)
    files = sorted(options.prompts.glob(f"*{SUFFIX}"))
    if options.model is not None:
        return load_base(options.model, device=device, precision=options.precision)
    if not files:
        raise UserError(f"--prompts {options.prompts}: holds no prompt that would name a base; pass `model`")
    name, file = str(files[0]), load_prompt(files[0])
    return load_prompt_base(file.facts, prompt_file=name, model=None, device=device, precision=options.precision)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--prompts", type=Path, required=True, help="the folder of prompt files")
    add("--model", help="the base (default: that of the first prompt)")
    add("--allow-other-base", action="store_true", help="take prompts that were trained on another base")
    add("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    add("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="default: %(default)s")
    add("--host", default="127.0.0.1", help="the address to listen at (default: this machine only)")
    add("--port", type=int, default=8000, help="default: %(default)s")
    add("--max-rows", type=int, default=32, help="answers that run together (default: %(default)s)")
    add("--max-slots", type=int, default=32768, help="tokens that the cache holds (default: %(default)s)")
    add("--max-waiting", type=int, default=256, help="answers that wait (default: %(default)s)")
    add("--max-new-tokens", type=int, default=1024, help="most tokens of an answer (default: %(default)s)")
    add("--max-body-bytes", type=int, default=1 << 20, help="default: %(default)s")
    add("--timeout", type=float, default=300, help="seconds for one request, waiting included (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until the process is told to stop."""
    options, token = parse(argv), os.environ.get(TOKEN, "")
    silence_libraries()
    names = ("max_rows", "max_slots", "max_waiting", "max_new_tokens", "max_body_bytes", "timeout")
    limits = Limits(**{name: getattr(options, name) for name in names})
    try:
        base = open_base(options)
        prompts = Prompts(base, options.prompts, allow_other=options.allow_other_base)
        decoding = ContinuousDecoding(
            base.model.requires_grad_(False), FrontCaches(), max_rows=limits.max_rows, max_slots=limits.max_slots
        )
    except UserError as error:
        print(f"serve.py: error: {flags_in(str(error))}", file=sys.stderr)
        raise SystemExit(2) from error
    is_local = options.host in LOCAL
    if not is_local and not token:
        print(f"note: everybody who reaches {options.host} may ask; set {TOKEN} to a secret", file=sys.stderr)
    worker = Worker(decoding, max_waiting=limits.max_waiting)
    hosts = ["localhost", "127.0.0.1", "[::1]"] if is_local else ["*"]
    print(f"{prompts.base_name} and {len(prompts.names())} prompts", file=sys.stderr, flush=True)
    try:
        app = make_app(prompts, worker, limits, token=token, hosts=hosts)
        uvicorn.run(app, host=options.host, port=options.port, log_level="warning", timeout_keep_alive=30)
    finally:
        worker.close()


if __name__ == "__main__":
    main()
