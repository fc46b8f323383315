"""One command that measures a GPU: the GPU tests, both engines' steps against their baselines, new lengths, launches.

    python benchmarks/gpu.py                                 every part, at most ten minutes: make bench-gpu
    python benchmarks/gpu.py tests steps lengths             some parts; what other runs found on this card is kept
    python benchmarks/gpu.py --page                          docs/gpu-results.md from docs/results/gpu/*.json
    python benchmarks/gpu.py steps --shape tiny --device cpu --out build/gpu      a rehearsal where there is no GPU

Parts: `tests` (tests/gpu), `steps` (a decode step of both streams against the weight floor, plain `generate`, a static
cache with compile, and guidance_scale), `lengths` (a length never seen before, first time against again), `launches`
(kernels of one vLLM step), `vllm` (answers per second and milliseconds a step, pairs against plain rows). The
model has the shape of Llama-3-8B, random weights, bfloat16; nothing is downloaded. Every figure is written as soon as
it is known; a part that fails writes its reason. Needs no installation: it makes a package of this folder by links.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "gpu"
PAGE = ROOT / "docs" / "gpu-results.md"
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "tiny": {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
    },
}
STEPS = [(1, 512), (1, 4096), (8, 512), (32, 512), (32, 2048)]  # batch, context
PARAMETRIC = 32
PAIRS = (1, 32, 128)
_VLLM_CONTEXT, _VLLM_PARAMETRIC = 512, 64


def linked_package() -> Path:
    """Return a folder whose `ckcontrol` is what an installation would hold: retrieval/ and eval/ inside the package."""
    place = ROOT / "build" / "linked"
    package = place / "ckcontrol"
    package.mkdir(parents=True, exist_ok=True)
    inside = {path.name: path for path in (ROOT / "ckcontrol").iterdir() if path.name != "__pycache__"}
    for name, path in (inside | {name: ROOT / name for name in ("retrieval", "eval")}).items():
        if not (package / name).is_symlink():
            (package / name).symlink_to(path, target_is_directory=path.is_dir())
    return place


def model_of(shape: str, device: str) -> Any:
    """Return a Llama of this shape with random weights, bfloat16 on a GPU and float32 on a CPU."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**SHAPES[shape], bos_token_id=0, eos_token_id=None, pad_token_id=0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    return model


def floor_ms(model: Any) -> float:
    """Return the milliseconds that reading all weights once takes at the speed at which this device copies."""
    import torch

    size = 2**28 if model.device.type == "cuda" else 2**24
    source = torch.empty(size, dtype=torch.float32, device=model.device)
    target = torch.empty_like(source)
    seconds = min(timed(lambda: target.copy_(source)) for _ in range(5))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return 1000 * weights * seconds / (2 * source.numel() * 4)


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds of one call, with the device's work done."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def per_token_ms(run: Callable[[int], Any], few: int, many: int, rounds: int) -> float:
    """Return the milliseconds of one further token: what `many` tokens take beyond `few`, so prefills cancel out."""
    run(few)
    found = []
    for _ in range(rounds):
        short, long = timed(lambda: run(few)), timed(lambda: run(many))
        found.append(1000 * (long - short) / (many - few))
    return median(found)


def prompts(model: Any, batch: int, context: int, seed: int) -> tuple[Any, Any]:
    """Return random ids of both streams."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    width = model.config.vocab_size
    made = [torch.randint(10, width, (batch, length), generator=generator) for length in (context, PARAMETRIC)]
    return made[0].to(model.device), made[1].to(model.device)


def rivals(model: Any, ids: Any, par: Any) -> dict[str, Callable[[int], Any]]:
    """Return what is timed, by name; each takes the number of new tokens."""
    import torch

    import ckcontrol as ck

    control = ck.Control("ck-plug", alpha=0.25)
    common = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}

    def plain(new: int, **more: Any) -> Any:
        return model.generate(ids, max_new_tokens=new, **common, **more)

    def ours(new: int, **more: Any) -> Any:
        loop = ck.decoding_loop(control, parametric_ids=par, **more)
        return model.generate(ids, custom_generate=loop, max_new_tokens=new, **common)

    negative = {"negative_prompt_ids": par, "negative_prompt_attention_mask": torch.ones_like(par)}
    return {
        "plain": plain,
        "ours": ours,
        "ours, compile": lambda new: ours(new, compile=True),
        "static cache + compile": lambda new: plain(new, cache_implementation="static"),
        "guidance_scale": lambda new: plain(new, guidance_scale=1.5, **negative),
    }


def measure_steps(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Milliseconds a decode step, and ratios within the run."""
    model = model_of(given.shape, given.device)
    floor = floor_ms(model)
    yield {"weight_floor_ms": round(floor, 2), "unit": "ms per decode step"}
    for batch, context in STEPS:
        found: dict[str, Any] = {}
        ids, par = prompts(model, batch, context, 0)
        runs = rivals(model, ids, par)
        wanted = list(runs) if (batch, context) == (1, 512) else ["plain", "ours"]
        if (batch, context) == (8, 512):
            wanted.append("ours, compile")
        for name in wanted:
            few, many = (4, 12) if given.device == "cpu" else (8, 40)
            try:
                found[name] = round(per_token_ms(runs[name], few, many, 3), 2)
            except Exception as error:  # a baseline that does not run here leaves the others
                found[name] = f"failed: {type(error).__name__}: {error}"[:200]
            timed_ = {other: ms for other, ms in found.items() if isinstance(ms, float)}
            told: dict[str, Any] = {"ms": found}
            if "ours" in timed_:
                told["of ours"] = {other: round(ms / timed_["ours"], 2) for other, ms in timed_.items()}
                told["ours over the floor"] = round(timed_["ours"] / floor, 2)
            yield {f"batch {batch}, context {context}": told}


def measure_lengths(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """24 tokens at lengths this process has not seen: the first time over the second, per engine."""
    model = model_of(given.shape, given.device)
    for batch in (1, 8):
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        for number in range(-1, 4):  # the first is a warm-up
            ids, par = prompts(model, batch, 531 + 67 * number, number + 1)
            runs = rivals(model, ids, par)
            for name, found in rates.items():
                first, again = (timed(lambda run=runs[name]: run(24)) for _ in range(2))
                if number >= 0:
                    found.append(first / again)
        yield {f"batch {batch}, first over again": {name: round(median(found), 2) for name, found in rates.items()}}


def measure_launches(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Kernels that one `apply` of the vLLM processor launches at 32 pairs; on a CPU the operators it calls."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    import ckcontrol as ck
    from benchmarks.vllm_pairs import processor_and_logits

    for name, options in (
        ("greedy", ck.GenerateOptions()),
        ("top-p", ck.GenerateOptions(do_sample=True, seed=1, top_p=0.9)),
    ):
        apply, logits, _ = processor_and_logits(
            32, options, [ck.Control("ck-plug", alpha=0.2)], 6.0, 128256, given.device
        )
        for _ in range(3):
            apply(logits.clone())
        batch = logits.clone()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + torch.cuda.is_available()]) as seen:
            apply(batch)
        launched = sum(event.count for event in seen.key_averages() if "LaunchKernel" in event.key)
        yield {name: launched if torch.cuda.is_available() else f"{len(seen.events())} operators (no GPU)"}


def vllm_folder(shape: str) -> str:
    """Return a folder with the configuration of this shape and the tiny tokenizer; weights are vLLM's dummy ones."""
    from ckcontrol.models.tiny import tiny_model

    folder = ROOT / "build" / f"shape-{shape}"
    model, tokenizer = tiny_model("llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= SHAPES[shape] | {"head_dim": None, "torch_dtype": "bfloat16", "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def measure_vllm(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Answers per second at saturation, and milliseconds a step: pairs against the same number of plain rows."""
    import random

    from vllm import SamplingParams

    import ckcontrol as ck
    from benchmarks.vllm_pairs import ENDLESS, rows_of
    from ckcontrol.vllm import SteeredLLM

    cpu = given.device == "cpu"
    r = random.Random(0)
    width = SHAPES[given.shape]["vocab_size"]
    steered = SteeredLLM(
        vllm_folder(given.shape),
        load_format="dummy",
        dtype="float32" if cpu else "bfloat16",
        max_model_len=1024,
        max_num_seqs=256,
        enable_prefix_caching=False,
        **({"enforce_eager": True} if cpu else {}),
    )
    greedy = ck.GenerateOptions()
    kinds = {"pairs": greedy, "pairs, top-p": ck.GenerateOptions(do_sample=True, seed=1, top_p=0.9)}

    def ids(length: int) -> dict[str, list[int]]:
        return {"prompt_token_ids": [r.randrange(10, width) for _ in range(length)]}

    def seconds(count: int, new: int, options: ck.GenerateOptions | None, contexts: tuple[int, int]) -> float:
        """`count` pairs, or as many plain rows of the given contexts."""
        asked, prompts_ = [], []
        for _ in range(count):
            if options is None:
                asked += [SamplingParams(temperature=0, max_tokens=new, **ENDLESS) for _ in contexts]
            else:
                asked += rows_of(ck.Control("ck-plug", alpha=0.2), options, new)
            prompts_ += [ids(length) for length in contexts]
        start = time.perf_counter()
        steered.llm.generate(prompts_, asked, use_tqdm=False)
        return time.perf_counter() - start

    both, new = (_VLLM_CONTEXT, _VLLM_PARAMETRIC), 8 if cpu else 64
    many = 16 if cpu else 512
    for options in (None, *kinds.values()):
        seconds(2, 4, options, both)
    rates: dict[str, list[float]] = {}
    for _ in range(1 if cpu else 2):
        rates.setdefault("plain", []).append(many / seconds(many, new, None, (_VLLM_CONTEXT,)))
        for name, options in kinds.items():
            rates.setdefault(name, []).append(many / seconds(many, new, options, both))
        yield {
            "answers per second": {name: round(median(found), 1) for name, found in rates.items()},
            "answers per plain answer": {n: round(median(f) / median(rates["plain"]), 3) for n, f in rates.items()},
        }
    for count in PAIRS[: 1 if cpu else 3]:
        few, more = (2, 8) if cpu else (8, 72)
        found = {}
        for name, options in {"plain rows": None, **kinds}.items():
            spans = [seconds(count, more, options, both) - seconds(count, few, options, both) for _ in range(3)]
            found[name] = round(1000 * median(spans) / (more - few), 2)
        over = {name: round(ms / found["plain rows"], 3) for name, ms in found.items()}
        yield {f"step, {count} pairs": {"ms": found, "over plain rows": over}}


def measure_tests(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The last line of pytest over tests/gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    yield {
        "exit": done.returncode,
        "pytest": (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1].strip("= "),
    }


MEASURES: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "tests": measure_tests,
    "steps": measure_steps,
    "lengths": measure_lengths,
    "launches": measure_launches,
    "vllm": measure_vllm,
}


def run_part(part: str, given: argparse.Namespace) -> None:
    """Measure one part in this process; every figure goes to the card's file at once."""
    import torch
    import transformers

    name = torch.cuda.get_device_name() if given.device != "cpu" else "cpu"
    path = given.out / f"{name.lower().replace(' ', '-')}.json"
    whole: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"card": name}
    about = {"date": str(date.today()), "torch": torch.__version__, "transformers": transformers.__version__}
    whole[part] = {**about, "shape": given.shape}
    try:
        for found in MEASURES[part](given):
            whole[part] |= found
            _write(path, whole)
            print(part, json.dumps(found), flush=True)
    except Exception as error:  # the other parts are worth having
        traceback.print_exc()
        whole[part]["failed"] = f"{type(error).__name__}: {error}"[:300]
        _write(path, whole)


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def page(folder: Path) -> str:
    """Return the page of all cards, as Markdown: every figure there is, none that there is not."""
    lines = [
        "# Measured on GPUs",
        "",
        "Written by `python benchmarks/gpu.py --page` from docs/results/gpu/. Shape and",
        "",
    ]
    lines[2] += " random weights of Llama-3-8B unless a part says otherwise; `make bench-gpu` measures yours."
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    if not cards:
        lines.append("No card has been measured with this version yet: run `make bench-gpu` on one.")
    for card in cards:
        lines += [f"## {card['card']}", ""]
        for part, found in card.items():
            if isinstance(found, dict):
                facts = ", ".join(str(found[name]) for name in ("date", "shape") if name in found)
                lines += [f"### {part} ({facts}; torch {found['torch']}, transformers {found['transformers']})", ""]
                told = {
                    name: value
                    for name, value in found.items()
                    if name not in ("date", "shape", "torch", "transformers")
                }
                lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in told.items()), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name}: {_cell(one)}" if not isinstance(one, dict) else f"**{name}** {_cell(one)}"
            for name, one in value.items()
        )
    return str(value).replace("|", "\\|")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*MEASURES, []], metavar="PART", help=", ".join(MEASURES))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one part, in this process
    given = parser.parse_args()
    if given.page:
        PAGE.write_text(page(given.out), encoding="utf-8")
        return
    if given.here:
        run_part(given.parts[0], given)
        return
    search = os.pathsep.join([str(linked_package()), str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # FlashInfer is no dependency of vLLM's wheel for every card; its sampler is not used by steered rows.
    child = os.environ | {"PYTHONPATH": search, "HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    options = ["--shape", given.shape, "--device", given.device, "--out", str(given.out)]
    for part in given.parts or MEASURES:  # a process each: memory, and a crash, stay with their part
        subprocess.run([sys.executable, __file__, part, "--here", *options], cwd=ROOT, env=child, check=False)


if __name__ == "__main__":
    main()
