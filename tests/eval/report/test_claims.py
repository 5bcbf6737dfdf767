"""Claims against evidence made by hand, the page of several models, and the command."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from eval.commands.main import main
from eval.report import claims_page
from eval.report.claims import GROUPS, UNMEASURED, Claim, Evidence, claims
from eval.tasks.comparison import SHARES
from eval.tasks.text.continuation import OTHER
from eval.tasks.text.moving import ORBIT, RECALLS

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs/results"


def method(eta, bytes_share=0.0, recomputed=0.0, flops=0.0, conditions=None, error=()):
    return {
        "eta": eta,
        "cost": {"bytes_share": bytes_share, "recomputed_share": recomputed, "flops_share": flops},
        "conditions": {name: {"1": cell} for name, cell in (conditions or {}).items()},
        "hops": {},
        "kv_error": list(error),
    }


def cell(kl, **more):
    return {"kl": kl, "samples": 4, **more}


def spread(energy_in):
    """Shares of energy in `SHARES`, rising straight to 1 at a share."""
    return [[0.0] * len(SHARES), [min(1.0, share / energy_in) for share in SHARES]]


def natural(**more):
    methods = {
        "full": method(1.0),
        "blind": method(0.0, error=[0.0, 0.1, 0.3, 0.4]),
        "patch:5%": method(0.85, 0.05),
        "patch:25%": method(0.95, 0.25),
        "patch:deep": method(0.78, 0.6),
        "patch:shallow": method(0.18, 0.4),
        "oracle-tokens:0.15": method(0.14),
        "oracle-tokens:0.5": method(0.53),
        "cacheblend:0.15": method(0.14, recomputed=0.15, flops=0.2),
        "epic:16": method(0.48, recomputed=0.06, flops=0.06),
        **more,
    }
    return {"methods": methods, "absorbed": {"components": spread(0.2), "tokens": spread(0.8)}}


def found(evidence):
    return {claim.statement.partition(":")[0]: claim for claim in claims(evidence)}


def test_natural_text_is_judged_by_the_bounds_of_the_page():
    own = found(Evidence("m", {"continuation": natural()}))
    assert own["the change grows with depth"].holds
    assert own["the change grows with depth"].measured.startswith("0.10 in the shallow half, 0.35 in the deep")
    assert own["it is low-rank over features"].measured == "50 % in 10%, 90 % in 18% of the components"
    assert own["it is diffuse over tokens"].holds
    assert own["the deep half of the layers explains the loss"].holds
    assert own["an oracle of tokens needs about half of them"].holds
    assert own["CacheBlend with ≤ 25 % of the tokens"].holds
    assert not own["EPIC with ≤ 25 % of the tokens"].holds  # 0.48 > half of 0.95
    assert own["MPIC with ≤ 25 % of the tokens"].holds is None
    assert "`patch:5%`" in own["a patch of ≤ 10% of the bytes recovers most"].measured
    assert own["all of these within 25 % of full prefill's FLOPs"].measured.startswith("η 0.48")


@pytest.mark.parametrize(
    ("changed", "statement"),
    [
        ({"blind": method(0.0, error=[0.0, 0.5, 0.3, 0.4])}, "the change grows with depth"),
        ({"patch:deep": method(0.6)}, "the deep half of the layers explains the loss"),
        ({"patch:shallow": method(0.5)}, "the deep half of the layers explains the loss"),
        ({"oracle-tokens:0.15": method(0.9)}, "an oracle of tokens needs about half of them"),
        ({"cacheblend:0.15": method(0.9, recomputed=0.15)}, "CacheBlend with ≤ 25 % of the tokens"),
        ({"patch:5%": method(0.7, 0.05)}, "a patch of ≤ 10% of the bytes recovers most"),
    ],
)
def test_what_does_not_hold_is_called_so(changed, statement):
    claim = found(Evidence("m", {"continuation": natural(**changed)}))[statement]
    assert claim.holds is False and claim.measured


def test_a_method_beyond_the_budget_does_not_stand_for_one_within():
    beyond = {"cacheblend:0.15": method(0.9, recomputed=0.4, flops=0.5)}
    own = found(Evidence("m", {"continuation": natural(**beyond)}))
    claim = own["CacheBlend with ≤ 25 % of the tokens"]
    assert claim.holds is None and claim.measured == "not comparable: it runs 40% of the tokens here"
    page = claims_page.page([{"model": "a", "claims": [vars(claim)], "sources": []}])
    assert "| not comparable |" in page and "- `a`: not comparable: it runs 40% of the tokens here\n" in page
    assert "cacheblend" not in own["all of these within 25 % of full prefill's FLOPs"].measured


def test_nothing_is_left_out_where_nothing_was_measured():
    full = claims(Evidence("m", {"continuation": natural()}))
    empty = claims(Evidence("m"))
    assert [claim.statement for claim in empty] == [claim.statement for claim in full]
    assert all(claim.holds is None and claim.measured == "not measured" for claim in empty)
    assert [claim.statement for claim in empty][-len(UNMEASURED) :] == [each[0] for each in UNMEASURED]
    assert sum(len(group(Evidence("m"))) for group in GROUPS) == len(empty)


def test_windows_of_text():
    def moved(conditions):
        names = {"full": 0.0, "blind": 0.1}
        return {
            "methods": {
                **{name: method(0.0, conditions={each: cell(kl) for each in conditions}) for name, kl in names.items()},
                "patch:10%": method(0.5, 0.1, conditions={each: cell(kl) for each, kl in conditions.items()}),
            }
        }

    runs = {
        "orders": moved({f"2 passages, {ORBIT}": 0.015, f"3 passages, {ORBIT}": 0.03}),
        "slide": moved({"step 0": 0.01, "steps 01 – 02": 0.03}),
        "recall": moved({RECALLS[0]: 0.05, RECALLS[1]: 0.01}),
    }
    own = found(Evidence("m", runs))
    orbit = own["one orbit patch a chunk serves all orders"]
    assert not orbit.holds and "0.85 (2 chunks" in orbit.measured and "0.70 (3 chunks" in orbit.measured
    assert own["survivors of a slide stay near re-prefill"].measured.startswith("KL 0.0200 to the present reference")
    assert own["a recalled chunk with a fresh patch"].measured.startswith("η 0.90")
    assert own["an old patch goes stale when the antecedents change"].holds


@pytest.mark.parametrize(("blind", "holds"), [(0.49, True), (0.48, False)])
def test_what_one_chunk_shows_is_read_from_the_tokens_that_need_no_other(blind, holds):
    names = {"full": 0.5, "blind": blind}
    run = {
        "methods": {name: method(0.0, conditions={OTHER: cell(0.0, accuracy=right)}) for name, right in names.items()}
    }
    claim = found(Evidence("m", {"needs-context": run}))["blind reuse keeps what one chunk alone shows"]
    assert claim.holds is holds and claim.measured.startswith(f"{blind:.3f} of 0.500")


def test_a_quotation_is_read_from_the_demo_where_it_was_not_run():
    rows = [
        {"name": "full", "so_far": [1.0, 0.8], "bytes_share": 0.0},
        {"name": "blind", "so_far": [0.5, 0.1], "bytes_share": 0.0},
        {"name": "patch:1", "so_far": [1.0, 0.7], "bytes_share": 0.01},
        {"name": "patch:64", "so_far": [1.0, 0.8], "bytes_share": 0.5},
    ]
    own = found(Evidence("m", demo={"kind": "text", "methods": rows, "change": {"values": [0.0, 0.2, 0.4, 0.6]}}))
    assert own["blind reuse loses what a chunk takes from another"].measured.startswith("0.300 of 0.900")
    assert own["a patch of ≤ 25% of the bytes gives it back"].measured == "0.850 of 0.900 (`patch:1`)"
    assert own["the change grows with depth"].measured.startswith("0.20 in the shallow half, 0.50 in the deep (values)")


def test_a_bar_in_a_claim_does_not_end_its_cell():
    claim = vars(Claim("as KV(B|∅)", "1", "2", True))
    page = claims_page.page([{"model": "a", "claims": [claim], "sources": []}])
    assert r"| 1. as KV(B\|∅) | holds |" in page and "**1. as KV(B|∅).**" in page


def test_the_page_is_what_was_measured():
    records = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/claims.md").read_text(encoding="utf-8") == claims_page.page(records)
    names = [record["model"] for record in records]
    assert {"kamera-tiny-gqa", "kamera-tiny-mla", "kamera-tiny-mha"} <= set(names)


def test_claims_of_the_embedded_models_follow_from_their_committed_runs(tmp_path, capsys):
    paths = [RESULTS / "eval-binding.json", *(RESULTS / f"demo-{name}.json" for name in ("gqa", "mla", "mha"))]
    files = ["--json", str(tmp_path / "claims.json"), "--page", str(tmp_path / "claims.md")]
    assert main(["eval", "claims", *map(str, paths), *files]) == 0
    written = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))
    committed = {each["model"]: each for each in json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))}
    assert written == [committed[each["model"]] for each in written] and len(written) == 3
    assert main(["eval", "claims", str(tmp_path / "claims.json"), "--page", str(tmp_path / "again.md")]) == 0
    assert (tmp_path / "again.md").read_text() == (tmp_path / "claims.md").read_text()
    assert "does not hold" in capsys.readouterr().out


def test_measurements_and_a_folder_for_new_ones_exclude_each_other(tmp_path, capsys):
    assert main(["eval", "claims"]) == 1
    assert "not both" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert main(["eval", "claims", str(tmp_path / "other.json")]) == 1
    assert "has neither runs of kamera eval" in capsys.readouterr().err
    assert main(["eval", "claims", str(tmp_path)]) == 1
    assert "has no runs of kamera eval in it" in capsys.readouterr().err


def test_a_claim_that_a_model_lacks_is_not_measured_on_it():
    records = [
        {"model": "a", "claims": [vars(Claim("x", "1", "2", True))], "sources": []},
        {"model": "b", "claims": [], "sources": []},
    ]
    page = claims_page.page(records)
    assert "| 1. x | holds | – |" in page
    assert "**1. x.** The paper: 1.\n\n- `a`: 2: holds\n- `b`: not measured\n" in page
    console = Console(width=80, record=True)
    claims_page.print_claims(records, console)
    assert "1 hold, 0 do not, 0 were not measured on a." in console.export_text()
