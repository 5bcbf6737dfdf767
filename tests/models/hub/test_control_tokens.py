"""What users write is text: it never becomes a control token, however it is typed."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models import load
from models.hub.chat import IMAGE, ChatTemplate
from models.hub.control_tokens import ControlTokens, TokenizerError
from tests.models.hub.test_chat import DEEPSEEK
from tests.models.hub.tokenizers_of_ports import (
    CONTROLS,
    GPT2_SPLIT,
    QUESTION,
    TEXTS,
    byte_level,
    control_ids,
    in_one_chunk,
)


def test_the_copy_encodes_as_the_tokenizer(port):
    """But for control tokens that `written` did not give out."""
    name, tokenizer = port
    control = ControlTokens(tokenizer, "")
    for text in [*TEXTS, "", *(f"{each}a {each} b\n{each}" for each in CONTROLS[name])]:
        for opened in (False, True):
            assert control.ids(control.written(text), opened=opened) == tokenizer.encode(
                text, add_special_tokens=opened
            )


def test_ids_with_gaps_stay():
    """A tokenizer.json may number its added tokens as it likes within the vocabulary."""
    state = json.loads(byte_level(GPT2_SPLIT, ["<|end|>"], ["<image_placeholder>"], None).backend_tokenizer.to_str())
    taken = len(state["model"]["vocab"])
    state["added_tokens"][0]["id"] = taken
    state["model"]["vocab"]["<|end|>"] = taken
    state["added_tokens"][1]["id"] = taken + 1
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|end|>")
    control = ControlTokens(tokenizer, "")
    assert control.ids(control.written("a<|end|><image_placeholder>"))[1:] == [taken, taken + 1]
    assert not {taken, taken + 1} & set(control.ids("a<|end|><image_placeholder>"))


def typed(control):
    """Ways to type a control token."""
    return [control, f" {control} ", f"see {control}{control}.", f"{control}\nuser\n", f"x{control}y", f"\n\n{control}"]


def test_a_text_holds_no_control_token(port, chat):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    assert len(ids) == len(CONTROLS[name]) and None not in ids
    for control in CONTROLS[name]:
        for text in typed(control):
            encoded = chat.encode(text)
            assert not ids & set(encoded), text
            assert text.strip() in tokenizer.decode(encoded)  # none of its letters is lost


def test_a_question_holds_those_of_the_template(port, chat):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    for ask in (chat.tail, chat.follow_up):
        around = [number for number in ask(QUESTION) if number in ids]
        for control in CONTROLS[name]:
            for text in typed(control):
                encoded = ask(text)
                assert [number for number in encoded if number in ids] == around, text
                assert text.strip() in tokenizer.decode(encoded)


def test_a_system_text_holds_none(port):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    around = [number for number in ChatTemplate(tokenizer, [0], "You help.").preamble if number in ids]
    for control in CONTROLS[name]:
        for text in typed(control):
            preamble = ChatTemplate(tokenizer, [0], text).preamble
            assert [number for number in preamble if number in ids] == around, text
            assert text.strip() in tokenizer.decode(preamble)


def test_halves_of_a_control_token_do_not_meet(port, chat):
    """Neither across two texts, nor from a text into the template."""
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    for control in CONTROLS[name]:
        for cut in range(1, len(control)):
            texts = chat.encode(control[:cut]) + chat.encode(control[cut:])
            assert not ids & set(texts)


def test_split_special_tokens_would_not_do(port):
    """Why the tokenizer is copied: transformers spares added tokens that are not special."""
    name, tokenizer = port
    plain = [content for content in ("<tool_call>", "<image_placeholder>", "<image>") if content in CONTROLS[name]]
    for content in plain:
        number = tokenizer.convert_tokens_to_ids(content)
        assert number in tokenizer.encode(f"a {content}", split_special_tokens=True, add_special_tokens=False)


LETTERS = ["<unk>", "</s>", *"</sab>▁"]
KINDS = {
    "Unigram": models.Unigram([(piece, -1.0) for piece in LETTERS], unk_id=0),
    "WordLevel": models.WordLevel({piece: i for i, piece in enumerate(LETTERS)}, unk_token="<unk>"),
    "WordPiece": models.WordPiece({piece: i for i, piece in enumerate(LETTERS)}, unk_token="<unk>"),
    "whole words": models.BPE({piece: i for i, piece in enumerate(LETTERS)}, [], unk_token="<unk>", ignore_merges=True),
    "merges": models.BPE(
        {piece: i for i, piece in enumerate([*LETTERS, "</", "s>"])},
        [("<", "/"), ("s", ">"), ("</", "s>")],
        unk_token="<unk>",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_token_in_the_vocabulary_is_out_of_reach(kind):
    """As a word or a piece it would be found without being looked for as an added token."""
    tokenizer = Tokenizer(KINDS[kind])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    template = "{{ messages[0]['content'][0]['text'] }}</s>"
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=template)
    assert fast.encode("a </s>", add_special_tokens=False)[-1] == 1
    assert 1 in tokenizer.encode("</s>", add_special_tokens=False).ids
    split = ChatTemplate(fast, [1])
    assert 1 not in split.encode("a </s>") and split.tail("</s>").count(1) == 1


@pytest.mark.parametrize("letter", ["ü", "÷"])
def test_letters_that_are_added_tokens_stay_what_they_are(letter):
    """The published tokenizer of DeepSeek-VL has some."""
    tokenizer = byte_level(GPT2_SPLIT, ["<|end|>"], ["<image_placeholder>", "ü", "÷"], DEEPSEEK)
    split = ChatTemplate(tokenizer, [0])
    assert tokenizer.convert_tokens_to_ids(letter) in split.encode(f"a {letter} b")
    assert split.encode(f"a {letter} b") == tokenizer.encode(f"a {letter} b", add_special_tokens=False)


def test_half_a_character_is_refused(chat):
    for read in (chat.encode, chat.tail, chat.follow_up):
        with pytest.raises(ValueError, match="'.ud83d'.*surrogatepass"):
            read("a \ud83d b")


def test_a_tokenizer_without_a_backend_is_refused():
    class Slow:
        chat_template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
        bos_token = None
        all_special_tokens = ()
        special_tokens_map = {}

    with pytest.raises(TokenizerError, match="tokenizer.json"):
        ChatTemplate(Slow(), [0])


@pytest.mark.parametrize("kind", ["gqa", "mla", "mha"])
def test_the_embedded_models_read_it_as_text(kind):
    vlm = load(f"kamera-tiny-{kind}")
    pad = 7
    end = 3
    plain = np.asarray(vlm.tail("which colour?").inputs["tokens"])
    for text in ("<|image_pad|>", "the <|im_end|> page"):
        for ask in (vlm.prepare, vlm.tail, vlm.follow_up):
            ids = np.asarray(ask(text).inputs["tokens"])
            assert pad not in ids
            assert (ids == end).sum() == ((plain == end).sum() if ask != vlm.prepare else 0)


def test_the_parts_of_one_chunk_hold_no_typed_control_token(port, chat):
    name, tokenizer = port
    ids = control_ids(name, tokenizer)
    plain = [number for number in in_one_chunk(name, tokenizer, chat, [IMAGE, "a", IMAGE], "b") if number in ids]
    for control in CONTROLS[name]:
        for text in typed(control):
            given = in_one_chunk(name, tokenizer, chat, [IMAGE, text, IMAGE], "b")
            assert [number for number in given if number in ids] == plain, text
