"""What `defaults.py` compares: each variant is one way to train a prompt."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Variant:
    """What one run does; the rate is relative to the RMS of the initial prompt."""

    rate: float = 0.3
    beta1: float = 0.9
    beta2: float = 0.999
    clip: float | None = None  # of the gradient's norm times the RMS, which does not depend on the prompt's scale
    tame: float | None = None  # of the gradient's norm over its running mean
    warmup: float = 0.0
    schedule: str = "linear"
    init: str = "text"
    average: float | None = None  # decay of the running mean of the prompt that is evaluated
    by_token: bool = False  # rate relative to each virtual token's own RMS
    update: str = "adamw"
    mlp: int | None = None  # width of a residual MLP, folded into the prompt (Razdaibiedina et al., 2023)
    rank: int | None = None  # of the change to the initial prompt
    damping: float = 3e-4  # with shampoo: added to a covariance's eigenvalues over the largest
    roundings: bool = False  # rows in seed 0's order; the seed draws a change of a millionth to the first prompt
    sphere: bool = True  # with soap: every virtual token keeps its norm

    @property
    def changes(self) -> dict[str, object]:
        """What is not as in the first variant."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Variant, name)}


LOW = {"beta2": 0.95}
SOAP = {"update": "soap", "beta1": 0.8, "beta2": 0.95, "clip": 0.03}
SHAMPOO = SOAP | {"update": "shampoo"}
VARIANTS = {
    "first": Variant(),
    "rate 0.1": Variant(rate=0.1),
    "rate 1": Variant(rate=1.0),
    "beta2 0.99": Variant(beta2=0.99),
    "beta2 0.95": Variant(**LOW),
    "beta2 0.9": Variant(beta2=0.9),
    "beta2 0.95, rate 0.6": Variant(**LOW, rate=0.6),
    "beta2 0.95, tame 1": Variant(**LOW, tame=1.0),
    "beta2 0.95, clip 0.1": Variant(**LOW, clip=0.1),
    "beta2 0.95, warm-up 0.06": Variant(**LOW, warmup=0.06),
    "beta2 0.95, cosine": Variant(**LOW, schedule="cosine"),
    "beta2 0.95, average 0.9": Variant(**LOW, average=0.9),
    "beta2 0.95, by token": Variant(**LOW, by_token=True),
    "beta2 0.95, vocab": Variant(**LOW, init="vocab"),
    "beta2 0.95, answers": Variant(**LOW, init="answers"),
    "beta2 0.95, beta1 0.8": Variant(**LOW, beta1=0.8),
    "betas 0.8 0.9, clip 0.03, rate 0.6": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=0.6),
    "betas 0.8 0.9, clip 0.03, rate 1": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=1.0),
    "betas 0.8 0.9, clip 0.03, rate 1, answers": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=1.0, init="answers"),
    "betas 0.8 0.9, clip 0.03, rate 1, vocab": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=1.0, init="vocab"),
    "betas 0.8 0.95, clip 0.03, rate 1": Variant(**LOW, beta1=0.8, clip=0.03, rate=1.0),
    "betas 0.8 0.9, clip 0.03, mlp 64": Variant(beta1=0.8, beta2=0.9, clip=0.03, mlp=64, rate=0.03),
    "betas 0.8 0.9, clip 0.03, mlp 64, rate 0.1": Variant(beta1=0.8, beta2=0.9, clip=0.03, mlp=64, rate=0.1),
    "betas 0.8 0.9, clip 0.03, rank 4": Variant(beta1=0.8, beta2=0.9, clip=0.03, rank=4),
    "betas 0.8 0.9, clip 0.03, rank 4, rate 0.1": Variant(beta1=0.8, beta2=0.9, clip=0.03, rank=4, rate=0.1),
    "soap": Variant(**SOAP),
    "soap, rate 0.1": Variant(**SOAP, rate=0.1),
    "soap, rate 1": Variant(**SOAP, rate=1.0),
    "soap, rate 0.2": Variant(**SOAP, rate=0.2),
    "soap, warm-up 0.05": Variant(**SOAP, warmup=0.05),
    "soap, cosine": Variant(**SOAP, schedule="cosine"),
    "soap, beta1 0.9": Variant(**SOAP | {"beta1": 0.9}),
    "soap, beta2 0.9": Variant(**SOAP | {"beta2": 0.9}),
    "soap, clip 0.01": Variant(**SOAP | {"clip": 0.01}),
    "soap, no clip": Variant(**SOAP | {"clip": None}),
    "soap, average 0.9": Variant(**SOAP, average=0.9),
    "soap, vocab": Variant(**SOAP, init="vocab"),
    "soap, norms free": Variant(**SOAP, sphere=False),
    "soap, answers": Variant(**SOAP, init="answers"),
    "soap, roundings": Variant(**SOAP, roundings=True),
    "shampoo": Variant(**SHAMPOO),
    "shampoo, roundings": Variant(**SHAMPOO, roundings=True),
    "shampoo, damping 0.001": Variant(**SHAMPOO, damping=1e-3),
    "shampoo, rate 0.2": Variant(**SHAMPOO, rate=0.2),
    "muon": Variant(update="muon"),
    "muon, rate 0.1": Variant(update="muon", rate=0.1),
    "muon, rate 0.6": Variant(update="muon", rate=0.6),
    "muon, rate 1": Variant(update="muon", rate=1.0),
    "muon, tame 1": Variant(update="muon", tame=1.0),
    "muon, answers": Variant(update="muon", init="answers"),
    "nadam, beta2 0.95": Variant(**LOW, update="nadam"),
    "nadam, beta2 0.95, clip 0.1": Variant(**LOW, update="nadam", clip=0.1),
    "nadam, beta2 0.9": Variant(beta2=0.9, update="nadam"),
    "nadam, beta2 0.9, clip 0.1": Variant(beta2=0.9, update="nadam", clip=0.1),
    "nadam, beta2 0.9, clip 0.03": Variant(beta2=0.9, update="nadam", clip=0.03),
    "nadam, beta2 0.9, clip 0.1, rate 0.5": Variant(beta2=0.9, update="nadam", clip=0.1, rate=0.5),
    "nadam, beta2 0.9, clip 0.1, cosine": Variant(beta2=0.9, update="nadam", clip=0.1, schedule="cosine"),
    "betas 0.8 0.9, clip 0.03": Variant(beta1=0.8, beta2=0.9, clip=0.03),
    "betas 0.8 0.9, clip 0.003": Variant(beta1=0.8, beta2=0.9, clip=0.003),
    "betas 0.8 0.9, clip 0.03, answers": Variant(beta1=0.8, beta2=0.9, clip=0.03, init="answers"),
    "betas 0.8 0.9, clip 0.03, average 0.9": Variant(beta1=0.8, beta2=0.9, clip=0.03, average=0.9),
    "betas 0.8 0.9, clip 0.03, by token": Variant(beta1=0.8, beta2=0.9, clip=0.03, by_token=True),
    "betas 0.8 0.9, clip 0.03, rate 0.2": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=0.2),
    "betas 0.8 0.9, clip 0.03, rate 0.5": Variant(beta1=0.8, beta2=0.9, clip=0.03, rate=0.5),
    "betas 0.8 0.9, clip 0.1": Variant(beta1=0.8, beta2=0.9, clip=0.1),
    "nadam, beta2 0.95, cosine": Variant(**LOW, update="nadam", schedule="cosine"),
}
