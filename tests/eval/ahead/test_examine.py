"""Three models compiled for TPUs without one, and FLOPs against two other counts."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks.ahead import joined
from eval.ahead.examine import examine
from eval.ahead.programs import Shapes, traced_flops
from eval.ahead.published import CONFIGURATIONS, UnknownConfigurationError, configuration
from eval.commands.main import main
from models.blocks import decoder
from models.blocks.params import is_info
from models.registry import ARCHITECTURES

PARAMETERS = {  # of the language model, billions, as published
    **{"qwen2.5-vl-3b": 3.09, "qwen2.5-vl-7b": 7.62, "qwen3-vl-4b": 4.02, "qwen3-vl-8b": 8.19, "llava-1.5-7b": 6.74},
    **{"qwen3-vl-30b-a3b": 30.53, "kimi-vl-a3b": 15.96, "deepseek-vl-7b": 6.91, "internvl3-8b": 7.61},
    "smollm2-135m": 0.135,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_published_model_has_its_published_size(name):
    mapping = configuration(name)
    architecture = ARCHITECTURES[mapping["model_type"]]
    declared = architecture.declaration(architecture.config_from_hf(mapping))["text"]
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(declared, is_leaf=is_info))
    assert size / 1e9 == pytest.approx(PARAMETERS[name], rel=0.005)


def shapes(name, **sizes):
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("model",))
    return Shapes.of(
        CONFIGURATIONS[name], mesh, **({"dtype": "bfloat16", "window": 64, "chunk": 32, "rank": 4} | sizes)
    )


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen3-vl-30b-a3b", "kimi-vl-a3b", "qwen2.5-vl-3b"])
def test_flops_are_those_of_the_model_and_of_the_traced_program(name):
    of = shapes(name)
    counted = of.flops(32, 64, logits=0)
    assert counted == pytest.approx(decoder.flops(of.config.text, 32, 64))
    if of.config.text.experts is None:  # of experts the traced program says nothing: which ones run is data
        program = of.prefill()
        traced = traced_flops(jax.make_jaxpr(program.function)(*program.arguments).jaxpr)
        assert program.flops == pytest.approx(traced, rel=1e-4)  # which counts the tables of M-RoPE too


def test_loops_over_arrays_count_as_often_as_they_run():
    def looped(x, w):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, w)[0]

    jaxpr = jax.make_jaxpr(looped)(jnp.ones((4, 8)), jnp.ones((5, 8, 8))).jaxpr
    assert traced_flops(jaxpr) == 5 * 2 * 4 * 8 * 8


def leading(folder, name, layers):
    """A folder with the configuration of the first layers of a model."""
    mapping = json.loads(json.dumps(CONFIGURATIONS[name]))
    (mapping if "num_hidden_layers" in mapping else mapping["text_config"])["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(mapping))
    return str(folder)


def programs(result):
    return {row["program"]: row for row in result["programs"]}


def test_a_model_on_one_tpu_by_the_command_line(tmp_path, capsys):
    model = leading(tmp_path, "smollm2-135m", 2)
    sizes = ["--window", "512", "--chunk", "128", "--rank", "8"]
    out = tmp_path / "result.json"
    assert main(["doctor", "--compile", model, "--mesh", "v5e-1", *sizes, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "roofline (expected from compiled FLOPs and bytes; not" in " ".join(shown.split()) and "of 16 GB" in shown
    found = programs(result)
    assert list(found) == ["prefill", "forming", "reuse", "decoding"]
    assert all(row["fits"] is True and f"{row['flops'] / 1e9:.1f}" in shown for row in found.values())
    # bf16 of 2 layers: keys and values of 3 heads of 64.
    assert result["kv"] == 2 * 2 * 3 * 64 * 512 * 2
    assert result["weights"] <= found["prefill"]["arguments"] - result["kv"] < 1.05 * result["weights"]
    assert found["reuse"]["aliased"] >= result["kv"]
    for row in found.values():
        assert row["hbm_bytes"] >= 0.9 * row["ideal_bytes"]
        by = max(row["flops"] / 197e12, row["hbm_bytes"] / 819e9)
        assert row["roofline_seconds"] == pytest.approx(by)
    assert found["forming"]["flops"] > 0.8 * found["prefill"]["flops"]


def test_a_model_on_eight_tpus_keeps_an_eighth_on_each(tmp_path):
    model = leading(tmp_path, "qwen3-vl-8b", 36)
    result = examine(model, "v5e-8", window=8192, chunk=512, programs=("reuse",))
    found = programs(result)
    assert result["devices"] == 8 and "8 KV heads split in 8" in result["layout"]
    assert result["kv"] == 36 * 2 * 128 * 8192 * 2
    assert found["reuse"]["hbm_bytes"] <= 1.1 * found["reuse"]["ideal_bytes"]
    whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes("qwen3-vl-8b").params)) * 2
    assert whole / 8 < result["weights"] < whole / 6  # norms and towers' leftovers lie on every device


def test_a_model_with_experts_and_latents(tmp_path):
    model = leading(tmp_path, "kimi-vl-a3b", 2)
    result = examine(model, "v5e-1", window=512, chunk=128, programs=("decoding",))
    (row,) = result["programs"]
    # Of 64 experts the six that a token reaches.
    assert row["fits"] is True and 0.9 * row["ideal_bytes"] < row["hbm_bytes"] <= 1.1 * row["ideal_bytes"]
    assert result["kv"] == 2 * (64 + 512) * 512 * 2


def test_what_is_too_large_does_not_fit(tmp_path):
    model = leading(tmp_path, "llava-1.5-7b", 32)
    (row,) = examine(model, "v5e-1", window=32768, chunk=128, programs=("reuse",))["programs"]
    assert row["fits"] is False


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--compile", "no-such-model"], "qwen2.5-vl-7b"),
        (["--compile", "smollm2-135m", "--mesh", "v5e-3"], "v5e-N for N in 1, 4, 8"),
        (["--compile", "smollm2-135m", "--dtype", "int7"], "int7"),
    ],
)
def test_what_cannot_be_is_named(arguments, named, capsys):
    assert main(["doctor", *arguments]) == 1
    message = capsys.readouterr().err
    assert named in message and "Traceback" not in message


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(UnknownConfigurationError, match="config.json"):
        configuration(str(tmp_path))


def test_programs_that_are_not_compiled_anew_keep_what_is_stored():
    def entry(flops, *programs):
        rows = [{"program": name, "flops": flops} for name in programs]
        return {"reprefill_over_reuse": flops, "ideal_reprefill_over_reuse": flops, "weights": flops, "programs": rows}

    stored = entry(1, "prefill", "reuse", "decoding")
    assert joined(None, stored) is stored
    found = joined(stored, entry(2, "decoding"))
    assert [row["flops"] for row in found["programs"]] == [1, 1, 2]
    assert (found["reprefill_over_reuse"], found["weights"]) == (1, 2)
    assert joined(stored, entry(2, "prefill", "reuse"))["reprefill_over_reuse"] == 2
