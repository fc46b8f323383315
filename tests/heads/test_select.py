"""Selection: which heads a choice names, who wins on the panel, and that scores are taken again after each head."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ckcontrol.errors import HeadsError
from ckcontrol.heads.choosing import select as module
from ckcontrol.heads.choosing.learn import Learned, candidates, learn
from ckcontrol.heads.choosing.panel import Panel, Result
from ckcontrol.heads.choosing.select import Candidate, consistent, greedy, mask_for, random_controls, select, top_k
from ckcontrol.heads.families import describe
from ckcontrol.heads.finding.find import find, score_batch
from ckcontrol.heads.finding.scores import HeadScores
from ckcontrol.heads.fingerprint import Fingerprint
from ckcontrol.heads.mask import HeadMask

from .known import AGAINST, CONTEXT, MEMORY, known_model
from .test_panel import made, record

MODEL = Fingerprint("llama", 2, 4, 8, 32, 320, "0" * 16)


def scores(memory, context, forms=("substitution",), model=MODEL) -> HeadScores:
    """Scores of one record whose importance is as given: {form: [L*H]}, or one list for all forms."""

    def column(values, form, sign):
        flat = values[form] if isinstance(values, dict) else values
        return {"memory_logit": [sign * v for v in flat], "context_logit": [0.0] * len(flat)}

    example = {
        "memory": {form: column(memory, form, -1) for form in forms},
        "context": {form: column(context, form, 1) for form in forms},
    }
    return HeadScores(model, {"formats": list(forms)}, (record("Gaul"),), (example,))


ON_MEMORY = [5.0, 4.0, 3.0, 0.0, -1.0, 2.0, 1.0, -2.0]  # heads 0.0, 0.1, 0.2, 1.1, 1.2
ON_CONTEXT = [0.0, 9.0, 0.0, 8.0, 7.0, -9.0, 0.0, 6.0]  # heads 0.1, 0.3, 1.0, 1.3


# --- classes ---


@pytest.mark.parametrize(
    ("choice", "heads"),
    [
        ("memory:2", [(0, 0), (0, 1)]),
        ("context:2", [(0, 1), (0, 3)]),
        ("only-memory:2", [(0, 0)]),
        ("only-context:2", [(0, 3)]),
        ("all:2", [(0, 0), (0, 1), (0, 3)]),
        ("Only Memory:2", [(0, 0)]),
        ("memory:0", []),
        ("memory:99", [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]),  # never a head that works against memory
    ],
)
def test_choices(choice, heads):
    mask = mask_for(scores(ON_MEMORY, ON_CONTEXT), choice)
    assert list(mask.heads) == heads and set(mask.factors.values()) <= {0.0}
    assert mask.model == MODEL


@pytest.mark.parametrize("bad", ["memory", "memory:", ":7", "memory:-1", "memory:7.5", "7:memory", "memory:1000000"])
def test_other_spellings_are_refused(bad):
    with pytest.raises(HeadsError, match="memory:7"):
        mask_for(scores(ON_MEMORY, ON_CONTEXT), bad)


def test_an_unknown_class_is_refused_with_a_proposal():
    with pytest.raises(HeadsError, match="Did you mean 'context'"):
        mask_for(scores(ON_MEMORY, ON_CONTEXT), "contexts:3")


def test_to_strengthen_a_source_is_to_prune_the_other():
    found = {c.name: list(c.mask.heads) for c in top_k(scores(ON_MEMORY, ON_CONTEXT), "context", grid=(1, 2))}
    assert found == {
        "memory:1": [(0, 0)],
        "only-memory:1": [(0, 0)],
        "all:1": [(0, 0), (0, 1)],
        "memory:2": [(0, 0), (0, 1)],
        "only-memory:2": [(0, 0)],
        "all:2": [(0, 0), (0, 1), (0, 3)],
    }
    assert [c.name for c in top_k(scores(ON_MEMORY, ON_CONTEXT), "memory", grid=(1,))][:2] == [
        "context:1",
        "only-context:1",
    ]
    with pytest.raises(HeadsError, match="direction"):
        top_k(scores(ON_MEMORY, ON_CONTEXT), "up")


def test_the_sign_filter_drops_heads_that_change_their_role():
    """Head 0.0 is the best in one format and works against memory in the other; 0.2 is good in both."""
    forms = {"substitution": [9.0, 2.0, 3.0, 0, 0, 0, 0, 0], "qa": [-0.1, 2.5, 3.0, 1.0, 0, 0, 0, 0]}
    both = scores(forms, ON_CONTEXT, forms=("substitution", "qa"))
    found = {c.name: list(c.mask.heads) for c in consistent(both, "context", grid=(1, 7))}
    assert found["consistent memory:1"] == [(0, 2)] and found["consistent memory:7"] == [(0, 1), (0, 2)]


# --- who wins ---


class Table:
    """A panel whose results are written down: mask -> result."""

    def __init__(self, base, results):
        self.results, self.base, self.asked = results, base, []

    def measure(self, mask):
        self.asked.append(mask)
        return self.base if mask is None else self.results[mask.heads]


def result(conflict, gold="mmmm", perplexity=10.0):
    return Result(made(conflict_a=conflict, gold=gold, irrelevant="mmmm", closed_book="mmmm").outcomes, perplexity)


def candidate(name, *heads):
    return Candidate(name, HeadMask(MODEL, dict.fromkeys(heads, 0.0)))


A, B, AB = candidate("a", (0, 0)), candidate("b", (0, 1)), candidate("ab", (0, 0), (0, 1))


def test_the_best_total_wins_in_its_direction():
    table = Table(result("mmcc"), {A.mask.heads: result("mccc"), B.mask.heads: result("mmmc")})
    assert select(table, "context", [A, B]).chosen is A
    assert select(table, "memory", [A, B]).chosen is B


def test_nothing_wins_when_nothing_helps():
    """Equal is not better, and what conflicts gain may be lost elsewhere."""
    table = Table(result("mmcc"), {A.mask.heads: result("mmcc"), B.mask.heads: result("cccc", gold="mooo")})
    found = select(table, "context", [A, B])
    assert found.chosen is None and found.to_dict()["chosen"] == "none"
    assert [row["name"] for row in found.to_dict()["candidates"]] == ["none", "a", "b"]


def test_on_a_tie_fewer_heads_win():
    table = Table(result("mmmm"), {AB.mask.heads: result("mmmc"), B.mask.heads: result("mmmc")})
    assert select(table, "context", [AB, B]).chosen is B


def test_a_mask_that_ruins_the_language_cannot_win():
    for perplexity, wins in ((10.99, True), (11.01, False)):
        table = Table(result("mmmm"), {A.mask.heads: result("cccc", perplexity=perplexity)})
        assert (select(table, "context", [A]).chosen is A) == wins


def test_equal_masks_are_measured_once_and_the_identity_never():
    table = Table(result("mmcc"), {A.mask.heads: result("mccc")})
    select(table, "context", [A, candidate("same as a", (0, 0)), candidate("identity")])
    assert len(table.asked) == 2


def test_the_budget_thins_evenly_and_keeps_both_ends():
    many = [candidate(str(i), (i // 4, i % 4)) for i in range(8)]
    table = Table(result("mmcc"), {c.mask.heads: result("mmcc") for c in many})
    found = select(table, "context", many, budget=3)
    assert [c.name for c, _ in found.trials] == ["0", "3", "7"] and len(table.asked) == 4


# --- controls ---


def test_controls_have_the_same_layers_and_other_heads():
    mask = HeadMask(MODEL, {(0, 0): 0.0, (1, 1): 0.0, (1, 2): 0.5})
    controls = random_controls(mask, draws=20)
    for control in controls:
        assert sorted(layer for layer, _ in control.heads) == [0, 1, 1]
        assert not set(control.heads) & set(mask.heads)
        assert sorted(control.factors.values()) == [0.0, 0.0, 0.5]
    assert controls == random_controls(mask, draws=20) != random_controls(mask, draws=20, seed=1)
    assert len(set(controls)) > 3


def test_controls_take_pruned_heads_only_when_others_run_out():
    mask = HeadMask(MODEL, dict.fromkeys([(0, 0), (0, 1), (0, 2)], 0.0))
    for control in random_controls(mask):
        assert len(control.heads) == 3 and (0, 3) in control.heads


# --- on the model whose heads are known -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    return known_model()


@pytest.fixture(scope="module")
def found(known, tmp_path_factory):
    return find(known.model, known.tokenizer, known.facts, tmp_path_factory.mktemp("scores") / "heads.json")


@pytest.fixture(scope="module")
def panel(known, found):
    return Panel(known.model, known.tokenizer, found.records, new_tokens=2, neutral=("the tree of Arle is ash .",))


def test_the_panel_knows_what_the_model_does(panel):
    """Memory is strong for half of the subjects; unrelated contexts name an answer too, and mislead the other half."""
    base = panel.measure()
    assert (base.rm, base.rc) == (0.5, 0.5)
    assert [base.rate(name, "memory") for name in ("gold", "closed book")] == [1.0, 1.0]


def test_pruning_the_context_head_wins_everything_and_is_chosen(panel, found):
    chosen = select(panel, "memory", top_k(found, "memory")).chosen
    assert chosen.mask.heads == (CONTEXT,) and chosen.name == "context:1"
    result = panel.measure(chosen.mask)
    assert result.rm == 1.0 and result.total("memory") > panel.measure().total("memory") + 0.2


def test_pruning_the_memory_head_wins_its_conflicts_and_loses_in_total(panel, found):
    """The context is followed always, but nothing is known closed book any more: k = 0 must win."""
    selection = select(panel, "context", top_k(found, "context"))
    first = dict((c.name, r) for c, r in selection.trials)["memory:1"]
    assert first.rc == 1.0 and first.rate("closed book", "memory") == 0.0
    assert selection.chosen is None


def test_random_heads_of_the_same_layer_do_not_do_it(panel, found):
    base = panel.measure()
    for control in random_controls(mask_for(found, "context:1")):
        assert AGAINST in control.heads or panel.measure(control).rm == base.rm


@pytest.mark.parametrize(("direction", "source"), [("context", "memory"), ("memory", "context")])
def test_the_first_greedy_head_is_the_best_of_all(known, found, direction, source):
    identity = HeadMask(found.model, {})
    plain = module._importance(known.model, known.tokenizer, found.records, source, "substitution", identity, 5)
    np.testing.assert_allclose(plain, found.importance(source), atol=1e-3)
    first = greedy(known.model, known.tokenizer, found, direction, steps=1, split=None)[0]
    assert list(first.mask.heads) == found.top(source, 1) == [MEMORY if source == "memory" else CONTEXT]


def test_later_greedy_heads_are_scored_in_the_pruned_model(known, found):
    """The oracle: a copy whose weights are zeroed by hand, scored from scratch."""
    told: list = []
    steps = greedy(
        known.model, known.tokenizer, found, "context", steps=3, split=None, on_progress=lambda *x: told.append(x)
    )
    assert [len(c.mask.heads) for c in steps] == [1, 2, 3][: len(steps)] and told[0] == (1, 3)
    heads: list = []
    for step in steps:
        (new,) = set(step.mask.heads) - set(heads)
        other = copy.deepcopy(known.model)
        layout = describe(other)
        with torch.no_grad():
            for layer, head in heads:
                layout.weight(layer)[:, layout.columns(head)] = 0
        rows = score_batch(other, known.tokenizer, layout, list(found.records), ["substitution"])
        again = HeadScores(found.model, found.settings, found.records, rows)
        assert [new] == again.top("memory", 1)
        heads = list(step.mask.heads)


def test_greedy_ends_when_no_head_helps(known, found):
    steps = greedy(known.model, known.tokenizer, found, "context", steps=6, split=None)
    assert len(steps) < 6  # the context's head always works against memory
    with pytest.raises(HeadsError, match="no known record"):
        greedy(known.model, known.tokenizer, found, "context", form="qa")


# --- learned ---


def test_the_learned_mask_drops_the_known_head_and_leaves_the_model_alone(known, found, panel):
    before = {name: value.clone() for name, value in known.model.state_dict().items()}
    told: list = []
    learned = learn(
        known.model,
        known.tokenizer,
        found.records,
        "memory",
        steps=60,
        guard=0.2,  # the unpruned model, to which it pulls, is wrong in half of the unrelated contexts
        on_progress=lambda *x: told.append(x),
    )
    assert min((p, (i, j)) for i, row in enumerate(learned.keep) for j, p in enumerate(row))[1] == CONTEXT
    assert candidates(learned, grid=(1,))[0].mask.heads == (CONTEXT,)
    assert select(panel, "memory", candidates(learned)).chosen.mask.heads == (CONTEXT,)
    losses = [conflict for conflict, _, _ in learned.losses]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) and told[-1] == (60, 60)
    assert all(torch.equal(before[name], value) for name, value in known.model.state_dict().items())
    assert all(p.grad is None for p in known.model.parameters())
    assert not any(p._forward_pre_hooks for p in describe(known.model).projections)


def test_learning_repeats_itself(known, found):
    one, two = (learn(known.model, known.tokenizer, found.records, "context", steps=5) for _ in range(2))
    assert one == two
    assert one != learn(known.model, known.tokenizer, found.records, "context", steps=5, seed=1)


def test_a_heavy_guard_keeps_the_memory_head(known, found):
    """Without the guard, context wins by dropping memory; that ruins unrelated contexts, which the guard sees."""
    free, held = (
        learn(known.model, known.tokenizer, found.records, "context", steps=60, guard=guard, reward=0.1)
        for guard in (0.0, 20.0)
    )
    assert free.keep[MEMORY[0]][MEMORY[1]] < 0.5 < held.keep[MEMORY[0]][MEMORY[1]]


def test_a_learned_mask_is_cut_at_one_half_and_at_each_k():
    learned = Learned(MODEL, "context", ((0.99, 0.2, 0.6, 0.97), (0.1, 0.9, 0.99, 0.3)), ())
    cut = {c.name: list(c.mask.heads) for c in candidates(learned, grid=(1, 2, 7))}
    assert cut == {
        "learned context:1": [(1, 0)],
        "learned context:2": [(0, 1), (1, 0)],
        "learned context:3": [(0, 1), (1, 0), (1, 3)],
    }


def test_learning_refuses_what_it_cannot_use(known, found):
    with pytest.raises(HeadsError, match="no records"):
        learn(known.model, known.tokenizer, [], "context")
    with pytest.raises(HeadsError, match="direction"):
        learn(known.model, known.tokenizer, found.records, "up")
