"""Chat templates, which are programs of whoever made the model: rendered as transformers does, within bounds.

Jinja's sandbox keeps a template from the machine; that it comes to an end, and in what memory, is held here.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, TemplateError, TemplateRuntimeError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 1.0
"""A rendering computes no longer; what else the machine does is not counted."""

STEPS = 1_000_000
"""Lines of the template that a rendering runs, at most."""

TEXT = 10_000_000
"""Characters that a rendering may write, or make in one step."""

TEMPLATE = 2**18
"""Characters of a template, at most."""

NUMBER = 100_000
"""No number that a template gives to a method or a filter is larger: it is a width or a count."""

VALUES = 200_000
"""Values in a list or mapping of a template, those in the lists within it counted wherever they stand."""

_FILENAME = "<template>"
_WIDTH = re.compile(r"\d{6}|\*")
"""A width in a format string that is too large, or is given beside it."""


class ChatTemplateError(ValueError):
    """A chat template that cannot be split into preamble, chunks and tail."""


class TemplateBoundError(ChatTemplateError):
    """A chat template that does not come to an end, or takes too much memory."""


def template_of(tokenizer: Any) -> str:
    """A tokenizer's chat template; empty if it has none.

    Raises:
        ChatTemplateError: it is no text, or there are several and none is the default.
    """
    template = getattr(tokenizer, "chat_template", None) or ""
    if isinstance(template, Mapping):
        if "default" not in template:
            raise ChatTemplateError(
                f"the tokenizer has the chat templates {', '.join(map(str, template))}, and none is called 'default'; "
                "name one so"
            )
        template = template["default"]
    if not isinstance(template, str):
        raise ChatTemplateError(f"the chat template is a {type(template).__name__}; expected a text")
    return template


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """What a chat template writes of messages.

    Args:
        template: the template.
        messages: of the conversation.
        variables: of the template by name.

    Raises:
        TemplateBoundError: it is too long, takes too long, or too much memory.
        TemplateError: it is none, or refuses the messages.
    """
    if len(template) > TEMPLATE:
        raise TemplateBoundError(f"the chat template has {len(template)} characters; expected at most {TEMPLATE}")
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **variables, "messages": messages}
    try:
        compiled = _compiled(template)
        with _Bounds() as bounds:
            pieces = []
            for piece in compiled.generate(given):
                bounds.written += len(piece)
                pieces.append(piece)
            return "".join(pieces)
    except (TemplateError, TemplateBoundError):
        raise
    except Exception as error:  # whatever a program may raise
        raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


class _Bounds:
    """The context in which code of a template ends: by steps, seconds, and the size of what it has made."""

    def __init__(self) -> None:
        self.written = 0
        self._steps = 0

    def __enter__(self) -> "_Bounds":
        self._until = time.thread_time() + SECONDS
        self._before = sys.gettrace()
        sys.settrace(self._entered)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _entered(self, frame: Any, event: str, argument: Any) -> Any:
        if time.thread_time() > self._until:
            self._exceeded(f"{SECONDS:g} seconds")
        return self._step if frame.f_code.co_filename == _FILENAME else None

    def _step(self, frame: Any, event: str, argument: Any) -> Any:
        self._steps += 1
        if self._steps > STEPS:
            self._exceeded(f"{STEPS} steps")
        if self.written > TEXT:
            self._exceeded(f"{TEXT} characters")
        if time.thread_time() > self._until:
            self._exceeded(f"{SECONDS:g} seconds")
        for value in frame.f_locals.values():
            if isinstance(value, _SIZED) and _is_large(value):
                self._exceeded(f"{VALUES} values, or {TEXT} characters,")
        return self._step

    def _exceeded(self, what: str) -> None:
        sys.settrace(self._before)
        raise TemplateBoundError(
            f"the chat template takes more than {what} to write one conversation; use the model's own template"
        )


_SIZED = (str, list, tuple, dict, Namespace)


def _is_large(value: Any) -> bool:
    """Whether a value is long, or has very many values in it, as it would be written or compared."""
    budget = VALUES
    characters = TEXT
    waiting = [value]
    while waiting:
        each = waiting.pop()
        budget -= 1
        if isinstance(each, Namespace):
            each = getattr(each, "_Namespace__attrs", {})
        if isinstance(each, dict):
            each = [*each.keys(), *each.values()]
        if isinstance(each, list | tuple):
            budget -= len(each)
            if budget >= 0:
                waiting += each
        elif isinstance(each, str | bytes):
            characters -= len(each)
        if budget < 0 or characters < 0:
            return True
    return False


def _small(value: Any) -> Any:
    """The value, if it is not large."""
    if isinstance(value, _SIZED) and _is_large(value):
        raise SecurityError(f"a {type(value).__name__} is too large for a chat template")
    return value


class _Generator(CodeGenerator):
    """Code of templates in which texts are joined by `_Environment.joined`."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802  as jinja2 has it
        """Write the code of ``a ~ b``."""
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no single step makes much of little."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Do an operation of two values, if what comes of it is small."""
        if operator == "**" and not (_bits(left) * max(_bits(right), 1) < 64 and abs(right) < 1024):
            raise SecurityError(f"{_kind(left)} ** {_kind(right)} is too large for a chat template")
        if operator == "*" and _product(left, right) > _most(left, right):
            raise SecurityError(f"{_kind(left)} * {_kind(right)} is too large for a chat template")
        if operator == "+" and _size(left) + _size(right) > TEXT:
            raise SecurityError(f"{_kind(left)} + {_kind(right)} is too large for a chat template")
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise SecurityError("a format of such a width is too large for a chat template")
        return super().call_binop(context, operator, left, right)

    code_generator_class = _Generator

    def joined(self, values: Sequence[Any]) -> str:
        """Texts of values, one behind the other."""
        texts = [str(_small(value)) for value in values]
        if sum(map(len, texts)) > TEXT:
            raise SecurityError(f"a text of over {TEXT} characters is too large for a chat template")
        return "".join(texts)

    def wrap_str_format(self, value: Any) -> Any:
        """``format`` of a text that asks for no large width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDTH.search(value.__self__):
            raise SecurityError("a format of such a width is too large for a chat template")
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as jinja2 has it
        """Call a function or a method, if its arguments are small."""
        _check_arguments(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _check_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse widths and counts that are large, and texts of which much may be made."""
    values = (*args, *kwargs.values())
    if any(isinstance(value, int) and abs(value) > NUMBER for value in values):
        raise SecurityError(f"an argument above {NUMBER} is too large for a chat template")
    for value in values:
        _small(value)
    own = getattr(function, "__self__", None)
    texts = [_size(value) + 1 for value in (own, *values) if isinstance(value, str | list | tuple)]
    name = getattr(function, "__name__", "")
    if name in ("replace", "do_replace", "join", "do_join", "do_indent", "sync_do_join"):
        product = 1
        for size in sorted(texts)[-2:]:
            product *= size
        if product > 10 * TEXT:
            raise SecurityError(f"{name} of texts of such lengths is too large for a chat template")
    if any(isinstance(value, str) and _WIDTH.search(value) for value in (own, *values)) and "format" in name:
        raise SecurityError("a format of such a width is too large for a chat template")


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 10_000 if not isinstance(value, float) else 1


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _product(left: Any, right: Any) -> int:
    for sequence, count in ((left, right), (right, left)):
        if _size(sequence) and isinstance(count, int):
            return _size(sequence) * max(count, 0)
    return _bits(left) * _bits(right) if isinstance(left, int) and isinstance(right, int) else 0


def _most(left: Any, right: Any) -> int:
    return VALUES if isinstance(left, list | tuple) or isinstance(right, list | tuple) else TEXT


def _kind(value: Any) -> str:
    return f"{type(value).__name__} of {_size(value)}" if _size(value) else type(value).__name__


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are checked."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(function, args, kwargs)
        return function(*args, **kwargs)

    return checked


class _Generation(Extension):
    """``{% generation %}``, with which transformers marks what the assistant writes: what is in it is written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The statements in it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: Any) -> None:
    raise TemplateError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    """The template, in the environment that transformers gives it."""
    extensions = [_Generation, loopcontrols]
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_small)
    environment.filters["tojson"] = _to_json
    environment.filters = {name: _guarded(each) for name, each in environment.filters.items()}
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals.pop("lipsum", None)
    return environment.from_string(template)
