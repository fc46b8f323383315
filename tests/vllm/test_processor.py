"""The processor through both of vLLM's interfaces, loaded by vLLM's own loaders, against ckcontrol's own loop.

A fake model (logits are a fixed random table of position and stream) stands in for the engine; rows are moved, swapped,
removed, held and repeated as the runners do.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ckcontrol import Control, GenerateOptions
from ckcontrol.decoding.fused_step import fuse_scores
from ckcontrol.decoding.inputs import processors_for
from ckcontrol.decoding.loop import Draw
from ckcontrol.fusion.signals import Signals
from ckcontrol.policies import base
from ckcontrol.vllm.contract import pair_params as params
from ckcontrol.vllm.engine.traces import take_all

from . import stumbles

pytestmark = [pytest.mark.usefixtures("vllm_here"), pytest.mark.filterwarnings("ignore")]

V, STEPS, WHERE = 400, 14, "ckcontrol.vllm:PairLogitsProcessor"
CPU = torch.device("cpu")
CONTROLS = [
    Control("ck-plug", alpha=0.2),
    Control(method="cad", alpha=0.3),
    Control("ck-plug", alpha=0.8),
    Control(),
    Control(method="coiecd"),
]
OPTIONS = [
    GenerateOptions(),
    GenerateOptions(do_sample=True, seed=3, temperature=1.2),
    GenerateOptions(repetition_penalty=1.5),
    GenerateOptions(do_sample=True, seed=4, top_p=0.8, top_k=90, repetition_penalty=1.2),
    GenerateOptions(repetition_penalty=1.5, penalty_scope="generated"),
]


class Pair:
    """One pair: its logits at every position, its parameters for both rows, and its expected answer."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.logits = {role: torch.randn(STEPS, V, generator=g) * 4 for role in params.ROLES}
        self.control, self.options = CONTROLS[seed % len(CONTROLS)], OPTIONS[(seed // 2) % len(OPTIONS)]
        self.prompt = {
            role: torch.randint(0, V, (5 + seed + 7 * k,), generator=g).tolist() for k, role in enumerate(params.ROLES)
        }
        self.name = params.new_pair()
        self.output: dict[str, list[int]] = {role: [] for role in params.ROLES}
        self.want = self._answer()

    def sampling(self, role: str):
        args = params.extra_args(self.name, role, self.control, self.options, trace=True)
        return params.sampling_params(args, max_tokens=STEPS)

    def _answer(self) -> list[int]:
        o, policy, ids = self.options, self.control.policy(), []
        draw = Draw(o.do_sample, None if o.seed is None else [o.seed], torch.device("cpu"))
        for step in range(STEPS):
            ctx, par = (self.logits[role][step : step + 1].clone() for role in params.ROLES)
            signals = Signals(ctx, par, self.control.candidates, self.control.candidate_ratio)
            scores = ctx if policy.neutral else fuse_scores(policy, signals, policy.decide(signals))
            seen = ids if o.penalty_scope == "generated" else self.prompt["contextual"] + ids
            scores = processors_for(o, None)(torch.tensor([seen], dtype=torch.long), scores)
            ids.append(int(draw(scores, torch.zeros(1, dtype=torch.bool))))
        return ids


def check_rows(before: torch.Tensor, after: torch.Tensor, ordinary: list[int]) -> None:
    assert torch.equal(after[ordinary], before[ordinary]), "rows of others were touched"


def chosen(row: torch.Tensor) -> int:
    """The only maximum of a row, finite and far above the rest."""
    first, second = row.topk(2).values
    assert torch.isfinite(first) and first - second > 1e30, "vLLM might choose another token"
    return int(row.argmax())


# --- V1 -----------------------------------------------------------------------------------------------------------


class Batch:
    """vLLM's persistent batch, as far as processors see it: real `BatchUpdate`s of random moves."""

    def __init__(self, processor, seed: int) -> None:
        self.processor, self.random = processor, random.Random(seed)
        self.rows: list[tuple | None] = []

    def update(self, wanted: list[tuple]) -> None:
        """Make the batch hold `wanted` (key, params, prompt, output), by removals, additions and moves."""
        from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

        keys = {row[0] for row in wanted}
        removed = [i for i, row in enumerate(self.rows) if row is not None and row[0] not in keys]
        for i in removed:
            self.rows[i] = None
        held = {row[0] for row in self.rows if row is not None}
        added, moved = [], []
        free = [i for i, row in enumerate(self.rows) if row is None]
        for row in wanted:
            if row[0] not in held:
                i = free.pop(0) if free else len(self.rows)
                if i == len(self.rows):
                    self.rows.append(None)
                self.rows[i] = row
                added.append((i, row[1], row[2], row[3]))
        for i in sorted(free):  # fill the holes from the end, as the runner condenses
            while self.rows and self.rows[-1] is None:
                self.rows.pop()
            if i < len(self.rows) and self.rows[i] is None:
                moved.append((len(self.rows) - 1, i, MoveDirectionality.UNIDIRECTIONAL))
                self.rows[i] = self.rows.pop()
        while self.rows and self.rows[-1] is None:
            self.rows.pop()
        if len(self.rows) > 1 and self.random.random() < 0.5:
            a, b = self.random.sample(range(len(self.rows)), 2)
            moved.append((a, b, MoveDirectionality.SWAP))
            self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
        update = BatchUpdate(len(self.rows), removed, added, moved) if removed or added or moved else None
        self.processor.update_state(update)


def v1_processor(device: torch.device = CPU):
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns

    (cls,) = _load_logitsprocs_by_fqcns([WHERE])
    return cls(None, device, False)


@pytest.mark.parametrize("seed", range(6))
def test_v1_pairs_answer_as_the_loop_does_whatever_happens_to_the_batch(seed: int, anywhere: None) -> None:
    r, processor = random.Random(seed), v1_processor()
    assert not processor.is_argmax_invariant() and not processor.v2
    batch, pairs = Batch(processor, seed), [Pair(i + seed) for i in range(6)]
    others = [(("other", i), SimpleNamespace(extra_args=None), [1, 2], []) for i in range(3)]
    while any(len(p.output["contextual"]) < STEPS for p in pairs):
        wanted = [row for row in others if r.random() < 0.7]
        real = []
        for p in pairs:
            if len(p.output["contextual"]) == STEPS or r.random() < 0.25:
                continue
            kind = r.choice(["real", "real", "real", "chunk", "lone"])
            roles = list(params.ROLES) if kind != "lone" else [r.choice(params.ROLES)]
            real += [p] if kind == "real" else []
            wanted += [((p.name, role), p.sampling(role), p.prompt[role], p.output[role]) for role in roles]
        r.shuffle(wanted)
        batch.update(wanted)
        logits = torch.randn(len(batch.rows), V)
        for i, row in enumerate(batch.rows):
            pair = next((p for p in pairs if p.name == row[0][0]), None)
            if pair in real:
                logits[i] = pair.logits[row[0][1]][len(pair.output["contextual"])]
        after = processor.apply(logits.clone())
        check_rows(logits, after, [i for i, row in enumerate(batch.rows) if row[0][0] == "other"])
        for i, row in enumerate(batch.rows):
            pair = next((p for p in pairs if p.name == row[0][0]), None)
            if pair in real:
                pair.output[row[0][1]].append(chosen(after[i]))
    for p in pairs:
        assert p.output["contextual"] == p.output["parametric"] == p.want
    found = take_all([p.name for p in pairs])
    assert all(len(found[p.name]["rows"]) == STEPS and found[p.name]["broken"] == "" for p in pairs)


def test_v1_forgotten_states_are_rebuilt_from_the_output(anywhere: None) -> None:
    processor, pair = v1_processor(), Pair(6)  # sampled with a penalty, or a penalty alone
    for step in range(STEPS):
        processor._states.clear()
        rows = [(i, pair.sampling(role), pair.prompt[role], pair.output[role]) for i, role in enumerate(params.ROLES)]
        processor.update_state(SimpleNamespace(removed=[], added=rows, moved=[]))
        after = processor.apply(torch.stack([pair.logits[role][step] for role in params.ROLES]))
        for role in params.ROLES:
            pair.output[role].append(int(after[0].argmax()))
    assert pair.output["contextual"] == pair.want


def test_broken_numbers_end_the_pair_and_are_reported() -> None:
    processor, pair = v1_processor(), Pair(0)
    rows = [(i, pair.sampling(role), pair.prompt[role], []) for i, role in enumerate(params.ROLES)]
    rows[0][1]._all_stop_token_ids.add(17)
    processor.update_state(SimpleNamespace(removed=[], added=rows, moved=[]))
    logits = torch.stack([pair.logits[role][0] for role in params.ROLES])
    logits[1, 3] = torch.nan
    after = processor.apply(logits)
    assert after.argmax(-1).tolist() == [17, 17]
    assert take_all([pair.name])[pair.name]["broken"] == "parametric"


def test_fused_log_probabilities_are_handed_back_where_the_engine_returns_processed_ones() -> None:
    processor, pair = v1_processor(), Pair(0)
    processor._soft = True
    rows = []
    for i, role in enumerate(params.ROLES):
        args = params.extra_args(pair.name, role, pair.control)
        rows.append((i, params.sampling_params(args, max_tokens=3, logprobs=2), pair.prompt[role], []))
    processor.update_state(SimpleNamespace(removed=[], added=rows, moved=[]))
    ctx, par = (pair.logits[role][:1].clone() for role in params.ROLES)
    signals = Signals(ctx, par)
    policy = pair.control.policy()
    want = fuse_scores(policy, signals, policy.decide(signals)).log_softmax(-1)[0]
    after = processor.apply(torch.cat([ctx, par]))
    for row in after:
        assert int(row.argmax()) == pair.want[0] and int((row == row.max()).sum()) == 1
        torch.testing.assert_close(row, want, rtol=0, atol=1e-5)


# --- V2 -----------------------------------------------------------------------------------------------------------


def v2_processor(slots: int, longest: int, device: torch.device = CPU):
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcRequestState
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    (cls,) = _load_v2_logitsprocs_by_fqcns([WHERE])
    lengths = np.zeros(slots, dtype=np.int32)
    state = LogitsProcRequestState(
        device=device,
        max_num_reqs=slots,
        vocab_size=V,
        all_token_ids=SimpleNamespace(gpu=torch.zeros(slots, longest, dtype=torch.int32, device=device)),
        prompt_len=SimpleNamespace(np=lengths),
        prefill_len=SimpleNamespace(np=lengths.copy()),
        total_len=SimpleNamespace(gpu=torch.zeros(slots, dtype=torch.int32, device=device)),
    )
    return cls(None, state), state


def context(slots: list[int], lengths: list[int]):
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    mapping, zeros = torch.tensor(slots), torch.zeros(len(slots), dtype=torch.long)
    return LogitsContext(mapping, mapping, np.array(slots), zeros, zeros, zeros, np.array(lengths))


@pytest.mark.parametrize("seed", range(6))
def test_v2_pairs_answer_as_the_loop_does_whatever_happens_to_the_slots(seed: int, anywhere: None) -> None:
    r = random.Random(seed)
    processor, state = v2_processor(20, 200)
    assert processor.v2
    pairs = [Pair(i + seed) for i in range(6)]
    slot_of: dict[tuple[str, str], int] = {}
    ordinary = r.sample(range(20), 3)
    for slot in ordinary:
        assert processor.add_request(slot, SimpleNamespace(extra_args=None)) is False

    def enter(p: Pair, role: str) -> None:
        slot = r.choice([s for s in range(20) if s not in slot_of.values() and s not in ordinary])
        slot_of[p.name, role] = slot
        ids = p.prompt[role] + p.output[role]
        state.prompt_len.np[slot] = len(p.prompt[role])
        state.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
        assert processor.add_request(slot, p.sampling(role)) is True

    while any(len(p.output["contextual"]) < STEPS for p in pairs):
        rows, real = [("other", slot, 9) for slot in ordinary if r.random() < 0.7], []
        for p in pairs:
            if len(p.output["contextual"]) == STEPS or r.random() < 0.2:
                continue
            if r.random() < 0.2:  # preempted: both rows come back in other slots
                for role in params.ROLES:
                    slot_of.pop((p.name, role), None)
            for role in params.ROLES:
                if (p.name, role) not in slot_of:
                    enter(p, role)
            done = len(p.output["contextual"])
            kind = r.choice(["real", "real", "real", "chunk", "lone"])
            real += [p] if kind == "real" else []
            for role in params.ROLES if kind != "lone" else params.ROLES[:1]:
                short = 0 if kind == "real" else r.randint(1, 4) if role == "contextual" else 0
                rows.append(((p.name, role), slot_of[p.name, role], len(p.prompt[role]) + done - short))
        if not rows:
            continue
        r.shuffle(rows)
        processor.apply_staged_writes()
        logits = torch.randn(len(rows), V)
        for i, (key, _, _) in enumerate(rows):
            p = next((p for p in real if p.name == key[0]), None)
            if p is not None:
                logits[i] = p.logits[key[1]][len(p.output["contextual"])]
        after = processor.apply(logits.clone(), context([row[1] for row in rows], [row[2] for row in rows]))
        check_rows(logits, after, [i for i, row in enumerate(rows) if row[0] == "other"])
        made = {key: int(after[i].argmax()) for i, (key, _, _) in enumerate(rows)}
        for p in real:
            for role in params.ROLES:
                slot, token = slot_of[p.name, role], made[p.name, role]
                state.all_token_ids.gpu[slot, len(p.prompt[role]) + len(p.output[role])] = token
                p.output[role].append(token)
    for p in pairs:
        assert p.output["contextual"] == p.output["parametric"] == p.want


def test_v2_a_recycled_slot_leaves_the_partner_alone() -> None:
    processor, _ = v2_processor(8, 50)
    pair = Pair(0)
    assert processor.add_request(5, pair.sampling("contextual")) and processor.add_request(
        2, pair.sampling("parametric")
    )
    logits = torch.randn(3, V)
    processor.add_request(2, SimpleNamespace(extra_args={"mine": 1}))
    assert torch.equal(processor.apply(logits.clone(), context([7, 2, 5], [9, 9, 9])), logits)


def test_both_front_ends_refuse_what_pairs_cannot_honour() -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator

    from ckcontrol.vllm import PairLogitsProcessor

    check = build_custom_logits_processors_params_validator([WHERE])
    good = params.extra_args(params.new_pair(), "contextual", Control())
    check(SamplingParams())
    check(SamplingParams(temperature=0, extra_args=good))
    for bad in (
        SamplingParams(temperature=0, extra_args={"ck_pair": "x", "ck_role": "z"}),
        SamplingParams(temperature=0.5, extra_args=good),
        SamplingParams(temperature=0, presence_penalty=1.0, extra_args=good),
        SamplingParams(n=2, temperature=0.7, seed=1, extra_args=good),
        SamplingParams(temperature=0, prompt_logprobs=1, extra_args=good),
    ):
        with pytest.raises(VLLMValidationError, match=r"\."):
            check(bad)
        with pytest.raises(ValueError):
            PairLogitsProcessor.validate_params(bad)


# --- what goes wrong ----------------------------------------------------------------------------------------------


class Fixed:
    """A batch that stays as it is: the pairs' rows, contextual before parametric, then two of others; V1 or V2."""

    def __init__(self, pairs: list[Pair], v2: bool) -> None:
        self.pairs = pairs
        self.places = [(pair, role) for pair in pairs for role in params.ROLES]
        count = len(self.places)
        if v2:
            self.processor, self.state = v2_processor(count + 2, 200)
        else:
            self.processor, self.state = v1_processor(), None
        added = []
        for i, (pair, role) in enumerate(self.places):
            asked = pair.sampling(role)
            asked._all_stop_token_ids.add(END)
            added.append((i, asked, pair.prompt[role], pair.output[role]))
            if v2:
                ids = pair.prompt[role]
                self.state.prompt_len.np[i] = len(ids)
                self.state.all_token_ids.gpu[i, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
                self.processor.add_request(i, asked)
        if not v2:
            self.processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))

    def step(self) -> None:
        """One token for everybody; the rows of others must be as they were."""
        logits = torch.randn(len(self.places) + 2, V)
        for i, (pair, role) in enumerate(self.places):
            logits[i] = pair.logits[role][len(pair.output[role])]
        where = None
        if self.state is not None:
            lengths = [len(p.prompt[role]) + len(p.output[role]) for p, role in self.places]
            where = context([*range(len(self.places)), 90, 91], [*lengths, 3, 3])
        after = self.processor.apply(logits.clone(), where)
        check_rows(logits, after, [len(logits) - 2, len(logits) - 1])
        for i, (pair, role) in enumerate(self.places):
            token = chosen(after[i])
            if self.state is not None:
                self.state.all_token_ids.gpu[i, len(pair.prompt[role]) + len(pair.output[role])] = token
            pair.output[role].append(token)


END = 17


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("how", ["decide", "shape", "neutral"])
def test_a_policy_that_raises_fails_its_own_pairs(
    how: str, v2: bool, anywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base._REGISTRY, "stumbles", stumbles.Stumbles)
    stumbles._CALLS.clear()
    pairs = [Pair(i) for i in range(8)]
    for i, name in ((2, "a"), (5, "b")):  # among others, penalised ones too, which must not remember the step twice
        pairs[i].control = Control("stumbles", how=how, label=name, patience=3)
        pairs[i].options = GenerateOptions()
    batch = Fixed(pairs, v2)
    for _ in range(STEPS):
        batch.step()
    told = take_all([pair.name for pair in pairs])
    at = 0 if how == "neutral" else 3
    for i, pair in enumerate(pairs):
        assert pair.output["contextual"] == pair.output["parametric"]
        if i not in (2, 5):
            assert pair.output["contextual"] == pair.want and "failed" not in told[pair.name], i
            assert len(told[pair.name]["rows"]) == STEPS
            continue
        assert pair.output["contextual"][at:] == [END] * (STEPS - at)
        assert END not in pair.output["contextual"][:at] and len(told[pair.name]["rows"]) == at
        assert told[pair.name]["failed"].startswith(f"steering by 'stumbles' failed at token {at}: ")
        assert {"decide": "KeyError: 'no such mood'", "shape": "RuntimeError: ", "neutral": "ZeroDivisionError: "}[
            how
        ] in told[pair.name]["failed"]


def test_running_out_of_memory_is_no_fault_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a device that has failed: vLLM must learn of both."""
    monkeypatch.setitem(base._REGISTRY, "stumbles", stumbles.Stumbles)
    for error in (torch.OutOfMemoryError("full"), torch.AcceleratorError("gone")):

        def raises(self: object, signals: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(stumbles.Stumbles, "decide", raises)
        for count in (1, 3):
            pairs = [Pair(i) for i in range(count)]
            pairs[0].control = Control("stumbles")
            with pytest.raises(type(error)):
                Fixed(pairs, False).step()


def test_parameters_that_only_the_worker_cannot_read_end_their_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed policy that this process alone lacks: not unsteered answers, and not the engine's end."""
    monkeypatch.setitem(base._REGISTRY, "stumbles", stumbles.Stumbles)
    pairs = [Pair(0), Pair(1)]
    pairs[1].control = Control("stumbles")
    rows = [(p, role, p.sampling(role)) for p in pairs for role in params.ROLES]
    monkeypatch.undo()
    params._KEPT.clear()
    processor = v1_processor()
    for _, _, asked in rows:
        asked._all_stop_token_ids.add(END)
    added = [(i, asked, p.prompt[role], []) for i, (p, role, asked) in enumerate(rows)]
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    after = processor.apply(torch.stack([p.logits[role][0] for p, role, _ in rows]))
    assert after.argmax(-1).tolist() == [pairs[0].want[0]] * 2 + [END] * 2
    assert "unknown method 'stumbles'" in take_all([pairs[1].name])[pairs[1].name]["failed"]
