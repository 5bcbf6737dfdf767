"""From the names of a parameter's axes to where it lies on a mesh."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from eval.tiny.backbones import BACKBONES
from models.blocks.params import AXES, ParamInfo, is_info, linear, stacked, swiglu_declaration
from models.blocks.sharding import RULES, MeshError, param_shardings


def sharding(info, rules=None, mesh=None):
    """Of one parameter; the default mesh has the axes that the tests name, with one device."""
    return param_shardings({"w": info}, mesh or jax.make_mesh((1, 1), ("fsdp", "model")), rules)["w"]


def spec(info, rules=None, mesh=None):
    return sharding(info, rules, mesh).spec


def infos(declaration):
    return jax.tree_util.tree_leaves_with_path(declaration, is_leaf=is_info)


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_parameter_of_a_port_names_all_its_axes(kind):
    backbone = BACKBONES[kind]
    declared = infos(backbone.architecture.declaration(backbone.config))
    unnamed = [jax.tree_util.keystr(path) for path, info in declared if None in info.axes]
    assert not unnamed, "give ParamInfo or linear its axes"
    for path, info in declared:
        names = [str(key.key) for key in path]
        assert (info.axes[0] == "layers") == ("layers" in names or "moe_layers" in names or "blocks" in names)
        assert {*info.axes} <= AXES.keys()
        assert (info.heads is not None) >= bool({"heads", "kv_heads"} & {*info.axes}), "say between what it is split"


def test_axes_follow_the_layer_into_a_stack():
    layer = stacked(3, swiglu_declaration(8, 16, bias=True))
    assert layer["down"]["w"] == ParamInfo((3, 16, 8), axes=("layers", "mlp", "embed"))
    assert layer["down"]["b"].axes == ("layers", "embed") and layer["up"]["b"].axes == ("layers", "mlp")
    assert stacked(3, linear(4, 6))["w"].axes == ("layers", None, None)


@pytest.mark.parametrize("axes", [("embed",), ("embed", "mlp", "heads"), ("embed", "colour"), ("embed", "Mlp")])
def test_axes_that_are_none_are_refused(axes):
    with pytest.raises(ValueError, match=r"shape \[4, 6\] has the axes .*; expected one name for each axis, of layers"):
        ParamInfo((4, 6), axes=axes)


def test_the_rules_are_a_table():
    info = ParamInfo((3, 8, 16), axes=("layers", "embed", "mlp"))
    assert spec(info) == P(None, "fsdp", "model")
    assert spec(info, {"mlp": "fsdp"}) == P(None, None, "fsdp")
    assert spec(info, {"mlp": ("fsdp", "model")}) == P(None, None, ("fsdp", "model"))
    assert spec(info, {"layers": "model", "mlp": None}) == P("model", None, None)
    assert spec(info, {}) == P(None, None, None)
    assert spec(ParamInfo((8, 16))) == P(None, None)


def test_a_mesh_axis_splits_one_axis_of_a_parameter():
    """The first that asks for it."""
    info = ParamInfo((8, 16), axes=("embed", "mlp"))
    assert spec(info, {"embed": "model", "mlp": "model"}) == P("model", None)
    assert spec(info, {"embed": "model", "mlp": ("fsdp", "model")}) == P("model", None)


def test_mesh_axes_that_the_defaults_do_not_find_are_left_out():
    info = ParamInfo((4, 8, 16), axes=("experts", "embed", "mlp"))
    assert spec(info, mesh=jax.make_mesh((1,), ("devices",))) == P(None, None, None)
    assert spec(info, mesh=jax.make_mesh((1,), ("expert",))) == P("expert", None, None)
    assert {*RULES} <= AXES.keys()


def test_the_shardings_leave_the_division_to_the_compiler():
    """`jax.make_mesh` gives Explicit axes, for which a forward says no shardings."""
    assert sharding(ParamInfo((8, 16)), mesh=jax.make_mesh((1,), ("model",))).mesh.axis_types == (
        jax.sharding.AxisType.Auto,
    )


def test_rules_that_name_nothing_are_refused():
    info = ParamInfo((8, 16), axes=("embed", "mlp"))
    with pytest.raises(MeshError, match=r"logical axes \['head'\]; expected names among layers, embed"):
        spec(info, {"head": "model"})
    with pytest.raises(MeshError, match=r"mesh axes \['data', 'tensor'\]; the mesh has \['fsdp', 'model'\]"):
        spec(info, {"mlp": ("model", "tensor"), "heads": "data"})
