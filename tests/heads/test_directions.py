"""Directions: against forwards with the vector added by hand, off bit for bit, rows, streams, threads, and the file."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckcontrol as ck
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.decoding.static_step import _unknown_code
from ckcontrol.errors import ControlError, HeadsError
from ckcontrol.heads.directions.apply import Added, added
from ckcontrol.heads.directions.direction import Direction
from ckcontrol.heads.families import describe
from ckcontrol.heads.fingerprint import Fingerprint
from ckcontrol.models.tiny import FAMILIES, tiny_model

IDS = torch.tensor([[257, 72, 105, 32, 119, 104, 111], [257, 65, 66, 67, 68, 69, 70], [257, 9, 8, 7, 6, 5, 4]])
NEW = 8


def direction(model, layer=0, seed=0, **strengths):
    torch.manual_seed(seed)
    width = describe(model).hidden
    return Direction(Fingerprint.of(model), layer, torch.randn(width), **{"context": 6.0, "memory": 4.0, **strengths})


@torch.no_grad()
def by_hand(model, ids, found, factor, *, prompt, tokens=NEW):
    """The oracle: no cache; every token runs the whole text, and from the prompt's last token on the layer's output is
    replaced by itself plus the vector. Returns the tokens and the logits of every step."""
    block = describe(model).blocks[found.layer].module

    def replace(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, prompt - 1 :] = hidden[:, prompt - 1 :] + factor * found.vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(replace)
    steps = []
    try:
        for _ in range(tokens):
            steps.append(model(ids, use_cache=False).logits[:, -1])
            ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True)], dim=1)
    finally:
        handle.remove()
    return ids, torch.stack(steps, 1)


def generated(model, ids, **kwargs):
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=256,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
    return made.sequences, torch.stack(made.logits, 1)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_a_forward_with_the_vector_added_by_hand(family, layer):
    model, _ = tiny_model(family)
    found = direction(model, layer)
    plain = generated(model, IDS)
    for alpha, factor in ((0.0, -6.0), (0.25, -3.0), (1.0, 4.0)):
        with added(model, found, alpha):
            tokens, logits = generated(model, IDS)
        wanted_tokens, wanted = by_hand(model, IDS, found, factor, prompt=IDS.shape[1])
        assert torch.equal(tokens, wanted_tokens)
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)
        assert (logits[:, 0] - plain[1][:, 0]).abs().max() > 1e-3
    again = generated(model, IDS)
    assert torch.equal(again[0], plain[0]) and torch.equal(again[1], plain[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_plain_forward_is_changed_at_every_position(family):
    model, _ = tiny_model(family)
    found = direction(model, 1)
    with added(model, found, 1.0), torch.no_grad():
        logits = model(IDS).logits
    for place in range(1, IDS.shape[1] + 1):  # the first position's own logits need all of them changed, and so on
        wanted = by_hand(model, IDS[:, :place], found, 4.0, prompt=1, tokens=1)[1][:, 0]
        torch.testing.assert_close(logits[:, place - 1], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", ["off", "ck-plug", "dial"])
def test_half_changes_no_bit_and_installs_no_hook(method):
    model, tokenizer = tiny_model("llama")
    found = direction(model)
    options = {"control": ck.Control(method, alpha=0.2) if method != "off" else ck.Control("off"), "max_new_tokens": 6}
    plain = ck.generate(model, tokenizer, "Who?", ["The postman."], **options)
    with added(model, found, 0.5), added(model, [None], 0.1):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        inside = ck.generate(model, tokenizer, "Who?", ["The postman."], **options)
    assert inside.token_ids == plain.token_ids
    assert [token.logp_final for token in inside.tokens] == [token.logp_final for token in plain.tokens]


def test_rows_with_strengths_of_their_own_equal_single_requests():
    model, _ = tiny_model("llama")
    one, two = direction(model, 0), direction(model, 1, seed=1)
    cases = [(one, 0.0), (None, 0.9), (two, 0.8)]
    with added(model, [d for d, _ in cases], [a for _, a in cases]):
        tokens, logits = generated(model, IDS)
    for i, (found, alpha) in enumerate(cases):
        with added(model, found, alpha):
            alone, own = generated(model, IDS[i : i + 1])
        assert torch.equal(tokens[i : i + 1], alone)
        torch.testing.assert_close(logits[i : i + 1], own, rtol=0, atol=1e-4)
    with added(model, [one, one, None], [0.5, 0.5, 0.5]):
        assert torch.equal(generated(model, IDS)[1], generated(model, IDS)[1])


def test_a_row_without_a_direction_keeps_every_bit_of_the_stream():
    model, _ = tiny_model("llama")
    found = direction(model, 1)
    hidden = torch.randn(3, 5, found.model.hidden)
    hidden[1, 0, 0] = -0.0
    made = Added(model, [found, None, found], [0.0, 0.0, 1.0])._plus(1, hidden)
    assert torch.equal(made[1].view(torch.int32), hidden[1].view(torch.int32))
    assert not torch.equal(made[0], hidden[0]) and not torch.equal(made[2], hidden[2])


def test_rows_and_directions_must_agree():
    model, _ = tiny_model("llama")
    found = direction(model)
    with added(model, [found] * 2, 0.1), pytest.raises(HeadsError, match="2 directions meet a batch of 3 rows"):
        model(IDS)
    for bad, alpha in (([found] * 2, [0.1] * 3), ([], 0.1), (["a"], 0.1)):
        with pytest.raises(HeadsError), added(model, bad, alpha):
            pass
    for alpha in (-0.1, 1.1, float("nan"), True, "1"):
        with pytest.raises(ControlError, match="alpha"), added(model, found, alpha):
            pass
    with (
        pytest.raises(HeadsError, match="does not lead toward the memory"),
        added(model, direction(model, memory=0.0), 0.7),
    ):
        pass


def test_blocks_nest_and_add_up():
    model, _ = tiny_model("llama")
    one, two = direction(model, 1), direction(model, 1, seed=1)
    whole = Direction(one.model, 1, 4.0 * one.vector - 6.0 * two.vector, 1.0, 1.0)
    length = float((4.0 * one.vector - 6.0 * two.vector).norm())
    whole = Direction(one.model, 1, whole.vector, context=length, memory=length)
    with added(model, one, 1.0), added(model, two, 0.0):
        nested = generated(model, IDS)[1]
    with added(model, whole, 1.0):
        torch.testing.assert_close(nested, generated(model, IDS)[1], rtol=0, atol=1e-4)


def test_an_exception_restores_the_model():
    model, _ = tiny_model("llama")
    with pytest.raises(RuntimeError, match="mine"), added(model, direction(model), 0.0):
        raise RuntimeError("mine")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- two streams ---


@pytest.mark.parametrize("share", [True, False], ids=["one forward", "two forwards"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3"])
def test_both_streams_of_a_policy_are_changed_as_each_alone(family, share, monkeypatch):
    """The oracle fuses, token by token, two whole forwards with the vector added by hand."""
    model, tokenizer = tiny_model(family)
    if not share:
        monkeypatch.setattr("ckcontrol.decoding.pair_cache.can_share_forward", lambda model: False)
    found = direction(model, 1)
    pair = ck.build_pair(tokenizer, "Who?", ["It was the postman, always."])
    with added(model, found, 0.0):
        made = ck.generate(
            model,
            tokenizer,
            "Who?",
            ["It was the postman, always."],
            control=ck.Control("cad", alpha=0.2),
            max_new_tokens=NEW,
        )

    class ByHand:
        """The model, with the vector added from each prompt's last token on; streams take turns."""

        calls = 0

        def parameters(self):
            return model.parameters()

        def __call__(self, ids, **kwargs):
            length = (len(pair.contextual), len(pair.parametric))[self.calls % 2]
            self.calls += 1
            block = describe(model).blocks[1].module

            def replace(module, args, output):
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden[:, length - 1 :] += -6.0 * found.vector
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handle = block.register_forward_hook(replace)
            try:
                return model(ids, **kwargs)
            finally:
                handle.remove()

    wanted = ck.reference_generate(
        ByHand(),
        pair.contextual,
        pair.parametric,
        ck.Control("cad", alpha=0.2),
        max_new_tokens=NEW,
        eos=eos_ids(model, tokenizer),
        vocab_size=len(tokenizer),
    )
    assert list(made.token_ids) == wanted


@pytest.mark.parametrize("method", ["dial", "grd"])
def test_methods_of_several_drafts_take_one_direction(method):
    model, tokenizer = tiny_model("llama")
    options = {"control": ck.Control(method, alpha=0.8) if method == "dial" else ck.Control(method)}
    with added(model, direction(model, 1), 0.0):
        together = ck.generate(
            model, tokenizer, ["Who?", "Where is it?"], [["The postman."], ["Here."]], max_new_tokens=6, **options
        )
        alone = [
            ck.generate(model, tokenizer, q, p, max_new_tokens=6, **options)
            for q, p in (("Who?", ["The postman."]), ("Where is it?", ["Here."]))
        ]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]


# --- beside others ---


def test_two_threads_use_one_model_at_once_each_with_its_own_direction():
    model, _ = tiny_model("llama")
    cases = [(direction(model, 0), 0.0), (direction(model, 1, seed=1), 1.0), (None, 0.5)]
    alone = []
    for found, alpha in cases:
        with added(model, found, alpha):
            alone.append(generated(model, IDS)[1])
    gate, wrong = threading.Barrier(len(cases)), []

    def work(i):
        found, alpha = cases[i]
        try:
            for _ in range(8):
                with added(model, found, alpha):
                    gate.wait(60)
                    if not torch.equal(generated(model, IDS)[1], alone[i]):
                        wrong.append(i)
                    gate.wait(60)
        except BaseException as error:
            wrong.append(error)
            gate.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


async def _inside(model, tokenizer, found):
    with added(model, found, 0.0):
        return await ck.agenerate(model, tokenizer, "Who?", [], max_new_tokens=6)


def test_the_event_loops_thread_takes_the_direction_along():
    import asyncio

    model, tokenizer = tiny_model("llama")
    found = direction(model, 1, context=40.0)
    with added(model, found, 0.0):
        wanted = ck.generate(model, tokenizer, "Who?", [], max_new_tokens=6)
    assert wanted.token_ids != ck.generate(model, tokenizer, "Who?", [], max_new_tokens=6).token_ids
    assert asyncio.run(_inside(model, tokenizer, found)).token_ids == wanted.token_ids


def test_compiled_code_and_graphs_do_not_pass_the_direction_by():
    model, _ = tiny_model("llama")
    compiled = torch.compile(model, backend="eager")
    plain = compiled(IDS).logits
    with added(model, direction(model), 1.0), torch.no_grad():
        inside = compiled(IDS, logits_to_keep=1).logits
        wanted = model(IDS, logits_to_keep=1).logits
        assert "hooks" in str(_unknown_code(model))
    assert torch.equal(inside, wanted) and not torch.equal(inside, plain[:, -1:])


# --- the file ---


def test_a_file_gives_back_what_was_saved(tmp_path):
    model, _ = tiny_model("llama")
    found = Direction(Fingerprint.of(model), 1, torch.randn(describe(model).hidden), 3.5, 0, {"facts": 12})
    found.save(tmp_path / "d.safetensors")
    again = Direction.load(tmp_path / "d.safetensors")
    torch.testing.assert_close(again.vector, found.vector)
    assert (again.model, again.layer, again.context, again.memory) == (found.model, 1, 3.5, 0)
    assert dict(again.note) == {"facts": 12}


def test_another_model_is_refused_by_field(tmp_path):
    model, other = tiny_model("llama")[0], tiny_model("llama", seed=1)[0]
    found = direction(model)
    with pytest.raises(HeadsError, match=r"the direction is for another model: weights is"), added(other, found, 0.0):
        pass
    with pytest.raises(HeadsError, match="family is 'llama' there and 'gpt2' here"):
        found.check(tiny_model("gpt2")[0])
    with added(other, found, 0.0, strict=False):
        pass


def test_what_is_no_direction_is_refused(tmp_path):
    model, _ = tiny_model("llama")
    width = describe(model).hidden
    good = tmp_path / "good.safetensors"
    direction(model).save(good)
    from safetensors import safe_open

    with safe_open(good, "pt") as file:
        about = dict(file.metadata())
    bad = tmp_path / "bad.safetensors"

    def refused(match):
        with pytest.raises(HeadsError, match=match):
            Direction.load(bad)

    vector = load_file(good)["vector"]
    for changed, match in (
        (torch.full((width,), float("nan")), "length is nan"),
        (vector.clone().index_fill_(0, torch.tensor([3]), float("inf")), "length is inf"),
        (torch.zeros(width), "length is 0"),
        (torch.ones(width + 1), rf"shape \[{width + 1}\]"),
        (torch.ones(1, width), rf"shape \[1, {width}\]"),
    ):
        save_file({"vector": changed}, bad, metadata=about)
        refused(match)
    save_file({"vector": vector, "more": vector.clone()}, bad, metadata=about)
    refused("missing or unknown parts")
    save_file({"vector": vector}, bad)
    refused("is not a direction of schema 1")
    save_file({"vector": vector}, bad, metadata={**about, "schema": "2"})
    refused("is not a direction of schema 1")
    for text, match in (
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "missing or unknown parts"),
        (about["json"].replace('"layer": 0', '"layer": 7'), "layer 7 does not exist"),
        (about["json"].replace('"layer": 0', '"layer": true'), "layer True does not exist"),
        (about["json"].replace('"context": 6.0', '"context": -1'), "strength context=-1"),
        (about["json"].replace('"context": 6.0', '"context": NaN'), "strength context=nan"),
        (about["json"].replace('"context": 6.0', '"context": "6"'), "strength context='6'"),
        (about["json"].replace('"hidden"', '"width"'), "fingerprint needs exactly"),
    ):
        save_file({"vector": vector}, bad, metadata={**about, "json": text})
        refused(match)
    bad.write_bytes(good.read_bytes()[:-7])
    refused("cannot be read")
    bad.write_bytes(b"")
    refused("cannot be read")
    bad.write_text('{"kind": "ckcontrol head mask"}')
    refused("cannot be read")
    with pytest.raises(OSError):
        Direction.load(tmp_path / "none.safetensors")
