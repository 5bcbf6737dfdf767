"""A chat template split into preamble, chunks and tail: together they are the template's own tokens."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from eval.tiny.vocabulary import build_tokenizer
from models.hub.chat import IMAGE, ChatTemplate, ChatTemplateError

QUESTION = "which colour is it ?"

LLAVA = """
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'][0]['text'] + ' ' }}
    {%- else %}
        {{- message['role'].upper() + ': ' }}
        {%- for item in message['content'] if item['type'] == 'image' %}
            {{- '<image>\n' }}
        {%- endfor %}
        {%- for item in message['content'] if item['type'] == 'text' %}
            {{- item['text'] + ' ' }}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""
KIMI = """
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_system|>system<|im_middle|>you read pages<|im_end|>' }}
    {%- endif %}
    {{- '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}
    {%- for item in message['content'] %}
        {%- if item['type'] == 'image' %}
            {{- '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' }}
        {%- else %}
            {{- item['text'] }}
        {%- endif %}
    {%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_assistant|>assistant<|im_middle|>' }}
{%- endif %}
"""
WORDS = "you read pages system user assistant image which colour is it the first page and last ? :".split()
MEDIA = [f"<|{name}|>" for name in ("media_start", "media_content", "media_pad", "media_end")]
TURNS = [f"<|im_{name}|>" for name in ("system", "user", "assistant", "middle", "end")]


def words_tokenizer(special, template):
    """A token a word, as the embedded models have it."""
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[UNK]", *special, *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.add_special_tokens(["[UNK]", *special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], chat_template=template)


def sentencepiece_tokenizer(special, template):
    """As Llama's: a space is a letter, and what begins a text, or follows a special token, has one before it."""
    letters = sorted({letter for word in WORDS for letter in word.upper() + word} | {"▁"})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = []
    pieces = dict.fromkeys(["<unk>", *special, *bytes_, *letters])
    for word in [*WORDS, "USER", "ASSISTANT"]:
        whole = f"▁{word}"
        # From the right, so that a word is a token with its space and without it.
        for cut in range(len(whole) - 2, -1, -1):
            pair = (whole[cut], whole[cut + 1 :])
            if pair not in merges:
                merges.append(pair)
            pieces[whole[cut:]] = None
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", *special])
    opened = [(special[1], tokenizer.token_to_id(special[1]))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{special[1]} $A", special_tokens=opened)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], bos_token=special[1], chat_template=template
    )


LLAMA = ["</s>", "<s>", "<image>"]
CASES = {
    "LLaVA": (words_tokenizer(LLAMA, LLAVA), "<image>"),
    "LLaVA, Llama's tokenizer": (sentencepiece_tokenizer(LLAMA, LLAVA), "<image>"),
    "LLaVA, Llama's tokenizer, opened by the template": (sentencepiece_tokenizer(LLAMA, "<s>" + LLAVA), "<image>"),
    "Kimi": (words_tokenizer([*TURNS[::-1], *MEDIA], KIMI), "<|media_pad|>"),
}


DEEPSEEK = """
{%- if messages[0]['role'] != 'system' %}
    {{- 'you read pages\n\n' }}
{%- endif %}
{%- for message in messages %}
    {{- (message['role'].capitalize() + ': ') if message['role'] != 'system' else '' }}
    {%- for item in message['content'] %}
        {{- '<image_placeholder>' if item['type'] == 'image' else item['text'] }}
    {%- endfor %}
    {{- '<|end|>' if message['role'] == 'assistant' else '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""


def bytes_tokenizer(special, template):
    """As GPT-2's and DeepSeek's: a word has its space before it, and nothing is set before what begins a text."""
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words = [f"{space}{word}" for word in [*WORDS, "User", "Assistant"] for space in ("Ġ", "") if len(word) > 1]
    merges = []
    for word in words:
        for cut in range(1, len(word)):
            if (word[:cut], word[cut]) not in merges:
                merges.append((word[:cut], word[cut]))
            pieces.append(word[: cut + 1])
    model = models.BPE({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], chat_template=template)


CASES["DeepSeek"] = (bytes_tokenizer(["<|end|>", "<image_placeholder>"], DEEPSEEK), "<image_placeholder>")


def in_full(tokenizer, messages):
    """What transformers' processors make of messages; they open a text once."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    opened = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return tokenizer.encode(text, add_special_tokens=not opened)


@pytest.fixture(params=CASES)
def chat(request):
    tokenizer, placeholder = CASES[request.param]
    return ChatTemplate(tokenizer, [tokenizer.eos_token_id]), tokenizer, tokenizer.convert_tokens_to_ids(placeholder)


@pytest.mark.parametrize("images", [1, 2])
def test_preamble_images_and_tail_are_the_template_s_tokens(chat, images):
    split, tokenizer, placeholder = chat
    content = [*[{"type": "image"}] * images, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    expected = in_full(tokenizer, messages)
    assert expected.count(placeholder) == images and tokenizer.convert_tokens_to_ids("[UNK]") not in expected
    assert tokenizer.bos_token is None or expected.count(tokenizer.bos_token_id) == 1
    image = split.content([IMAGE], {"image": placeholder})
    assert image.count(placeholder) == 1
    assert [*split.preamble, *image * images, *split.tail(QUESTION)] == expected


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_conversation_is_the_template_s_tokens(chat, turns):
    """Preamble, image, tail, answer and closing, follow-up: the answer as the tokens that a model would have chosen."""
    split, tokenizer, placeholder = chat
    answer = "the first page"
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    given = [*split.preamble, *split.content([IMAGE], {"image": placeholder}), *split.tail(QUESTION)]
    for turn in range(turns):
        follow_up = ("and the last ?", "which colour ?", "is it user ?")[turn]
        messages += [
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            {"role": "user", "content": [{"type": "text", "text": follow_up}]},
        ]
        said = tokenizer.tokenize(f"page {answer}")[-3:]  # as words stand after others
        given += [*tokenizer.convert_tokens_to_ids(said), *split.closing, *split.follow_up(follow_up)]
    expected = in_full(tokenizer, messages)
    assert tokenizer.decode(given) == tokenizer.decode(expected)
    assert given == expected


def test_a_template_of_one_turn_has_nothing_between_turns():
    template = LLAVA.replace("{{- item['text'] + ' ' }}", "{{- item['text'] + ' ' if message['role'] == 'user' }}")
    assert template != LLAVA
    split = ChatTemplate(words_tokenizer(LLAMA, template), [0])
    assert split.closing == () and split.follow_up(QUESTION) == split.tail(QUESTION)


def test_the_system_text_stands_in_the_preamble(chat):
    _, tokenizer, placeholder = chat
    split = ChatTemplate(tokenizer, [0], system="you read the first page")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "you read the first page"}]},
        {"role": "user", "content": content},
    ]
    expected = in_full(tokenizer, messages)
    assert [*split.preamble, *split.content([IMAGE], {"image": placeholder}), *split.tail(QUESTION)] == expected


def test_a_template_without_images_refuses_them():
    tokenizer = words_tokenizer(LLAMA, LLAVA.replace("<image>", ""))
    with pytest.raises(ChatTemplateError, match="use the template of a vision-language model"):
        ChatTemplate(tokenizer, [0]).content([IMAGE], {"image": tokenizer.convert_tokens_to_ids("<image>")})


def test_the_template_of_the_embedded_models(tmp_path):
    build_tokenizer(tmp_path)
    split = ChatTemplate.load(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": "the first page ."}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    expected = in_full(tokenizer, messages)
    image = split.content([IMAGE], {"image": tokenizer.convert_tokens_to_ids("<|image_pad|>")})
    assert [*split.preamble, *image, *split.encode("the first page ."), *split.tail(QUESTION)] == expected
