"""A frozen base with a soft prompt in front of its input, with the interface of a transformers model.

Letters in shapes: B rows of T text tokens behind a front of F positions (P virtual tokens and the ids around them),
hidden size H, vocabulary size V.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from softprompt.base.vocabulary import embedding_weight
from softprompt.engine.decoding import can_decode, decode, text_lengths
from softprompt.engine.front import Front
from softprompt.engine.fronts import FrontCaches
from softprompt.engine.loss import summed_cross_entropy
from softprompt.errors import UserError
from softprompt.packs.families import can_pack
from softprompt.prompt.embedding import SoftPromptEmbedding
from softprompt.tokens.encoding import IGNORE_INDEX


class SoftPromptModel(nn.Module):
    """A causal LM whose only trainable parameter is the prompt in front of its input.

    The prompt may stand between token ids that all inputs share, such as the opening of a chat's system turn and its
    close. These and the prompt are the front; `input_ids` is always what follows the front.

    The base is frozen and stays in eval mode, even after `train()`, since dropout would make a row depend on its batch.
    The base is neither cast nor moved: load it in the precision and on the device that you want.
    """

    base_model: PreTrainedModel
    soft_prompt: SoftPromptEmbedding

    def __init__(
        self,
        base_model: PreTrainedModel,
        soft_prompt: SoftPromptEmbedding,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> None:
        """Freeze `base_model` and put `soft_prompt` on its device.

        Args:
            before: token ids in front of the prompt.
            after: token ids between the prompt and the text.

        Raises:
            UserError: the prompt and the base differ in hidden size, the base does not take `inputs_embeds`, whether in
                its forward pass or when it generates, or it has no embedding for an id of the front.
        """
        super().__init__()
        width = base_model.get_input_embeddings()(_one_token(base_model)).shape[-1]
        if soft_prompt.hidden_size != width:
            raise UserError(f"the prompt is {soft_prompt.hidden_size} wide, the base's embeddings {width}")
        if "inputs_embeds" not in inspect.signature(base_model.forward).parameters:
            raise UserError(f"{type(base_model).__name__} takes no inputs_embeds, so no prompt can stand in front")
        _require_embeddings(base_model, before=before, after=after)
        if not can_pack(base_model) and not _generates_from_embeds(base_model):
            raise UserError(
                f"{type(base_model).__name__} takes inputs_embeds in training and not when it generates, so a prompt"
                " for it could never answer; choose another base, such as the text model inside it"
            )
        self.base_model = base_model.requires_grad_(False)
        self.soft_prompt = soft_prompt.to(base_model.device)
        self._before, self._after = tuple(before), tuple(after)
        self.front_caches = FrontCaches()
        self.train()

    @property
    def front(self) -> Front:
        """What stands in front of every row; its `len` is F."""
        return Front(self._before, self.soft_prompt.weight, self._after)

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return self.base_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the base; the prompt stays fp32."""
        return self.base_model.dtype

    @property
    def config(self) -> PretrainedConfig:
        """The base's config."""
        return self.base_model.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The base's default settings for `generate`."""
        return self.base_model.generation_config

    def can_generate(self) -> bool:
        """Whether the base can generate; transformers asks this of its models."""
        return self.base_model.can_generate()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the prompt; the base stays in eval mode."""
        super().train(mode)
        self.base_model.eval()
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> CausalLMOutput:
        """Run the base on the front followed by the text.

        Args:
            input_ids: int64 `[B, T]`.
            attention_mask: `[B, T]`, 0 at pads, which may be anywhere in a row and do not change its other logits.
            labels: int64 `[B, T]`, aligned with `input_ids` (not shifted); -100 marks tokens without a loss.

        Returns:
            An output as PEFT's model returns it. `logits` is `[B, F + T, V]`, and `logits[:, F + i]` belongs to
            `input_ids[:, i]`; at pads it is finite but has no meaning. With `labels`, `loss` is the mean cross-entropy
            over the supervised tokens, or 0 if there are none.
        """
        embeds, mask, order = self._place(input_ids, attention_mask, pads_last=True)
        logits = self._base_logits(embeds, mask)  # [B, F + T, V]
        loss = None
        if labels is not None:
            targets = _next_labels(self._extend(labels, IGNORE_INDEX), order)
            loss = summed_cross_entropy(logits, targets) / (targets != IGNORE_INDEX).sum().clamp(min=1)
        return CausalLMOutput(loss=loss, logits=logits if order is None else _unsort(logits, order))

    def summed_loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Sum the cross-entropy over supervised tokens, with logits only where some row has a label.

        The arguments are those of `forward`. The sum is a scalar in fp32 (fp64 for an fp64 base); the caller divides it
        by the number of supervised tokens in the whole step.
        """
        return summed_cross_entropy(*self.label_logits(input_ids, attention_mask, labels))

    def label_logits(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[B, n, V]` at the n positions that predict a label in some row, and those labels `[B, n]`.

        The arguments are those of `forward`. The returned labels are -100 in the rows that have none at that position.
        """
        embeds, mask, order = self._place(input_ids, attention_mask, pads_last=True)
        targets = _next_labels(self._extend(labels, IGNORE_INDEX), order)  # [B, F + T]
        places = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
        return self._base_logits(embeds, mask, places), targets[:, places]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        prompts: Sequence[Front | SoftPromptEmbedding | None] | None = None,
        ensemble: Sequence[Front | SoftPromptEmbedding] = (),
        **generation_kwargs,
    ) -> Tensor:
        """Run transformers' `generate` behind the front, with all of its arguments.

        `max_length`, `min_length` and the repetition penalty count text ids only, never the front. Greedy
        decoding and sampling run in `decoding.py` and reuse the front's keys and values. Beam search, and every
        setting that `decoding.py` does not list, run in transformers' own loops.

        Args:
            input_ids: int64 `[B, T]`.
            attention_mask: `[B, T]`, 0 at pads, which may be anywhere in a row.
            prompts: what stands in front of each of the B rows, in place of this model's own front: a `Front`, a prompt
                between this model's ids before and after, or None for the base alone. A row gets what it gets alone.
                Rows of one batch share every forward pass where `decoding.py` decodes, and else run one by one.
            ensemble: what stands in front of every row, in place of the model's own front: the next id is chosen from
                the mean of the distributions behind all of them, which one forward pass computes.

        Returns:
            int64 `[B, T + new]`: `input_ids` followed by the new ids, as the base's own `generate` returns them.

        Raises:
            UserError: there is no room for a new token; or one of transformers' own loops would run on padded rows in
                fp64, where BLOOM's fp32 softmax turns pads into NaN; or `prompts` are not one for each row, do not fit
                the base, or leave a row with nothing to go on from; or an ensemble would run in transformers' loops.
        """
        own = [self.soft_prompt] if prompts is None else prompts
        fronts = self._fronts(ensemble or own, len(ensemble) or (1 if prompts is None else len(input_ids)))
        settings = text_lengths(self.base_model, generation_kwargs, input_ids.shape[1])
        mask = torch.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).long()
        order = mask.argsort(dim=1, stable=True)  # left-padded, so that new tokens follow the text
        ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        generate: Any = self.base_model.generate  # causal LMs have it, PreTrainedModel alone does not
        if mask[:, -1:].numel() and mask[:, -1].all() and can_decode(self.base_model, settings):
            caches = [self.front_caches.of(self.base_model, front) for front in fronts]
            members = max(len(ensemble), 1)
            loop = functools.partial(decode, fronts=caches, streamer=settings.get("streamer"), members=members)
            output = generate(ids, attention_mask=mask, custom_generate=loop, **settings)
        elif ensemble:
            raise UserError("`ensemble`: needs a base that packs (docs/packing.md), text, and greedy or sampled ids")
        elif prompts is not None:
            output = self._generate_one_by_one(fronts, ids, mask, settings)
        else:
            embeds, mask, _ = self._place(ids, mask, pads_last=False)
            if embeds.dtype == torch.float64 and not mask.all():
                raise UserError("such generation from padded rows is not exact in fp64; use fp32 or rows of one length")
            output = generate(ids, inputs_embeds=embeds, attention_mask=mask, **settings)
        sequences = output if isinstance(output, Tensor) else output.sequences
        # the caller gets back the pads where they were, and every row as often as it was repeated
        sequences[:, : ids.shape[1]] = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
        return output

    def _fronts(self, prompts: Sequence[Front | SoftPromptEmbedding | None], rows: int) -> list[Front]:
        """Return the front of every row; raises `UserError` if one does not fit."""
        if len(prompts) != rows:
            raise UserError(f"`prompts`: {len(prompts)} for {rows} rows; give one for each, None for the base alone")
        fronts = []
        for row, prompt in enumerate(prompts):
            if isinstance(prompt, SoftPromptEmbedding):
                prompt = Front(self._before, prompt.weight, self._after)
            front = Front() if prompt is None else prompt
            width = self.soft_prompt.hidden_size
            if front.prompt is not None and front.prompt.shape[-1] != width:
                wide = front.prompt.shape[-1]
                raise UserError(f"`prompts`, row {row}: is {wide} wide, the base's embeddings {width}")
            _require_embeddings(self.base_model, before=front.before, after=front.after)
            fronts.append(front)
        return fronts

    def _generate_one_by_one(self, fronts: Sequence[Front], ids: Tensor, mask: Tensor, settings: dict) -> Tensor:
        """Run transformers' own `generate` for each row behind its front: int64 `[B * answers, T + new]`.

        Behind a row that ends earlier than others stands the pad id.
        """
        if settings.get("return_dict_in_generate") or settings.get("streamer") is not None:
            raise UserError("`prompts`: here rows run one by one, without `return_dict_in_generate` and `streamer`")
        generate: Any = self.base_model.generate
        new_ids: list[Tensor] = []
        for row, front in enumerate(fronts):
            text = ids[row, mask[row] == 1][None]
            embeds = torch.cat(front.embeds(self.base_model.get_input_embeddings(), text), dim=1)
            if embeds.shape[1] == 0:
                raise UserError(f"`prompts`, row {row}: has neither a prompt nor text to go on from")
            seen = torch.ones(embeds.shape[:2], dtype=torch.long, device=ids.device)
            new_ids += generate(text, inputs_embeds=embeds, attention_mask=seen, **settings)[:, text.shape[1] :]
        pads = (settings.get("pad_token_id"), self.generation_config.pad_token_id, 0)
        pad = next(each for each in pads if each is not None)
        new = torch.nn.utils.rnn.pad_sequence(new_ids, batch_first=True, padding_value=pad)
        return torch.cat([ids.repeat_interleave(len(new) // len(ids), dim=0), new], dim=1)

    def trainable_parameters_line(self) -> str:
        """How many parameters train, out of how many, in PEFT's wording."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        share = 100 * trainable / total
        return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"

    def _base_logits(self, embeds: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Compute the base's logits at all positions, `[B, F + T, V]`, or only at `places`, `[B, len(places), V]`."""
        if places is None:
            return self.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        if "logits_to_keep" not in inspect.signature(self.base_model.forward).parameters:
            return self._base_logits(embeds, mask)[:, places]
        keep = {"logits_to_keep": places}
        return self.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **keep).logits

    def _place(
        self, input_ids: Tensor, attention_mask: Tensor | None, *, pads_last: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embed the front and the text, and move the pads to one end, never between the two.

        With `pads_last`, causal attention alone hides the pads from every real token, exactly, and every pad still has
        a key to attend to. Without it the pads come before the front, so that new tokens follow the text.

        Returns:
            The embeddings `[B, F + T, H]`, the mask `[B, F + T]`, and the order `[B, F + T]`: the index that each
            position had before (None when nothing moved).
        """
        embeds = self._embed(input_ids)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = self._extend((attention_mask != 0).long(), 1)
        key = 1 - mask if pads_last else mask
        if not (key[:, 1:] < key[:, :-1]).any():
            return embeds, mask, None
        order = torch.argsort(key, dim=1, stable=True)
        embeds = embeds.gather(1, order[..., None].expand_as(embeds))
        return embeds, mask.gather(1, order), order

    def _embed(self, input_ids: Tensor) -> Tensor:
        """The embeddings of the front and, behind it, of the text: `[B, T]` -> `[B, F + T, H]`."""
        return torch.cat(self.front.embeds(self.base_model.get_input_embeddings(), input_ids), dim=1)

    def _extend(self, values: Tensor, fill: int) -> Tensor:
        """Put F entries of `fill` in front of every row: `[B, T]` -> `[B, F + T]`."""
        front = values.new_full((values.shape[0], len(self.front)), fill)
        return torch.cat([front, values], dim=1)


def _generates_from_embeds(base_model: PreTrainedModel) -> bool:
    """Whether transformers' own loops take embeddings for this base; they ask the same question."""
    prepare = getattr(base_model, "prepare_inputs_for_generation", None)
    return prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters


def _one_token(base_model: PreTrainedModel) -> Tensor:
    """Any one id `[1]`, on the base's device."""
    return torch.zeros(1, dtype=torch.long, device=base_model.device)


def _require_embeddings(base_model: PreTrainedModel, **fronts: Sequence[int]) -> None:
    size = len(embedding_weight(base_model.get_input_embeddings()))
    for name, ids in fronts.items():
        for id in ids:
            if not 0 <= id < size:
                raise UserError(f"`{name}` holds id {id}; the base has embeddings for the ids 0 to {size - 1}")


def _next_labels(labels: Tensor, order: Tensor | None) -> Tensor:
    """Shift labels by one: `[B, F + T]` with, at each position, the label of the next token, and -100 at the end."""
    if order is not None:
        labels = labels.gather(1, order)
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


def _unsort(logits: Tensor, order: Tensor) -> Tensor:
    """Move logits `[B, F + T, V]` back to the positions that the caller's ids have."""
    return logits.gather(1, order.argsort(dim=1)[..., None].expand_as(logits))
