"""Attention heads that find: those whose queries of a question match the keys of the chunk that answers it."""

import json
from dataclasses import asdict, dataclass

from kamera_jax.arguments import real_number, whole_number


@dataclass(frozen=True)
class RetrievalHeads:
    """Query heads of one model by which `kamera_jax.Finder` scores chunks.

    Attributes:
        model: fingerprint of the model that they were measured with.
        heads: pairs of a layer and one of its N query heads, from 0.
        weights: how much each counts; 1 by default.
        questions: how many they were chosen on.
        recall: share of those for which the right chunk came first, there.
        chunks: how many chunks it was among.
    """

    model: str
    heads: tuple[tuple[int, int], ...]
    weights: tuple[float, ...] = ()
    questions: int = 0
    recall: float = 0.0
    chunks: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"model is {self.model!r:.80}; expected the fingerprint of the model, vlm.fingerprint")
        pairs = []
        for pair in self.heads:
            layer, head = pair
            pairs.append((whole_number(layer, "a layer", 0), whole_number(head, "a query head", 0)))
        object.__setattr__(self, "heads", tuple(pairs))
        weights = tuple(real_number(weight, "a weight of a head", 0.0) for weight in self.weights)
        object.__setattr__(self, "weights", weights or (1.0,) * len(pairs))
        if not pairs or len(set(pairs)) != len(pairs) or len(self.weights) != len(pairs) or not any(self.weights):
            raise ValueError(
                f"heads are {pairs} with weights {self.weights}; expected at least one, each once, with a weight each"
            )

    def __repr__(self) -> str:
        named = ", ".join(f"{layer}.{head}" for layer, head in self.heads)
        return (
            f"<RetrievalHeads {named} of model {self.model[:12]}: the right chunk first for {self.recall:.0%} of "
            f"{self.questions} questions among {self.chunks} chunks>"
        )

    def to_json(self) -> str:
        """As JSON text, to be read again by `from_json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "RetrievalHeads":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError: it is something else.
        """
        fields = json.loads(text)
        heads = tuple((layer, head) for layer, head in fields.pop("heads"))
        return RetrievalHeads(heads=heads, **(fields | {"weights": tuple(fields["weights"])}))
