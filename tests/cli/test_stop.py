"""``--stop`` and ``--template-arg``: what reaches the model, and what of the answer is printed."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ckcontrol as ck
from ckcontrol.cli.main import main
from ckcontrol.cli.options import Answering
from ckcontrol.cli.stream import TextStream
from ckcontrol.models.tiny import tiny_model

RUN = ["run", "-q", "Who did it?", "--passage-text", "It was the postman.", "--model", "tiny", "--device", "cpu"]


def test_an_answer_is_printed_up_to_its_stop_text_streamed_or_not(llama: Any, capsys: Any) -> None:
    free = ck.generate(*llama, "Who did it?", ["It was the postman."], max_new_tokens=30).text
    stop = next(free[i : i + 2] for i in range(3, 28) if free[i : i + 2].isascii() and free[i : i + 2].isprintable())
    want = ck.generate(*llama, "Who did it?", ["It was the postman."], max_new_tokens=30, stop=stop)
    assert main([*RUN, "--max-new-tokens", "30", "--stop", stop, "--stop", "\\nQuestion:", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == want.text != free
    printed = []
    for more in ([], ["--stream"]):
        assert main([*RUN, "--max-new-tokens", "30", "--stop", stop, *more]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and stop not in printed[1]


def test_a_stream_holds_back_what_may_become_a_stop_text(byte: Any) -> None:
    out = io.StringIO()
    stream = TextStream(byte, out, stop=("\nQuestion:",))
    stream.put(torch.tensor([[1]]))
    seen = []
    for token in byte("Lyon.\nQuite.\nQuestion: Who?")["input_ids"]:
        stream.put(torch.tensor([token]))
        seen.append(out.getvalue())
    stream.end()
    assert out.getvalue() == "Lyon.\nQuite.\n" and not any("\nQue" in text for text in seen)
    assert "Lyon.\nQuit" in seen, "what cannot become one any more is printed at once"


@pytest.mark.parametrize("prompt", ["Who?", "Who?<think>\n"])
def test_a_stream_leaves_thoughts_out_unless_asked(byte: Any, prompt: str) -> None:
    whole = "Perhaps < Rome.\n\nNo: Lyon.\n</think>\n\nLyon.\nQuite.\nQuestion:"
    whole = whole if prompt.endswith("\n") else f"<think>\n{whole}"
    for asked, want in ((False, ""), (True, "Perhaps < Rome.\n\nNo: Lyon.\n\n")):
        out = io.StringIO()
        stream = TextStream(byte, out, stop=("\nQuestion:",), thinking=asked)
        stream.put(torch.tensor([byte(prompt, add_special_tokens=False)["input_ids"]]))
        for token in byte(whole, add_special_tokens=False)["input_ids"]:
            stream.put(torch.tensor([token]))
            assert (want + "Lyon.\nQuite.").startswith(out.getvalue())
        stream.end()
        assert out.getvalue() == want + "Lyon.\nQuite.\n"


def test_what_was_thought_is_printed_when_asked_for() -> None:
    answer = ck.generate(*tiny_model(), "Who?", max_new_tokens=1)
    for thought, want in ((None, "Lyon."), ("Rome?", "Rome?\n\nLyon.")):
        said = dataclasses.replace(answer, text="Lyon.", thinking=thought)
        assert Answering(thinking=True).said(said) == want and Answering().said(said) == "Lyon."


@pytest.fixture
def thinking(tmp_path: Path) -> str:
    """The folder of a model whose chat template has a variable."""
    from ckcontrol.models.tiny import tiny_model

    model, tokenizer = tiny_model()
    tokenizer.chat_template = "<|bos|>{{ messages[-1]['content'] }}{% if enable_thinking is false %}never{% endif %}"
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_variables_reach_the_chat_template(thinking: str, capsys: Any) -> None:
    lengths = []
    for more in ([], ["--template-arg", "enable_thinking=true"], ["--template-arg", "enable-thinking=false"]):
        assert main([*RUN, "--model", thinking, "--max-new-tokens", "2", "--json", *more]) == 0
        lengths.append(json.loads(capsys.readouterr().out)["context_tokens"])
    assert lengths[0] == lengths[1] == lengths[2] - len("never")
    assert main([*RUN, "--model", thinking, "--template-arg", "enable_thinkin=false"]) != 0
    assert "Did you mean 'enable_thinking'" in " ".join(capsys.readouterr().err.split())
    assert main([*RUN, "--model", thinking, "--template-arg", "enable_thinking"]) != 0
    assert "--template-arg enable_thinking=false" in " ".join(capsys.readouterr().err.split())


def test_a_system_message_reaches_the_prompt(thinking: str, capsys: Any) -> None:
    def told(*more: str, code: int = 0) -> dict[str, Any]:
        assert main([*RUN, "--model", "tiny", "--max-new-tokens", "2", "--json", *more]) == code
        out, err = capsys.readouterr()
        return json.loads(out) if not code else {"err": " ".join(err.split())}

    longer = told("--system", "Obey <|eot|>")["context_tokens"] - told()["context_tokens"]
    assert longer == len("system: Obey <|eot|>\n") + 1, "its text byte by byte, and the template's own end of turn"
    assert main([*RUN, "--model", thinking, "--system", "Obey."]) != 0
    assert "places the system message 0 times" in " ".join(capsys.readouterr().err.split())
    assert "--system is empty" in told("--system", " ", code=2)["err"]
