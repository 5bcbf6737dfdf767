"""After warm-up nothing recompiles."""

import jax

import kamera_jax as kj
from tests.kamera_jax.programs import compilations


def story(vlm, items, question, energy, share):
    """Every operation once, at slots, bases and lengths that follow from the items."""
    a, b, c = (kj.encode(vlm, item) for item in items)
    before = kj.append(kj.append(kj.Window.empty(vlm, 128), c), a)
    exact = kj.form_patch(vlm, b, antecedents=[a], rank=4)
    window = kj.append(before, b, kj.form_patch(vlm, b, context=before, rank=4))
    window = kj.append(kj.slide(window), c, donate=True)
    window = kj.replace(kj.recall(kj.reorder(window, [2, 0, 1]), b, exact, at=1), 0, a)
    kj.append(before, b, kj.form_patch(vlm, b, context=before, energy=energy))
    kj.append(before, b, kj.form_patch(vlm, b, context=before, max_bytes=int(share * b.nbytes)))
    kj.query(vlm, window, question)
    answer = kj.generate(vlm, kj.slide(window, 2), question, max_new_tokens=len(question) % 3 + 2)
    kj.query(vlm, kj.slide(answer.window), question)
    kj.prefill(vlm, items, capacity=128)


def test_it_counts():
    with compilations() as seen:
        jax.jit(lambda x: x * 3 + 1)(1.0)
    assert seen


def test_nothing_recompiles_after_warm_up(random_vlm, make_image):
    first = [make_image(2, 3), "red and blue", make_image(3, 4)]
    story(random_vlm, first, "what colour is it ?", 0.9, 0.9)
    # Other images of the same buckets, and every length but theirs another.
    second = [make_image(1, 7, seed=8), "the page on the left is blue", make_image(2, 2, seed=9)]
    with compilations() as seen:
        story(random_vlm, second, "which page is blue or red ?", 0.7, 0.5)
    assert not seen
