"""Windows of a model on eight devices: what they hold and answer is what one device holds and answers."""

import re

import pytest

from tests.eight_devices import on_eight_devices
from tests.xla_flags import given

STORY = """
from kamera_jax.placement import Placement

def encoded(vlm):
    a, b, c = (kj.encode(vlm, text) for text in ("the star is red", "the page behind it is blue", "a third one"))
    p = kj.form_patch(vlm, b, antecedents=[a], rank=4)
    return a, b, c, p, kj.form_patch(vlm, c, antecedents=[a, b])

def story(vlm, chunks, mode):
    a, b, c, p, q = chunks
    window = kj.Window.empty(vlm, 512, mode=mode)
    yield window
    for pair in ((a,), (b, p), (c, q)):
        window = kj.append(window, *pair)
        yield window
    yield kj.reorder(window, [2, 0, 1])
    slid = kj.slide(window)
    yield slid
    yield kj.recall(slid, a, None, at=0)
    yield kj.generate(vlm, window, "what is red?", max_new_tokens=2).window

def compared(kind, shape, names, modes):
    one = load(f"kamera-tiny-{kind}")
    many = load(f"kamera-tiny-{kind}", mesh=jax.make_mesh(shape, names))
    apart = encoded(one)
    there = encoded(many)
    for mine, theirs in zip(there, apart, strict=True):
        assert mine.key == theirs.key
        placed(mine, many.placement)
    for mode in modes:
        for mine, theirs in zip(story(many, there, mode), story(one, apart, mode), strict=True):
            placed(mine, many.placement)
            assert mine.keys == theirs.keys and mine.placement is many.placement
            close(kj.query(many, mine, "where is it?"), kj.query(one, theirs, "where is it?"))
        texts = ["what is red?", "where?"]
        pairs = ((many, [mine] * 2), (one, [theirs] * 2))
        together = [kj.generate_many(*pair, texts, max_new_tokens=3) for pair in pairs]
        assert [answer.tokens for answer in together[0]] == [answer.tokens for answer in together[1]]
    return one, many
"""


BOTH = ("materialise", "in_place")


@pytest.mark.parametrize(
    ("kind", "shape", "names", "heads", "modes"),
    [
        ("gqa", (4, 2), ("data", "model"), True, BOTH),
        ("mla", (2, 4), ("expert", "model"), False, BOTH[1:]),
        pytest.param("mla", (2, 4), ("expert", "model"), False, BOTH[:1], marks=pytest.mark.soak),
        pytest.param("mha", (4, 2), ("model", "copies"), True, BOTH, marks=pytest.mark.soak),
        pytest.param("gqa", (2, 4), ("copies", "model"), False, BOTH, marks=pytest.mark.soak),
        pytest.param("mha", (8,), ("x",), False, BOTH, marks=pytest.mark.soak),
    ],
)
def test_windows_hold_and_answer_the_same(kind, shape, names, heads, modes):
    on_eight_devices(f"""{STORY}
one, many = compared({kind!r}, {shape}, {names}, {modes})
assert many.placement.split == {heads}
features = kj.encode(many, "the star").kv.rot
assert features.addressable_shards[0].data.shape[-1] == features.shape[-1] // (many.placement.parts if {heads} else 1)
""")


REUSE = """
import pathlib, re
from jax.experimental.compilation_cache.compilation_cache import reset_cache

vlm = load("kamera-tiny-{kind}", mesh=jax.make_mesh({shape}, {names}))
a, b, c, p, q = encoded(vlm)
kj.Window.empty(vlm, 512)  # runs the preamble
dumped = lambda: set(pathlib.Path({folder!r}).glob("*after_optimizations.txt"))
jax.clear_caches()
jax.config.update("jax_enable_compilation_cache", False)
reset_cache()
before = dumped()
for mode in ("materialise", "in_place"):
    window = kj.Window.empty(vlm, 512, mode=mode)
    for pair in ((a,), (b, p), (c, q)):
        window = kj.append(window, *pair)
    window = kj.append(kj.recall(kj.slide(kj.reorder(window, [2, 0, 1])), a, None, at=0), b, p, donate=True)
    window = kj.replace(window, 1, c, q)
    for _ in range(3):
        window = kj.append(window, b, p)
placed(window, vlm.placement)
reuse = dumped() - before
kj.query(vlm, window, "where is it?")
for name, files in (("reuse", reuse), ("query", dumped() - before - reuse)):
    for file in files:
        print(name, file.name.split(".")[1], *sorted(set(re.findall({collectives!r}, file.read_text()))))
"""
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"


@pytest.mark.parametrize(
    ("kind", "shape", "names"),
    [
        ("gqa", (4, 2), ("data", "model")),
        pytest.param("mla", (2, 4), ("expert", "model"), marks=pytest.mark.soak),
        pytest.param("mha", (2, 4), ("copies", "model"), marks=pytest.mark.soak),
    ],
)
def test_reuse_communicates_nothing(tmp_path, kind, shape, names):
    """Of every program that reuse compiles, as XLA leaves it; a query is the negative control."""
    program = REUSE.format(kind=kind, shape=shape, names=names, folder=str(tmp_path), collectives=COLLECTIVES)
    printed = on_eight_devices(STORY + program, f"--xla_dump_hlo_as_text --xla_dump_to={tmp_path}").splitlines()
    reuse = [line.split()[1:] for line in printed if line.startswith("reuse")]
    asked = [line.split()[1:] for line in printed if line.startswith("query")]
    assert {"jit__put_first", "jit__put_group", "jit__write", "jit__grown", "jit_copied"} <= {each[0] for each in reuse}
    assert [each for each in reuse if len(each) > 1] == []
    assert any(re.match("all-", name) for each in asked for name in each[1:])


def test_a_session_and_a_library_of_a_split_model(tmp_path):
    """What one device stored is used by eight, and the other way round."""
    on_eight_devices(f"""{STORY}
one = load("kamera-tiny-gqa")
many = load("kamera-tiny-gqa", mesh=jax.make_mesh((4, 2), ("data", "model")))
texts = ("the star is red", "the page behind it is blue", "a third page is green", "the last one")
answers = []
for vlm in (one, many):
    session = kj.Session(vlm, capacity=128)
    keys = [session.add(text) for text in texts]
    answers.append([session.ask("what is red?", max_new_tokens=2).text])
    session.recall(keys[0])
    answers[-1] += [session.ask("and blue?", max_new_tokens=2).text, session.window.keys]
    placed(session.window, many.placement) if vlm is many else None
assert answers[0] == answers[1]

library = kj.ChunkLibrary.open({str(tmp_path / "lib")!r}, mode="a")
a, b, c, p, q = encoded(one)
library.put_many([a, b])
library.put(p)
window = kj.append(kj.Window.empty(many, 512), library.get(a.key))
window = kj.append(window, library.get(b.key), library.patches(b.key)[0])
placed(window, many.placement)
alone = kj.append(kj.append(kj.Window.empty(one, 512), a), b, p)
close(kj.query(many, window, "where is it?"), kj.query(one, alone, "where is it?"))
key = library.put(kj.encode(many, "of eight devices"))
same(library.get(key).kv, kj.encode(many, "of eight devices").kv)
for pack in library.packs():
    for stacked in library.restore(pack, sharding=many.placement):
        for row in range(len(stacked.keys)):
            placed(stacked.chunk(row), many.placement)
            assert not stacked.arrays["kv.rot"].sharding.is_fully_replicated
            same(stacked.chunk(row).kv, library.get(stacked.keys[row]).kv)
elsewhere = a.to(jax.devices()[3])
close(kj.query(many, kj.append(kj.Window.empty(many, 512), elsewhere), "what?"),
      kj.query(one, kj.append(kj.Window.empty(one, 512), a), "what?"))
""")


def test_a_placement_says_what_is_split():
    # To the bit, a traced append is the one that is called only with XLA's fusion emitters.
    program = """
import copy, pickle
import pytest
from kamera_jax.errors import PlacementError
from kamera_jax.placement import Placement
one = load("kamera-tiny-gqa")
spec = one.spec
mesh = jax.make_mesh((2, 4), ("model", "data"))
split = Placement.of(spec, mesh)
assert split.split and split.parts == 2 and "2 KV heads split in 2 over model" in str(split)
assert split.of_queries(4) == ("model",) and split.of_queries(3) == ()
assert copy.deepcopy(split) is split and pickle.loads(pickle.dumps(split)) is None
whole = Placement.of(spec, mesh, ("data",))
assert not whole.split and "its 2 KV heads do not divide by 4" in str(whole)
assert whole.of_queries(4) == ()
assert "no axis of the mesh splits heads" in str(Placement.of(spec, mesh, ()))
latent = Placement.of(load("kamera-tiny-mla").spec, mesh)
assert not latent.split and "as all heads read one KV head" in str(latent) and latent.of_queries(4) == ("model",)
assert latent.mesh.axis_types == (jax.sharding.AxisType.Auto,) * 2
for wrong, message in (
    ((8, "model"), "expected a jax.sharding.Mesh"), ((mesh, ("heads",)), "the mesh has .'model', 'data'.")
):
    with pytest.raises(PlacementError, match=message):
        Placement.of(spec, *wrong)
many = load("kamera-tiny-gqa", mesh=mesh)
assert str(many.placement) in repr(many) and one.placement is None
assert many.placement == split
again = many.with_params(many.params, revision="the same")
assert again.placement == split and many.to(jax.devices()[1]).placement is None
assert one.to(jax.tree.map(lambda leaf: leaf.sharding, many.params)).placement == split
assert pickle.loads(pickle.dumps(many)).placement is None
window = kj.append(kj.Window.empty(many, 256), kj.encode(many, "the star"))
back = pickle.loads(pickle.dumps(window))
assert back.placement is None and back.keys == window.keys
same(back.state, window.state)
apart = window.to(jax.devices()[2])
assert apart.placement is None and apart.keys == window.keys and apart.lineage == window.lineage
alone = many.to(jax.devices()[2])
close(kj.query(alone, kj.append(apart, kj.encode(alone, "page")), "what?"),
      kj.query(many, kj.append(window, kj.encode(many, "page")), "what?"))
back = apart.to(split)
assert back.placement == split
placed(back.state, split)
placed(kj.append(back, kj.encode(many, "page")), split)
chunk = kj.encode(one, "the star").to(split)
assert chunk.key and not chunk.kv.rot.sharding.is_fully_replicated
with pytest.raises(PlacementError, match="the window lies on a mesh"):
    jax.export.export(jax.jit(lambda window: window.state.rot))(window).serialize()
through = jax.jit(lambda window, chunk: kj.append(window, chunk))(window, chunk)
placed(through.state, split)
same(through.state, kj.append(window, chunk).state)
"""
    on_eight_devices(program, compiled=given)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "shape", "names"), [("gqa", (4, 2), ("data", "model")), ("mla", (8,), ("model",))])
def test_what_judges_plans_and_keeps_windows_runs_on_a_mesh(tmp_path, kind, shape, names):
    on_eight_devices(f"""{STORY}
one = load("kamera-tiny-{kind}")
many = load("kamera-tiny-{kind}", mesh=jax.make_mesh({shape}, {names}))
which = kj.SketchSpec((1, 3))
seen = []
for vlm in (one, many):
    a, b, c = (kj.encode(vlm, text) for text in ("the star is red", "the page behind it is blue", "a third one"))
    window, patches = kj.form_patches(vlm, [a, b, c], energy=0.9, sketch=which)
    orbit = kj.form_patch(vlm, c, antecedents=[a, b], any_order=True, max_bytes=20000)
    stands = kj.form_patch(vlm, c, context=window, rank=4, sketch=which)
    other = kj.append(kj.append(kj.append(kj.Window.empty(vlm, 512, mode="in_place"), b), a), c, patches[2])
    moved = kj.staleness(other, c, patches[2], at=2)
    fidelity = kj.verify(vlm, other, probes=["what is red?"], reference="present")
    policy = kj.ReusePolicy(max_kl=0.05, fallback="patch")
    checked, verdict = kj.append_checked(vlm, kj.append(kj.Window.empty(vlm, 512), a), b, patches[1], policy)
    plan = kj.planning.plan(vlm, kj.slide(other), kj.planning.Recall(b, patches[1], at=0), policy=policy)
    done = kj.planning.execute(vlm, plan).window
    for each in (orbit, stands, *patches, checked, done, window):
        placed(each, many.placement) if vlm is many else None
    session = kj.Session(vlm, capacity=256)
    keys = [session.add(text) for text in ("one star", "two stars")]
    session.save({str(tmp_path)!r} + "/" + str(vlm is many))
    again = kj.Session.restore(vlm, {str(tmp_path)!r} + "/" + str(vlm is many))
    placed(again.window, many.placement) if vlm is many else None
    answers = [kj.query(vlm, each, "what?") for each in (window, other, checked, done, session.window, again.window)]
    seen.append((answers, moved.change, fidelity.kl, verdict.name if hasattr(verdict, "name") else None))
for mine, theirs in zip(seen[1][0], seen[0][0], strict=True):
    np.testing.assert_allclose(mine, theirs, atol=2e-3 * np.abs(theirs).max())
np.testing.assert_allclose(seen[1][1:3], seen[0][1:3], rtol=2e-2, atol=1e-4)
assert seen[1][3] == seen[0][3]
session = kj.Session.restore(many, {str(tmp_path)!r} + "/False")
placed(session.window, many.placement)
""")
