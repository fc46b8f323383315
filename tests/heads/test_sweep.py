"""The one-sweep path patching equals whole forwards with frozen heads, in every family; its rows keep their meaning."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers

from ckcontrol.errors import HeadsError, NonFiniteLogits
from ckcontrol.heads.families import FAMILIES, describe
from ckcontrol.heads.finding.path_patching import capture, direct, gradient, linear, sweep
from ckcontrol.heads.finding.path_patching_naive import naive_patch
from ckcontrol.heads.forward import Batch, pad, run
from ckcontrol.models.tiny import FAMILIES as TINY
from ckcontrol.models.tiny import tiny_model

SMALL = {"vocab_size": 320, "initializer_range": 0.3, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258}
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
# Families, and forms of one, that `ckcontrol tiny` does not build.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPT", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}),
    "opt-projected": (
        "OPT",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 64,
            "word_embed_proj_dim": 16,
            "_remove_final_layer_norm": True,
        },
    ),
    "gptj": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4}),
    "phi": ("Phi", WIDTHS),
    "olmo2": ("Olmo2", WIDTHS),
    "gpt_neox-sequential": ("GPTNeoX", {**WIDTHS, "use_parallel_residual": False}),
    "qwen3-wide": ("Qwen3", {**WIDTHS, "head_dim": 24, "num_key_value_heads": 2}),
}
ALL = [*TINY, *OTHERS]


@cache
def build(name: str) -> Any:
    """A random model in float32 whose every bias and norm is random too: what is left out would show."""
    if name in TINY:
        model = tiny_model(name)[0]
    else:
        prefix, changes = OTHERS[name]
        config = getattr(transformers, f"{prefix}Config")(**{**SMALL, **changes})
        torch.manual_seed(0)
        model = getattr(transformers, f"{prefix}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def prompts(seed: int, lengths: tuple[int, ...]) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return pad([torch.randint(0, 250, (n,), generator=generator).tolist() for n in lengths], torch.device("cpu"))


def every_head(layout) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(layout.layers) for head in range(layout.heads)]


CLEAN, CORRUPTED = (9, 5, 12), (7, 7, 4)  # padded, and of other lengths than their corrupted prompts
TARGETS = torch.tensor([[3, 77], [200, 4], [9, 131]])


def test_every_family_is_tested() -> None:
    assert {build(name).config.model_type for name in ALL} == set(FAMILIES)


@pytest.mark.parametrize("name", ALL)
def test_the_sweep_equals_frozen_forwards(name: str) -> None:
    model = build(name)
    layout = describe(model)
    clean, corrupted = prompts(1, CLEAN), prompts(2, CORRUPTED)
    patched = sweep(layout, capture(model, layout, clean), capture(model, layout, corrupted).heads, TARGETS)
    expected = naive_patch(model, layout, clean, corrupted, TARGETS, every_head(layout))
    logits = run(model, clean).detach()
    scale = expected.abs().max().clamp(min=1)
    assert (patched.logits.flatten(1, 2) - expected).abs().max() < 1e-4 * scale / 10
    assert (patched.base - logits.gather(1, TARGETS)).abs().max() < 1e-5 * scale
    assert (patched.change.abs().amax((0, 3)) > 1e-3).all(), "every head moves something: nothing passes by being zero"


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
def test_the_identity_is_exact_in_float64(name: str) -> None:
    import copy

    model = copy.deepcopy(build(name)).double()
    layout = describe(model)
    clean, corrupted = prompts(1, (8, 8, 8)), prompts(2, (6, 6, 6))  # unpadded: eager masks overflow in float64
    patched = sweep(layout, capture(model, layout, clean), capture(model, layout, corrupted).heads, TARGETS)
    expected = naive_patch(model, layout, clean, corrupted, TARGETS, every_head(layout))
    limit = 1e-5 if name == "gemma2" else 1e-11  # Gemma's norm computes in float32 whatever it is given
    assert (patched.logits.flatten(1, 2) - expected).abs().max() < limit


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "gpt2"])
def test_only_the_last_position_matters(name: str) -> None:
    """Patching a head at all positions or at the last one is the same while all others are frozen."""
    model = build(name)
    layout = describe(model)
    clean, corrupted = prompts(1, (8, 8)), prompts(2, (8, 8))
    results = [
        naive_patch(model, layout, clean, corrupted, TARGETS[:2], every_head(layout), positions=positions)
        for positions in ("last", "all")
    ]
    assert (results[0] - results[1]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3", "opt"])
def test_an_uncorrupted_prompt_changes_nothing(name: str) -> None:
    model = build(name)
    layout = describe(model)
    clean = capture(model, layout, prompts(1, CLEAN))
    for made in (sweep(layout, clean, clean.heads, TARGETS), direct(layout, clean, clean.heads, TARGETS)):
        assert made.change.abs().max() < 1e-5
    assert linear(layout, clean, clean.heads, TARGETS).abs().max() == 0


@pytest.mark.parametrize("name", ["gpt_neox", "phi", "gptj"])
def test_a_parallel_models_last_layer_has_a_direct_path_only(name: str) -> None:
    """No MLP follows its heads, so the sweep and the direct path agree there, and differ below."""
    model = build(name)
    layout = describe(model)
    clean, corrupted = (capture(model, layout, prompts(i, CLEAN)) for i in (1, 2))
    path = sweep(layout, clean, corrupted.heads, TARGETS).logits
    short = direct(layout, clean, corrupted.heads, TARGETS).logits
    assert (path[:, -1] - short[:, -1]).abs().max() < 1e-4
    assert (path[:, 0] - short[:, 0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt-projected"])
def test_the_linear_path_is_the_tangent_of_the_direct_path(name: str) -> None:
    model = build(name)
    layout = describe(model)
    clean, corrupted = (capture(model, layout, prompts(i, CLEAN)) for i in (1, 2))
    small = clean.heads + 1e-3 * (corrupted.heads - clean.heads)
    exact = direct(layout, clean, small, TARGETS).change
    assert torch.allclose(linear(layout, clean, small, TARGETS), exact, atol=3e-5)
    assert exact.abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "gpt2"])
def test_the_gradient_is_the_slope_of_the_total_effect(name: str) -> None:
    """Against a finite difference: one head shifted at the last position, attention free to respond."""
    model = build(name)
    layout = describe(model)
    batch = prompts(1, CLEAN)
    clean, corrupted = capture(model, layout, batch), capture(model, layout, prompts(2, CORRUPTED))
    slope = (gradient(model, layout, batch, clean, TARGETS) * (corrupted.heads - clean.heads)).sum(-1)
    step = 1e-2
    for layer, head in [(0, 1), (0, 3), (1, 2)]:
        sides = []
        for sign in (-1, 1):

            def shift(module, args, sign=sign, layer=layer, head=head):
                z = args[0].clone()
                change = corrupted.heads - clean.heads
                z[:, -1, layout.columns(head)] += sign * step * change[:, layer, head]
                return (z,)

            hook = layout.projections[layer].register_forward_pre_hook(shift)
            logits = run(model, batch).detach().gather(1, TARGETS)
            hook.remove()
            sides.append(logits[:, 0] - logits[:, 1])
        finite = (sides[1] - sides[0]) / (2 * step)
        assert torch.allclose(slope[:, layer, head], finite, rtol=0.02, atol=5e-3)


def test_a_bfloat16_model_is_scored_in_float32_rows() -> None:
    """Where only the stream is bfloat16's doing, rows that do not move keep their distance of zero."""
    import copy

    model = copy.deepcopy(build("llama")).bfloat16()
    layout = describe(model)
    clean, corrupted = (capture(model, layout, prompts(i, CLEAN)) for i in (1, 2))
    assert clean.heads.dtype == clean.stream.dtype == torch.float32
    patched = sweep(layout, clean, corrupted.heads, TARGETS)
    assert patched.logits.dtype == torch.float32
    reference = describe(build("llama"))
    same = [capture(build("llama"), reference, prompts(i, CLEAN)) for i in (1, 2)]
    exact = sweep(reference, same[0], same[1].heads, TARGETS)
    assert (patched.change - exact.change).abs().max() < 0.05 * exact.change.abs().max()


def test_the_model_is_left_as_it_was() -> None:
    model = build("llama")
    layout = describe(model)
    batch = prompts(1, CLEAN)
    before = run(model, batch).detach()
    clean = capture(model, layout, batch)
    gradient(model, layout, batch, clean, TARGETS)
    naive_patch(model, layout, batch, batch, TARGETS, [(0, 0)])
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(run(model, batch).detach(), before)


def test_what_is_refused() -> None:
    import copy

    from transformers import BloomConfig, BloomForCausalLM

    unknown = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)).eval()
    with pytest.raises(HeadsError, match=r"'bloom' are not described.*Add a row to FAMILIES.*Known: gemma, "):
        describe(unknown)
    model = copy.deepcopy(build("llama"))
    with pytest.raises(HeadsError, match=r"training mode.*model\.eval"):
        describe(model.train())
    model.eval().model.layers[1].self_attn.o_proj = torch.nn.Bilinear(2, 2, 2)
    with pytest.raises(HeadsError, match="not plain linear layers"):
        describe(model)
    opt = copy.deepcopy(build("opt"))
    opt.config.do_layer_norm_before = False
    with pytest.raises(HeadsError, match="do_layer_norm_before=False"):
        describe(opt)
    broken = copy.deepcopy(build("llama"))
    broken.model.norm.weight.data[3] = float("nan")
    with pytest.raises(NonFiniteLogits):
        capture(broken, describe(broken), prompts(1, CLEAN))


@pytest.mark.real
def test_the_sweep_equals_frozen_forwards_on_the_demo_model(real) -> None:
    """20 heads x 5 prompts of SmolLM2-135M; its GQA has 9 query heads on 3 key-value heads."""
    model, tokenizer = real
    layout = describe(model)
    places = ["France", "Japan", "Egypt", "Peru", "Norway"]
    clean = pad(
        [tokenizer(f"The capital of {p} is Quito. The capital of {p} is").input_ids for p in places], model.device
    )
    other = pad(
        [tokenizer(f"The capital of {p} is Quito. The capital of {p} is").input_ids for p in places[::-1]], model.device
    )
    targets = torch.tensor(
        [
            [tokenizer(" Quito").input_ids[0], tokenizer(f" {c}").input_ids[0]]
            for c in ("Paris", "Tokyo", "Cairo", "Lima", "Oslo")
        ]
    )
    generator = torch.Generator().manual_seed(0)
    picked = [
        divmod(int(i), layout.heads) for i in torch.randperm(layout.layers * layout.heads, generator=generator)[:20]
    ]
    assert max(head for _, head in picked) > model.config.num_key_value_heads
    patched = sweep(layout, capture(model, layout, clean), capture(model, layout, other).heads, targets)
    expected = naive_patch(model, layout, clean, other, targets, picked)
    mine = torch.stack([patched.logits[:, layer, head] for layer, head in picked], dim=1)
    assert (mine - expected).abs().max() < 1e-4
