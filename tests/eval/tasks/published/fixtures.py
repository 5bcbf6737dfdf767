"""Small data of our own in the official formats of the benchmarks, two or three contexts each."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from eval.tiny.glyphs import COLOUR_NAMES, NAMES
from tests.models.media import clips

SIZE = (56, 84)
"""Of every picture and frame: 2 by 3 tokens of the tiny models."""

FRAMES = 16


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
    return path


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def facts(*numbers: int) -> str:
    """A sentence in the tiny models' words for each number."""
    return " ".join(f"the {NAMES[n % len(NAMES)]} is {COLOUR_NAMES[n % len(COLOUR_NAMES)]}." for n in numbers)


def asked(number: int) -> tuple[str, str]:
    return f"what colour is the {NAMES[number % len(NAMES)]}?", COLOUR_NAMES[number % len(COLOUR_NAMES)]


def mm_niah(root: Path) -> Path:
    """A line for each of three tasks; one has its choices as images."""
    base = root / "mm_niah_val"
    for i in range(4):
        picture(base / f"images/sub/{i}.png", i)
    question, answer = asked(1)
    meta = {"placed_depth": 0.6, "context_length": 1500, "num_images": 2, "choices": None, "choices_image_path": None}
    record = {"id": 7, "images_list": ["sub/0.png", "sub/1.png"], "question": question, "answer": answer, "meta": meta}
    context = f"{facts(1, 2)}\n<image>\n{facts(3, 4)}<image>{facts(5, 6)}"
    write_lines(base / "annotations/retrieval-text.jsonl", [{**record, "context": context}])
    counted = {**record, "answer": "[1, 2]", "meta": {**meta, "placed_depth": [0.1, 1.0]}}
    write_lines(base / "annotations/counting-image.jsonl", [{**counted, "context": context}])
    chosen = {**meta, "choices_image_path": ["sub/2.png", "sub/3.png"], "context_length": 999}
    reason = {**record, "id": 8, "answer": 1, "meta": chosen}
    write_lines(base / "annotations/reasoning-image.jsonl", [{**reason, "context": context}])
    return root


def mp_docvqa(root: Path) -> Path:
    """Two questions about the same pages, one about others, and one about a document of one page."""
    records = []
    for number, (pages, at) in enumerate([(["a_p0", "a_p1", "a_p2"], 1), (["a_p0", "a_p1"], 1), (["b_p0", "b_p1"], 0)]):
        question, answer = asked(number)
        records.append({"questionId": number, "question": question, "doc_id": pages[0][0], "page_ids": pages}
                       | {"answers": [answer, answer.upper()], "answer_page_idx": at})  # fmt: skip
    records.append({**records[0], "page_ids": ["c_p0"], "answer_page_idx": 0})
    for place, page in enumerate(("a_p0", "a_p1", "b_p0")):
        picture(root / f"images/{page}.jpg", place)
    picture(root / "images/b_p1.png", 9)
    write(root / "val.json", {"dataset_name": "ours", "data": records})
    return root


def mp_docvqa_npy(root: Path) -> Path:
    """The same as the benchmark's imdb file has them: a header, and records with OCR that nobody reads."""
    mp_docvqa(root)
    records = json.loads((root / "val.json").read_text())["data"]
    rows: list = [{"version": "0.1", "dataset_type": "val", "has_answer": True}]
    for record in records:
        rows.append({"question_id": record["questionId"], "question": record["question"], "answers": record["answers"],
                     "answer_page_idx": np.int64(record["answer_page_idx"]), "image_name": record["page_ids"],
                     "imdb_doc_pages": len(record["page_ids"]), "ocr_tokens": [["a"]],
                     "ocr_normalized_boxes": np.zeros((1, 4), np.float32)})  # fmt: skip
    (root / "val.json").unlink()
    np.save(root / "imdb_val.npy", np.array(rows, dtype=object), allow_pickle=True)
    return root


def mmlongbench(root: Path) -> Path:
    """Questions with two pages of evidence, of two formats, and one with a single page."""
    pages = [Image.new("RGB", (84, 56), shade) for shade in ("white", "gray", "black")]
    (root / "documents").mkdir(parents=True)
    pages[0].save(root / "documents/report.pdf", save_all=True, append_images=pages[1:], resolution=72)
    record = {"doc_id": "report.pdf", "question": asked(1)[0], "answer": "3", "answer_format": "Int"}
    listed = {**record, "answer": "['red', 'blue']", "answer_format": "List", "evidence_pages": "[3, 1]"}
    single = {**record, "evidence_pages": "[2]"}
    write(root / "samples.json", [{**record, "evidence_pages": "[1, 3]"}, listed, single,
                                  {**record, "evidence_pages": "[2, 3]"}])  # fmt: skip
    return root


def milebench(root: Path) -> Path:
    """Two data sets of a sample each."""
    for number, part in enumerate(("ActionSequence", "StateChange")):
        images = [f"{i}.png" for i in range(2)]
        for i, name in enumerate(images):
            picture(root / part / "images" / name, 10 * number + i)
        question, answer = asked(number)
        instance = {"context": "{image#1} then {table#2} " + question, "images_path": images}
        sample = {"sample_id": 3, "task_instruction_id": 0, "response": answer}
        instance["choice_list"] = [answer, asked(number + 1)[1], asked(number + 2)[1]]
        meta = {"dataset": part, "question_type": "multi-choice", "task_instructions": ["look at the pages."]}
        write(root / part / f"{part}.json", {"meta_data": meta, "data": [{**sample, "task_instance": instance}]})
    return root


def _clip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return clips.write(path, FRAMES, 4, size=SIZE)


def _choice(number: int) -> dict:
    options = [asked(number + i)[1] for i in range(4)]
    return {"question": asked(number)[0], "options": options, "answer": "A"}


def video_mme(root: Path) -> Path:
    """Two videos of a duration each, grouped as the official results are."""
    records = []
    for number, duration in enumerate(("short", "long")):
        _clip(root / f"videos/{number:03d}.mp4")
        questions = [{"question_id": f"{number:03d}-{i}", **_choice(number + i)} for i in (1, 2)]
        records.append({"video_id": f"{number:03d}", "duration": duration, "questions": questions})
    write(root / "video-mme.json", records)
    return root


def egoschema(root: Path) -> Path:
    """Two questions, of which one has a public answer."""
    records = []
    for name in ("aa", "bb", "cc"):
        options = {f"option {i}": asked(i)[1] for i in range(5)}
        records.append({"q_uid": name, "question": asked(3)[0], **options})
        if name != "bb":
            _clip(root / f"videos/{name}.mp4")
    write(root / "questions.json", records)
    write(root / "subset_answers.json", {"aa": 3, "cc": 0})
    return root


def streamingbench(root: Path) -> Path:
    """Two moments of a video."""
    _clip(root / "videos/sample.mp4")
    questions = [{"task_type": kind, "time_stamp": at, **_choice(i)} for i, (kind, at) in
                 enumerate([("Counting", "00:00:02"), ("Object Recognition", "0:04")])]  # fmt: skip
    write(root / "questions_real.json", [{"video_path": "./videos/sample.mp4", "questions": questions}])
    return root


def scbench(root: Path) -> Path:
    """Two texts with two turns each."""
    records = []
    for number in range(2):
        text = "\n".join(facts(i) for i in range(number, number + 12))
        turns = [{"input": f"{asked(i)[0]}", "answer": asked(i)[1]} for i in (number + 1, number + 5)]
        records.append({"id": number, "context": text, "multi_turns": turns})
    write_lines(root / "scbench_kv.jsonl", records)
    return root


def repoqa(root: Path) -> Path:
    """Two texts of one repository, with two functions and one, of which two have one name."""
    records = []
    for number, names in enumerate((("star", "moon"), ("star",))):
        code = [f"def {name}(page):\n    return page.{name}[{number}:] + [{number} * len(page)]" for name in names]
        turns = [{"input": f"{asked(i)[0]} ", "answer": each, "name": name}
                 for i, (each, name) in enumerate(zip(code, names, strict=True))]  # fmt: skip
        record = {"id": number, "context": "\n\n".join([facts(1, 2), *code, facts(3)]), "multi_turns": turns}
        records.append({**record, "lang": "python", "repo": "ours/pages"})
    write_lines(root / "scbench_repoqa.jsonl", records)
    return root


def musique(root: Path) -> Path:
    """A question of two hops and one of three, over four paragraphs each."""
    records = []
    for number in range(2):
        paragraphs = [{"idx": i, "title": f"page {NAMES[i]}", "paragraph_text": facts(4 * i, 4 * i + 1),
                       "is_supporting": i in (1, 2)} for i in range(4)]  # fmt: skip
        question, answer = asked(4 + number)
        steps = [{}] * (2 + number)
        records.append({"id": f"{2 + number}hop__{number}", "paragraphs": paragraphs, "question": question}
                       | {"question_decomposition": steps, "answer": answer, "answer_aliases": [f"a {answer}"],
                          "answerable": True})  # fmt: skip
    write_lines(root / "musique_ans_v1.0_dev.jsonl", records)
    return root


def screenspot(root: Path) -> Path:
    """Three commands on two screenshots."""
    records = []
    for number in range(3):
        name = f"pc_{number // 2}.png"
        picture(root / "screenspot_imgs" / name, number // 2)
        record = {"img_filename": name, "bbox": [10, 20, 30, 10], "instruction": "find the star", "data_source": "ours"}
        records.append({**record, "data_type": ("text", "icon")[number % 2]})
    write(root / "screenspot_desktop.json", records)
    return root


def agentnetbench(root: Path) -> Path:
    """A task of three steps."""
    click = {"type": "click", "params": {"position": {"x": 0.5, "y": 0.5}}, "metadata": {"bboxes": []}}
    done = {"type": "terminate", "params": {"status": "success"}}
    steps = []
    for number in range(3):
        picture(root / f"images/{number}.png", number)
        steps.append({"image": f"{number}.png", "ground_truth_actions": [click if number < 2 else done],
                      "alternative_options": [[{"type": "press", "params": {"keys": ["tab"]}}]]})  # fmt: skip
    write(root / "task.json", {"task_id": "t1", "high_level_task_description": "find the star", "steps": steps})
    return root


TASKS = {
    "mm-niah:part=retrieval-text+counting-image": mm_niah,
    "two-page-docqa": mp_docvqa,
    "two-page-docqa:of=mp-docvqa": mp_docvqa_npy,
    "two-page-docqa:of=mmlongbench,dpi=72": mmlongbench,
    "milebench-temporal": milebench,
    "video-mme:frames=8,segments=2": video_mme,
    "egoschema:frames=8,segments=2": egoschema,
    "streamingbench:frames=8,segments=2": streamingbench,
    "scbench:chunks=4": scbench,
    "scbench:chunks=4,mode=multi-turn": scbench,
    "scbench:chunks=2,part=repoqa": repoqa,
    "musique": musique,
    "screenspot": screenspot,
    "agentnetbench:before=1": agentnetbench,
}
"""By task, with the settings that keep it small, what writes its files."""
