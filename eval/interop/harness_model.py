"""lm-evaluation-harness's model ``ckcontrol``: its own ``hf`` model, which steers where a document has passages.

A document is steered if it holds ``question``, ``passages``, ``prompt`` and ``template``, as those of
`export_harness` do: generation is `ckcontrol.generate`, log-likelihoods are those of the fused distribution. All
other requests go to the harness's ``hf`` model untouched. Knows the harness; imports it when asked.

From a shell: ``python -m ckcontrol.eval.interop run --model ckcontrol --model_args
pretrained=demo,method=ck-plug,alpha=0.25 --include_path FOLDER --tasks NAME``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from ckcontrol.control import DEFAULT_METHOD, Control
from ckcontrol.decoding.options import GenerateOptions
from ckcontrol.errors import EvalError, MissingExtra

if TYPE_CHECKING:
    from ckcontrol.decoding.prompts import PromptTemplate

__all__ = ["harness_model", "main"]

FIELDS = ("question", "passages", "prompt", "template")  # what makes a document steerable
AUTO_BATCH = 8  # for batch_size=auto, which the harness works out for its own requests only


@cache
def harness_model() -> type[Any]:
    """Return the model class, a subclass of the harness's ``HFLM``, registered there as ``ckcontrol``.

    Its arguments: ``pretrained`` (a name as in `ckcontrol.load`, or a loaded model with its ``tokenizer``);
    ``control``, or ``method``, ``alpha`` and further fields of `Control`; ``batch_size``, ``device``, ``dtype``;
    ``truncate`` as in `ckcontrol.generate`, but ``"passages"`` by default.

    Raises:
        MissingExtra: lm_eval is not installed.

    >>> model = harness_model()(pretrained="demo", alpha=0.25)  # doctest: +SKIP
    >>> lm_eval.simple_evaluate(model, tasks=["capitals"], task_manager=manager)  # doctest: +SKIP
    """
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm_eval", "harness")
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM

    made: type[Any] = register_model("ckcontrol")(type("CKModel", (_Steering, HFLM), {"__doc__": _Steering.__doc__}))
    return made


def main() -> None:
    """Run lm_eval's own command line with the model ``ckcontrol`` known to it.

    Raises:
        MissingExtra: lm_eval is not installed.
    """
    harness_model()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


class _Work(NamedTuple):
    """A steered request: what to ask, and the rest of its arguments."""

    question: str
    passages: list[str]
    template: PromptTemplate
    argument: Any  # generation options, or the continuation to score


class _Steering:
    """Steers the requests whose document allows it; everything else is the ``hf`` model that this is mixed into.

    The prompt that the harness logs must be the one that the model reads. So a steered request must carry the
    document's prompt, plain or as the one message of a chat: few-shot examples and system instructions are refused.
    ``--use_cache`` keys answers by prompt alone: give every control a file of its own.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        *,
        control: Control | None = None,
        method: str | None = None,
        alpha: float | None = None,
        truncate: str | None = "passages",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **params: Any,
    ) -> None:
        if control is not None and (method is not None or alpha is not None or params):
            given = [name for name, value in {"method": method, "alpha": alpha, **params}.items() if value is not None]
            raise EvalError(f"control and {', '.join(given)} are both given.", "Give one or the other.")
        self.control = control or Control(method or DEFAULT_METHOD, alpha, **params)
        from torch import cuda

        from ckcontrol.decoding.refusals import check_model, check_tokenizer

        from .common import loaded

        if str(device).startswith("cuda") and not cuda.is_available():
            device = None  # the harness asks for cuda:0 on every machine, and its own models then take what there is
        pretrained, tokenizer = loaded(pretrained, tokenizer, "pretrained", device=device, dtype=dtype)
        check_model(pretrained)
        check_tokenizer(pretrained, tokenizer)
        self.truncate = truncate
        rest = {} if max_batch_size is None else {"max_batch_size": max_batch_size}
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, batch_size=batch_size, **rest)  # type: ignore[call-arg]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer steered requests with `ckcontrol.generate`, the rest as ``hf`` does."""
        parent: Any = super()
        return self._split(requests, lambda rest: parent.generate_until(rest, disable_tqdm=disable_tqdm), self._answer)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score steered requests in the fused distribution, the rest as ``hf`` does."""
        parent: Any = super()
        return self._split(requests, lambda rest: parent.loglikelihood(rest, disable_tqdm=disable_tqdm), self._score)

    def get_model_info(self) -> dict[str, Any]:
        """Return what ``hf`` says about the model, and the control."""
        parent: Any = super()
        return {**parent.get_model_info(), "ckcontrol": self.control.to_dict()}

    def _split(
        self,
        requests: Sequence[Any],
        plain: Callable[[list[Any]], list[Any]],
        steered: Callable[[list[_Work]], list[Any]],
    ) -> list[Any]:
        """Have each request answered by `plain` or `steered`; the results are in the order of `requests`."""
        tools: Any = self
        works = [self._work(request) for request in requests]  # refusals come before the first forward
        rest = [i for i, work in enumerate(works) if work is None]
        results: list[Any] = [None] * len(requests)
        if rest:
            for i, result in zip(rest, plain([requests[i] for i in rest]), strict=True):
                results[i] = result
        mine = [(i, work) for i, work in enumerate(works) if work is not None]
        for (i, _), result in zip(mine, steered([work for _, work in mine]), strict=True):
            results[i] = result
            tools.cache_hook.add_partial(requests[i].request_type, requests[i].args, result)
        return results

    def _work(self, request: Any) -> _Work | None:
        """Return what a request asks for; None for one that is not steered."""
        doc = request.doc
        if not isinstance(doc, dict) or any(name not in doc for name in FIELDS):
            return None
        text, argument = request.args[:2]
        if not text:  # the unconditional half of acc_mutual_info: no prompt, so nothing to steer
            return None
        from ckcontrol.decoding.prompts import PromptTemplate

        from .common import as_message

        template = PromptTemplate(**json.loads(doc["template"]))
        tools: Any = self
        if text == doc["prompt"]:
            template = PromptTemplate(**{**json.loads(doc["template"]), "chat": False})
        elif tools.tokenizer.chat_template and text == tools.apply_chat_template(
            [{"role": "user", "content": doc["prompt"]}]
        ):
            template = as_message(template)
        else:
            raise EvalError(
                f"the harness put more around the prompt of document {doc.get('id')!r} than a chat template.",
                "Leave out --num_fewshot, --system_instruction and description, or use --model hf.",
            )
        return _Work(doc["question"], list(doc["passages"]), template, argument)

    def _answer(self, works: list[_Work]) -> list[str]:
        from ckcontrol.decoding.generate import generate

        tools: Any = self
        batches: dict[Any, list[int]] = {}
        for i, work in enumerate(works):
            batches.setdefault((work.template, json.dumps(work.argument, sort_keys=True)), []).append(i)
        answers = [""] * len(works)
        size = AUTO_BATCH if tools.batch_size == "auto" else int(tools.batch_size)
        for (template, _), members in batches.items():
            options, until = _options(works[members[0]].argument)
            for start in range(0, len(members), size):
                batch = members[start : start + size]
                made = generate(
                    tools.model,
                    tools.tokenizer,
                    [works[i].question for i in batch],
                    [works[i].passages for i in batch],
                    control=self.control,
                    template=template,
                    truncate=self.truncate,
                    options=options,
                )
                for i, answer in zip(batch, made, strict=True):
                    answers[i] = _cut(answer.text, until)
        return answers

    def _score(self, works: list[_Work]) -> list[tuple[float, bool]]:
        from .endings import compare, spoken

        tools: Any = self
        results: list[tuple[float, bool]] = []
        for _, alike in groupby(works, key=lambda work: work[:3]):  # the choices of one document
            first, *others = alike
            endings = [first.argument, *(work.argument for work in others)]
            asked = (tools.model, tools.tokenizer, first.question, first.passages, endings)
            options: Any = {"control": self.control, "template": first.template, "truncate": self.truncate}
            results += zip(compare(*asked, **options), spoken(*asked, **options), strict=True)
        return results


def _options(given: dict[str, Any]) -> tuple[GenerateOptions, list[str]]:
    """Return the harness's generation options as ours, and the stop strings."""
    from lm_eval.models.utils import normalize_gen_kwargs

    options = dict(normalize_gen_kwargs(given))
    until = [stop for stop in options.pop("until", []) if stop]
    options["max_new_tokens"] = options.pop("max_gen_toks")
    if not options.setdefault("do_sample", False):
        options.pop("temperature", None)  # the harness writes 0 there
    return GenerateOptions.from_kwargs({**options, "trace": False}), until


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in until if stop in text]
    return text[: min(ends)] if ends else text
