"""Random lives of pairs in the real scheduler with the real KV cache manager, and a worker that only counts.

One case: ordinary requests and pairs with random lengths, arrivals, ends, aborts, missing and doubled partners, in an
engine with a random token budget, row limit, KV size and prefix caching. What must hold at every step and at the end is
in `Case._check_step` and `Case._check_end`. Run many with

    python -m tests.vllm.fuzz --cases 5000                       (from the repository, in an environment with vLLM)

Knows vLLM's scheduler interface; knows nothing of models. `--kinds` picks sync, sync1 (outputs processed one step late,
as under pipeline parallelism), async0 (the asynchronous scheduler, stepped synchronously) and async1 (one step late, as
on an accelerator).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ckcontrol import Control
from ckcontrol.vllm.contract import pair_params as params

KINDS = ("sync", "sync1", "async0", "async1")
BLOCK, LONGEST, EOS = 16, 256, 2


@cache
def _model_folder() -> str:
    """A config is all the scheduler asks of a model."""
    folder = Path(tempfile.mkdtemp(prefix="ckcontrol-fuzz-"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 192,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@cache
def _config(kind: str, budget: int, rows: int, prefix: bool) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from ckcontrol.vllm.engine.scheduler import PairAsyncScheduler, PairScheduler

    made = EngineArgs(
        model=_model_folder(),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_batched_tokens=budget,
        max_num_seqs=rows,
        enable_prefix_caching=prefix,
        block_size=BLOCK,
        scheduler_cls=PairScheduler if kind.startswith("sync") else PairAsyncScheduler,
        additional_config={"ck_park_seconds": 60},
    ).create_engine_config()
    made.scheduler_config.async_scheduling = kind == "async1"
    return made


def make_scheduler(kind: str, blocks: int, budget: int, rows: int, prefix: bool) -> Any:
    """Return a scheduler with `blocks` KV blocks of 16 tokens."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = _config(kind, budget, rows, prefix)
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=3, head_size=64, dtype=torch.float32)
    return config.scheduler_config.get_scheduler_cls()(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )


@cache
def _hasher() -> Any:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK, sha256)


@dataclass
class Life:
    """One request: what was asked, and what came of it."""

    name: str
    pair: str | None
    role: str | None
    prompt: int
    longest: int
    arrives: int
    got: list[int] = field(default_factory=list)
    ended: str | None = None
    added: bool = False
    aborted: bool = False
    ends: int = 0


@dataclass
class Row:
    """What the worker knows of a request."""

    prompt: int
    computed: int
    outputs: int


def token(owner: str, index: int, eos: int) -> int:
    """The token that row or pair `owner` produces at output `index`, counted from 1."""
    return EOS if index == eos else 100 + (sum(map(ord, owner)) * 7919 + index * 104729) % 5000


class Case:
    """One random life of an engine."""

    def __init__(self, kind: str, seed: int) -> None:
        self.random = r = random.Random(f"{kind} {seed}")
        self.kind, self.seed = kind, seed
        self.blocks = r.choice([24, 26, 30, 40, 200])
        self.budget = r.choice([8, 16, 48, 128])
        self.prefix = r.random() < 0.5
        rows = min(r.choice([2, 3, 5, 8, 16]), self.budget)
        self.scheduler = make_scheduler(kind, self.blocks, self.budget, rows, self.prefix)
        self.step = 0
        self.scheduler._ck_clock = lambda: float(self.step)
        self.lives: dict[str, Life] = {}
        self.rows: dict[str, Row] = {}
        self.wrong: list[Any] = []
        self.eos: dict[str, int] = {}
        for i in range(r.randint(3, 14)):
            self._invent(i)
        self.coming = deque(sorted(self.lives.values(), key=lambda life: life.arrives))

    def _invent(self, i: int) -> None:
        r = self.random
        at, longest = r.randint(0, 40), r.randint(1, 40)
        if r.random() < 0.3:
            self._life(Life(f"o{i}", None, None, r.randint(2, 190), longest, at))
            return
        pair = f"pair{i}"
        late = r.choice([0, 0, 0, 3, 20])
        if r.random() < 0.4:
            self.eos[pair] = r.randint(1, 30)
        rows = [
            Life(f"c{i}", pair, "contextual", r.randint(1, 240), longest, at),
            Life(f"p{i}", pair, "parametric", r.randint(2, 40), longest + r.choice([0, 0, 9]), at),
        ]
        r.shuffle(rows)
        rows[1].arrives += late
        if r.random() < 0.05:
            rows.pop()  # the partner never comes
        elif r.random() < 0.05:
            rows[1].role = rows[0].role  # and here it comes twice
        for row in rows:
            self._life(row)

    def _life(self, life: Life) -> None:
        self.lives[life.name] = life

    # --- the life of the engine -----------------------------------------------------------------------------------

    def run(self) -> list[Any]:
        """Live to the end; return what was wrong."""
        scheduler, lag = self.scheduler, int(self.kind.endswith("1"))
        flying: deque[Any] = deque()
        idle = 0
        while self.coming or scheduler.has_requests() or flying:
            while self.coming and self.coming[0].arrives <= self.step:
                self._arrive(self.coming.popleft())
            if self.random.random() < 0.03:
                self._abort()
            output = scheduler.schedule()
            self.step += 1
            flying.append((output, self._work(output)))
            while len(flying) > lag or (flying and not output.num_scheduled_tokens):
                self._deliver(*flying.popleft())
            idle = 0 if output.num_scheduled_tokens or self.coming or scheduler._ck_parked else idle + 1
            if idle > 100 or self.step > 20_000:
                self.wrong.append(("stuck", self.step, [r.request_id for r in scheduler.running]))
                break
        self._check_end()
        return self.wrong

    def _arrive(self, life: Life) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        args = (
            None if life.pair is None else params.extra_args(life.pair, str(life.role), Control("ck-plug", alpha=0.2))
        )
        asked = SamplingParams(max_tokens=life.longest, temperature=0, extra_args=args)
        asked.update_from_generation_config({}, eos_token_id=EOS)
        shared = self.random.random() < 0.5
        prompt = [7 if shared else self.random.randint(10, 4000) for _ in range(life.prompt)]
        request = Request(
            life.name, prompt, asked, None, block_hasher=_hasher() if self.prefix else None, arrival_time=self.step
        )
        life.added = True
        self.scheduler.add_request(request)

    def _abort(self) -> None:
        from vllm.v1.request import RequestStatus

        alive = [life for life in self.lives.values() if life.added and life.ended is None and not life.aborted]
        if alive:
            life = self.random.choice(alive)
            life.aborted = True
            self.scheduler.finish_requests([life.name], RequestStatus.FINISHED_ABORTED)

    def _work(self, output: Any) -> Any:
        """Be the worker: advance every scheduled row, sample those that reached their end."""
        from vllm.v1.outputs import ModelRunnerOutput

        for name in output.finished_req_ids:
            self.rows.pop(name, None)
        for new in output.scheduled_new_reqs:
            self.rows[new.req_id] = Row(len(new.prompt_token_ids), new.num_computed_tokens, 0)
        cached = output.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            row, outputs = self.rows[name], cached.num_output_tokens[i]
            row.computed = cached.num_computed_tokens[i]
            if outputs < row.outputs or name in cached.resumed_req_ids:
                row.outputs = outputs
        sampled: dict[str, int] = {}
        for name, count in output.num_scheduled_tokens.items():
            row = self.rows[name]
            row.computed += count
            if row.computed > row.prompt + row.outputs:
                self.wrong.append(("overrun", self.step, name))
            if row.computed == row.prompt + row.outputs:
                row.outputs += 1
                owner = self.lives[name].pair or name
                sampled[name] = token(owner, row.outputs, self.eos.get(owner, 0))
        self._check_step(output, sampled)
        names = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=[[sampled[name]] if name in sampled else [] for name in names],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )

    def _deliver(self, output: Any, worked: Any) -> None:
        for told in self.scheduler.update_from_output(output, worked).values():
            for item in told.outputs:
                life = self.lives[item.request_id]
                life.got += item.new_token_ids
                if life.ended is not None:
                    self.wrong.append(("after the end", life.name))
                if item.finish_reason is not None:
                    life.ended, life.ends = str(item.finish_reason), life.ends + 1

    # --- what must hold -------------------------------------------------------------------------------------------

    def _mate(self, name: str) -> Life | None:
        pair = self.lives[name].pair
        return next((x for x in self.lives.values() if x.pair == pair and x.name != name and pair), None)

    def _check_step(self, output: Any, sampled: dict[str, int]) -> None:
        """A pair is sampled whole, at one output position."""
        void = self.scheduler._ck_void.get(id(output), (None, ()))[1]
        for name in sampled:
            if self.lives[name].pair is None or name in void or name not in self.scheduler.requests:
                continue
            mate = self._mate(name)
            if mate is None or mate.name not in sampled or self.rows[mate.name].outputs != self.rows[name].outputs:
                self.wrong.append(("alone", self.step, name))

    def _check_end(self) -> None:
        """Right tokens, rows of equal length, everybody told once, nothing left behind."""
        scheduler = self.scheduler
        for life in self.lives.values():
            owner = life.pair or life.name
            want = [token(owner, k, self.eos.get(owner, 0)) for k in range(1, len(life.got) + 1)]
            if life.got != want:
                self.wrong.append(("tokens", life.name))
            if not life.aborted and life.ends != 1:
                self.wrong.append(("told", life.name, life.ends))
            mate = self._mate(life.name)
            if life.pair is None:
                full = len(life.got) == life.longest or life.prompt + len(life.got) >= LONGEST
                if not life.aborted and not full:
                    self.wrong.append(("short", life.name))
            elif mate is not None and not life.aborted and not mate.aborted and life.role != mate.role:
                if len(life.got) != len(mate.got) or life.ended != mate.ended:
                    self.wrong.append(("unequal", life.name, life.ended, mate.ended))
                self._check_whole(life, mate)
        left = [scheduler.requests, scheduler._ck_pairs, scheduler._ck_parked, scheduler._ck_void, scheduler._ck_owed]
        if any(left) or scheduler._ck_gone or scheduler._ck_in_flight:
            self.wrong.append(("left", [list(x) for x in left], scheduler._ck_in_flight))
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        if not self.wrong and free != self.blocks - 1:
            self.wrong.append(("blocks", free, self.blocks))

    def _check_whole(self, life: Life, mate: Life) -> None:
        """A pair that nobody disturbed answers to its end, or is refused for its size."""
        longest = min(life.longest, mate.longest)
        need = sum(-(-min(x.prompt + longest, LONGEST) // BLOCK) for x in (life, mate))
        fits = min(life.prompt, mate.prompt) >= 2 and need <= self.blocks - 1
        late = abs(life.arrives - mate.arrives) >= 60
        full = len(life.got) == min(
            longest, self.eos.get(str(life.pair), 10**9), LONGEST - max(life.prompt, mate.prompt)
        )
        if (life.ended == "error") == (fits and not late) or (life.ended != "error" and not full):
            self.wrong.append(("whole", life.name, life.ended, len(life.got), fits))


def run_cases(kind: str, first: int, last: int) -> tuple[dict[int, list[Any]], dict[str, int]]:
    """Run the cases `first` to `last` - 1; return what was wrong by seed, and the scheduler's counts, summed."""
    found: dict[int, list[Any]] = {}
    counts: dict[str, int] = {}
    for seed in range(first, last):
        case = Case(kind, seed)
        if wrong := case.run():
            found[seed] = wrong[:4]
        for name, count in case.scheduler.ck_counts.items():
            counts[name] = counts.get(name, 0) + count
    return found, counts


def main() -> int:
    """Command line: run, print one line a kind, return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    given = parser.parse_args()
    failed = False
    for kind in given.kinds:
        start = time.perf_counter()
        found, counts = run_cases(kind, given.first, given.first + given.cases)
        failed |= bool(found)
        seconds = time.perf_counter() - start
        print(f"{kind}: {given.cases} cases, {len(found)} wrong, {seconds:.0f} s, {counts}")
        for seed, wrong in list(found.items())[:5]:
            print(f"  seed {seed}: {wrong}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
