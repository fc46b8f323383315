"""Finding a direction: prepared prompts equal whole forwards, the difference, the choice, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ckcontrol.errors import ControlError, HeadsError
from ckcontrol.heads.choosing.panel import PanelPrompt, Result
from ckcontrol.heads.directions.apply import added
from ckcontrol.heads.directions.find import Prepared, _best, _layers, difference, find
from ckcontrol.models.tiny import tiny_model

from .known import known_model
from .test_directions import NEW, by_hand, direction

WORDS = (b"who", b"where is it", b"a longer question, of more tokens", b"x")


def prepared(model, tokenizer, new_tokens=NEW):
    prompts = [PanelPrompt("conflict asked", (257, *text, 32), ("b",), "e", frozenset(), None) for text in WORDS]
    return prompts, Prepared(model, tokenizer, prompts, batch_size=3, new_tokens=new_tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_answers_from_prepared_prompts_equal_whole_forwards(family, monkeypatch):
    """The naive twin runs every prompt alone, from its first token, with the vector added by hand."""
    model, tokenizer = tiny_model(family)
    monkeypatch.setattr("ckcontrol.heads.directions.find.eos_ids", lambda *_: set())
    prompts, ready = prepared(model, tokenizer)
    for found, factor in ((direction(model, 1), -6.0), (direction(model, 0, seed=2), 4.0), (None, 0.0)):
        with added(model, found, 0.0 if factor < 0 else 1.0):
            rows = {place: row for places, made in ready._steps(NEW) for place, row in zip(places, made, strict=True)}
            outcomes = ready.outcomes()
        for i, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.ids])
            wanted = by_hand(model, ids, found or direction(model), factor, prompt=ids.shape[1])[0][0, ids.shape[1] :]
            assert rows[i] == wanted.tolist()
            assert outcomes[i] == prompt.outcome_of_text(tokenizer.decode(wanted, skip_special_tokens=True))


def test_prepared_answers_end_at_the_end_token(monkeypatch):
    model, tokenizer = tiny_model("llama")
    monkeypatch.setattr("ckcontrol.heads.directions.find.eos_ids", lambda *_: set())
    _, free = prepared(model, tokenizer)
    rows = [row for _, made in free._steps(NEW) for row in made]
    monkeypatch.setattr("ckcontrol.heads.directions.find.eos_ids", lambda *_: {rows[0][3]})
    _, ending = prepared(model, tokenizer)
    cut = [row for _, made in ending._steps(NEW) for row in made]
    assert cut == [row[: row.index(rows[0][3])] if rows[0][3] in row else row for row in rows]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_the_streams_read_are_those_that_transformers_tells(family):
    model, tokenizer = tiny_model(family)
    prompts, ready = prepared(model, tokenizer)
    streams = ready.streams()
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            told = model(torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
        for layer in range(len(told) - 2):  # transformers puts the final norm into the last
            torch.testing.assert_close(streams[i, layer], told[layer + 1][0, -1], rtol=0, atol=1e-4)


def test_the_difference_is_of_the_means_of_what_was_followed():
    streams = torch.tensor([[[1.0, 0.0]], [[3.0, 2.0]], [[0.0, 8.0]], [[100.0, 100.0]]])
    assert difference(streams, ["memory", "memory", "context", "other"]).tolist() == [[2.0, -7.0]]


def measured(conflict, gold="mm"):
    names = {"m": "memory", "c": "context", "o": "other"}
    cells = {"conflict asked": conflict, "gold": gold, "irrelevant": "mm", "closed book": "mm"}
    return Result({name: tuple(names[x] for x in found) for name, found in cells.items()}, 10.0)


def test_what_was_not_measured_is_null_in_json():
    conflicts = Result({"conflict asked": ("memory", "other")})
    told = json.loads(json.dumps(conflicts.rounded(), allow_nan=False))
    assert told["RM"] == 0.5 and told["gold"] is None and told["perplexity"] is None


def test_the_choice_weighs_both_sides_and_what_breaks():
    here, there = ("passage", 3), ("followed", 3)
    base, asked = measured("mcco"), []

    def cost(place, strength):
        asked.append((place, strength))
        return 11.5 if strength == 1.0 and place == here else 10.9

    trials = [
        (here, -0.5, measured("mccc")),
        (here, 0.5, measured("mmco")),
        (here, 1.0, measured("mmmm")),  # perplexity beyond a tenth
        (here, -1.0, measured("cccc", gold="oo")),  # what it wins, true contexts lose
        (there, -0.5, measured("cccc")),
    ]
    assert _best(base, trials[:4], cost) == (here, 0.5, 0.5)
    assert asked == [
        (here, -0.5),
        (here, 1.0),
        (here, 0.5),
    ]  # the best of each side first, and what gains nothing never
    assert _best(base, [trials[0], trials[4]], cost) == (there, 0.5, 0.0)
    assert _best(base, [*trials[:2], trials[4], (there, 1.0, measured("mmmm"))], cost) == (there, 0.5, 1.0)
    assert _best(base, [(there, 0.5, measured("mmmm")), (there, 0.25, measured("mmmm"))], cost) == (there, 0.0, 0.25)
    with pytest.raises(HeadsError, match="no strength in any layer"):
        _best(base, [(here, 0.5, measured("mcco")), (here, -0.5, measured("mooo"))], cost)


def test_facts_that_give_no_difference_are_refused_with_counts():
    known = known_model()
    asked = [replace(fact, question=fact.cloze) for fact in known.facts]
    with pytest.raises(HeadsError, match=r"0 are used and 0 are known"):
        find(known.model, known.tokenizer, known.facts)  # none has a question
    with pytest.raises(HeadsError, match=r"9 to find, 0 to dev, 3 to test"):
        find(known.model, known.tokenizer, asked, known="any")
    with pytest.raises(HeadsError, match=r"tokens, and the model reads 64"):
        find(known.model, known.tokenizer, asked, known="any", new_tokens=60, seed=1)
    with pytest.raises(HeadsError, match="known='greedily'"):
        find(known.model, known.tokenizer, asked, known="greedily")
    for name in ("n", "new_tokens", "batch_size"):
        with pytest.raises(ControlError, match=name):
            find(known.model, known.tokenizer, asked, **{name: 0})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in known.model.modules())


@pytest.mark.parametrize(("fewest", "contrasts"), [(10**6, 1), (1, 2)])
def test_a_model_that_no_direction_helps_gets_none(monkeypatch, fewest, contrasts):
    known = known_model()
    monkeypatch.setattr("ckcontrol.heads.directions.find.FEWEST", fewest)
    asked = [replace(fact, question=fact.cloze) for fact in known.facts]
    stages = []
    with pytest.raises(HeadsError, match="no strength in any layer gained in total"):
        find(
            known.model,
            known.tokenizer,
            asked,
            known="any",
            new_tokens=1,
            seed=1,
            on_progress=lambda *s: stages.append(s),
        )
    tried = {total for stage, _, total in stages if stage == "trying layers"}
    layers = len(_layers(known.model.config.num_hidden_layers))
    assert tried == {2 * layers * contrasts}, (
        "where hardly any conflict follows one source, presence alone is contrasted"
    )
    assert stages[-1] == ("trying strengths", *[8 * min(2, layers) * contrasts] * 2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in known.model.modules())
