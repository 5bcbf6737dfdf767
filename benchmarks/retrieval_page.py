"""The page of finding chunks by a question: what `benchmarks.retrieval` measured, in words."""

from typing import Any

COUNTS = (32, 256, 2000)
"""Pages of the libraries that are searched."""

WANTED = {32: 0.9, 256: 0.8, 2000: 0.7}
"""Of recall@4, at least."""

WINDOWS = {
    "right_patched": "the right page alone: what stands first is served without its patch",
    "found_patched": "the best four, with their patches",
    "found_patched_linked": "the best four with their patches, and what these refer to",
    "session": "`session.ask(…, library=, top=4)`",
    "session_linked": "the same with `linked=True`",
    "found_blind": "the best four, no patches",
    "all_full": "all pages, run together",
    "all_patched": "all pages, with their patches",
    "all_blind": "all pages, no patches",
}

PAGE = """# Finding chunks by a question

```python
finder = kj.Finder(vlm, library)  # reads nothing yet
hits = finder.find("what colour is the star?", top=4)  # of each .key, .score, .patch and .antecedents
answer = session.ask("what colour is the star?", library=library, top=4)
```

`kamera ask "what colour is the star?" --library library/ --top 4` does the same without an `--item`.

The question is run alone behind the preamble. Of every chunk the keys of a few attention heads are compared with its
queries, both un-rotated: where a chunk will stand plays no part. A head's score is the largest product of one token of
the question and one row of the chunk, standardised over the chunks that are searched; a chunk's is the sum over the
heads. Means of keys, by which blocks of a long context are often chosen (ReKV, and kept here as the baseline), find
nothing: one row in {tokens} matters.

`kj.Finder.calibrate(vlm, [(question, chunk), …])` chooses the heads on questions whose right chunk is known, and gives
`RetrievalHeads`, which `to_json` writes. A model's own lie beside its weights, in `retrieval.json`, with the
fingerprint of the model (`python -m benchmarks.retrieval --calibrate` writes those of the embedded models). Without
any, or with those of another model, `Finder` raises a `RetrievalError`. `Session.ask` and `kamera ask` search with a
model's own.

Only the layers that these heads are in are read, and of a chunk that is stored exactly only its keys; each layer is
held against its own digest. Of a chunk in fewer bits the values of these layers are read too, and the keys restored.
The KV heads that are compared stay in memory, up to `memory_bytes`, and are looked at again when the library changes:
what was put is read, what was deleted is left out. What is beyond the bound is read at every question. Chunks of other
models, or behind another preamble, kept turns, and chunks that are damaged are left out, and `left_out` says why.
`among=` searches some chunks alone.

A hit brings the stored patch that was formed behind most chunks which the library still has, and these chunks' keys:
what the page refers to. `Session.ask` and `kamera ask` put what was found into the window, the best one last, each with
the patch that it was found with, which holds what it read behind those chunks. With `linked=True` (`--linked`) these
come too, each page behind what it refers to, and the session's policy says what is reused.
`kj.EmbeddingFinder(library, vectors, embed)` finds by vectors of an encoder of the caller's, and is taken in the place
of a library.

## Measured

`make bench-retrieval`: `{model}`, pages of the task `binding` ({tokens} tokens, twelve of 48 glyphs each), {cpus} CPU
cores that are shared with other work (load average {load:.1f}). The heads, {heads} (layer.head), were chosen on
{chosen} questions about half of the glyphs; these questions are about the other half, on other pages, half of them
about facts and half about references. In a library of many pages a glyph stands on a quarter of them, so each question
is asked of the page that it is about and of pages that do not explain its glyph: one page is right. Pages that refer to
the glyph are among the others.

| pages | questions | recall@1 (chance) | recall@4 (chance) | wanted | facts @4 | references @4 | means: @1 / @4 |
|---|---|---|---|---|---|---|---|
{found}

| pages | keys in memory | read once | of all KV | first question, s | later ones, s: median (least) |
|---|---|---|---|---|---|
{costs}

The first question reads the keys of the library. Of the means the best layer is shown, chosen on the same questions.

### Answers

{answered} questions about {least} pages, half of one hop and half of two, where no other page explains a glyph that
leads to the answer. Patches are of rank 12, stored beside the pages of references, formed behind the two pages that
these refer to. Chance is {chance:.0%}.

| in the window | one hop | two hops |
|---|---|---|
{answers}

A reference's answer stands on another page: found without its patch, a page of references does not say it. The embedded
model was trained on windows of up to six pages, and reads longer ones badly: that is why all pages together answer
fewer questions than the four that were found, and why it does not help here to bring all that these refer to, up
to twelve pages in all.

Not measured: models and questions other than these. Heads that find on one kind of page need not on another: calibrate
on questions like those that will be asked.
"""


def page(result: dict[str, Any]) -> str:
    answers = result["answers"]
    return PAGE.format(
        model=result["model"],
        tokens=result["tokens"],
        cpus=result["cpus"],
        load=result["load"],
        heads=", ".join(f"{layer}.{head}" for layer, head in result["heads"]["heads"]),
        chosen=result["heads"]["questions"],
        found="\n".join(map(_found, result["libraries"])),
        costs="\n".join(map(_costs, result["libraries"])),
        answered=answers["questions"],
        least=answers["pages"],
        chance=answers["chance"],
        answers="\n".join(
            f"| {words} | {answers['accuracy'][name]['one_hop']:.2f} | {answers['accuracy'][name]['two_hops']:.2f} |"
            for name, words in WINDOWS.items()
            if name in answers["accuracy"]
        ),
    )


def _found(row: dict[str, Any]) -> str:
    wanted = WANTED.get(row["pages"])
    return (
        f"| {row['pages']} | {row['questions']} | {row['heads']['recall_1']:.2f} ({row['chance_1']:.3f}) | "
        f"{row['heads']['recall_4']:.2f} ({row['chance_4']:.3f}) | {'' if wanted is None else f'≥ {wanted}'} | "
        f"{row['facts']['recall_4']:.2f} | {row['references']['recall_4']:.2f} | "
        f"{row['means']['recall_1']:.2f} / {row['means']['recall_4']:.2f} |"
    )


def _costs(row: dict[str, Any]) -> str:
    return (
        f"| {row['pages']} | {row['kept_bytes'] / 1e6:.1f} MB | {row['read_bytes'] / 1e6:.1f} MB | "
        f"{row['read_bytes'] / row['kv_bytes']:.0%} | {row['first_s']:.2f} | "
        f"{row['later_s']['median']:.3f} ({row['later_s']['least']:.3f}) |"
    )
