import pytest

from models import load
from models.hub.fields import MissingConfigFileError
from models.registry import UnknownModelError


@pytest.mark.parametrize("name", ["kamera-tiny-nothing", "a/b/c"])
def test_unknown_names_are_refused_without_a_network(name):
    with pytest.raises(
        UnknownModelError,
        match="expected one of kamera-tiny-gqa, kamera-tiny-mla, kamera-tiny-mha, kamera-smol-vl, smollm2-135m, "
        "smollm2, a folder in hub format, a GGUF file, or a hub id",
    ):
        load(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(MissingConfigFileError, match="has no config.json; expected a Hugging Face model folder"):
        load(tmp_path)


def test_an_architecture_that_is_not_served_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    with pytest.raises(
        UnknownModelError,
        match="a 'mamba' model; this version serves deepseek_vl, internvl, kamera_smol_vl, kimi_vl, llama, llava, "
        "mistral, qwen2, qwen2_5_vl, qwen3, smollm3",
    ):
        load(tmp_path)
