"""A frozen base with a soft prompt in front: place the prompt, run the base, give back what belongs to the text.

B batch, T text tokens, P virtual tokens, H hidden size, V vocabulary, N supervised tokens.
"""

import functools
import inspect
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from softprompt.base.vocabulary import embedding_weight
from softprompt.data.encoding import IGNORE_INDEX
from softprompt.engine.cache import Cache
from softprompt.engine.decoding import can_decode, decode, prompt_cache, text_lengths
from softprompt.engine.loss import summed_cross_entropy
from softprompt.errors import UserError
from softprompt.prompt.embedding import SoftPromptEmbedding


class SoftPromptModel(nn.Module):
    """A causal LM whose only trainable parameter is the prompt in front of its input.

    The base is frozen and always in eval mode, even under `train()`: dropout would make a row depend on its batch.
    It is neither cast nor moved; load it in the precision and on the device that you want.
    """

    base_model: PreTrainedModel
    soft_prompt: SoftPromptEmbedding

    def __init__(self, base_model: PreTrainedModel, soft_prompt: SoftPromptEmbedding) -> None:
        """Freeze `base_model` and put `soft_prompt` on its device.

        Raises:
            UserError: the prompt's width is not the base's, or the base does not take `inputs_embeds`.
        """
        super().__init__()
        width = base_model.get_input_embeddings()(_one_token(base_model)).shape[-1]
        if soft_prompt.hidden_size != width:
            raise UserError(f"the prompt is {soft_prompt.hidden_size} wide, the base's embeddings {width}")
        if "inputs_embeds" not in inspect.signature(base_model.forward).parameters:
            raise UserError(f"{type(base_model).__name__} takes no inputs_embeds, so no prompt can stand in front")
        self.base_model = base_model.requires_grad_(False)
        self.soft_prompt = soft_prompt.to(base_model.device)
        self._prompt: tuple[Tensor, Cache] | None = None  # the prompt last generated from, and its keys and values
        self.train()

    @property
    def device(self) -> torch.device:
        """Where the base is."""
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
        """The base's defaults for `generate`."""
        return self.base_model.generation_config

    def can_generate(self) -> bool:
        """Whether the base can, as transformers asks its models."""
        return self.base_model.can_generate()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the prompt; the base stays in eval mode."""
        super().train(mode)
        self.base_model.eval()
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> CausalLMOutput:
        """Run the base on `[prompt | text]`.

        Args:
            input_ids: int64 `[B, T]`.
            attention_mask: `[B, T]`, 0 at pads, which may be anywhere; a row computes what it computes without them.
            labels: int64 `[B, T]`, -100 where nothing is to be predicted.

        Returns:
            `logits` `[B, P + T, V]`, where `[:, P + i]` belongs to `input_ids[:, i]` (finite but undefined at pads),
            and with labels `loss`, the mean over supervised tokens (0 if there is none), as PEFT's model gives them.
        """
        embeds, mask, order = self._place(input_ids, attention_mask, pads_last=True)
        logits = self._base_logits(embeds, mask)  # [B, P + T, V]
        loss = None
        if labels is not None:
            targets = _next_labels(self._extend(labels, IGNORE_INDEX), order)
            loss = summed_cross_entropy(logits, targets) / (targets != IGNORE_INDEX).sum().clamp(min=1)
        return CausalLMOutput(loss=loss, logits=logits if order is None else _unsort(logits, order))

    def summed_loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropy over supervised tokens, with logits only where some row has a label.

        Arguments as for `forward`; the sum is fp32, to be divided by the supervised tokens of the whole step.
        """
        return summed_cross_entropy(*self.label_logits(input_ids, attention_mask, labels))

    def label_logits(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, n, V]` at the n places where some row has a label, and the labels there, `[B, n]` with -100."""
        embeds, mask, order = self._place(input_ids, attention_mask, pads_last=True)
        targets = _next_labels(self._extend(labels, IGNORE_INDEX), order)  # [B, P + T]
        places = (targets != IGNORE_INDEX).any(dim=0).nonzero().squeeze(1)
        return self._base_logits(embeds, mask, places), targets[:, places]

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **generation_kwargs) -> Tensor:
        """transformers' `generate` behind the prompt, with all of its arguments.

        Lengths (`max_length`, `min_length`) and the repetition penalty count text ids only, never the P virtual ones.
        Greedy decoding and sampling run here, behind the cached prompt; beams, and whatever else `decoding.py` does
        not list, run in transformers.

        Returns:
            int64 `[B, T + new]`: `input_ids` followed by the new ids, as the base's own `generate` returns them.

        Raises:
            UserError: no room for a new token; or, in transformers' loops, pads in fp64, where BLOOM's fp32 softmax
                turns them into NaN.
        """
        settings = text_lengths(self.base_model, generation_kwargs, input_ids.shape[1])
        mask = torch.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).long()
        order = mask.argsort(dim=1, stable=True)  # pads first: the text ends where generation goes on
        ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        generate: Any = self.base_model.generate  # causal LMs have it, PreTrainedModel alone does not
        if mask[:, -1:].numel() and mask[:, -1].all() and can_decode(self.base_model, settings):
            loop = functools.partial(decode, prompt=self._cached_prompt(), streamer=settings.get("streamer"))
            output = generate(ids, attention_mask=mask, custom_generate=loop, **settings)
        else:
            embeds, mask, _ = self._place(ids, mask, pads_last=False)
            if embeds.dtype == torch.float64 and not mask.all():
                raise UserError("such generation from padded rows is not exact in fp64; use fp32 or rows of one length")
            output = generate(ids, inputs_embeds=embeds, attention_mask=mask, **settings)
        sequences = output if isinstance(output, Tensor) else output.sequences
        sequences[:, : ids.shape[1]] = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
        return output

    def _cached_prompt(self) -> Cache:
        """The prompt's keys and values, computed once and again when the prompt or the base's precision changed."""
        prompt = self.soft_prompt.weight.detach().to(embedding_weight(self.base_model.get_input_embeddings()))  # [P, H]
        if self._prompt is None or not _same(self._prompt[0], prompt):
            self._prompt = (prompt.clone(), prompt_cache(self.base_model, prompt))
        return self._prompt[1]

    def trainable_parameters_line(self) -> str:
        """What trains, out of how much, in PEFT's wording."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        share = 100 * trainable / total
        return f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}"

    def _base_logits(self, embeds: Tensor, mask: Tensor, places: Tensor | None = None) -> Tensor:
        """Logits of the base at all positions, or at `places`."""
        if places is None:
            return self.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        if "logits_to_keep" not in inspect.signature(self.base_model.forward).parameters:
            return self._base_logits(embeds, mask)[:, places]
        keep = {"logits_to_keep": places}
        return self.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False, **keep).logits

    def _place(
        self, input_ids: Tensor, attention_mask: Tensor | None, *, pads_last: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Embed the text, put the prompt in front, and move all pads to one end: they never stand between the two.

        Behind the text, causal attention keeps pads out of every row exactly and leaves none of their own rows without
        a key; in front, the text ends where generation goes on.

        Returns:
            embeds `[B, P + T, H]`, mask `[B, P + T]`, and the order `[B, P + T]` of the sorted positions (None when
            nothing moved).
        """
        text = self.base_model.get_input_embeddings()(input_ids)  # [B, T, H]
        prompt = self.soft_prompt(input_ids.shape[0]).to(text.dtype)  # [B, P, H]
        embeds = torch.cat([prompt, text], dim=1)  # [B, P + T, H]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = self._extend((attention_mask != 0).long(), 1)
        key = 1 - mask if pads_last else mask
        if not (key[:, 1:] < key[:, :-1]).any():
            return embeds, mask, None
        order = torch.argsort(key, dim=1, stable=True)
        embeds = embeds.gather(1, order[..., None].expand_as(embeds))
        return embeds, mask.gather(1, order), order

    def _extend(self, values: Tensor, fill: int) -> Tensor:
        """Put P entries of `fill` in front of every row: [B, T] -> [B, P + T]."""
        front = values.new_full((values.shape[0], self.soft_prompt.num_virtual_tokens), fill)
        return torch.cat([front, values], dim=1)


def _one_token(base_model: PreTrainedModel) -> Tensor:
    """Some id, on the base's device."""
    return torch.zeros(1, dtype=torch.long, device=base_model.device)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in the same precision and place."""
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _next_labels(labels: Tensor, order: Tensor | None) -> Tensor:
    """Targets `[B, P + T]`: at each position the label of the token that follows, -100 at the end."""
    if order is not None:
        labels = labels.gather(1, order)
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


def _unsort(logits: Tensor, order: Tensor) -> Tensor:
    """Logits back in the positions of the caller's ids."""
    return logits.gather(1, order.argsort(dim=1)[..., None].expand_as(logits))
