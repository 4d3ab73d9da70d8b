"""The embedding matrix of a base's vocabulary."""

from torch import Tensor, nn


def embedding_weight(token_embedding: nn.Module) -> Tensor:
    """The weight `[V, H]` of a token embedding; calling the module may return scaled rows of it (Gemma)."""
    weight = token_embedding.weight
    assert isinstance(weight, Tensor)  # for type checkers, an attribute of a module could also be another module
    return weight
