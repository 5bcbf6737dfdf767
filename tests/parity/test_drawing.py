"""Which tokens are drawn from, against transformers' logits processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kamera_jax.inference.decoding import Decoding, filtered

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (1, None), (7, None), (None, 0.5), (40, 0.95), (5000, 0.1)])
def test_the_same_tokens_with_the_same_logits(temperature, top_k, top_p):
    import torch
    from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    rng = np.random.default_rng(3)
    sampling = Decoding(1, temperature, jax.random.key(0), top_k=top_k, top_p=top_p).sampling
    for width in (11, 1000):
        logits = 3 * rng.standard_normal((4, width)).astype(np.float32)
        logits[1, : width // 2] = logits[1, 0]  # as likely as each other
        wanted = warpers(torch.zeros((4, 1), dtype=torch.long), torch.from_numpy(logits)).numpy()
        for row, theirs in zip(logits, wanted, strict=True):
            ours = np.asarray(filtered(jnp.asarray(row), sampling))
            np.testing.assert_array_equal(np.isfinite(ours).sum(), np.isfinite(theirs).sum())
            np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-6)
