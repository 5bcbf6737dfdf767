"""Bytes of programs counted in HLO, against what was written by hand."""

import pytest

from eval.ahead import hlo

LOOP = """HloModule m

%body (p: (s32[], f32[8,16,128])) -> (s32[], f32[8,16,128]) {
  %p = (s32[], f32[8,16,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16,128]{2,1,0} get-tuple-element(%p), index=1
  %row = f32[1,16,128]{2,1,0} dynamic-slice(%x, %i), dynamic_slice_sizes={1,16,128}
  ROOT %t = (s32[], f32[8,16,128]{2,1,0}) tuple(%i, %x)
}

%condition (p: (s32[], f32[8,16,128])) -> pred[] {
  %p = (s32[], f32[8,16,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  BOUND
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (a: (s32[], f32[8,16,128])) -> (s32[], f32[8,16,128]) {
  %a = (s32[], f32[8,16,128]{2,1,0}) parameter(0)
  %first = (s32[], f32[8,16,128]{2,1,0}) while(%a), condition=%condition, body=%body
  ROOT %second = (s32[], f32[8,16,128]{2,1,0}) while(%first), condition=%condition, body=%body
}
"""
ROW = 2 * 16 * 128 * 4
"""A row is read and written."""
KNOWN = "%end = s32[] constant(5)"
DATA = "%end = s32[] get-tuple-element(%p), index=0"


def test_a_loop_counts_as_often_as_it_runs():
    # The comparison of the condition is not counted: it lies on the chip.
    assert hlo.hbm_bytes(LOOP.replace("BOUND", KNOWN)) == 2 * 5 * ROW


def test_loops_that_end_where_the_data_does_run_over_each_block_once_between_them():
    assert hlo.hbm_bytes(LOOP.replace("BOUND", DATA)) == 8 * ROW


def test_a_trip_count_that_xla_knows_is_taken():
    known = LOOP.replace("BOUND", DATA).replace(
        "body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}\n'
    )
    assert hlo.hbm_bytes(known) == 2 * 3 * ROW


def test_a_loop_of_which_nothing_is_known_is_named():
    blind = LOOP.replace("BOUND", DATA).replace("[1,16,128]", "[8,16,128]")
    with pytest.raises(hlo.UncountedError, match="first"):
        hlo.hbm_bytes(blind)


RETILED = """HloModule m

%tiles (input: s8[8,32,128]) -> s8[8,32,128] {
  %input = s8[8,32,128]{2,1,0:T(32,128)} parameter(0)
  ROOT %copy = s8[8,32,128]{2,1,0:T(8,128)} copy(%input)
}

%row (a: s8[8,32,128], i: s32[]) -> f32[1,32,128] {
  %a = s8[8,32,128]{2,1,0:T(32,128)} parameter(0)
  %i = s32[] parameter(1)
  %view = s8[8,32,128]{2,1,0:T(8,128)} fusion(%a), kind=kLoop, ALIASING, calls=%tiles
  %slice = s8[1,32,128]{2,1,0:T(8,128)} dynamic-slice(%view, %i, %i, %i), dynamic_slice_sizes={1,32,128}
  ROOT %convert = f32[1,32,128]{2,1,0} convert(%slice)
}

ENTRY %main (a: s8[8,32,128], i: s32[]) -> f32[1,32,128] {
  %a = s8[8,32,128]{2,1,0:T(32,128)} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  ROOT %fusion = f32[1,32,128]{2,1,0} fusion(%a, %i), kind=kLoop, calls=%row
}
"""


@pytest.mark.parametrize("text, rows", [("output_to_operand_aliasing={{}: (0, {})}", 1), ("metadata={}", 8)])
def test_a_slice_of_what_lies_in_other_tiles_is_counted_as_the_slice(text, rows):
    assert hlo.hbm_bytes(RETILED.replace("ALIASING", text)) == 32 * 128 * (4 + rows)


CALL = """HloModule m

ENTRY %main (a: f32[2,64,128], b: f32[2,16,128]) -> f32[2,64,128] {
  %a = f32[2,64,128]{2,1,0} parameter(0)
  %b = f32[2,16,128]{2,1,0} parameter(1)
  ROOT %c = f32[2,64,128]{2,1,0} custom-call(%a, %b), custom_call_target="x", output_to_operand_aliasing={{}: (0, {})}
}
"""


def test_what_a_kernel_writes_into_a_larger_cache_is_counted_as_its_rows():
    rows = 2 * 16 * 128 * 4
    assert hlo.hbm_bytes(CALL) == 2 * rows
    filled = CALL.replace("16,128", "64,128")
    assert hlo.hbm_bytes(filled) == 2 * 4 * rows
    assert hlo.hbm_bytes(CALL.replace(", output_to_operand_aliasing={{}: (0, {})}", "")) == (4 + 4 + 1) * rows


def test_a_gather_reads_its_rows():
    text = """HloModule m

ENTRY %main (a: f32[1000,128], i: s32[4]) -> f32[4,128] {
  %a = f32[1000,128]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  ROOT %g = f32[4,128]{1,0} gather(%a, %i), offset_dims={1}
}
"""
    assert hlo.hbm_bytes(text) == 2 * 4 * 128 * 4


STARTED = """HloModule m

%cut (x: f32[8,16,128], i: s32[]) -> f32[1,16,128] {
  %x = f32[8,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %row = f32[1,16,128]{2,1,0} dynamic-slice(%x, %i), dynamic_slice_sizes={1,16,128}
}

ENTRY %main (a: f32[8,16,128], at: s32[]) -> f32[1,16,128] {
  %a = f32[8,16,128]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %go = ((f32[8,16,128]{2,1,0}, s32[]), f32[1,16,128]{2,1,0}, u32[]) fusion-start(%a, %at), kind=kLoop, calls=%cut
  ROOT %end = f32[1,16,128]{2,1,0} fusion-done(%go)
}
"""


def test_a_fusion_that_others_run_beside_is_counted_once():
    assert hlo.hbm_bytes(STARTED) == ROW + 4  # and where it begins
