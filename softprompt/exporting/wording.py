"""The texts of a baked copy: the names of its tokens, and templates that write them where the prompts stood."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.data.row import Row
from softprompt.exporting.rows import BakedPrompt
from softprompt.system.foreign import foreign, read_json
from softprompt.system.sources import SAMPLE_QUESTION
from softprompt.tokens.encoding import Encoder, decode_text

TUTORIAL = """{% for message in messages %}{% if message['role'] == 'assistant' %}\
{{ 'Assistant: ' ~ message['content'] ~ eos_token }}{% elif message['role'] == 'system' %}\
{{ message['content'] ~ '\\n\\n' }}{% else %}{{ ('Human: ' ~ message['content']) | trim ~ '\\n\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"""
PLAIN = """{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] ~ '\\n\\n' }}\
{% else %}{{ message['content'] }}{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\
{% endfor %}"""


def working_template(tokenizer: PreTrainedTokenizerBase, encoder: Encoder, tokens: list[str], front: list[int]) -> str:
    """A chat template by which a tokenizer writes questions in the ids of training; "" if there is none.

    Args:
        tokens: the texts that stand for the prompt where it was trained; without any, only the rest is written.
        front: the ids in front of every question that the template is to write.
    """
    if encoder.template.name == "text":
        return ""
    questions = [SAMPLE_QUESTION, "a  b\n\nc"]
    wanted = [[*front, *ids] for ids in encoder.questions([Row.asked(each) for each in questions])]
    for template in _chat_templates(encoder, tokens):
        settings: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True, "return_dict": False}
        with foreign("`to`: the chat template cannot be rendered"):
            found = [
                tokenizer.apply_chat_template([{"role": "user", "content": each}], **settings) for each in questions
            ]
        if found == wanted:
            return template
    return ""


def _chat_templates(encoder: Encoder, tokens: list[str]) -> list[str]:
    """Templates that may write the prompt's tokens where it was trained; which of them does is found by trying.

    They differ in who writes the bos of the texts behind the prompt: the base's own template, or nobody yet.
    """
    names = _literal("".join(tokens))
    template = encoder.template
    inner = template.text if template.is_chat else {"tutorial": TUTORIAL}.get(template.name, PLAIN)
    own = _literal(template.system)
    in_system = names if encoder.placement == "system" else "''"
    system = ""
    if encoder.placement == "system" or template.system:
        system = (
            "{% if messages and messages[0]['role'] == 'system' %}"
            f"{{% set messages = [{{'role': 'system', 'content': {in_system} ~ messages[0]['content']}}]"
            " + messages[1:] %}{% else %}"
            f"{{% set messages = [{{'role': 'system', 'content': {in_system} ~ {own}}}] + messages %}}{{% endif %}}"
        )
    front = f"{{{{ {names} }}}}" if encoder.placement == "front" else ""
    bos = "{{ bos_token }}"
    return [f"{system}{front}{each}{inner}" for each in ("", bos)]


def prefix_text(prompt: BakedPrompt, *, writes_bos: bool) -> str:
    """The text that stands in front of every question.

    Args:
        writes_bos: whether the tokenizer of the copy puts a bos in front of every text by itself.
    """
    encoder = prompt.encoder
    before = list(encoder.before_ids)
    if writes_bos and before[:1] == [encoder.tokenizer.bos_token_id]:
        before = before[1:]
    return (
        decode_text([*before], encoder.tokenizer)
        + "".join(prompt.tokens)
        + decode_text([*encoder.after_ids], encoder.tokenizer)
    )


def add_tokens(folder: Path, out: Path, tokens: dict[str, int]) -> None:
    """Write `tokenizer.json` with `tokens` among its added tokens."""
    content = read_json(folder / "tokenizer.json", str(folder))
    known = {entry["content"] for entry in content.get("added_tokens") or []}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    new = [{"id": id, "content": text, **flags} for text, id in tokens.items() if text not in known]
    content["added_tokens"] = [*(content.get("added_tokens") or []), *new]
    _write_json(out / "tokenizer.json", content)


def set_tokenizer(out: Path, tokens: dict[str, int], template: str | None, *, adds_bos: bool) -> None:
    """Write the settings of the copy's tokenizer: its new tokens, its template, and whether it adds a bos by itself."""
    path = out / "tokenizer_config.json"
    settings = read_json(path, str(out)) if path.exists() else {}
    if isinstance(settings.get("added_tokens_decoder"), dict):
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        settings["added_tokens_decoder"] |= {str(id): {"content": text, **flags} for text, id in tokens.items()}
    if template is not None:
        settings["chat_template"] = template
        (out / "chat_template.jinja").write_text(template, "utf-8")
    if not adds_bos:
        settings["add_bos_token"] = False
        content = read_json(out / "tokenizer.json", str(out))
        content["post_processor"] = _without_bos(content.get("post_processor"))
        _write_json(out / "tokenizer.json", content)
    _write_json(path, settings)


def _without_bos(processor: Any) -> Any:
    """A post-processor of `tokenizer.json` without the steps that put special tokens around a text."""
    if isinstance(processor, dict) and processor.get("type") == "Sequence":
        return {**processor, "processors": [*filter(None, map(_without_bos, processor.get("processors") or []))]}
    return processor if isinstance(processor, dict) and processor.get("type") == "ByteLevel" else None


def _literal(text: str) -> str:
    """A text as Jinja writes it between quotes."""
    return json.dumps(text, ensure_ascii=False)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
