"""Episodes say what is true of their pages, and packing lays them out as the model does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.tiny import checkpoint, pages
from eval.tiny.backbones import BACKBONES
from eval.tiny.batches import Words, pack, slots_for
from eval.tiny.episodes import PHRASES, Recipe, all_questions, antecedent_chunks, question_text, sample_episode
from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from eval.tiny.language import visible
from eval.tiny.story import ASKED, sample_story
from eval.tiny.vocabulary import VOCABULARY, build_tokenizer
from models import load
from models.blocks.params import is_info
from models.hub.chat import ChatTemplate

WORDS = Words({word: i for i, word in enumerate(VOCABULARY)}, len(VOCABULARY))


def looked_up(chunks, glyph):
    """What the pages and passages themselves say, followed by hand: (colour, hops)."""
    facts = {}
    references = {}
    for chunk in chunks:
        if chunk.cells is None:
            words = chunk.text.replace(".", "").split()
            facts |= {NAMES.index(g): COLOUR_NAMES.index(c) for g, c in zip(words[2::3], words[1::3], strict=True)}
            continue
        for cell in chunk.cells.reshape(-1):
            kind, first, second = pages.parse(int(cell))
            if kind == "fact":
                facts[first] = second
            elif kind == "reference":
                references[first] = second
    hops = 1
    while glyph not in facts:
        glyph = references[glyph]
        hops = hops + 1
    return facts[glyph], hops


@pytest.mark.parametrize("seed", range(3))
def test_questions_are_answered_by_what_the_chunks_show(seed):
    episode = sample_episode(np.random.default_rng(seed), Recipe(text=0.3, repeat=0.3, invert=0.5))
    assert 2 <= len(episode.chunks) <= 6
    for question in episode.questions:
        assert looked_up(episode.chunks, question.glyph) == (question.colour, question.hops)
        shown = [i for i, chunk in enumerate(episode.chunks) if question.glyph in chunk.entries]
        assert shown and not set(shown) & set(question.hidden)


@pytest.mark.parametrize("seed", range(3))
def test_bound_means_that_antecedents_come_first(seed):
    rng = np.random.default_rng(seed)
    chunks = sample_episode(rng, Recipe(invert=1.0, repeat=0.0)).chunks
    place = {glyph: i for i, chunk in enumerate(chunks) for glyph in chunk.entries}
    for question in all_questions(chunks):
        on_the_way = [place[glyph] for glyph in question.chain]
        assert question.bound == all(a > b for a, b in zip(on_the_way, on_the_way[1:], strict=False))
        assert set(antecedent_chunks(chunks, question)) == {place[glyph] for glyph in question.chain[1:]}


@pytest.mark.parametrize("seed", range(2))
def test_a_page_has_its_share_of_informative_cells(seed):
    recipe = Recipe()
    assert recipe.rows * recipe.columns >= 48 and recipe.informative * 3 >= recipe.rows * recipe.columns
    for chunk in sample_episode(np.random.default_rng(seed), recipe).chunks:
        if chunk.cells is not None:
            informative = sum(pages.parse(int(cell))[0] != "background" for cell in chunk.cells.reshape(-1))
            assert informative == recipe.informative


def test_training_and_serving_use_the_same_tokens(tmp_path):
    build_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    chat = ChatTemplate.load(tmp_path)
    assert chat.preamble == WORDS.preamble
    assert list(chat.eos) == [WORDS.ids["<|im_end|>"]]
    for phrase in range(len(PHRASES)):
        question = question_text(5, phrase)
        assert chat.tail(question) == WORDS.tail(question)
    passage = "a red star. a blue moon."
    assert chat.encode(passage) == WORDS.text(passage)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_training_and_serving_use_the_same_sequence(backbone, tmp_path):
    """Tokens, positions and advance of every chunk are those of the served model."""
    checkpoint.write(tmp_path, backbone, random_params(backbone))
    vlm = load(tmp_path)
    recipe = Recipe(chunks=(3, 3), text=0.5, questions=2)
    rng = np.random.default_rng(11)
    (episode,) = episodes = [sample_episode(rng, recipe)]
    assert {chunk.cells is None for chunk in episode.chunks} == {True, False}
    slots = slots_for(recipe, WORDS, 3, backbone)
    batch = pack(episodes, WORDS, rng, backbone=backbone, phrases=(1,), max_gap=0, slots=slots)
    tails = [vlm.tail(question.text) for question in episode.questions]
    base = 0.0
    place = 0
    chunks = [pages.render(c.cells) if c.text is None else c.text for c in episode.chunks]
    for segment in (vlm.preamble, *map(vlm.prepare, chunks), tails[0]):
        length = int(segment.length)
        positions = np.asarray(segment.positions)[:, :length]
        assert np.array_equal(batch.positions[0, :, place : place + length], base + positions)
        tokens = np.asarray(segment.inputs["tokens"])[:length]
        packed = batch.ids[0, place : place + length]
        shown = tokens == vlm.config.image_token_id
        assert np.array_equal(packed >= WORDS.size, shown) and np.array_equal(packed[~shown], tokens[~shown])
        base = base + segment.advance
        place = place + length


def random_params(backbone):
    declared = backbone.architecture.declaration(backbone.config)
    return jax.tree.map(lambda info: np.full(info.shape, 0.01, np.float32), declared, is_leaf=is_info)


def test_a_square_page_is_centred():
    cells = np.arange(60).reshape(6, 10)
    seen = BACKBONES["mha"].seen(cells)
    assert seen.shape == (10, 10) and np.array_equal(seen[2:8], cells)
    assert (seen[[0, 1, 8, 9]] == pages.PADDING).all()
    assert BACKBONES["gqa"].seen(cells) is cells


def test_packing_and_visibility():
    recipe = Recipe(chunks=(3, 3), questions=4)
    rng = np.random.default_rng(3)
    episodes = [sample_episode(rng, recipe) for _ in range(3)]
    batch = pack(episodes, WORDS, rng, backbone=BACKBONES["gqa"], phrases=(1, 2), max_gap=16, slots=320)
    for b, episode in enumerate(episodes):
        sees = np.asarray(visible(*(jnp.asarray(x[b]) for x in (batch.chunk, batch.tail, batch.hidden))))
        for q, question in enumerate(episode.questions):
            answer, end, name = batch.ask[b, q]
            assert batch.answer[b, q, 0] == WORDS.ids[COLOUR_NAMES[question.colour]] == batch.ids[b, end]
            assert batch.ids[b, name] == WORDS.ids[NAMES[question.glyph]]
            seen = {int(c) for c in batch.chunk[b][sees[answer]]} - {-1}
            assert seen == set(range(len(episode.chunks))) - set(question.hidden)
            assert set(batch.tail[b][sees[answer]].tolist()) == {0, q + 1}
        assert not sees[:, batch.tail[b] < 0].any()
        assert not np.triu(sees, 1).any()
    assert (np.diff(batch.positions[0, 0, : (batch.tail[0] == 0).sum()]) >= 0).all()


def test_an_episode_that_does_not_fit_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="the batch has 64 slots"):
        pack([sample_episode(rng, Recipe())], WORDS, rng, backbone=BACKBONES["gqa"], phrases=(1,), max_gap=0, slots=64)


@pytest.mark.parametrize("seed", range(3))
def test_a_story_is_true(seed):
    story = sample_story(np.random.default_rng(seed))
    trio = [story.first, story.second, story.third]
    assert all(looked_up(trio, glyph) == (colour, 1) for glyph, colour in story.one_hop)
    assert all(looked_up(trio, glyph) == (colour, 2) for glyph, colour in story.two_hop)
    first = {glyph for glyph, _ in story.two_hop[:ASKED]}
    assert all(story.third.entries[glyph][1] in story.first.entries for glyph in first)
    assert not story.other.entries.keys() & {g for chunk in trio for g in chunk.entries}


def test_the_attention_families():
    gqa, mla, mha = (BACKBONES[name].config.text for name in ("gqa", "mla", "mha"))
    assert gqa.attention.heads > gqa.attention.kv_heads > 1 and gqa.rope.sections is not None
    assert mha.attention.heads == mha.attention.kv_heads and mha.rope.sections is None
    assert mla.attention.latent_dim >= 128 and mla.attention.kv_widths[2] == 1
    assert mla.experts is not None and {"layers", "moe_layers"} == mla.stacks.keys()
    assert {text.vocab_size for text in (gqa, mla, mha)} == {len(VOCABULARY)}


def test_probes_ask_what_a_place_is_bound_to():
    recipe = Recipe(chunks=(4, 4), text=0.4, invert=0.3, questions=2)
    rng = np.random.default_rng(8)
    episodes = [sample_episode(rng, recipe) for _ in range(8)]
    batch = pack(episodes, WORDS, rng, backbone=BACKBONES["gqa"], phrases=(), max_gap=0, slots=272)
    probed = 0
    for b, episode in enumerate(episodes):
        for place, answer, layer in zip(batch.probe[b], batch.probe_answer[b], batch.probe_layer[b], strict=True):
            if answer < 0:
                continue
            token = int(batch.ids[b, place])
            glyph = pages.parse(token - WORDS.size)[1] if token >= WORDS.size else NAMES.index(VOCABULARY[token])
            colour, hops = looked_up(episode.chunks, glyph)
            assert answer == WORDS.ids[COLOUR_NAMES[colour]] and layer in (hops - 1, hops)
            probed += 1
    assert probed > 100
