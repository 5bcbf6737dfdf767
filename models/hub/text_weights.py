"""Hub names of the text decoder's tensors, the same for every port behind a prefix."""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from models.blocks.attention import Latent
from models.blocks.decoder import DecoderConfig
from models.hub.weight_table import AS_IS, TRANSPOSED, Either, Row, Transform, WeightTable


def text_rows(config: DecoderConfig, *, model: str = "model", head: str = "lm_head") -> list[Row | Either]:
    """The decoder's rows of a weight table.

    Args:
        config: the language model's configuration.
        model: what the hub puts before ``.layers``, ``.norm`` and ``.embed_tokens``.
        head: the hub's name of an untied head.
    """
    rows: list[Row | Either] = [
        Row(f"{model}.embed_tokens.weight", "text/embed/w"),
        Row(f"{model}.norm.weight", "text/norm"),
    ]
    if not config.tie_word_embeddings:
        rows += dense_rows(head, "text/head", bias=False)
    for stack, layers in config.stacks.items():
        hub = f"{model}.layers.{{}}"
        path = f"text/{stack}"
        stacked = [
            Row(f"{hub}.input_layernorm.weight", f"{path}/attn_norm"),
            Row(f"{hub}.post_attention_layernorm.weight", f"{path}/mlp_norm"),
            *_attention_rows(config, f"{hub}.self_attn", f"{path}/attn"),
            *(
                swiglu_rows(f"{hub}.mlp", f"{path}/mlp", bias=config.mlp_bias)
                if stack == "layers"
                else _expert_rows(config, hub, path)
            ),
        ]
        rows += [_starting_at(layers.start, row) for row in stacked]
    return rows


def _starting_at(first: int, row: Row | Either) -> Row | Either:
    """The row, or the rows of each layout, of layers from ``first`` on."""
    if isinstance(row, Row):
        return replace(row, first=first)
    return Either(tuple(tuple(replace(each, first=first) for each in option) for option in row.options))


def port_table(
    config: DecoderConfig,
    vision: Iterable[Row | Either],
    *,
    model: str = "model",
    head: str = "lm_head",
    renames: tuple[tuple[str, str], ...] = (),
    ignored: tuple[str, ...] = (),
) -> WeightTable:
    """The weight table of a port: the decoder's rows and the tower's.

    A head that is tied to the embeddings may be stored again under its own name, if it is equal to them. The RoPE's
    frequencies, a buffer, may be there too.

    Args:
        config: the language model's configuration.
        vision: rows of the tower and its projector.
        model: see `text_rows`.
        head: see `text_rows`.
        renames: see `WeightTable`.
        ignored: see `WeightTable`; beside the decoder's buffers.
    """
    tied = ((f"{head}.weight", f"{model}.embed_tokens.weight"),) if config.tie_word_embeddings else ()
    buffers = rf"{re.escape(model)}\.(.*\.)?rotary_emb\.inv_freq"
    rows = (*text_rows(config, model=model, head=head), *vision)
    return WeightTable(rows, renames, copies=tied, ignored=(*ignored, buffers))


def dense_rows(name: str, path: str, *, bias: bool = True, transform: Transform = TRANSPOSED) -> list[Row]:
    """The rows of a dense layer."""
    weight = Row(f"{name}.weight", f"{path}/w", transform)
    return [weight, Row(f"{name}.bias", f"{path}/b")] if bias else [weight]


def swiglu_rows(name: str, path: str, *, bias: bool = False) -> list[Row]:
    """The rows of the three dense layers of a SwiGLU."""
    return [row for p in ("gate", "up", "down") for row in dense_rows(f"{name}.{p}_proj", f"{path}/{p}", bias=bias)]


def _attention_rows(config: DecoderConfig, name: str, path: str) -> list[Row]:
    attention = config.attention
    if not isinstance(attention, Latent):
        declared = attention.declaration(config.hidden_size)
        dense = [row for p in "qkvo" for row in dense_rows(f"{name}.{p}_proj", f"{path}/{p}", bias="b" in declared[p])]
        norms = [Row(f"{name}.{p}.weight", f"{path}/{p}") for p in ("q_norm", "k_norm") if p in declared]
        return dense + norms
    queries = pairs_apart(attention.nope_dim, attention.rope_dim)
    rows = [
        *dense_rows(
            f"{name}.kv_a_proj_with_mqa",
            f"{path}/kv_a",
            bias=False,
            transform=pairs_apart(attention.latent_dim, attention.rope_dim),
        ),
        Row(f"{name}.kv_a_layernorm.weight", f"{path}/kv_norm"),
        *dense_rows(f"{name}.kv_b_proj", f"{path}/kv_b", bias=False),
        *dense_rows(f"{name}.o_proj", f"{path}/o", bias=False),
    ]
    if attention.query_latent_dim is None:
        return [*dense_rows(f"{name}.q_proj", f"{path}/q", bias=False, transform=queries), *rows]
    return [
        *dense_rows(f"{name}.q_a_proj", f"{path}/q_a", bias=False),
        Row(f"{name}.q_a_layernorm.weight", f"{path}/q_norm"),
        *dense_rows(f"{name}.q_b_proj", f"{path}/q_b", bias=False, transform=queries),
        *rows,
    ]


def _expert_rows(config: DecoderConfig, hub: str, path: str) -> list[Row | Either]:
    assert config.experts is not None
    if config.experts.scoring == "softmax":
        return [Row(f"{hub}.mlp.gate.weight", f"{path}/mlp/router/w", TRANSPOSED), _stacked_experts(hub, path)]
    rows: list[Row | Either] = [
        Row(f"{hub}.mlp.gate.weight", f"{path}/mlp/router/w", TRANSPOSED),
        Row(f"{hub}.mlp.gate.e_score_correction_bias", f"{path}/mlp/router/bias"),
        *(
            Row(f"{hub}.mlp.experts.{{}}.{p}_proj.weight", f"{path}/mlp/experts/{p}", TRANSPOSED)
            for p in ("gate", "up", "down")
        ),
    ]
    return rows + (swiglu_rows(f"{hub}.mlp.shared_experts", f"{path}/mlp/shared") if config.experts.shared_size else [])


def _stacked_experts(hub: str, path: str) -> Either:
    """Experts in one tensor a layer, or one each.

    On the hub [X, in, out], as a product takes them; as transformers 5 has them in memory [X, out, in]; in some files
    each expert's by itself. Of the fused tensor the gates come first.
    """
    experts = f"{path}/mlp/experts"
    gate_up = (f"{experts}/gate", f"{experts}/up")
    names = (f"{hub}.mlp.experts.gate_up_proj", f"{hub}.mlp.experts.down_proj")
    return Either(
        (
            (Row(names[0], gate_up, AS_IS, axis=-1), Row(names[1], f"{experts}/down")),
            (Row(names[0], gate_up, TRANSPOSED, axis=-2), Row(names[1], f"{experts}/down", TRANSPOSED)),
            tuple(
                Row(f"{hub}.mlp.experts.{{}}.{p}_proj.weight", f"{experts}/{p}", TRANSPOSED)
                for p in ("gate", "up", "down")
            ),
        )
    )


def pairs_apart(kept: int, rotary: int) -> Transform:
    """A dense weight whose outputs are heads of ``kept`` dims and ``rotary`` dims in interleaved pairs.

    Here the pairs' first members come before their second ones, as the half-split rotation takes them.
    """
    apart = np.concatenate([np.arange(kept), kept + np.arange(rotary).reshape(-1, 2).T.reshape(-1)])

    def permuted(x: np.ndarray, order: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:-1], -1, kept + rotary)[..., order].reshape(x.shape)

    return Transform(lambda x: permuted(x.T, apart), lambda x: permuted(x, np.argsort(apart)).T)
