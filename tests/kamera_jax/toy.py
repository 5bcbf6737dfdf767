"""The least that is a backbone: KV that depends on the token and on how much stands before it. Compiles in no time."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

import kamera_jax as kj
from kamera_jax.backbone import Output
from kamera_jax.kv import bucket

VOCABULARY = 64
LAYERS = 2
ROT = 16
FREE = 6
ROPE = kj.RopeSpec((1.0, 0.3, 0.1, 0.03), head_dim=8, sections=(1, 1, 2))


def forward(params, segment, state, *, logits_at=None, collect=()):
    tokens = segment.inputs["tokens"]
    valid = segment.valid
    before = jnp.int32(0)
    if state is not None:
        before = sum(each.sum(dtype=jnp.int32) for each in (state.valid, *[pool.lengths for pool in state.pools]))
    rows = params["rows"][tokens].swapaxes(0, 1)
    place = (before + jnp.arange(len(tokens), dtype=jnp.int32)).astype(jnp.float32)
    rows = rows * (1 + 0.01 * place).astype(rows.dtype)[None, :, None]
    rows = jnp.where(valid[None, :, None], rows, jnp.zeros((), rows.dtype))
    logits = None
    if logits_at is not None:
        logits = params["out"][(tokens[logits_at] + before + logits_at) % VOCABULARY]
    aux = {}
    if "attention_mass" in collect:
        seen = len(tokens) + (0 if state is None else state.valid.shape[0])
        aux = {"attention_mass": jnp.full((LAYERS, seen), 1 / seen, jnp.float32)}
    return Output(logits, kj.KV(rows[..., :ROT], rows[..., ROT:]), aux)


class Toy:
    """Text is a token a letter; the last two letters of the vocabulary close a turn, and ``eos`` never comes."""

    attends_in_place = True
    forward = staticmethod(forward)
    eos = (VOCABULARY,)
    closing = (VOCABULARY - 1, VOCABULARY - 2)

    def __init__(self, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.params = {
            "rows": jnp.asarray(rng.standard_normal((VOCABULARY, LAYERS, ROT + FREE)), dtype),
            "out": jnp.asarray(rng.standard_normal((VOCABULARY, VOCABULARY)), jnp.float32),
        }
        self.fingerprint = hashlib.sha256(f"toy {seed} {dtype}".encode()).hexdigest()
        self.spec = kj.KVSpec(LAYERS, ROT, FREE, 2, ROPE, dtype, self.fingerprint)
        self.prepared = 0
        self.preamble = self.segment("you toy", "preamble")

    def segment(self, text, content):
        length = len(text)
        ids = np.zeros(bucket(length), np.int32)
        ids[:length] = [ord(letter) % (VOCABULARY - 2) for letter in text]
        positions = np.tile(np.arange(len(ids), dtype=np.float32), (ROPE.axes, 1))
        digest = hashlib.sha256(f"{content}:{text}".encode()).hexdigest()
        return kj.Segment({"tokens": jnp.asarray(ids)}, jnp.asarray(positions), np.int32(length), float(length), digest)

    def prepare(self, item):
        self.prepared += 1
        return self.segment(item, "item")

    def tail(self, text):
        return self.segment(text + "!", "tail")

    def follow_up(self, text):
        return self.segment(" " + text + "!", "tail")

    def decode(self, tokens):
        return "".join(chr(97 + int(token) % 26) for token in tokens)


def forwards(vlm):
    """The same toy, and a function that says how many forwards were run, compiled or not."""
    counted = Toy.__new__(Toy)
    seen = []
    counted.__dict__.update(vlm.__dict__)

    def counting(params, segment, state, **options):
        jax.debug.callback(lambda: seen.append(1))
        return forward(params, segment, state, **options)

    def count():
        jax.effects_barrier()
        return len(seen)

    counted.forward = counting
    return counted, count
