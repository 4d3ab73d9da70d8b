"""The vocabulary's matrix of a base."""

from torch import Tensor, nn


def embedding_weight(token_embedding: nn.Module) -> Tensor:
    """The weight `[V, H]` of a token embedding; the module itself may give scaled rows of it (Gemma)."""
    weight = token_embedding.weight
    assert isinstance(weight, Tensor)  # a module's attribute could be another module
    return weight
