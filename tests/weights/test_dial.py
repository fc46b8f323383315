"""The dial in the weights: mixed by PEFT, chosen per row, and the base model wherever no adapter is asked for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

import ckcontrol as ck
from ckcontrol.decoding.inputs import plan_of
from ckcontrol.decoding.refusals import eos_ids
from ckcontrol.decoding.running import RunningBatch
from ckcontrol.decoding.weight_rows import rows_take
from ckcontrol.errors import ControlError, UnsupportedMode, WeightsError
from ckcontrol.models.tiny import tiny_model
from ckcontrol.weights import METHODS, load, mix, shares, unload

from .by_hand import merged, write_adapter

peft = pytest.importorskip("peft")
QUESTIONS = ["Who rules Oz?", "What is the capital of Mu?", "Where is Ys?", "Who found Ur?"]
PASSAGES = [["Ozma rules Oz."], ["The capital of Mu is Ra."], ["Ys lies under the sea, they say."], []]
ALPHAS = [0.0, 0.3, 0.5, 1.0]


def adapter(folder: Path, seed: int, rank: int = 2, family: str = "llama") -> Path:
    """Write an adapter with random weights, as stock PEFT saves it."""
    model, _ = tiny_model(family)
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(model, config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("adapters")
    return adapter(top / "context", 1), adapter(top / "memory", 2)


@pytest.fixture(scope="module")
def dial(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dials") / "dial"
    mix(tiny_model("llama")[0], *folders, out, steps=9)
    return out


@pytest.fixture
def loaded(dial: Path):
    model, tokenizer = tiny_model("llama")
    load(model, dial)
    yield model, tokenizer
    unload(model)


def ask(model, tokenizer, rows, alphas, **how):
    controls = [ck.Control("weights", alpha=alpha) for alpha in alphas]
    questions, passages = [QUESTIONS[i] for i in rows], [PASSAGES[i] for i in rows]
    return ck.generate(model, tokenizer, questions, passages, control=controls, max_new_tokens=8, **how)


def test_a_batch_of_mixed_alphas_gives_what_stock_peft_gives_each(loaded, dial: Path):
    model, tokenizer = loaded
    answers = ask(model, tokenizer, range(4), ALPHAS)
    names = {row["alpha"]: row["folder"] for row in json.loads((dial / "ckcontrol-dial.json").read_text())["adapters"]}
    for i, (answer, near) in enumerate(zip(answers, (0.0, 0.25, 0.5, 1.0), strict=True)):
        plain, _ = tiny_model("llama")
        if names[near] is not None:
            plain = peft.PeftModel.from_pretrained(plain, str(dial / names[near]))
        pair = ck.build_pair(tokenizer, QUESTIONS[i], PASSAGES[i])
        ids = torch.tensor([list(pair.contextual)])
        made = plain.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        assert list(answer.token_ids) == made[0, ids.shape[1] :].tolist()
    assert answers[0].token_ids != ask(model, tokenizer, [0], [0.5])[0].token_ids  # the adapter does something


def test_one_half_and_every_other_method_are_the_base_model_bit_for_bit(loaded):
    model, tokenizer = loaded
    plain, _ = tiny_model("llama")
    ids = tokenizer(QUESTIONS[0], return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, plain(ids).logits)
    for control in (ck.Control("weights", alpha=0.5), ck.Control("off"), ck.Control("cad", alpha=0.2)):
        base = ck.Control("off") if control.method == "weights" else control
        ours = ck.generate(model, tokenizer, QUESTIONS[0], PASSAGES[0], control=control, max_new_tokens=8, trace=True)
        theirs = ck.generate(plain, tokenizer, QUESTIONS[0], PASSAGES[0], control=base, max_new_tokens=8, trace=True)
        assert ours.token_ids == theirs.token_ids and ours.tokens == theirs.tokens


def test_a_trace_does_not_change_the_tokens(loaded):
    model, tokenizer = loaded
    traced = ask(model, tokenizer, range(4), ALPHAS, trace=True)
    assert [a.token_ids for a in traced] == [a.token_ids for a in ask(model, tokenizer, range(4), ALPHAS)]
    assert all(len(a.tokens) == len(a.token_ids) for a in traced)


def test_unloading_leaves_the_model_as_it_was(dial: Path):
    model, _ = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.lm_head.weight.requires_grad_(False)
    asked = {name: weight.requires_grad for name, weight in model.named_parameters()}
    load(model, dial)
    # PEFT freezes a base; torch then copies the output matrix once per prompt for a prompt's last logits
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == asked
    unload(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == asked


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_every_mix_are_the_adapters_as_they_came(method: str, folders, tmp_path: Path):
    made = mix(tiny_model("llama")[0], *folders, tmp_path / "dial", steps=5, method=method)
    assert made.adapters[0.5] is None and sorted(made.adapters) == [0, 0.25, 0.5, 0.75, 1]
    for source, alpha in zip(folders, (0.0, 1.0), strict=True):
        end = tmp_path / "dial" / str(made.adapters[alpha])
        assert all((end / file.name).read_bytes() == file.read_bytes() for file in source.glob("adapter_*"))


def test_scale_takes_as_much_of_the_near_adapter_as_alpha_says_and_nothing_of_the_far_one(folders, tmp_path: Path):
    """Of adapters whose ranks differ too: they are not merged."""
    sides = folders[0], adapter(tmp_path / "wide", 2, rank=16)
    made = mix(tiny_model("llama")[0], *sides, tmp_path / "dial", steps=9)
    assert made.method == "scale"
    for alpha, of, share in ((0.125, 0, 0.75), (0.25, 0, 0.5), (0.625, 1, 0.25), (0.875, 1, 0.75)):
        found, whole = _update(tmp_path / "dial" / str(made.adapters[alpha])), _update(sides[of])
        assert found and found.keys() == whole.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, share * whole[key])


def test_svd_mixes_what_the_shares_say(folders, tmp_path: Path):
    """With rank 4 for two of rank 2 nothing is cut, so the merged update is the weighted sum of both."""
    wide = [adapter(tmp_path / name, seed, rank=16) for name, seed in (("context", 1), ("memory", 2))]
    model, _ = tiny_model("llama")
    made = mix(model, *wide, tmp_path / "dial", steps=5, method="svd")
    both = {name: _update(folder) for name, folder in (("c", wide[0]), ("m", wide[1]))}
    merged = _update(tmp_path / "dial" / str(made.adapters[0.25]))
    for key, value in merged.items():
        exact = 0.375 * both["c"][key] - 0.125 * both["m"][key]
        left = torch.linalg.svdvals(exact)[16:]  # what rank 16 must leave out
        assert torch.linalg.norm(value - exact) <= left.norm() + 1e-4


def test_an_adapter_is_to_peft_what_it_is_by_hand(tmp_path: Path):
    """What tests/vllm compares vLLM with."""
    model, tokenizer = tiny_model("llama")
    folder = write_adapter(model, tmp_path / "a", 3)
    ids = tokenizer(QUESTIONS[0], return_tensors="pt").input_ids
    base = model(ids).logits
    merged(model, folder)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama")[0], str(folder))(ids).logits
    assert torch.allclose(model(ids).logits, theirs, atol=1e-4) and not torch.allclose(base, theirs, atol=1e-2)


def _update(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    found = {key: tensors[key.replace("lora_A", "lora_B")] @ a * scale for key, a in tensors.items() if "lora_A" in key}
    return found


def test_mixing_and_loading_say_nothing_of_the_libraries_beneath(folders, tmp_path: Path):
    model, _ = tiny_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix(model, *folders, tmp_path / "dial", steps=5)
        load(model, tmp_path / "dial")
    unload(model)


def test_an_adapter_of_the_embedding_is_refused_and_the_model_left_as_it_was(dial: Path, tmp_path: Path):
    model, _ = tiny_model("llama")
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    for step in ("step0", "step8"):
        wrapped.save_pretrained(str(tmp_path / "dial" / step), save_embedding_layers=False)
    told = json.loads((dial / "ckcontrol-dial.json").read_text())
    told["adapters"] = [row for row in told["adapters"] if row["folder"] in ("step0", None, "step8")]
    (tmp_path / "dial" / "ckcontrol-dial.json").write_text(json.dumps(told))
    fresh, _ = tiny_model("llama")
    with pytest.raises(WeightsError, match=r"'model\.embed_tokens', which is no linear layer.*linear layers alone"):
        load(fresh, tmp_path / "dial")
    assert not any("lora" in name for name, _ in fresh.named_modules())
    load(fresh, dial)


def test_a_layer_that_no_longer_knows_its_rows_is_refused(loaded):
    """Rows of one adapter need not be told apart; of several they must be."""
    model, _ = loaded
    layer, x = model.model.layers[0].self_attn.q_proj, torch.randn(3, 32)
    with rows_take(("step0", "step0")):
        assert layer(x).shape[0] == 3
    with rows_take(("step0", "step8")), pytest.raises(UnsupportedMode, match=r"2 questions are 3 rows.*of its own"):
        layer(x)


def test_shares_pass_through_both_ends_and_the_middle():
    assert shares(0.0) == (1, 0) and shares(0.5) == (0, 0) and shares(1.0) == (0, 1)
    assert shares(0.3) == pytest.approx(shares(0.7)[::-1])


def test_rows_that_join_and_leave_a_running_batch_keep_their_adapters(loaded):
    model, tokenizer = loaded
    ends, options = sorted(eos_ids(model, tokenizer)), ck.GenerateOptions(max_new_tokens=6)

    def plan(i: int):
        pair = ck.build_pair(tokenizer, QUESTIONS[i], PASSAGES[i], ends=ends)
        return plan_of(model, tokenizer, [pair], [ck.Control("weights", alpha=ALPHAS[i])], options, ends=ends)

    batch = RunningBatch()
    rows = {0: batch.join(plan(0))[0]}
    batch.step()
    rows |= {i: row for i, (row,) in zip((1, 2), batch.join_together([plan(1), plan(2)]), strict=True)}
    batch.step()
    rows[1].ended = True
    rows[3] = batch.join(plan(3))[0]
    for _ in range(3):
        batch.step()
    for i, answer in enumerate(ask(model, tokenizer, range(4), ALPHAS)):
        made = rows[i].tokens[:6]
        assert len(made) >= 2 and made == list(answer.token_ids)[: len(made)]


def test_refusals_of_decoding(loaded, llama):
    model, tokenizer = loaded
    weights = ck.Control("weights", alpha=0.2)
    how = {"max_new_tokens": 2}
    with pytest.raises(ControlError, match=r"alpha=0\.2.*without a dial.*weights\.load"):
        ck.generate(*llama, "Who?", ["Me."], control=weights, **how)
    with pytest.raises(ControlError, match="'cad' in the same batch"):
        ck.generate(
            model, tokenizer, ["Who?"] * 2, [["Me."]] * 2, control=[weights, ck.Control("cad", alpha=0.2)], **how
        )
    with pytest.raises(UnsupportedMode, match="compiled"):
        ck.generate(model, tokenizer, "Who?", ["Me."], control=weights, compile=True, **how)
    with pytest.raises(UnsupportedMode, match="decoding_loop"):
        ids = tokenizer("Who?", return_tensors="pt").input_ids
        model.generate(ids, max_new_tokens=2, custom_generate=ck.decoding_loop(control=weights, parametric_ids=ids))


def test_refusals_of_loading_and_mixing(dial: Path, folders, tmp_path: Path):
    model, _ = tiny_model("llama")
    with pytest.raises(WeightsError, match="is no dial"):
        load(model, tmp_path)
    with pytest.raises(WeightsError, match="another model: family is 'llama' there and 'qwen3' here"):
        load(tiny_model("qwen3")[0], dial)
    load(model, dial)
    with pytest.raises(WeightsError, match=r"a dial or adapters already.*unload"):
        load(model, dial)
    unload(model)
    with pytest.raises(WeightsError, match=r"steps=8 leaves out alpha 0.5.*Take 9"):
        mix(model, *folders, tmp_path / "new", steps=8)
    with pytest.raises(WeightsError, match=r"method='tie'.*Did you mean 'ties'"):
        mix(model, *folders, tmp_path / "new", method="tie")
    with pytest.raises(WeightsError, match="exists"):
        mix(model, *folders, dial)
    with pytest.raises(WeightsError, match="holds no adapter"):
        mix(model, tmp_path, folders[1], tmp_path / "new")
    with pytest.raises(WeightsError, match="adapter of another model"):
        mix(tiny_model("gpt2")[0], *folders, tmp_path / "new")
    with pytest.raises(WeightsError, match="cannot merge"):
        mix(model, folders[0], adapter(tmp_path / "wide", 3, rank=4), tmp_path / "new", method="ties")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))
    assert not any("lora" in name for name, _ in model.named_modules())


def test_a_damaged_manifest_is_refused(dial: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(dial, copy)
    told = json.loads((copy / "ckcontrol-dial.json").read_text())
    told["adapters"][0]["folder"] = "../elsewhere"
    (copy / "ckcontrol-dial.json").write_text(json.dumps(told))
    with pytest.raises(WeightsError, match=r"'\.\./elsewhere'"):
        load(tiny_model("llama")[0], copy)
