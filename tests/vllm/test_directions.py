"""A direction in a real engine: the tokens that `ckcontrol.generate` gives under `added`, and nobody else's changed.

A flat batch of a runner's look first; then engines in processes of their own (live.py).
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ckcontrol import Control, GenerateOptions, generate
from ckcontrol.errors import ControlError, HeadsError
from ckcontrol.heads import Direction, Fingerprint, HeadMask, added, pruned
from ckcontrol.models.load import load
from ckcontrol.models.tiny import tiny_model, tiny_tokenizer
from ckcontrol.vllm.contract.changes import check, installed, own_salt, pack
from ckcontrol.vllm.contract.fallback import alone
from ckcontrol.vllm.engine.worker import HeadWorker
from ckcontrol.vllm.http.middleware import CKMiddleware

from . import parity
from .inner import Inner, ask
from .test_engine import BASE, check_empty, ordinary, plain_answers

here = pytest.mark.usefixtures("vllm_here")
pytestmark = pytest.mark.filterwarnings("ignore")
ALPHAS = (0.0, None, 1.0)


def direction_of(model: Any, layer: int = 0, strength: float = 12.0) -> Direction:
    torch.manual_seed(3)
    fingerprint = Fingerprint.of(model)
    return Direction(fingerprint, layer, torch.randn(fingerprint.hidden), context=strength, memory=strength / 2)


# --- a flat batch, without an engine ---------------------------------------------------------------------------------


def worker(model: Any, rows: list[tuple[int, int, int, float | None]], **config: Any) -> HeadWorker:
    """A worker whose batch has, per request: tokens of its prompt, computed before, to compute now; its coefficient."""
    prompts, computed, lengths, pushes = (list(column) for column in zip(*rows, strict=True))
    names = [f"r{i}" for i in range(len(rows))]
    text = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32} | config
    made = HeadWorker()
    made.vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(**text), enforce_eager=text.pop("eager", True))
    )
    given = [{"ckdirection": push} if push is not None else {} for push in pushes]
    made.model_runner = SimpleNamespace(
        model=model,
        device=torch.device("cpu"),
        requests={
            name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=one))
            for name, one in zip(names, given, strict=True)
        },
        input_batch=SimpleNamespace(
            req_ids=names, num_prompt_tokens=np.array(prompts), num_computed_tokens_cpu=np.array(computed)
        ),
        query_start_loc=SimpleNamespace(np=np.concatenate([[0], np.cumsum(lengths)])),
    )
    return made


def test_only_the_tokens_whose_logits_are_asked_for_are_changed_and_others_keep_every_bit() -> None:
    """A whole prompt, the first part of one, its last part, an answer's token, one computed again, one without."""
    model = tiny_model("llama")[0]
    found = direction_of(model, layer=1)
    rows = [(4, 0, 4, 2.0), (9, 0, 5, 2.0), (9, 5, 4, -1.0), (3, 7, 1, 2.0), (3, 0, 6, 0.5), (4, 0, 4, None)]
    ids = torch.randint(5, 100, (1, sum(row[2] for row in rows)))
    pushed = torch.tensor([0, 0, 0, 2, *[0] * 5, 0, 0, 0, -1, 2, 0, 0, 0.5, 0.5, 0.5, 0.5, *[0] * 4])
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        plain = model.model(ids, output_hidden_states=True)
        made = worker(model, rows)
        assert made.ck_direction_install(*installed(found)) == "" == made.ck_direction_install(*installed(found))
        model.model.layers[1].register_forward_hook(lambda _, args, out: seen.append(out))
        model(ids)
        for request in made.model_runner.requests.values():
            request.sampling_params.extra_args = None
        model(ids)
        handle = model.model.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(ids)
        handle.remove()
    changed, free = seen[0], seen[1]
    assert torch.equal(changed, torch.where(pushed[:, None] != 0, free + pushed[:, None] * found.vector, free))
    assert torch.equal(seen[2], plain.hidden_states[1]), "the layer before is not touched"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eager": False}, "directions act in eager mode only"),
        ({"model_type": "unheard-of"}, "'unheard-of' is not known"),
        ({"hidden_size": 64}, r"is for ('llama', 2, 4, 32), and the model is ('llama', 2, 4, 64)"),
        ({"num_hidden_layers": 3}, r"is for ('llama', 2, 4, 32), and the model is ('llama', 3, 4, 32)"),
        ({"model_type": "gpt_neox"}, "LlamaForCausalLM, as vLLM runs 'gpt_neox', has its layers in an unknown place"),
    ],
)
def test_engines_in_which_a_direction_cannot_act_say_so(change: dict[str, Any], said: str) -> None:
    model = tiny_model("llama")[0]
    assert said in worker(model, [(4, 0, 4, 2.0)], **change).ck_direction_install(*installed(direction_of(model)))


def test_other_runners_and_a_second_direction_are_refused() -> None:
    model = tiny_model("llama")[0]
    made = worker(model, [(4, 0, 4, 2.0)])
    assert made.ck_direction_install(*installed(direction_of(model))) == ""
    assert "another direction" in made.ck_direction_install(*installed(direction_of(model, layer=1)))
    made = worker(model, [(4, 0, 4, 2.0)])
    made.model_runner = SimpleNamespace(model=model)
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in made.ck_direction_install(*installed(direction_of(model)))


def test_arguments_that_are_no_push_are_refused_and_salts_are_nobody_elses() -> None:
    from ckcontrol.errors import ServingError

    for good in ({"ckdirection": -3.5}, {"ckdirection": 2}, {}):
        check(good)
    for bad in ("1", None, True, float("nan"), float("inf"), 2e6, 10**400, [1.0]):
        with pytest.raises(ServingError, match="ckdirection is not a direction's coefficient"):
            check({"ckdirection": bad})
    assert len({own_salt() for _ in range(4)}) == 4 and own_salt().startswith("ck_heads_")


# --- the middleware, without an engine -------------------------------------------------------------------------------


def through(body: dict[str, Any], found: Direction | None, said: str = "") -> tuple[Any, Inner, list[Any]]:
    """What a client gets, what vLLM is sent, and what the workers are asked; `said` is why they refuse."""
    calls: list[Any] = []

    async def rpc(method: str, args: Any) -> list[Any]:
        calls.append((method, args))
        return [said] if method == "ck_direction_install" else [{}]

    inner = Inner()
    app = CKMiddleware(inner, tokenizer=tiny_model("llama")[1], direction=found)
    state = SimpleNamespace(engine_client=SimpleNamespace(collective_rpc=rpc))
    return asyncio.run(ask(app, body, state=state)), inner, [call for call in calls if "direction" in call[0]]


def asking(**ck: Any) -> dict[str, Any]:
    given = {"passages": ["Orvendale is a town."], "method": "cad", "alpha": 0.3} | ck
    messages = [{"role": "user", "content": "What is Orvendale?"}]
    return {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 8, "cache_salt": "mine", "ck": given}


def test_both_rows_of_a_request_carry_the_coefficient_and_salts_of_their_own() -> None:
    found = direction_of(tiny_model("llama")[0])
    salts = set[str]()
    for ck in ({"direction": 0.25}, {"direction": 1}, {"direction": 1, "method": "off", "alpha": None}):
        body = asking(**ck)
        body["vllm_xargs"] = {"ckdirection": 77.0, "mine": 1}
        got, inner, calls = through(body, found)
        assert got.status == 200 and got.json["ck"]["direction"] == ck["direction"]
        assert calls == [("ck_direction_install", installed(found))] and len(inner.seen) == 2
        for _, sent in inner.seen:
            assert sent["vllm_xargs"]["ckdirection"] == found.coefficient(ck["direction"])
            assert sent["vllm_xargs"]["mine"] == 1
            salts.add(sent["cache_salt"])
    assert len(salts) == 6 and "mine" not in salts


def test_drafts_of_a_request_share_its_salts() -> None:
    found = direction_of(tiny_model("llama")[0])
    _, inner, _ = through(asking(direction=0.0, method="dial", alpha=0.7), found)
    salts = {(sent["vllm_xargs"]["ck_role"], sent["cache_salt"]) for _, sent in inner.seen}
    assert len(inner.seen) == 4 and len(salts) == len({salt for _, salt in salts}) == 2


def test_half_way_nothing_is_added_and_the_workers_are_not_asked() -> None:
    got, inner, calls = through(asking(direction=0.5), direction_of(tiny_model("llama")[0]))
    assert got.status == 200 and not calls
    for _, sent in inner.seen:
        assert "ckdirection" not in sent["vllm_xargs"] and sent["cache_salt"] == "mine"


def test_what_a_direction_cannot_do_is_a_400_with_a_remedy() -> None:
    model = tiny_model("llama")[0]
    one_way = Direction(Fingerprint.of(model), 0, torch.ones(32), context=3.0, memory=0.0)
    for found, alpha, refused, said in (
        (None, 0.2, "", r"ck\.direction was given, and this server has none.*--direction FILE"),
        (one_way, 0.9, "", r"does not lead toward the memory.*other side of alpha"),
        (one_way, 1.5, "", r"ck\.direction=1\.5.*0.*1"),
        (
            one_way,
            0.1,
            "the direction is for X, and",
            r"ck\.direction: the direction is for X, and.*serve-vllm --direction",
        ),
    ):
        got, inner, _ = through(asking(direction=alpha), found, refused)
        assert got.status == 400 and re.search(said, got.message), got.message
        assert not inner.seen


def test_no_client_can_push_a_model() -> None:
    body = {"prompt": "Hi", "vllm_xargs": {"ckdirection": 5.0, "mine": 1}, "extra_args": {"ckdirection": 5.0}}
    _, inner, _ = through(body, direction_of(tiny_model("llama")[0]))
    ((_, sent),) = inner.seen
    assert sent["vllm_xargs"] == {"mine": 1} and sent["extra_args"] == {}
    form = (b"content-type", b"multipart/form-data; boundary=b")
    part = b'--b\r\nContent-Disposition: form-data; name="vllm_xargs"\r\n\r\n{"ckdirection": 5.0}\r\n--b--\r\n'
    for sent in (part, part.replace(b"ckd", b"\\u0063\\u006b\\u0064")):
        got = asyncio.run(ask(CKMiddleware(Inner()), sent, headers=(form,)))
        assert got.status == 400 and "ours alone" in got.message


def test_the_direction_stays_when_the_pair_is_lost() -> None:
    got = alone({"cache_salt": "s", "vllm_xargs": {"ckdirection": -2.0, "ck_pair": "x"}}, GenerateOptions())
    assert got["vllm_xargs"] == {"ckdirection": -2.0} and got["cache_salt"] == "s"


def test_the_file_that_the_environment_names_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = direction_of(tiny_model("llama")[0])
    found.save(tmp_path / "d.safetensors")
    monkeypatch.setenv("CKCONTROL_VLLM_DIRECTION", str(tmp_path / "d.safetensors"))
    _, inner, calls = through(asking(direction=0.0), None)
    assert len(calls) == 1 and inner.seen[0][1]["vllm_xargs"]["ckdirection"] == -12.0
    (tmp_path / "d.safetensors").write_bytes(b"no")
    with pytest.raises(HeadsError, match=r"d\.safetensors.*cannot be read"):
        CKMiddleware(Inner())


# --- engines ---------------------------------------------------------------------------------------------------------


def led_cases(small: Any, count: int, **more: Any) -> tuple[list[parity.Case], list[float | None], Direction]:
    """Cases of `parity.make_cases`, in turn toward the context, not led, and toward memory; and their coefficients."""
    _, model, tokenizer = small
    found = direction_of(model)
    by_alpha: list[list[parity.Case]] = []
    for alpha in ALPHAS:
        with added(model, found, 0.5 if alpha is None else alpha):
            by_alpha.append(parity.make_cases(model, tokenizer, count, **more))
    cases = [by_alpha[i % 3][i] for i in range(len(by_alpha[0]))]
    assert sum(case.want != by_alpha[1][i].want for i, case in enumerate(cases)) > len(cases) / 3
    return cases, [None if (a := ALPHAS[i % 3]) is None else found.coefficient(a) for i in range(len(cases))], found


def led(work: dict[str, Any], pushes: list[float | None], found: Direction) -> dict[str, Any]:
    """The job, with each pair's coefficient."""
    for pair, push in zip(work["pairs"], pushes, strict=True):
        if push is not None:
            pair["changes"] = {"ckdirection": push}
    return work | {"direction": installed(found)}


@pytest.fixture(scope="module")
def cases(small: Any) -> tuple[list[parity.Case], list[float | None], Direction]:
    return led_cases(small, 33, new_tokens=16, first=18)


@here
@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ({"max_num_batched_tokens": 64, "max_num_seqs": 16, "enable_prefix_caching": False}, {}),
        ({"max_num_batched_tokens": 128, "enable_prefix_caching": True}, {"stagger": 2, "late": 3, "laps": 2}),
    ],
    ids=["small chunks", "prefix caching, staggered, twice"],
)
def test_pairs_answer_as_generate_does_under_added(
    engine: dict[str, Any], more: dict[str, Any], small: Any, cases: Any
) -> None:
    """Every policy, greedy and sampled, beside pairs that are not led and ordinary requests."""
    mine, pushes, found = cases
    result = parity.live(
        led(parity.job(*small, mine, BASE | engine, ordinary=ordinary(mine), **dict(more)), pushes, found)
    )
    check_empty(result)
    for number, lap in enumerate(result["laps"]):
        assert parity.differences(mine, lap, number) == []
        assert [lap["outputs"][f"{number}-o{i}"]["ids"] for i in range(4)] == plain_answers(small[1], mine)


@here
@pytest.mark.parametrize("asynchronous", [False, True])
def test_preempted_pairs_are_led_where_they_were(asynchronous: bool, small: Any) -> None:
    mine, pushes, found = led_cases(small, 16, longest=200, new_tokens=60)
    engine = {"max_model_len": 448, "block_size": 32, "max_num_batched_tokens": 256, "max_num_seqs": 32}
    engine |= {"enable_prefix_caching": not asynchronous, "num_gpu_blocks_override": 32 if asynchronous else 40}
    work = parity.job(*small, mine, engine, **({"async": True} if asynchronous else {}))
    result = parity.live(led(work, pushes, found))
    check_empty(result)
    assert result["counts"]["preempted"] > 0 and result["async"] == asynchronous
    assert parity.differences(mine, result["laps"][0]) == []


@here
def test_a_later_turn_finds_no_block_of_a_led_answer(small: Any) -> None:
    """The second prompt holds the first and its answer, in whole blocks; its own keys there are the plain model's."""
    model, ids = small[1], list(range(60, 90))
    found = direction_of(model)

    def case(ids: list[int], alpha: float) -> parity.Case:
        prompt = torch.tensor([ids])
        with added(model, found, alpha):
            made = model.generate(prompt, max_new_tokens=70, do_sample=False, eos_token_id=258, pad_token_id=256)
        options = GenerateOptions(max_new_tokens=70)
        return parity.Case(ids, ids[:7], Control("off"), options, made[0, len(ids) :].tolist(), [], [], None)

    first = case(ids, 0.0)
    ids = [*ids, *first.want, *range(100, 130)]
    led_again, not_again = case(ids, 0.0), case(ids, 0.5)
    assert len(first.want) == 70 and led_again.want != not_again.want

    def differ(second: parity.Case, pushes: list[float | None], **more: Any) -> list[str]:
        work = parity.job(*small, [first, second], BASE | {"enable_prefix_caching": True}, stagger=150, **more)
        return parity.differences([first, second], parity.live(led(work, pushes, found))["laps"][0])

    push = found.coefficient(0.0)
    assert differ(led_again, [push, push]) == [] == differ(not_again, [push, None])
    (wrong,) = differ(led_again, [push, push], salt="one for both")
    assert wrong.startswith("pair 1"), "a salt for each direction would not do"


@here
def test_a_mask_and_the_direction_act_in_one_request(small: Any) -> None:
    _, model, tokenizer = small
    found, mask = direction_of(model), HeadMask.of(model, [(1, 0)], factor=2.0)
    with added(model, found, 1.0), pruned(model, mask):
        both = parity.make_cases(model, tokenizer, 6, longest=100, new_tokens=12)
    with added(model, found, 1.0):
        one = parity.make_cases(model, tokenizer, 6, longest=100, new_tokens=12)
    mine = [both[i] if i % 2 else one[i] for i in range(6)]
    assert sum(a.want != b.want for a, b in zip(both, one, strict=True)) > 3
    work = led(parity.job(*small, mine, BASE), [found.coefficient(1.0)] * 6, found)
    entries = tuple((layer, head, factor) for (layer, head), factor in mask.factors.items())
    for pair in work["pairs"][1::2]:
        pair["changes"]["ckheads"] = pack(entries)
    assert parity.differences(mine, parity.live(work)["laps"][0]) == []


@here
def test_steered_llm_is_led_as_added_leads_generate(small: Any) -> None:
    """One alpha per item, of tokens and of whole answers, with masks; and plain requests to the engine beside."""
    from vllm import SamplingParams

    from ckcontrol.vllm import SteeredLLM

    folder, model, tokenizer = small
    found, mask = direction_of(model), HeadMask.of(model, [(1, 0)], factor=2.0)
    items = [("Who?", ["Ann wrote it in May."]), ("When?", ["In June."] * 9), "Where?", ("What?", ["Nothing."])]
    asked = [("Where?", []) if isinstance(item, str) else item for item in items]
    controls = [Control("ck-plug", alpha=0.2), Control("off"), Control("off"), Control("dial", alpha=0.7)]
    engine = {"dtype": "float32", "max_model_len": 512, "block_size": 32, "max_num_batched_tokens": 48}
    with SteeredLLM(folder, direction=found, **engine) as llm:
        changed = 0
        for alphas, masks in (([0.0, 0.3, 1.0, 0.9], [None] * 4), ([1.0, None, 0.5, 0.0], [mask, mask, None, None])):
            got = llm.generate(items, control=controls, heads=masks, direction_alpha=alphas, max_new_tokens=12)
            for answer, item, control, alpha, one in zip(got, asked, controls, alphas, masks, strict=True):
                with added(model, found, 0.5 if alpha is None else alpha), pruned(model, one or HeadMask.of(model)):
                    want = generate(model, tokenizer, *item, control=control, max_new_tokens=12)
                assert answer.token_ids == want.token_ids and len(answer.drafts) == len(want.drafts)
                free = generate(model, tokenizer, *item, control=control, max_new_tokens=12)
                changed += free.token_ids != want.token_ids
        assert changed >= 5
        got = llm.generate(items, control=controls, direction_alpha=0.0, max_new_tokens=12)
        plain = llm.generate(items, control=controls, max_new_tokens=12)
        assert [a.token_ids for a in got] != [a.token_ids for a in plain]
        half = llm.generate(items, control=controls, direction_alpha=0.5, max_new_tokens=12)
        assert [a.token_ids for a in half] == [a.token_ids for a in plain]
        ids = list(range(60, 90))
        (made,) = llm.llm.generate(
            [{"prompt_token_ids": ids}], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True), use_tqdm=False
        )
        own = model.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert list(made.outputs[0].token_ids) == own[0, 30:].tolist()
        with pytest.raises(HeadsError, match="2 alphas of the direction for 4 items"):
            llm.generate(items, direction_alpha=[0.1, None])
    with pytest.raises(HeadsError, match=r"is for \('llama', 2, 4, 32\), and the model is \('llama', 2, 2, 64\)"):
        SteeredLLM(folder, direction=direction_of(tiny_model("llama")[0]), **engine)


@here
def test_an_alpha_without_a_direction_or_beyond_its_sides_is_refused_before_the_engine_is_asked(small: Any) -> None:
    from ckcontrol.vllm import SteeredLLM

    llm = SteeredLLM.__new__(SteeredLLM)
    llm.direction = None
    with pytest.raises(HeadsError, match=r"direction_alpha=0\.2 met an engine without.*SteeredLLM\(model, direction="):
        llm._pushes([None, 0.2], 2)
    assert llm._pushes(None, 3) == [0.0] * 3
    llm.direction = Direction(Fingerprint.of(small[1]), 0, torch.ones(64), context=0.0, memory=3.0)
    with pytest.raises(HeadsError, match="does not lead toward the context"):
        llm._pushes(0.2, 2)
    with pytest.raises(ControlError, match="direction_alpha=2 is out of range"):
        llm._pushes([0.5, 2], 2)
    with pytest.raises(HeadsError, match=r"direction='d\.safetensors'.*Direction\.load"):
        SteeredLLM(small[0], direction="d.safetensors")


# family -> (prefix of its classes, its own fields of the config). Heads are as wide as vLLM's CPU attention asks for;
# attention has no softcap, which transformers' sdpa leaves out.
_LLAMA = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 64}
_GEMMA = {**_LLAMA, "num_key_value_heads": 1, "head_dim": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {**_LLAMA, "num_key_value_heads": 1}),
    "gemma3": ("Gemma3", {**_GEMMA, **_MIXED, "query_pre_attn_scalar": 32}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 3, "n_head": 2, "n_inner": 96}),
    "mistral": ("Mistral", {**_LLAMA, "num_key_value_heads": 1, "sliding_window": 64}),
    "qwen3": ("Qwen3", _GEMMA),
    "gemma": ("Gemma", _GEMMA),
    "gemma2": ("Gemma2", {**_GEMMA, **_MIXED, "query_pre_attn_scalar": 32, "attn_logit_softcapping": None}),
    "gptj": ("GPTJ", {"n_embd": 64, "n_layer": 3, "n_head": 2, "n_inner": 96, "rotary_dim": 32}),
    "opt": ("OPT", {**_LLAMA, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "olmo2": ("Olmo2", _LLAMA),
    "phi": ("Phi", _LLAMA),
}


def checkpoint(folder: Path, name: str) -> str:
    """Write a random model of a family in which what a layer adds outweighs the embedding, and every norm is random."""
    prefix, fields = FAMILIES[name]
    common = {"vocab_size": 320, "initializer_range": 0.3, "pad_token_id": 256, "bos_token_id": 257}
    tied = name in ("gemma", "gemma2")  # in vLLM always
    common |= {"eos_token_id": 258, "max_position_embeddings": 1024, "tie_word_embeddings": tied}
    config = getattr(transformers, prefix + ("TextConfig" if name == "gemma3" else "Config"))(**common, **fields)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(transformers, prefix + ("LMHeadModel" if name == "gpt2" else "ForCausalLM"))(config).float()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        model.get_input_embeddings().weight *= 0.1
        if tied:
            model.model.norm.weight += 20  # logits of more than ties
    model.generation_config.eos_token_id = 258
    model.save_pretrained(str(folder))
    tiny_tokenizer().save_pretrained(str(folder))
    return str(folder)


@here
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_led_as_added_leads_it(name: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, name)
    model, tokenizer = load(folder, device="cpu")
    found = direction_of(model, layer=1, strength=40.0)
    options = {"max_new_tokens": 12, "control": Control("off")}
    items = [(question, [parity.FACTS[i]] * (1 + i)) for i, question in enumerate(parity.QUESTIONS[:5])]
    alphas = [0.0, 0.3, None, 1.0, 0.8]
    mine, free = [], []
    for (question, passages), alpha in zip(items, alphas, strict=True):
        pair = parity.build_pair(tokenizer, question, passages)
        free.append(list(generate(model, tokenizer, question, passages, **options).token_ids))
        with added(model, found, 0.5 if alpha is None else alpha):
            want = list(generate(model, tokenizer, question, passages, **options).token_ids)
        case = [list(pair.contextual), list(pair.parametric), Control("off"), GenerateOptions(max_new_tokens=12), want]
        mine.append(parity.Case(*case, [], [], None))
    assert sum(case.want != other for case, other in zip(mine, free, strict=True)) >= 3, "the direction acts"
    pushes = [None if alpha is None else found.coefficient(alpha) for alpha in alphas]
    engine = {"max_model_len": 512, "block_size": 32, "max_num_batched_tokens": 48, "max_num_seqs": 8}
    result = parity.live(led(parity.job(folder, model, tokenizer, mine, engine), pushes, found))
    assert parity.differences(mine, result["laps"][0]) == []
