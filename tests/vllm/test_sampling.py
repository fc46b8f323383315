"""The batched processors, warpers and draw against transformers' own, row by row, bit for bit. Needs no vLLM."""

from __future__ import annotations

import pytest
import torch

from ckcontrol import Control, GenerateOptions
from ckcontrol.decoding.fused_step import fuse_scores, mask_spare_ids
from ckcontrol.decoding.inputs import processors_for
from ckcontrol.decoding.loop import Draw
from ckcontrol.fusion.signals import Signals
from ckcontrol.vllm.engine.blocks import arrange, fuse_blocks
from ckcontrol.vllm.engine.sampling import _BEST, Noise, Warp, _nucleus, _sorted_nucleus

CPU = torch.device("cpu")
V = 600
OPTIONS = [
    GenerateOptions(),
    GenerateOptions(repetition_penalty=1.3),
    GenerateOptions(do_sample=True, seed=1),
    GenerateOptions(do_sample=True, seed=2, temperature=0.7),
    GenerateOptions(do_sample=True, seed=3, top_k=5),
    GenerateOptions(do_sample=True, seed=4, top_p=0.8),
    GenerateOptions(do_sample=True, seed=5, top_k=50, top_p=0.5, temperature=1.7, repetition_penalty=0.8),
    GenerateOptions(do_sample=True, seed=6, top_k=10_000_000),
    GenerateOptions(do_sample=True, seed=1, repetition_penalty=2.0, penalty_scope="generated"),
]
CONTROLS = [
    Control("ck-plug"),
    Control("ck-plug", alpha=0.2),
    Control("ck-plug", alpha=0.9),
    Control("ck-plug", alpha=0.2, candidates=3, candidate_ratio=0.1),
    Control(method="cad", alpha=0.3, candidate_ratio=0),
    Control(method="adacad"),
    Control(method="coiecd"),
    Control(method="acd"),
    Control(method="arr"),
    Control(method="off"),
    Control(method="ck-plug-repo", alpha=0.4),
    Control(method="ck-plug", adaptive=True, gate=2.0),
]


def noises(options: list[GenerateOptions]) -> list[Noise | None]:
    return [Noise(o.seed or 0, CPU) if o.do_sample else None for o in options]


@pytest.mark.parametrize("chosen", [OPTIONS, OPTIONS[:2], OPTIONS[2:4], OPTIONS[:1], OPTIONS[4:5] * 3])
def test_every_row_is_what_transformers_makes_of_it(chosen: list[GenerateOptions]) -> None:
    torch.manual_seed(0)
    warp = Warp(chosen, noises(chosen), CPU)
    draws = [Draw(o.do_sample, None if o.seed is None else [o.seed], CPU) for o in chosen]
    outputs: list[list[int]] = [[] for _ in chosen]
    prompts = [[int(t) for t in torch.randint(0, V, (9,))] for _ in chosen]
    for step in range(12):
        scores = torch.randn(len(chosen), V) * 4
        scores[:, V - 7 :] = -torch.inf
        seen = torch.zeros(len(chosen), V, dtype=torch.bool)
        for i, o in enumerate(chosen):
            seen[i, outputs[i] + (prompts[i] if o.penalty_scope == "all" else [])] = True
        before = scores.clone()
        got = warp(scores, seen[warp.penalised])
        assert torch.equal(scores, before)
        tokens = warp.draw(got, [step] * len(warp.sampled))
        for i, o in enumerate(chosen):
            ids = outputs[i] if o.penalty_scope == "generated" else prompts[i] + outputs[i]
            want = processors_for(o, None)(torch.tensor([ids], dtype=torch.long), scores[i : i + 1])
            assert torch.equal(got[i : i + 1], want), (step, i)
            token = int(draws[i](want, torch.zeros(1, dtype=torch.bool)))
            assert token == int(tokens[i]), (step, i)
            outputs[i].append(token)


def test_noise_is_addressed_by_position() -> None:
    straight = Noise(11, CPU)
    rows = torch.empty(30, V)
    for i, row in enumerate(rows):
        straight.fill(row, i)
    jumping, row = Noise(11, CPU), torch.empty(V)
    for position in (0, 0, 1, 2, 3, 2, 3, 9, 4, 29, 0, 28, 29):
        jumping.fill(row, position)
        assert torch.equal(row, rows[position]), position


@pytest.mark.parametrize("size", [320, 601, 49_152])
def test_top_p_from_the_best_tokens_is_top_p_from_all(size: int) -> None:
    """Peaked, flat, coarse (full of equals), masked and broken rows; bounds on a token's own edge among them."""
    torch.manual_seed(size)
    rows = [torch.randn(size) * spread for spread in (0.1, 1, 3, 6, 10, 20)]
    rows += [(torch.randn(size) * 3).round(), torch.zeros(size), torch.randn(size).cumsum(0)]
    rows[1][size // 2 :] = -torch.inf
    rows[2][3:] = -torch.inf
    scores = torch.stack(rows)
    edges = scores.softmax(-1).sort(-1).values.cumsum(-1)[:, [size - 1, size - 2, size - 3, size - _BEST // 2]]
    columns = [torch.full((len(rows), 1), 1 - p) for p in (0.05, 0.5, 0.8, 0.9, 0.95, 0.999, 1e-6)]
    columns += [edge[:, None].clamp(1e-7, 1 - 1e-7) for edge in edges.T]
    columns += [torch.nextafter(column, torch.zeros(())) for column in columns[-4:]]
    for tail in columns:
        assert torch.equal(_nucleus(scores, tail), _sorted_nucleus(scores, tail))
    _nucleus(torch.full((2, size), torch.nan), columns[0][:2])  # the draw of such a row is thrown away


def test_fused_blocks_are_the_engine_row_by_row() -> None:
    torch.manual_seed(1)
    controls = CONTROLS + CONTROLS[::-1]
    ctx, par = torch.randn(len(controls), V) * 3, torch.randn(len(controls), V) * 3
    ctx[4, 5] = par[7, 9] = -torch.inf
    order, blocks = arrange([c.policy() for c in controls], controls)
    assert sorted(order) == list(range(len(controls))) and blocks[-1].last == len(controls)
    got = fuse_blocks(ctx[order].clone(), par[order].clone(), blocks, V - 20)
    assert not got.broken.any()
    for at, i in enumerate(order):
        policy, a, b = controls[i].policy(), ctx[i : i + 1].clone(), par[i : i + 1].clone()
        want = a
        if not policy.neutral:
            mask_spare_ids(policy, V - 20, a, b)
            signals = Signals(a, b, controls[i].candidates, controls[i].candidate_ratio)
            want = fuse_scores(policy, signals, policy.decide(signals))
        torch.testing.assert_close(got.scores[at], want[0], rtol=1e-5, atol=1e-5, msg=str(controls[i]))
        assert int(got.scores[at].argmax()) == int(want.argmax())


def test_equal_policies_share_one_part_and_head_sets_one_block() -> None:
    controls = [
        Control("ck-plug", alpha=0.2),
        Control("ck-plug", alpha=0.7),
        Control("ck-plug", alpha=0.2),
        Control("ck-plug", alpha=0.2, candidates=3),
        Control(),
    ]
    order, blocks = arrange([c.policy() for c in controls], controls)
    assert len(blocks) == 3 and sum(len(block.policy.parts) for block in blocks) == 4
    assert order[-1] == 4 and blocks[-1].policy.neutral  # neutral rows lie last, in a block of their own


def test_numbers_that_mean_nothing_are_named_by_stream() -> None:
    ctx, par = torch.zeros(4, V), torch.zeros(4, V)
    ctx[1, 3], par[2, 3], ctx[3] = torch.nan, torch.inf, -torch.inf
    _, blocks = arrange([Control("ck-plug", alpha=0.2).policy()] * 4, [Control("ck-plug", alpha=0.2)] * 4)
    assert fuse_blocks(ctx, par, blocks).broken.tolist() == [0, 1, 2, 1]
