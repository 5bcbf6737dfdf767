"""The plug-in's classes, run as lmms-eval runs them: on the part of its interface that they use, and the real one."""

import importlib
import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eval.run.serving import Server
from models import load
from tests.models import tiny_ports

ROOT = Path(__file__).resolve().parents[3]

BASE = """
import abc


class CacheHook:
    def __init__(self, cachinglm=None):
        self.kept = []

    def add_partial(self, attr, req, res):
        self.kept.append((attr, req, res))


class lmms(abc.ABC):
    is_simple = True

    def __init__(self):
        self._rank = 0
        self._world_size = 1
        self.cache_hook = CacheHook(None)
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...
"""
"""What ``lmms_eval.api.model`` has that a model's class builds on: names and signatures of 0.7.3."""

INSTANCE = """
from dataclasses import dataclass


@dataclass
class GenerationResult:
    text: str
    token_counts: object = None
"""

REGISTRY = """
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple = ()
"""

QUESTIONS = ("what colour is the star?", "what colour is the moon?")
GIVEN = {"max_new_tokens": 4, "until": ["\n\n"], "do_sample": False}


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval" or name == "eval.lmms.plugin"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The module, imported where a stand-in of lmms-eval is found."""
    root = tmp_path_factory.mktemp("stand-in")
    written = {"api/model.py": BASE, "api/instance.py": INSTANCE, "models/registry_v2.py": REGISTRY}
    for path, content in written.items():
        (root / "lmms_eval" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "lmms_eval" / path).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        forget()
        yield importlib.import_module("eval.lmms.plugin")
    forget()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_ports.write(tmp_path_factory.mktemp("model"), "gqa")


@pytest.fixture(scope="module")
def pages():
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, (56, 84, 3), np.uint8)) for i in range(3)]


@pytest.fixture(scope="module")
def docs(pages):
    """Four documents: two questions about each of two pairs of pages."""
    return [{"pages": pages[i // 2 : i // 2 + 2], "question": QUESTIONS[i % 2]} for i in range(4)]


@pytest.fixture(scope="module")
def wanted(folder, docs):
    """The answers, asked without lmms-eval."""
    server = Server(load(folder), "patch:4")
    return [server.answers(doc["pages"], [doc["question"]], max_new_tokens=4)[0] for doc in docs]


def made(kind, docs, **given):
    model = kind(**given)
    model.task_dict = {"ours": {"test": docs}}
    return model


def visuals(doc):
    return doc["pages"]


def messages(doc, **_):
    parts = [{"type": "image", "url": page} for page in doc["pages"]]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]


def request(*args):
    return SimpleNamespace(args=args, arguments=args)


def simple(docs, given=None):
    return [request(doc["question"], dict(given or GIVEN), visuals, i, "ours", "test") for i, doc in enumerate(docs)]


def chat(docs):
    return [request("", messages, dict(GIVEN), i, "ours", "test") for i, _ in enumerate(docs)]


@pytest.fixture(scope="module")
def model(plugin, folder, docs):
    return made(plugin.Kamera, docs, pretrained=str(folder), method="patch:4", batch_size=2)


def test_requests_are_answered_in_order(plugin, folder, docs, model, wanted):
    assert model.generate_until(simple(docs)) == wanted
    assert [answer for _, _, answer in model.cache_hook.kept] == wanted
    assert model.generate_until(simple(docs)[::-1]) == wanted[::-1]
    talking = made(plugin.KameraChat, docs, pretrained=str(folder), method="patch:4")
    assert not talking.is_simple and talking.generate_until(chat(docs)) == wanted


def test_what_is_drawn_comes_of_the_seed(plugin, folder, docs):
    requests = simple(docs[:1] * 2, {"max_new_tokens": 6, "temperature": 1.0})
    one, same, other = (
        made(plugin.Kamera, docs, pretrained=str(folder), method="blind", seed=seed).generate_until(requests)
        for seed in (1, 1, 2)
    )
    assert one == same != other and one[0] != one[1]


def test_log_likelihoods_of_choices(model, docs, folder):
    colours = [" red", " blue"]
    about = [request(docs[0]["question"], colour, visuals, 0, "ours", "test") for colour in colours]
    about.append(request(docs[0]["question"], lambda doc: " red", visuals, 0, "ours", "test"))
    alone = request("", "red")  # of the mutual information's score: neither question nor visuals
    found = model.loglikelihood([*about, alone])
    server = Server(load(folder), "patch:4")
    pairs = server.log_likelihoods(docs[0]["pages"], docs[0]["question"], colours)
    assert found[:2] == [(-total, greedy) for total, greedy in pairs]  # losses: of choices the least is taken
    assert all(each.text == tuple(each) and each.token_counts is None for each in found)
    ((total, greedy),) = server.log_likelihoods([], "", ["red"])
    assert found[2] == pairs[0] and found[3] == (-total, greedy)


def test_rounds_are_asked_one_after_another(plugin, folder, docs, model, wanted):
    told = []

    def to_text(doc, previous_output, round_idx, previous_round_info):
        told.append((list(previous_output), round_idx, previous_round_info))
        if round_idx == 2:
            return None, None, True, [*previous_output, "end"], None
        return visuals(docs[3]), docs[3]["question"], False, previous_output, "known"

    asked = request(docs[0]["question"], dict(GIVEN), visuals, to_text, 0, "ours", "test")
    assert model.generate_until_multi_round([asked]) == [[wanted[0], wanted[3], "end"]]
    assert told == [([wanted[0]], 1, None), ([wanted[0], wanted[3]], 2, "known")]

    def rounds(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return messages(doc)
        return (None, True, previous_output, None) if round_idx == 2 else (messages(docs[3]), False, None, None)

    talking = made(plugin.KameraChat, docs, pretrained=str(folder), method="patch:4")
    asked = [request("", each, dict(GIVEN), 0, "ours", "test") for each in (rounds, messages)]
    assert talking.generate_until_multi_round(asked) == [[wanted[0], wanted[3]], [wanted[0]]]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"methods": "full"}, "--model_args has methods; the model kamera takes pretrained, method"),
        ({"method": "select:0.5"}, "waits for the question"),
        ({"method": "pach"}, "did you mean patch"),
        ({"batch_size": "auto"}, "expected a whole number"),
        ({"device": "cuda:0"}, "set JAX_PLATFORMS"),
    ],
)
def test_arguments_that_cannot_be_are_named(plugin, folder, given, match):
    with pytest.raises(ValueError, match=match):
        plugin.Kamera(pretrained=str(folder), **given)


def test_the_registry_is_told_of_both_classes(plugin):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["kamera"].partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    paths = manifest.simple_class_path, manifest.chat_class_path
    assert manifest.model_id == "kamera" and paths == tuple(f"eval.lmms.plugin.{c}" for c in ("Kamera", "KameraChat"))
    assert all(hasattr(plugin, path.rpartition(".")[2]) for path in paths)
    assert project["optional-dependencies"]["lmms"]


def test_without_lmms_eval_what_to_install_is_said(monkeypatch):
    forget()
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "kamera-jax\[lmms\]"'):
        importlib.import_module("eval.lmms.plugin")
    forget()


TASK = """
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pages
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, until: ["."]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 1}}]
"""


def test_lmms_eval_runs_a_task_of_ours(folder, pages, tmp_path, monkeypatch):
    """The real one, where it is installed: it finds the model by the entry point, and scores what it says."""
    forget()
    pytest.importorskip("lmms_eval.evaluator")
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    lines = []
    server = Server(load(folder), "patch:4")
    for i, question in enumerate(QUESTIONS):
        pages[i].save(tmp_path / f"{i}.png")
        answers = server.answers(pages[i : i + 1], [question], max_new_tokens=4, stop=["."])
        lines.append({"page": str(tmp_path / f"{i}.png"), "question": question, "answer": answers[0].strip()})
    lines[1]["answer"] = "something else"
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "ours.yaml").write_text(TASK.format(data=tmp_path / "test.jsonl"))
    (tmp_path / "utils.py").write_text("def pages(doc):\n    return [doc['page']]\n")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    given = {"model": "kamera", "model_args": f"pretrained={folder},method=patch:4", "tasks": ["ours"]}
    results = evaluator.simple_evaluate(**given, task_manager=manager)
    assert results["results"]["ours"]["exact_match,none"] == 0.5
    choices = TASK.replace("generate_until\n", 'multiple_choice\ndoc_to_choice: ["red", "blue"]\n')
    choices = choices.replace("generation_kwargs", "#").replace("exact_match", "acc")
    pairs = [server.log_likelihoods(pages[i : i + 1], QUESTIONS[i], [" red", " blue"]) for i in (0, 1)]
    right = [("red", "blue")[int(red[0] < blue[0])] for red, blue in pairs]
    lines = [{**line, "answer": answer} for line, answer in zip(lines, (right[0], "none"), strict=True)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "ours.yaml").write_text(choices.format(data=tmp_path / "test.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = evaluator.simple_evaluate(**given, task_manager=manager, force_simple=True)
    assert results["results"]["ours"]["acc,none"] == 0.5
