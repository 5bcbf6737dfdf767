"""Chunks of a library by a question: scores held against numpy, pages that are found, and what is left out."""

import jax.numpy as jnp
import numpy as np
import pytest

import kamera_jax as kj
from eval.tiny import pages
from eval.tiny.episodes import question_text
from eval.tiny.story import sample_story
from kamera_jax.errors import ModelMismatchError, RetrievalError
from kamera_jax.finder import choosing, slices
from kamera_jax.finder.scoring import Head, asked, match, standardised
from models import load

STORIES = 8


@pytest.fixture(scope="module")
def tiny():
    return load("kamera-tiny-gqa")


@pytest.fixture(scope="module")
def shown(tiny):
    """Pages of facts, with the glyphs that they show."""
    drawn = [sample_story(np.random.default_rng((96_000_000, i))) for i in range(STORIES)]
    each = [page for story in drawn for page in (story.first, story.second)]
    return [(kj.encode(tiny, pages.render(page.cells)), page.entries) for page in each]


@pytest.fixture(scope="module")
def shelf(shown, tmp_path_factory):
    library = kj.ChunkLibrary.open(tmp_path_factory.mktemp("finder") / "library", mode="a")
    library.put_many([chunk for chunk, _ in shown])
    return library


def oracle(ask, chunk, heads, groups):
    """A chunk's score by each head, in float64."""
    queries = np.asarray(ask.queries, np.float64)[:, : ask.length]
    keys = np.asarray(chunk.kv.rot, np.float64)[:, : chunk.length]
    keys = keys.reshape(*keys.shape[:2], groups, -1)
    count = queries.shape[2]
    return [(queries[layer, :, head] @ keys[layer, :, head * groups // count].T).max() for layer, head in heads]


def test_scores_are_the_largest_products(tiny, shown, shelf):
    heads = ((0, 0), (1, 3), (4, 2))
    finder = kj.Finder(tiny, shelf, kj.RetrievalHeads(tiny.fingerprint, heads, (1.0, 0.5, 2.0)))
    question = question_text(5)
    ask = asked(tiny, question)
    keys, scores = finder.scores(question)
    by_key = {chunk.key: oracle(ask, chunk, heads, tiny.spec.heads) for chunk, _ in shown}
    wanted = np.asarray([by_key[key] for key in keys])
    assert set(keys) == set(by_key)
    np.testing.assert_allclose(scores, wanted, rtol=2e-5, atol=2e-5)
    total = ((wanted - wanted.mean(0)) / wanted.std(0)) @ [1.0, 0.5, 2.0]
    hits = finder.find(question, top=3)
    best = np.argsort(-total)[:3]
    assert [hit.key for hit in hits] == [keys[place] for place in best]
    np.testing.assert_allclose([hit.score for hit in hits], total[best], rtol=1e-3)
    here = list(keys[::2])
    among = finder.find(question, top=99, among=here)
    assert len(among) == len(here) and {hit.key for hit in among} == set(here)


def test_padding_takes_no_part():
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((2, 4, 3, 8)).astype(np.float32)
    keys = rng.standard_normal((2, 2, 6, 8)).astype(np.float32)
    heads = (Head(0, 1, 1), Head(1, 2, 0))
    lengths = np.asarray([4, 6], np.int32)
    scored = match(jnp.asarray(queries), jnp.int32(3), jnp.asarray(keys), jnp.asarray(lengths), heads=heads)
    queries[:, 3:] = 1e6
    keys[0, :, 4:] = 1e6
    again = match(jnp.asarray(queries), jnp.int32(3), jnp.asarray(keys), jnp.asarray(lengths), heads=heads)
    np.testing.assert_array_equal(np.asarray(scored), np.asarray(again))
    wanted = [
        [(queries[h.layer, :3, h.head] @ keys[p, h.place, :n].T).max() for h in heads] for p, n in ((0, 4), (1, 6))
    ]
    np.testing.assert_allclose(np.asarray(scored), wanted, rtol=1e-5)


def test_a_head_that_tells_nothing_counts_nothing():
    scores = np.asarray([[1.0, 3.0], [1.0, 5.0], [1.0, 7.0]])
    made = standardised(scores)
    assert not made[:, 0].any() and made[:, 1].mean() == 0 and made[:, 1].std() == pytest.approx(1)
    assert standardised(scores, np.asarray([0, 1]))[2, 1] == pytest.approx(3)


def test_pages_are_found(tiny, shown, shelf):
    """With the heads beside the weights, which were chosen on other pages; chance is a quarter of sixteen or less."""
    finder = kj.Finder(tiny, shelf)
    found = []
    for place, (chunk, entries) in enumerate(shown):
        glyph = sorted(entries)[place % len(entries)]
        others = [other.key for other, theirs in shown if glyph not in theirs]
        hits = finder.find(question_text(glyph), top=2, among=[chunk.key, *others])
        found.append(chunk.key in [hit.key for hit in hits])
    assert np.mean(found) >= 0.8  # chance: 2 of about 12
    assert 0 < finder.nbytes < sum(chunk.nbytes for chunk, _ in shown) / 4
    assert "16 chunks" in repr(finder)


def test_heads_are_chosen_on_known_answers(tiny, shown):
    glyphs = sorted({glyph for _, entries in shown for glyph in entries})[::6]
    pairs = [(question_text(g), [chunk for chunk, entries in shown if g in entries]) for g in glyphs]
    heads = kj.Finder.calibrate(tiny, pairs, [chunk for chunk, _ in shown], heads=2)
    assert 1 <= len(heads.heads) <= 2 and heads.model == tiny.fingerprint and heads.recall > 0.5
    assert heads.questions == len(glyphs) and heads.chunks == len(shown)
    assert kj.RetrievalHeads.from_json(heads.to_json()) == heads


def test_greedy_choice_and_ranks():
    """Two questions, three chunks, three heads: the third head alone is right of both."""
    scores = np.zeros((2, 3, 3))
    scores[0, :, 0] = [3, 1, 1]
    scores[1, :, 0] = [3, 1, 1]
    scores[0, :, 2] = [2, 1, 0]
    scores[1, :, 2] = [0, 1, 2]
    assert choosing._greedy(scores, [{0}, {2}], 3) == [2]
    np.testing.assert_array_equal(choosing._ranks(scores, [{0}, {2}], [0]), [0, 2])
    np.testing.assert_array_equal(choosing._ranks(scores, [{0, 1}, {1, 2}], [2]), [0, 0, 0, 0])


def test_the_library_changes(tiny, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "BLOCK_ROWS", 128)  # two pages a block
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([chunk for chunk, _ in shown[:4]])
        finder = kj.Finder(tiny, lib)
        question = question_text(sorted(shown[5][1])[0])
        assert len(finder.find(question, top=9)) == 4
        read = finder.read_bytes
        finder.find(question)
        assert finder.read_bytes == read  # nothing is read twice
        lib.put(shown[5][0])
        lib.delete(shown[0][0].key)
        keys, _ = finder.scores(question)
        assert set(keys) == {chunk.key for chunk, _ in (*shown[1:4], shown[5])}
        assert finder.read_bytes == read * 5 // 4
        bounded = kj.Finder(tiny, lib, memory_bytes=0)
        assert bounded.scores(question)[0] != () and bounded.nbytes == 0
        order = np.argsort(bounded.scores(question)[0])
        ours = np.argsort(keys)
        np.testing.assert_array_equal(finder.scores(question)[1][ours], bounded.scores(question)[1][order])
        for chunk, _ in shown[1:4]:  # most of what is known is gone
            lib.delete(chunk.key)
        assert finder.scores(question)[0] == (shown[5][0].key,) and len(finder.find(question)) == 1
        lib.delete(shown[5][0].key)
        assert finder.find(question) == ()


def test_what_is_stored_in_few_bits_is_found_too(tiny, shown, shelf, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        for place, (chunk, _) in enumerate(shown[:6]):
            lib.put(chunk, storage=("int8", "kivi:4", "exact")[place % 3])
        finder = kj.Finder(tiny, lib)
        question = question_text(sorted(shown[0][1])[0])
        keys, scores = finder.scores(question)
        exact = dict(zip(*kj.Finder(tiny, shelf).scores(question), strict=True))
        np.testing.assert_allclose(scores, [exact[key] for key in keys], rtol=0.2, atol=0.5)
        assert not np.array_equal(scores, [exact[key] for key in keys])


def test_what_is_left_out(tiny, shown, tmp_path):
    turn = kj.generate(tiny, kj.Window.empty(tiny, 128), question_text(3), max_new_tokens=1).window.entries[0].chunk
    alone = kj.encode(tiny, "a red star.", preamble=None)
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([shown[0][0], shown[1][0], turn, alone])
        finder = kj.Finder(tiny, lib)
        assert len(finder.find(question_text(3), top=9)) == 2
        assert "question with its answer" in finder.left_out[turn.key]
        assert "its preamble is None" in finder.left_out[alone.key]
    with pytest.raises(ModelMismatchError, match="encode it with this one"):
        kj.Finder.calibrate(load("kamera-tiny-mla"), [(question_text(1), shown[0][0])], [shown[1][0]])


def test_a_damaged_chunk_is_left_out(tiny, shown, tmp_path):
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        for chunk, _ in shown[:2]:
            lib.put(chunk)
        (data,) = (lib.root / "packs" / lib.info(shown[0][0].key).pack).glob("state/*.kv.rot/0.0.0.0")
        written = bytearray(data.read_bytes())
        written[0] ^= 1  # of the first layer
        data.write_bytes(written)
        finder = kj.Finder(tiny, lib)
        assert any(layer == 0 for layer, _ in finder.heads.heads)
        assert [hit.key for hit in finder.find(question_text(1), top=9)] == [shown[1][0].key]
        assert "is not as it was written" in finder.left_out[shown[0][0].key]
        lib.delete(shown[0][0].key)
        lib.put(shown[0][0])
        assert len(finder.find(question_text(1), top=9)) == 2 and not finder.left_out


def test_hits_bring_what_they_refer_to(tiny, shown, tmp_path):
    first, second, third = (chunk for chunk, _ in shown[:3])
    patch = kj.form_patch(tiny, third, antecedents=[first, second], rank=4)
    less = kj.form_patch(tiny, third, antecedents=[first], rank=4)
    question = question_text(sorted(shown[2][1])[0])
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many([first, second, third, patch, less])
        (hit,) = kj.Finder(tiny, lib).find(question, among=[third.key])
        assert hit.patch == patch.key and hit.antecedents == (first.key, second.key) and "2 chunks" in repr(hit)
        found = kj.Finder(tiny, lib).find(question, top=1)[0]
        asked = {"top": 1, "max_new_tokens": 1, "keep": False}
        for linked in (False, True):
            session = kj.Session(tiny, 512)
            answer = session.ask(question, library=lib, linked=linked, **asked)
            keys = (*found.antecedents, found.key) if linked else (found.key,)
            assert session.keys == keys and answer.window.keys == session.keys
            last = session.window.entries[-1]
            assert (None if last.patch is None else last.patch.key) == found.patch
            again = session.ask(question, library=kj.Finder(tiny, lib), linked=linked, **asked)
            assert again.text == answer.text
            assert session.keys == keys  # what is there does not come twice
        lib.delete(second.key)
        (hit,) = kj.Finder(tiny, lib).find(question, among=[third.key])
        assert hit.patch == less.key and hit.antecedents == (first.key,)


def test_vectors_of_the_callers(shown, shelf, tiny):
    rng = np.random.default_rng(3)
    vectors = {chunk.key: rng.standard_normal(12) for chunk, _ in shown}
    wanted = rng.standard_normal(12)
    finder = kj.EmbeddingFinder(shelf, vectors, lambda text: wanted)
    cosines = {key: v @ wanted / np.linalg.norm(v) / np.linalg.norm(wanted) for key, v in vectors.items()}
    best = sorted(cosines, key=lambda key: -cosines[key])[:4]
    hits = finder.find("anything")
    assert [hit.key for hit in hits] == best
    np.testing.assert_allclose([hit.score for hit in hits], [cosines[key] for key in best], rtol=1e-5)
    assert [hit.key for hit in finder.find("anything", top=1, among=best[2:])] == best[2:3]
    assert "16 chunks, vectors of 12 numbers" in repr(finder)
    session = kj.Session(tiny, 512)
    session.ask("what colour is the star?", library=finder, top=2, max_new_tokens=1, keep=False)
    assert session.keys == tuple(reversed(best[:2]))
    with pytest.raises(ValueError, match="expected at least one, all \\[D\\] of one length"):
        kj.EmbeddingFinder(shelf, {}, lambda text: wanted)
    with pytest.raises(ValueError, match="has the length 0.0; expected finite numbers that are not all zero"):
        kj.EmbeddingFinder(shelf, {best[0]: np.zeros(3)}, lambda text: wanted)
    with pytest.raises(ValueError, match=r"embed gave \(3,\) for the question; expected \(12,\)"):
        kj.EmbeddingFinder(shelf, vectors, lambda text: np.ones(3)).find("anything")


@pytest.mark.parametrize(
    "fields",
    [{"heads": ()}, {"heads": ((0, 0), (0, 0))}, {"heads": ((-1, 0),)}, {"model": ""}]
    + [{"weights": (1.0, 1.0)}, {"weights": (-1.0,)}, {"weights": (0.0,)}],
)
def test_heads_that_cannot_be(fields):
    with pytest.raises(ValueError):
        kj.RetrievalHeads(**({"model": "f" * 64, "heads": ((0, 0),)} | fields))


def test_errors_say_what_to_do(tiny, shown, shelf, random_vlm):
    with pytest.raises(RetrievalError, match=r"nothing says by which heads .*heads=Finder.calibrate\(vlm"):
        kj.Finder(random_vlm, shelf)
    with pytest.raises(RetrievalError, match="the heads were chosen for model"):
        kj.Finder(random_vlm, shelf, tiny.retrieval)
    with pytest.raises(RetrievalError, match="names heads that a model of 5 layers of 4 has not"):
        kj.Finder(tiny, shelf, kj.RetrievalHeads(tiny.fingerprint, ((5, 0),))).find("?")
    with pytest.raises(RetrievalError, match="there are 0 questions and 0 chunks"):
        kj.Finder.calibrate(tiny, [])
    with pytest.raises(RetrievalError, match="give others="):
        kj.Finder.calibrate(tiny, [("?", shown[0][0])])
    with pytest.raises(ValueError, match="top is 0; expected at least 1"):
        kj.Finder(tiny, shelf).find("what?", top=0)


def test_an_mla_searches_its_latents(shown, tmp_path):
    vlm = load("kamera-tiny-mla")
    images = [pages.render(sample_story(np.random.default_rng((96_000_001, i))).first.cells) for i in range(3)]
    chunks = [kj.encode(vlm, each) for each in images]
    with kj.ChunkLibrary.open(tmp_path / "lib", mode="a") as lib:
        lib.put_many(chunks)
        finder = kj.Finder(vlm, lib, kj.RetrievalHeads(vlm.fingerprint, ((1, 2),)))
        ask = asked(vlm, question_text(1))
        keys, scores = finder.scores(question_text(1))
        queries = np.asarray(ask.queries, np.float64)[1, : ask.length, 2]
        for chunk in chunks:
            latents = np.concatenate([np.asarray(chunk.kv.free[1]), np.asarray(chunk.kv.rot[1])], -1)[: chunk.length]
            np.testing.assert_allclose(scores[keys.index(chunk.key), 0], (queries @ latents.T).max(), rtol=2e-5)


def test_a_published_library_is_searched_and_served_from_where_it_is(tiny, shelf, tmp_path):
    shelf.publish(f"file://{tmp_path}/store")
    there = kj.ChunkLibrary.open(f"file://{tmp_path}/store")
    question = question_text(5)
    hits = kj.Finder(tiny, there).find(question, top=3)
    assert [(hit.key, hit.score) for hit in hits] == [
        (hit.key, hit.score) for hit in kj.Finder(tiny, shelf).find(question, top=3)
    ]
    answers = []
    for library in (there, shelf):
        store = kj.Tiers(device_bytes=0, host_bytes=2**26, library=library)
        session = kj.Session(tiny, 512, store=store)
        session.prefetch([hits[2].key])
        answers.append(session.ask(question, library=library, top=2, max_new_tokens=2).tokens)
        session.recall(hits[2].key)
        assert hits[2].key in session.keys
        answers.append(session.ask(question, max_new_tokens=2).tokens)
        store.close()
    assert answers[:2] == answers[2:]
    session = kj.Session(tiny, 512, store=there)
    session.recall(hits[0].key)
    assert session.keys == (hits[0].key,)
