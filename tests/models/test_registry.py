import re
import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors

from models import load
from models.errors import GitLfsPointerError
from models.hub.fields import MissingConfigFileError
from models.hub.tokenizers import MissingTokenizerError
from models.registry import CHECKPOINTS, UnknownModelError


@pytest.mark.parametrize("name", ["kamera-tiny-nothing", "a/b/c"])
def test_unknown_names_are_refused_without_a_network(name):
    with pytest.raises(
        UnknownModelError,
        match="expected one of kamera-tiny-gqa, kamera-tiny-mla, kamera-tiny-mha, kamera-tiny-video, kamera-smol-vl, "
        "smollm2-135m, smollm2, a folder in hub format, a GGUF file, or a hub id",
    ):
        load(name)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(MissingConfigFileError, match="has no config.json; expected a Hugging Face model folder"):
        load(tmp_path)


def test_an_architecture_that_is_not_served_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}', encoding="utf-8")
    with pytest.raises(
        UnknownModelError,
        match="a 'mamba' model; this version serves deepseek_vl, idefics3, internvl, kamera_smol_vl, kimi_vl, llama, "
        "llava, llava_onevision, mistral, qwen2, qwen2_5_omni, qwen2_5_omni_thinker, qwen2_5_vl, qwen3, "
        "qwen3_omni_moe, qwen3_omni_moe_thinker, qwen3_vl, qwen3_vl_moe, smollm3, smolvlm",
    ):
        load(tmp_path)


@pytest.mark.parametrize("name", ["./models/foo", "/nope", "foo/bar/baz", "../foo", "~/foo", "a/b/", "C:\\models\\foo"])
def test_a_path_that_leads_nowhere_is_not_taken_for_a_hub_id(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(UnknownModelError, match=f"^there is no folder or file {re.escape(repr(name))}"):
        load(name)


def test_a_folder_that_is_not_there_is_named_before_what_the_hub_says(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refusing(OSError("no route")))
    with pytest.raises(
        UnknownModelError, match=f"^there is no folder or file 'models/foo' in {re.escape(str(tmp_path))}"
    ):
        load("models/foo")


def refusing(error):
    def download(*_, **__):
        raise error

    return download


def of_http(kind, text="401 Client Error.\nmore"):
    """An error of the hub's, whose constructors differ between versions."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


REFUSALS = {
    "gated": (of_http(hub_errors.GatedRepoError), "accepted its terms.*hf auth login"),
    "unknown": (of_http(hub_errors.RepositoryNotFoundError), "has no model owner/name, or it is private; check the id"),
    "other": (
        of_http(hub_errors.HfHubHTTPError, "503 Unavailable\nmore"),
        r"refused it \(503 Unavailable\); try again",
    ),
    "network": (hub_errors.LocalEntryNotFoundError("no snapshot"), "cannot be reached .*check the network"),
    "disk": (OSError(28, "No space left on device"), r"cannot be stored \(No space left on device\)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_hub_s_refusals_say_what_to_do(case, monkeypatch):
    error, message = REFUSALS[case]
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refusing(error))
    with pytest.raises(UnknownModelError, match=message):
        load("owner/name")


def test_a_hub_that_is_switched_off_is_named(monkeypatch):
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", refusing(hub_errors.LocalEntryNotFoundError("no snapshot"))
    )
    with pytest.raises(UnknownModelError, match="HF_HUB_OFFLINE is set, and the hub's cache does not have owner/name"):
        load("owner/name")


def test_a_name_that_is_nearly_one_is_suggested():
    with pytest.raises(UnknownModelError, match=r"no model 'kamera-tiny-gqaa' \(did you mean kamera-tiny-gqa\?\)"):
        load("kamera-tiny-gqaa")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(CHECKPOINTS / "kamera-tiny-gqa", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_in_place_of_a_file_is_named(folder, name):
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    with pytest.raises(GitLfsPointerError, match=rf"{name} is a Git-LFS pointer.*git lfs pull"):
        load(folder)


def test_a_pointer_of_git_lfs_in_place_of_an_index_or_a_gguf_file_is_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    for path in (folder / "model.safetensors.index.json", tmp_path / "m.gguf"):
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
        with pytest.raises(GitLfsPointerError, match=rf"{path.name} is a Git-LFS pointer.*git lfs pull"):
            load(folder if path.parent == folder else path)


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ((), "has no tokenizer: expected tokenizer.json"),
        (("vocab.json",), "has vocab.json, and neither merges.txt nor tokenizer.json"),
        (("merges.txt",), "has merges.txt, and neither vocab.json nor tokenizer.json"),
    ],
)
def test_missing_files_of_the_tokenizer_are_named(folder, there, message):
    (folder / "tokenizer.json").unlink()
    for name in there:
        (folder / name).write_text("{}", encoding="utf-8")
    with pytest.raises(MissingTokenizerError, match=message):
        load(folder)
