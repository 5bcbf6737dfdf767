"""What the blocks of an encoder need to know of its configuration, whatever it reads."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class EncoderConfig(Protocol):
    """The sizes of pre-norm blocks with LayerNorm, attention and a two-layer MLP."""

    @property
    def depth(self) -> int:
        """Blocks that run."""
        ...

    @property
    def hidden_size(self) -> int:
        """Their width, E."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Of their MLP."""
        ...

    @property
    def num_heads(self) -> int:
        """Of their attention."""
        ...

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        ...

    @property
    def hidden_act(self) -> str:
        """Of their MLP, a name in `models.blocks.vit.ACTIVATIONS`."""
        ...

    @property
    def layer_norm_eps(self) -> float:
        """Of their norms."""
        ...
