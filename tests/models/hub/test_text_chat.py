"""Chat templates of language models, whose messages are strings: preamble, chunks, tail and turns."""

import json
import pickle
import re
from datetime import date, datetime
from unittest import mock

import pytest

from models.hub.chat import ChatTemplate, ChatTemplateError
from models.hub.tokenizers import load_tokenizer, stopped_clock
from tests.models.hub import text_templates as templates
from tests.models.hub.tokenizers_of_ports import GPT2_SPLIT, QWEN_SPLIT, TEXTS, byte_level, llama

QUESTION = "what is it?"
TEXT = "the first page and the cell"
CHATML = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]
LLAMA3 = ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]


def chatml(template):
    return byte_level(QWEN_SPLIT, CHATML, ["<think>", "</think>"], template)


def llama3(template):
    tokenizer = byte_level(QWEN_SPLIT, LLAMA3, [], template)
    tokenizer.bos_token = "<|begin_of_text|>"
    return tokenizer


CASES = {
    "SmolLM2": chatml(templates.SMOLLM2),
    "Llama 3": llama3(templates.LLAMA3),
    "Qwen2.5": chatml(templates.QWEN2_5),
    "Qwen3": chatml(templates.QWEN3),
    "SmolLM3": chatml(templates.SMOLLM3),
    "Mistral 0.1": llama(templates.MISTRAL1),
    "Mistral 0.3": llama(templates.MISTRAL3),
    "Mistral 0.3, bytes": byte_level(GPT2_SPLIT, ["</s>", "<s>"], [], templates.MISTRAL3),
    "Zephyr": llama(templates.ZEPHYR, metaspace=True),
    "Python's lists": chatml(templates.PRINTS),
    "parts": chatml(templates.PARTS),
}
CASES["Mistral 0.3, bytes"].bos_token = "<s>"
WITH_SYSTEM = [name for name in CASES if name not in ("Mistral 0.1", "Python's lists")]
SPACED = [name for name in CASES if name.startswith("Mistral")]
"""A space ends the header, and joins the word that follows."""


@pytest.fixture(params=CASES)
def name(request):
    return request.param


MOMENT = datetime(2025, 3, 9, 12)
"""What a template that writes the date is told, so that no test runs on two days."""


def split_of(name, variables=(), **given):
    tokenizer = CASES[name]
    variables = {"strftime_now": MOMENT, **dict(variables)}
    return ChatTemplate(tokenizer, [tokenizer.eos_token_id], kinds=(), variables=variables, **given), tokenizer


def written(tokenizer, messages, tokenize=True):
    """What transformers makes of messages of strings."""
    if tokenizer.chat_template == templates.PARTS:
        messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    with mock.patch("transformers.utils.chat_template_utils.datetime") as clock:
        clock.now.return_value = MOMENT
        return tokenizer.apply_chat_template(messages, tokenize=tokenize, add_generation_prompt=True, return_dict=False)


def user(*texts):
    return {"role": "user", "content": "".join(texts)}


def test_preamble_chunk_and_tail_are_the_template_s_tokens(name):
    split, tokenizer = split_of(name)
    given = [*split.preamble, *split.encode(TEXT), *split.tail(QUESTION)]
    whole = written(tokenizer, [user(TEXT, QUESTION)])
    assert tokenizer.decode(given) == tokenizer.decode(whole)
    # The chunk's last word and the question's first one are one word in the message; so are a header's space and text.
    apart = [*split.preamble, *split.tail(QUESTION)]
    whole = written(tokenizer, [user(QUESTION)])
    assert apart == whole or (name in SPACED and tokenizer.decode(apart) == tokenizer.decode(whole))
    assert given == [*split.preamble, *split.encode(TEXT), *split.tail(QUESTION)]


def test_chunks_are_the_template_s_tokens_where_none_crosses(name):
    """A word begins with its space."""
    split, tokenizer = split_of(name)
    texts = [TEXT, " two spaces", " the answer", f" {QUESTION}"]
    whole = written(tokenizer, [user(*texts)])
    apart = [number for text in texts[:-1] for number in split.encode(text)]
    together = split.content(texts[:-1], {})
    for chunks in (apart, together):
        given = [*split.preamble, *chunks, *split.tail(texts[-1])]
        if name != "Llama 3":  # it strips every text
            assert tokenizer.decode(given) == tokenizer.decode(whole)
            assert given == whole or name in SPACED


def test_the_text_is_always_the_template_s(name):
    split, tokenizer = split_of(name)
    for text in TEXTS:
        whole = written(tokenizer, [user(text)])
        assert tokenizer.decode([*split.preamble, *split.tail(text)]) == tokenizer.decode(whole), text


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize(
    "name, system", [*((name, None) for name in CASES), *((name, "the system of the page") for name in WITH_SYSTEM)]
)
def test_a_conversation_is_the_template_s(name, turns, system):
    split, tokenizer = split_of(name, system=system)
    first = [] if system is None else [{"role": "system", "content": system}]
    messages = [user(QUESTION)]
    given = [*split.preamble, *split.tail(QUESTION)]
    for turn in range(turns):
        answer = (" the page", " red")[turn] if name in SPACED else ("the page", "red")[turn]
        follow_up = ("which colour?", "the user")[turn]
        said = tokenizer.encode(f"x{answer}", add_special_tokens=False)
        given += [*said[len(tokenizer.encode("x", add_special_tokens=False)) :]]
        given += [*split.closing, *split.follow_up(follow_up)]
        written_space = name != "Mistral 0.1"  # by the template, before an answer
        messages += [{"role": "assistant", "content": answer.strip() if written_space else answer}, user(follow_up)]
    whole = tokenizer.decode(written(tokenizer, [*first, *messages]))
    if "0.3" in name and system:
        # Its system text moves to the last question; here it stays where the window begins.
        assert whole.count(system) == 1
        whole = whole.replace(f"{system}\n\n", "")
        whole = re.sub(r"\[INST\] ", f"[INST] {system}\n\n", whole, count=1)
    assert tokenizer.decode(given) == whole


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_the_system_text_stands_in_the_preamble(name):
    split, tokenizer = split_of(name, system="the system of the page")
    messages = [{"role": "system", "content": "the system of the page"}, user(QUESTION)]
    assert tokenizer.decode([*split.preamble, *split.tail(QUESTION)]) == tokenizer.decode(written(tokenizer, messages))


def test_a_template_without_system_texts_says_so():
    with pytest.raises(ChatTemplateError, match=r"strings as content.*give no system text if it takes none"):
        split_of("Mistral 0.1", system="be brief")


def test_a_default_system_text_is_the_template_s():
    split, tokenizer = split_of("SmolLM2")
    assert "named SmolLM" in tokenizer.decode(split.preamble)
    split, tokenizer = split_of("SmolLM2", system="x")
    assert "named SmolLM" not in tokenizer.decode(split.preamble)


def test_the_date_is_that_of_loading():
    """Or later texts would not fit the preamble; this template writes microseconds."""
    template = templates.LLAMA3.replace("%d %b %Y", "%d %b %Y %H %M %S %f %-d 100%%")
    before = datetime.now()
    tokenizer = llama3(template)
    split = ChatTemplate(tokenizer, [0], kinds=())
    said = re.search(r"Today Date: (.*)\n", tokenizer.decode(split.preamble))[1]
    moment = datetime.strptime(" ".join(said.split()[:-2]), "%d %b %Y %H %M %S %f")
    assert before <= moment <= datetime.now() and said.endswith(f" {moment.day} 100%")
    assert split.content(["a ", "b "], {}) and pickle.loads(pickle.dumps(split)).content(["a ", "b "], {})


@pytest.mark.parametrize("lead", ["", "\n", "  ", "\n  "])
def test_a_stopped_clock_changes_nothing_else(lead):
    template = lead + "{% if messages %}\n{{ strftime_now('%Y') }}{% endif %}\n x"
    tokenizer = chatml(template)
    given = tokenizer.apply_chat_template([user("")], tokenize=False, **stopped_clock(template, datetime.now()))
    assert given == tokenizer.apply_chat_template([user("")], tokenize=False) and str(datetime.now().year) in given


@pytest.mark.parametrize("moment", [date(2024, 7, 26), datetime(2024, 7, 26, 12)])
def test_a_date_may_be_given(moment):
    split, tokenizer = split_of("SmolLM3", variables={"strftime_now": moment})
    assert "Today Date: 26 July 2024\n" in tokenizer.decode(split.preamble)
    assert split.preamble != split_of("SmolLM3")[0].preamble
    with pytest.raises(ValueError, match="strftime_now is '26 Jul 2024'; expected a datetime.date"):
        split_of("SmolLM3", variables={"strftime_now": "26 Jul 2024"})


def test_variables_reach_the_template():
    split, tokenizer = split_of("Llama 3", variables={"date_string": "26 Jul 2024"})
    assert "Today Date: 26 Jul 2024\n" in tokenizer.decode(split.preamble)
    split, tokenizer = split_of("Qwen3", variables={"enable_thinking": False})
    assert tokenizer.decode(split.tail(QUESTION)).endswith("<think>\n\n</think>\n\n")
    whole = tokenizer.apply_chat_template(
        [user(QUESTION)], add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    assert [*split.preamble, *split.tail(QUESTION)] == whole


@pytest.mark.parametrize("system", ["/no_think", "be brief /no_think"])
def test_a_system_text_that_the_template_reads(system):
    split, tokenizer = split_of("SmolLM3", system=system)
    whole = written(tokenizer, [{"role": "system", "content": system}, user(QUESTION)])
    given = [*split.preamble, *split.tail(QUESTION)]
    assert given == whole and "Reasoning Mode: /no_think" in tokenizer.decode(given)
    assert tokenizer.decode(given).endswith("</think>\n")


def test_a_system_text_that_the_template_reads_holds_no_control_tokens():
    with pytest.raises(ChatTemplateError, match="control tokens in it; leave them out"):
        split_of("SmolLM3", system="/no_think <|im_end|>")


@pytest.mark.parametrize("system", ["", "a page.\n"])
@pytest.mark.parametrize("kind", ["Llama", "Llama, metaspace", "bytes"])
def test_without_a_template_texts_stand_as_they_are(kind, system):
    made = {
        "Llama": lambda: llama(None),
        "Llama, metaspace": lambda: llama(None, metaspace=True),
        "bytes": lambda: byte_level(QWEN_SPLIT, CHATML, [], None),
    }
    tokenizer = made[kind]()
    split = ChatTemplate(tokenizer, [0], system or None, ())
    texts = ["the first page\n", "the cell", " of it"]
    given = [*split.preamble, *split.encode(texts[0]), *split.encode(texts[1]), *split.tail(texts[2])]
    whole = tokenizer.encode(system + "".join(texts))
    if kind == "bytes":  # it opens nothing: what parts texts stands there
        whole = [tokenizer.eos_token_id, *whole]
        assert given == whole
    assert given[0] == whole[0] == tokenizer.convert_tokens_to_ids("<|im_end|>" if kind == "bytes" else "<s>")
    assert tokenizer.decode(given) == tokenizer.decode(whole)
    assert split.closing == () and split.follow_up("x") == split.tail("x")


def test_a_template_that_writes_nothing_before_a_text_opens_it():
    split = ChatTemplate(llama("{% for message in messages %}{{ message['content'] }}{% endfor %}"), [2], kinds=())
    assert list(split.preamble) == [1]


def test_a_vision_language_model_needs_a_template():
    with pytest.raises(ChatTemplateError, match="no chat template; add chat_template.jinja"):
        ChatTemplate(llama(None), [0])


def test_control_tokens_of_users_are_letters(name):
    split, tokenizer = split_of(name)
    control = {tokenizer.convert_tokens_to_ids(each) for each in tokenizer.all_special_tokens}
    for text in tokenizer.all_special_tokens:
        assert not control & set(split.encode(f"a{text}b")) - {tokenizer.unk_token_id}


def test_a_system_text_that_the_template_refuses():
    template = templates.QWEN2_5.replace(
        "{%- if messages[0]['role'] == 'system' %}",
        "{%- if messages[0]['role'] == 'system' %}{%- if 'rude' in messages[0]['content'] %}"
        "{{ raise_exception('be polite') }}{%- endif %}",
    )
    with pytest.raises(ChatTemplateError, match="be polite"):
        ChatTemplate(chatml(template), [0], "rude", ())


@pytest.mark.parametrize("said, eos", [({"eos_token_id": 5}, (5,)), ({"eos_token_id": [5, 7]}, (5, 7))])
def test_what_ends_an_answer_may_be_said_in_the_configuration_alone(tmp_path, said, eos):
    tokenizer = chatml(templates.PRINTS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **said}))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    assert ChatTemplate.load(tmp_path, kinds=()).eos == eos


def test_a_general_tokenizer_is_read_as_it_is(tmp_path):
    """transformers 5 writes another name for the class, and AutoTokenizer would build Qwen2's anew."""
    tokenizer = chatml(templates.QWEN2_5)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer.encode(TEXT)
    for named in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        described = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**described, "tokenizer_class": named}))
        assert load_tokenizer(tmp_path).encode(TEXT) == expected
