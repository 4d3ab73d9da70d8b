"""The text stands where a person would put it: the teacher's ids are those that transformers writes with it."""

import pytest
import torch
from helpers.families import make_family
from helpers.models import make_model
from helpers.templates import CHATML, CHATML_DEFAULT
from helpers.tokenizers import small_tokenizer
from transformers import GPTJConfig, GPTJForCausalLM

from softprompt.base.loading import load_base
from softprompt.data.row import Row
from softprompt.distillation.text import Text, place_text, read_text, require_room_for_text, teacher_model
from softprompt.errors import UserError
from softprompt.tokens.encoding import Encoder, bos_of
from softprompt.tokens.template import choose_template

RULES = "Answer as a list.\n\nBegin every line with a dash: - so."


class Small:
    """What `place_text` asks of a base."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.end_ids = model, tokenizer, [tokenizer.eos_token_id]
        self.name, self.device = "small", torch.device("cpu")


def chat(text, kind="bytes"):
    tokenizer = small_tokenizer(kind, text)
    template = choose_template("chat", tokenizer)
    encoder = Encoder(tokenizer, template, bos_id=bos_of(tokenizer), placement="system")
    return encoder, Small(make_family("llama"), tokenizer)


@pytest.mark.parametrize("template", [CHATML, CHATML_DEFAULT], ids=["chatml", "default system"])
def test_the_front_and_a_question_are_what_the_chat_template_writes(template, monkeypatch):
    monkeypatch.setattr("softprompt.distillation.text.require_known_ids", lambda *args, **settings: None)
    encoder, base = chat(template)
    text = place_text("rules.txt", RULES, encoder, base)
    for question in ("What is it?", "who, then"):
        turns = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
        wanted = encoder.tokenizer.apply_chat_template(
            turns, chat_template=encoder.template.text, add_generation_prompt=True, return_dict=False
        )
        (ids,) = encoder.questions([Row.asked(question)])
        assert [*text.front(encoder).before, *ids] == wanted
    assert len(text.front(encoder)) == len(encoder.before_ids) + len(text.ids) + len(encoder.after_ids)
    assert text.facts == {"sha256": text.sha256, "tokens": len(text.ids)} and RULES not in str(text.facts)


def test_a_base_without_a_chat_template_reads_the_text_first():
    base = load_base("builtin:bloom-small@1", device=torch.device("cpu"), precision="fp32")
    encoder = Encoder(base.tokenizer)
    text = place_text("rules.txt", RULES, encoder, base)
    (ids,) = encoder.questions([Row.asked("What is it?")])
    wanted = f"{RULES}\n\nHuman: What is it?\n\nAssistant: "
    assert base.tokenizer.decode([*text.ids, *ids]) == wanted
    model = teacher_model(text, encoder, base)
    with torch.no_grad():
        behind = model(torch.tensor([ids])).logits[0, -1]
        whole = base.model(torch.tensor([[*text.ids, *ids]])).logits[0, -1]
    assert (behind - whole).abs().max() < 1e-4 * whole.abs().max()


def test_a_base_that_cannot_pack_is_refused():
    tokenizer = small_tokenizer("bytes", CHATML)
    model = GPTJForCausalLM(GPTJConfig(vocab_size=300, n_embd=16, n_layer=1, n_head=2, rotary_dim=4))
    with pytest.raises(UserError, match="GPTJForCausalLM cannot take packed rows"):
        place_text("rules.txt", RULES, Encoder(tokenizer), Small(model, tokenizer))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"  \n ", "is empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a" * (5 << 20), "is larger than 4 MB"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, wanted):
    path = tmp_path / "rules.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"`distill_text` .*rules.txt: .*{wanted}"):
        read_text(str(path))


def test_a_text_that_is_too_long_is_refused_with_its_length(tokenizer):
    base = Small(make_model("llama"), tokenizer)
    text = Text("rules.txt", [40] * 602, "")
    with pytest.raises(UserError, match="its 602 tokens and 20 of a question and its answer exceed the base's context"):
        require_room_for_text(base, 602, 20, text)
    require_room_for_text(base, 492, 20, text)


def test_a_shipped_text_is_named_like_other_shipped_things():
    assert read_text("builtin:list").splitlines()[5] == "Answer as a list."
    with pytest.raises(UserError, match="no text 'builtin:poem' ships with softprompt; there is builtin:list"):
        read_text("builtin:poem")
