"""The README's measured parts, written by `make results` from what was measured."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.console import kibibytes, plot_demo
from eval.report.demo_text import markdown_text, plot_text


@dataclass(frozen=True)
class Port:
    """A port's row in the README, except for its parity errors.

    Attributes:
        title: the model.
        attention, rope, modalities: the port's kind of attention and RoPE, and the items it takes.
        checkpoints: the checkpoints on the hub that it is written for.
        embedded: the embedded model of this architecture, if there is one.
    """

    title: str
    attention: str
    rope: str
    modalities: str
    checkpoints: str
    embedded: str = ""


MODELS = {
    "qwen2_5_vl": Port(
        "Qwen2.5-VL",
        "GQA, qkv bias",
        "M-RoPE, contiguous sections; YaRN",
        "text, images, videos",
        "`Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct`",
        "`kamera-tiny-gqa`",
    ),
    "qwen3_vl": Port(
        "Qwen3-VL",
        "GQA, QK-norm; DeepStack",
        "M-RoPE, interleaved sections; YaRN",
        "text, images, videos",
        "`Qwen/Qwen3-VL-{2B,4B,8B,32B}-{Instruct,Thinking}`",
    ),
    "qwen3_vl_moe": Port(
        "Qwen3-VL, experts",
        "GQA, QK-norm; DeepStack; mixture of experts",
        "M-RoPE, interleaved sections; YaRN",
        "text, images, videos",
        "`Qwen/Qwen3-VL-{30B-A3B,235B-A22B}-{Instruct,Thinking}`",
    ),
    "qwen2_5_omni": Port(
        "Qwen2.5-Omni, the thinker",
        "GQA, qkv bias",
        "M-RoPE, contiguous sections; YaRN",
        "text, images, videos, sound",
        "`Qwen/Qwen2.5-Omni-{3B,7B}`",
    ),
    "qwen3_omni_moe": Port(
        "Qwen3-Omni, the thinker",
        "GQA, QK-norm; DeepStack; mixture of experts",
        "M-RoPE, interleaved sections; YaRN",
        "text, images, videos, sound",
        "`Qwen/Qwen3-Omni-30B-A3B-{Instruct,Thinking,Captioner}`",
    ),
    "kimi_vl": Port(
        "Kimi-VL",
        "MLA; mixture of experts",
        "1-D, interleaved pairs; YaRN",
        "text, images",
        "`moonshotai/Kimi-VL-A3B-{Instruct,Thinking,Thinking-2506}`",
        "`kamera-tiny-mla`",
    ),
    "deepseek_vl": Port(
        "DeepSeek-VL",
        "MHA (and GQA)",
        "1-D; linear, YaRN",
        "text, images",
        "`deepseek-community/deepseek-vl-1.3b-{base,chat}`",
        "`kamera-tiny-mha`",
    ),
    "llava": Port(
        "LLaVA-1.5",
        "MHA (and GQA)",
        "1-D; linear, YaRN",
        "text, images",
        "`llava-hf/llava-1.5-{7b,13b}-hf`",
    ),
    "llava_onevision": Port(
        "LLaVA-OneVision",
        "GQA, qkv bias: Qwen2",
        "1-D; YaRN",
        "text, images in tiles, videos",
        "`llava-hf/llava-onevision-qwen2-{0.5b,7b,72b}-{si,ov}-hf`, "
        "`llava-hf/llava-onevision-qwen2-{7b,72b}-ov-chat-hf`",
    ),
    "internvl": Port(
        "InternVL3, InternVL3.5",
        "GQA: Qwen2, Qwen3 (and Llama)",
        "1-D; dynamic NTK, YaRN",
        "text, images in tiles, videos",
        "`OpenGVLab/InternVL3-{1B,2B,8B,14B,38B,78B}-hf`, `OpenGVLab/InternVL3_5-{1B,2B,4B,8B,14B,38B}-HF`",
    ),
    "idefics3": Port(
        "Idefics3, SmolVLM",
        "MHA (and GQA)",
        "1-D; linear, YaRN",
        "text, images in tiles",
        "`HuggingFaceTB/SmolVLM{,-256M,-500M}-Instruct`, `HuggingFaceM4/Idefics3-8B-Llama3`",
    ),
    "smolvlm": Port(
        "SmolVLM2",
        "MHA (and GQA)",
        "1-D; linear, YaRN",
        "text, images in tiles, videos",
        "`HuggingFaceTB/SmolVLM2-{256M,500M}-Video-Instruct`, `HuggingFaceTB/SmolVLM2-2.2B-Instruct`",
    ),
    "llama": Port(
        "Llama",
        "GQA, MHA; biases",
        "1-D; Llama 3, linear, YaRN",
        "text",
        "`HuggingFaceTB/SmolLM2-{135M,360M,1.7B}-Instruct`, `meta-llama/Llama-3.{1,2}-*`",
    ),
    "mistral": Port(
        "Mistral",
        "GQA; up to its sliding window",
        "1-D",
        "text",
        "`mistralai/Mistral-7B-Instruct-v0.{1,2,3}`, `mistralai/Mistral-Nemo-Instruct-2407`",
    ),
    "qwen2": Port(
        "Qwen2, Qwen2.5",
        "GQA, qkv bias",
        "1-D; YaRN",
        "text",
        "`Qwen/Qwen2.5-{0.5B,1.5B,3B,7B,14B,32B,72B}-Instruct`",
    ),
    "qwen3": Port("Qwen3", "GQA, QK-norm", "1-D; YaRN", "text", "`Qwen/Qwen3-{0.6B,1.7B,4B,8B,14B,32B}`"),
    "smollm3": Port("SmolLM3", "GQA", "1-D, in three of four layers; YaRN", "text", "`HuggingFaceTB/SmolLM3-3B`"),
}
"""By ``model_type``."""


def markdown_models(parity: Mapping[str, Mapping[str, Any]]) -> str:
    """The ports as a Markdown table, with the worst parity errors of each."""
    lines = [
        "| model | attention | RoPE | modalities | error against Hugging Face: logits, KV | written for | embedded |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, port in MODELS.items():
        errors = f"{parity[kind]['logits']:.1e}, {parity[kind]['kv']:.1e}"
        cells = (port.title, port.attention, port.rope, port.modalities, errors, port.checkpoints, port.embedded)
        lines.append(f"| {' | '.join(cells)} |")
    configurations, prompts = (sum(each[name] for each in parity.values()) for name in ("configurations", "prompts"))
    lines += [
        "",
        "Errors: the largest difference over the largest value (KV: in each layer), f32, the worst of "
        f"{prompts} prompts of images and text on {configurations} random configurations in all; the tests "
        "require 1e-5. `make parity-results` measures them again.",
    ]
    return "\n".join(lines)


SHOWN = ("full", "blind", "patch", "patch:4")
"""The demo's methods that the README has room for; `kamera demo` and its JSON show all."""


def markdown_demo(results: Sequence[dict[str, Any]]) -> str:
    """The demo's results as Markdown tables, for the README, without times, which differ from machine to machine."""
    lines = [
        "| model | method | one hop | two hops | KL | η | bytes of patches, of the patched pages' KV |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        shown = [row for row in result["methods"] if row["name"] in SHOWN]
        for row in shown:
            share = f"{kibibytes(row['patch_bytes'])}, {row['patch_share']:.1%}" if row["patch_bytes"] else "–"
            figures = f"{row['one_hop']:.3f} | {row['two_hop']:.3f} | {row['kl']:.4f} | {row['eta']:.3f}"
            name = f"`{result['model']['name']}`" if row is shown[0] else ""
            lines.append(f"| {name} | {row['name']} | {figures} | {share} |")

    orders = [row for result in results for row in result["reorder"]]
    first = [row for row in orders if row["antecedents_first"]]
    last = [row for row in orders if not row["antecedents_first"]]
    slides = [result["slide"] for result in results]
    recalls = [result["recall"] for result in results]
    lines += [
        "",
        "| window operation, two hops, all three models | reuse | full prefill |",
        "|---|---|---|",
        f"| reorder, antecedents first | {_span(first, 'two_hop')} | {_span(first, 'two_hop_full')} |",
        f"| reorder, a dependant before its antecedents | {_span(last, 'two_hop')} | {_span(last, 'two_hop_full')} |",
        f"| slide: survivors | {_span(slides, 'survivors')} | history {_span(slides, 'history')}, present "
        f"{_span(slides, 'present')} |",
        f"| recall with its old patch | {_span(recalls, 'patch')} (blind: {_span(recalls, 'blind')}) | "
        f"{_span(recalls, 'full')} |",
    ]
    episodes = sorted({(result["episodes"], result["operation_episodes"]) for result in results})
    counts = "; ".join(f"{all_of} held-out episodes, {moved} for the window operations" for all_of, moved in episodes)
    lines += [
        "",
        f"{counts}; f32, jax {results[0]['versions']['jax']} on CPU; chance is 0.125. `make results` measures this "
        "again.",
    ]
    return "\n".join(lines)


def _span(rows: Sequence[Mapping[str, Any]], field: str) -> str:
    """The least and the greatest value of a field."""
    values = [row[field] for row in rows]
    return f"{min(values):.3f} – {max(values):.3f}"


def put(text: str, name: str, content: str, target: str = "results") -> str:
    """A page with ``content`` between the marks of that name.

    Args:
        text: the page.
        name: of the marks.
        content: what stands between them.
        target: of the Makefile, which the marks name.

    Raises:
        ValueError: the page does not have the marks.
    """
    opening = f"<!-- {name}: written by `make {target}` -->"
    closing = f"<!-- /{name} -->"
    before, start, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not (start and end):
        raise ValueError(f"the page has no place for {name}; expected the lines {opening} and {closing}")
    return f"{before}{start}\n{content}\n{end}{after}"


TEXT = "results-text"
"""The Makefile's target that measures the demo of a language model."""


def main() -> None:
    """``python -m eval.report.readme``: put the results into the README, and draw its figures."""
    parser = argparse.ArgumentParser(description="Put what was measured into the README.")
    parser.add_argument("--demos", type=Path, nargs="+", help="results of kamera demo on embedded models")
    parser.add_argument("--parity", type=Path, help="result of make parity-results")
    parser.add_argument("--text", type=Path, help="result of kamera demo on a language model, instead of the others")
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    options = parser.parse_args()
    if options.text is None and not (options.demos and options.parity):
        parser.error("give --demos and --parity, or --text")
    page = options.page.read_text(encoding="utf-8")
    if options.text is not None:
        result = json.loads(options.text.read_text(encoding="utf-8"))
        options.page.write_text(put(page, "text", markdown_text(result), TEXT), encoding="utf-8")
        plot_text(result, options.plot)
        return
    demos = [json.loads(path.read_text(encoding="utf-8")) for path in options.demos]
    parity = json.loads(options.parity.read_text(encoding="utf-8"))
    page = put(page, "demo", markdown_demo(demos))
    options.page.write_text(put(page, "models", markdown_models(parity)), encoding="utf-8")
    plot_demo(demos, options.plot)


if __name__ == "__main__":
    main()
