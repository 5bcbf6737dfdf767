"""Chat templates that do not come to an end, or make much of little; and others are as transformers has them."""

import time

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from models.hub.templates import SECONDS, TemplateBoundError, render

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]

HARMLESS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | string }}\n{% endfor %}",
    "{%- set n = namespace(s='', i=0) -%}{% for m in messages %}{% set n.i = n.i + 1 %}{% set n.s = n.s ~ m.role %}"
    "{% if loop.last %}{{ n.s ~ n.i ~ '%03d' % n.i }}{% endif %}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ 2 ** 10 }}{{ '=' * 20 }}{{ 3 * 2.5 }}{{ 7 % 3 }}{{ [1] * 3 }}",
    "{% macro f(x, y='z') %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f('a', y=none) }}"
    "{% if not undefined_name %}n{% endif %}",
    "{% for i in range(30) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    "{{ messages[0].content.replace('h', 'H') }}",
    "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}{{ bos_token }}{{ messages | length }}",
    "{{ messages[::-1] | map(attribute='role') | join(', ') }}{{ 'a b'.split(' ') | last | trim | upper }}",
    "{{ '{:>8}'.format('x') }}{{ '%5.1f' | format(2.25) }}{{ 'x' | indent(4, true) }}{{ 'x' | center(9) }}",
    "{% set x = {'a': [1, 2]} %}{{ x.a }}{{ x | items | list }}{{ dict(b=1) }}{{ none ~ true ~ 1.5 }}",
)


@pytest.mark.parametrize("template", HARMLESS)
def test_it_is_written_as_by_transformers(template):
    (wanted,), _ = render_jinja_template(
        [MESSAGES], chat_template=template, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(template, MESSAGES, {"bos_token": "<s>"}) == wanted


DOUBLED = "{% set n = namespace(s=START) %}{% for i in range(60) %}{% set n.s = STEP %}{% endfor %}"
HOSTILE = (
    "{% for i in range(10 ** 12) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | list | join }}{% endfor %}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a' | indent(10 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 999999999) }}",
    "{{ 'a\t'.expandtabs(10 ** 9) }}",
    "{{ ('a' * 10000).replace('', 'b' * 100000) }}",
    "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    DOUBLED.replace("START", "'ab'").replace("STEP", "n.s ~ n.s"),
    DOUBLED.replace("START", "'ab'").replace("STEP", "n.s + n.s"),
    DOUBLED.replace("START", "[1]").replace("STEP", "[n.s, n.s]") + "{{ n.s | string }}",
    DOUBLED.replace("START", "[1]").replace("STEP", "{'a': n.s, 'b': n.s}") + "{{ n.s | tojson }}",
    DOUBLED.replace("START", "[1]").replace("STEP", "[n.s, n.s]") + "{{ 'x' ~ n.s }}",
    "{% set a = [1] * 99999 %}{% set b = [a] * 99999 %}{{ b }}",
    "{{ lipsum(n=99999) }}",
    "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}",
    "{{ 1 / 0 }}",
    "{{ messages.nothing.more }}",
    "{% if " * 9,
    "x" * 300_000,
)


@pytest.mark.parametrize("template", HOSTILE, ids=lambda template: template[:50])
def test_it_ends_with_a_named_error(template):
    began = time.process_time()
    with pytest.raises((TemplateError, TemplateBoundError)):
        render(template, MESSAGES, {})
    assert time.process_time() - began < 5 * SECONDS
