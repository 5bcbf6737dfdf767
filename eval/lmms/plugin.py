"""The classes that lmms-eval (0.7) runs: a model of this project that answers by a method, its chunks kept.

Each visual of a request is a chunk, and so is the text between visuals; what stands behind the last is the question.
Results are lmms-eval's own: it scores and writes them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import jax

from eval.lmms.requests import Visuals, asked_in_messages, asked_in_text, decoding
from eval.run.serving import Server
from models import load

try:
    from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"eval.lmms.plugin serves models to lmms-eval, and there is no module {error.name}; install it: "
        'pip install "kamera-jax[lmms]"',
        name=error.name,
    ) from error

Asked = tuple[list[Any], str]
"""The items of a context, and a question about it."""


class Likelihood(tuple, GenerationResult):
    """A pair, a log-probability or loss and whether it is the greedy answer, that reaches lmms-eval's scores as one.

    lmms-eval 0.7.3 writes out as text what is neither a text nor one of its results, and its own scores then fail.
    """

    def __init__(self, pair: tuple[float, bool]) -> None:
        """The pair is the tuple itself."""

    @property
    def text(self) -> tuple[float, bool]:
        """What lmms-eval takes for the response."""
        return tuple(self)


@dataclass(frozen=True)
class _Read:
    """A request, read: its context's items, preprocessed, its question, and how the answer is generated."""

    items: list[Any]
    question: str
    drawn: dict[str, Any]

    def alike(self) -> tuple[Any, ...]:
        """What requests share that may be generated together: the context, and how."""
        return tuple(item.content for item in self.items), tuple(self.drawn.items())


class Kamera(lmms):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """A model for tasks that give their text and visuals apart; see `eval.lmms.requests.asked_in_text`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "patch",
        dtype: str | None = None,
        weights: str | None = None,
        system: str | None = None,
        frames: int | None = None,
        fps: float | int | None = None,
        max_new_tokens: int = 1024,
        seed: int = 0,
        batch_size: int | str | None = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        """Load the model.

        Args:
            pretrained: what `models.load` takes: a folder in hub format, a GGUF file, an embedded model's name.
            method: how contexts are filled; see `eval.methods.parse`.
            dtype, weights, system: see `models.load`.
            frames, fps: of videos; see `eval.lmms.requests.Visuals`.
            max_new_tokens: of tasks that do not say it.
            seed: of what is drawn.
            batch_size: how many questions in a row about one context are generated together.
            device: none but JAX's own, which ``JAX_PLATFORMS`` chooses.
            max_batch_size: read by nothing.
            unknown: nothing.

        Raises:
            ValueError: an argument that is not known, or cannot be; see `models.load` and `eval.methods.parse`.
        """
        super().__init__()
        if unknown:
            known = "pretrained, method, dtype, weights, system, frames, fps, max_new_tokens, seed"
            raise ValueError(f"--model_args has {', '.join(unknown)}; the model kamera takes {known}")
        if device is not None:
            raise ValueError(f"--device is {device!r}; JAX chooses the device: set JAX_PLATFORMS=cpu, cuda or tpu")
        if not str(batch_size).isdigit() or int(str(batch_size)) < 1:
            raise ValueError(f"--batch_size is {batch_size!r}; expected a whole number of at least 1")
        self._together = int(str(batch_size))
        self._system = None if system is None else str(system)
        self._visuals = Visuals(frames, fps)
        self._longest = max_new_tokens
        self._key = jax.random.key(seed)
        self._calls = 0
        self._server = Server(load(str(pretrained), dtype=dtype, weights=weights, system=self._system), str(method))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each request, in order.

        Raises:
            ValueError: a visual cannot be read, a question is empty or too long, or the task asks for another decoding.
        """
        said: list[str] = []
        for _, alike in groupby(map(self._read, requests), _Read.alike):
            while together := list(islice(alike, self._together)):
                said += self._answers(together[0].items, [each.question for each in together], together[0].drawn)
        for request, answer in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until", (request.args[0], self._given(request)), answer)
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[Likelihood]:
        """Of each continuation the sum of its tokens' log-probabilities, and whether they are the greedy answer.

        Of a choice, which comes as a text, the sum is negated: among choices lmms-eval takes the least, as its own
        models return losses.
        """
        found = []
        for request in requests:
            text, target, *rest = request.args
            doc = self._doc(*rest[1:]) if rest else None
            items, question = asked_in_text(text, _listed(rest[0](doc)) if rest and rest[0] else [], self._visuals.item)
            answer = target(doc) if callable(target) else target
            ((total, greedy),) = self._server.log_likelihoods(items, question, [str(answer)])
            found.append(Likelihood((total if callable(target) else -total, greedy)))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers to each request's rounds; a round is asked by itself, as lmms-eval's own models have it."""
        found = []
        for request in requests:
            text, given, to_visual, to_text, *place = request.args
            doc = self._doc(*place)
            visuals = _listed(to_visual(doc))
            said: list[str] = []
            known = None
            while True:
                said.append(self._answer(asked_in_text(text, visuals, self._visuals.item), given))
                following = {"round_idx": len(said), "previous_output": list(said), "previous_round_info": known}
                visuals, text, done, outputs, known = to_text(doc, **following)
                said = list(outputs)
                if done:
                    break
                visuals = _listed(visuals)
            found.append(said)
        return found

    def _read(self, request: Any) -> "_Read":
        items, question = self._asked(request)
        return _Read(self._server.read(items), question, decoding(self._given(request), self._longest))

    def _given(self, request: Any) -> dict[str, Any]:
        """A request's generation_kwargs."""
        return request.args[1]

    def _asked(self, request: Any) -> Asked:
        text, _, to_visual, *place = request.args
        visuals = _listed(to_visual(self._doc(*place))) if to_visual else []
        return asked_in_text(text, visuals, self._visuals.item)

    def _doc(self, doc_id: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _answers(self, items: list[Any], questions: list[str], drawn: dict[str, Any]) -> list[str]:
        """Answers to questions about one context, drawn with randomness of their own."""
        self._calls += 1
        key = jax.random.fold_in(self._key, self._calls)
        return self._server.answers(items, questions, key=key, **drawn)

    def _answer(self, asked: Asked, given: dict[str, Any]) -> str:
        items, question = asked
        (said,) = self._answers(items, [question], decoding(given, self._longest))
        return said


class KameraChat(Kamera):
    """The same for tasks that give messages, in which texts and visuals stand in order."""

    is_simple = False

    def _given(self, request: Any) -> dict[str, Any]:
        return request.args[2]

    def _asked(self, request: Any) -> Asked:
        _, to_messages, _, *place = request.args
        return self._in_messages(to_messages(self._doc(*place)))

    def _in_messages(self, messages: Any) -> Asked:
        return asked_in_messages(messages, self._visuals.item, self._system)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers to each request's rounds; a round is asked by itself, as lmms-eval's own models have it."""
        found = []
        for request in requests:
            _, to_messages, given, *place = request.args
            doc = self._doc(*place)
            messages = to_messages(doc)
            said: list[str] = []
            known = None
            while True:
                said.append(self._answer(self._in_messages(messages), given))
                following = {"round_idx": len(said), "previous_output": list(said), "previous_round_info": known}
                messages, done, _, known = _round(to_messages, doc, following)
                if done:
                    break
            found.append(said)
        return found


def _round(to_messages: Callable[..., Any], doc: Any, following: dict[str, Any]) -> tuple[Any, bool, Any, Any]:
    """A further round; a task that gives no rounds has none."""
    given = to_messages(doc, **following)
    return given if isinstance(given, tuple) and len(given) == 4 else (None, True, None, None)


def _listed(visuals: Any) -> list[Any]:
    """A task's visuals, of which there may be none, or one that is in no list."""
    if visuals is None:
        return []
    return list(visuals) if isinstance(visuals, list | tuple) else [visuals]
