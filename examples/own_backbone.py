"""A JAX model of one's own as a backbone: two layers of attention over letters, with random weights."""

import jax
import jax.numpy as jnp

import kamera_jax as kj
from kamera_jax.backbone import BackboneBase, Output

WIDTH = 32  # of the model and of its one head
ROPE = kj.RopeSpec(inv_freq=tuple(1e4 ** (-2 * i / WIDTH) for i in range(WIDTH // 2)), head_dim=WIDTH)


class Letters(BackboneBase):
    eos = (0,)  # tokens that end an answer; the rest of `BackboneBase` keeps its defaults

    def __init__(self) -> None:
        draw = jax.random.normal(jax.random.key(0), (128 + 6 * WIDTH, WIDTH))
        self.params = {"embed": draw[:128], "qkv": draw[128:].reshape(2, WIDTH, -1) / WIDTH**0.5}
        self.fingerprint = "letters, seed 0"  # names configuration and weights: others, another name
        self.spec = kj.KVSpec(2, WIDTH, WIDTH, 1, ROPE, "float32", self.fingerprint)
        self.preamble = self.prepare("you read letters. ")

    def prepare(self, item: str) -> kj.Segment:
        padded = item.ljust(kj.kv.bucket(len(item)), "\0")  # few shapes are compiled
        tokens = jnp.asarray([ord(letter) % 128 for letter in padded], jnp.int32)
        positions = jnp.arange(float(len(tokens)))[None]  # from 0: a chunk has no place of its own
        return kj.Segment({"tokens": tokens}, positions, jnp.int32(len(item)), float(len(item)))

    def tail(self, text: str) -> kj.Segment:
        return self.prepare(f"\n{text}\n")

    def decode(self, tokens) -> str:
        return "".join(map(chr, tokens))

    def forward(self, params, segment, state, *, logits_at=None, collect=()):
        state = state or self.spec.empty_state(0)
        valid = segment.valid.astype(jnp.float32)
        before, own = (jnp.tile(each, (len(valid), 1)) for each in (state.valid, segment.valid))
        x = params["embed"][segment.inputs["tokens"]]
        layers = []
        for layer in range(2):
            q, k, v = jnp.split(x @ params["qkv"][layer], 3, axis=-1)
            q, here = (kj.rope.rotate(y[:, None], segment.positions, ROPE)[:, 0] for y in (q, k))
            scores = q @ jnp.vstack([state.rot[layer], here]).T / WIDTH**0.5  # keys in a state are rotated already
            weights = jax.nn.softmax(jnp.where(jnp.hstack([before, jnp.tril(own)]), scores, -1e9))
            x = x + 2 * weights @ jnp.vstack([state.free[layer], v])
            kv = [y * valid[:, None] for y in (k, v)]  # un-rotated, and zero in padding
            layers.append([*kv, valid @ weights / valid.sum()])  # and the attention each slot received
        rot, free, mass = map(jnp.stack, zip(*layers, strict=True))
        logits = None if logits_at is None else x[logits_at] @ params["embed"].T / 8
        return Output(logits, kj.KV(rot, free), {"attention_mass": mass})


vlm = Letters()
first, second = (kj.encode(vlm, text) for text in ("the star is red", "the moon is like the star"))
patch = kj.form_patch(vlm, second, antecedents=[first], rank=12)  # what the second absorbs from the first
window = kj.append(kj.append(kj.Window.empty(vlm, 256), first), second, patch)  # no forward
answer = kj.generate(vlm, window, "like what?", max_new_tokens=8).text
kls = [kj.verify(vlm, each, ["like what?"]).kl for each in (window, kj.replace(window, 1, second))]
print(f"answer: {answer!r}; KL to full prefill: {kls[0]:.1e} nats, without the patch {kls[1]:.1e}")
