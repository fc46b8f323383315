"""One of the two adapters of a dial: a LoRA trained on chosen answers by TRL's `SFTTrainer`, resumable.

What is raised is the likelihood of the chosen answer of each pair, in every state: mostly the model's own words.
Preferring it to the rejected one (DPO) lowers both, and the model says neither (docs/research/weights.md). Checkpoints
lie beside the adapter until it is there. Knows TRL and PEFT; knows no dial.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..arguments import check_integer, check_number
from ..decoding.refusals import check_tokenizer, position_limit
from ..errors import UnsupportedMode, WeightsError, require
from ..heads.fingerprint import Fingerprint
from ..heads.forward import greedy, pad
from .adapters import check_unadapted, trainable_as_before
from .manifest import Training
from .pairs import GUARD, Asked, Pairs, read_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["partial", "train"]

WHOLE = "whole"  # marks a checkpoint that was written to its end; holds what it answers
TOGETHER, ANSWER = 16, 24  # prompts that are answered together, tokens of the longest answer
IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def partial(out: Path) -> Path:
    """Return the folder of the checkpoints of an unfinished adapter."""
    return out.with_name(f"{out.name}.partial")


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: str | Path,
    out: str | Path,
    *,
    toward: str,
    steps: int = 60,
    batch_size: int = 8,
    rank: int = 8,
    learning_rate: float = 2e-4,
    seed: int = 0,
    max_length: int = 1024,
    save_every: int = 20,
    max_harm: float = 0.1,
    one_sided: bool = False,
    guard: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Training:
    """Train a LoRA adapter toward context or memory, into a new folder that stock PEFT loads.

    Interrupted, the same call goes on from the last checkpoint, and on a CPU it ends with the same adapter. A tenth of
    the pairs' groups is held out, and at every checkpoint up to 48 of their questions are answered: where those without
    a conflict lose too many right answers, training stops, and the checkpoint before is the adapter.

    Args:
        model: The base, in memory and without adapters; left as it was.
        tokenizer: Its tokenizer; left as it was.
        pairs: What `ckcontrol.eval.export_pairs` wrote for the same direction.
        out: A new folder; it appears whole or not at all. Until then ``<out>.partial`` holds the checkpoints.
        toward: ``"context"`` or ``"memory"``.
        steps: Steps of the optimiser, which bound the time; the pairs are gone through as often as that takes.
        batch_size: Answers per step.
        rank: Of every linear layer's update; its scale is 2.
        learning_rate: Of AdamW at the first step; it falls to 0 linearly.
        seed: Of the adapter's first weights, the order of the pairs and which are held out.
        max_length: Longest prompt and answer, in tokens. Nothing is cut: a longer pair is refused.
        save_every: Steps between two checkpoints.
        max_harm: Largest share of held-out questions without a conflict that may be answered right no longer.
        one_sided: Take pairs of one of KnowPO's errors alone.
        guard: Pairs of a run on questions in other words. None is trained on; they are asked beside those held out,
            and harm to them stops training just as well.
        on_progress: Called with stage, steps done and steps in all.

    Raises:
        WeightsError: Pairs that cannot be used or lead the other way, an existing folder, unfinished training of other
            settings, a model with adapters, weights that are no longer finite, or harm at the first checkpoint.
        ControlError: A number out of range.
        HeadsError: The model's family is unknown.
        UnsupportedMode: The model is compiled, or lies where TRL would not train it.
        MissingExtra: PEFT or TRL is not installed.
    """
    require("weights", peft="peft", trl="trl")
    target = Path(out)
    settings: dict[str, Any] = {
        "toward": toward,
        "steps": check_integer("steps", steps, 1, 1_000_000),
        "batch_size": check_integer("batch_size", batch_size, 1, 4096),
        "rank": check_integer("rank", rank, 1, 1024),
        "learning_rate": check_number("learning_rate", learning_rate, 1e-8, 1.0),
        "seed": check_integer("seed", seed, 0, 2**31 - 1),
        "max_length": check_integer("max_length", max_length, 2, 1_000_000),
        "save_every": check_integer("save_every", save_every, 1, 1_000_000),
        "max_harm": check_number("max_harm", max_harm, 0.0, 1.0),
    }
    guards = None if guard is None else Path(guard)
    given = read_pairs(Path(pairs), toward, one_sided=one_sided, seed=seed, guard=guards)
    if target.exists():
        raise WeightsError(f"{str(target)!r} exists.", "Give a new folder: nothing is overwritten.")
    _check_model(model, tokenizer, given.chat)
    settings |= {"pairs": given.digest, "guard": given.guard, "base": Fingerprint.of(model).to_dict()}
    kept = partial(target)
    kept.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(kept / ".lock", timeout=0):
            checkpoint = _resumed(kept, settings)
            with _as_it_was(model, tokenizer):
                made = _trained(model, tokenizer, given, kept, settings, checkpoint, on_progress)
            (kept / "adapter").rename(target)
    except Timeout:
        raise WeightsError(f"another process is training {str(target)!r}.", "Wait for it.") from None
    except _Useless:
        shutil.rmtree(kept, ignore_errors=True)
        raise
    shutil.rmtree(kept, ignore_errors=True)
    return made


class _Useless(WeightsError):
    """What was done so far is not worth going on from."""


def _check_model(model: Any, tokenizer: Any, chat: bool) -> None:
    if hasattr(model, "_orig_mod"):
        raise UnsupportedMode("a compiled model cannot be trained.", "Give the model itself.")
    check_unadapted(model)
    if model.device.type == "cuda" and (model.device.index or 0) != 0:
        raise UnsupportedMode(f"TRL does not train on {model.device}.", "Set CUDA_VISIBLE_DEVICES and take cuda:0.")
    check_tokenizer(model, tokenizer)
    if chat and not tokenizer.chat_template:
        raise WeightsError(
            "the pairs are chats, and the tokenizer has no chat template.",
            "Take the instruct model that the run was made with, or pairs of a run in completion style.",
        )


def _resumed(folder: Path, settings: dict[str, Any]) -> Path | None:
    """Return the last whole checkpoint of the same training; remember the settings of a new one.

    Raises:
        WeightsError: What the folder holds was begun with other settings.
    """
    for path in folder.glob("checkpoint-*"):
        if not (path / WHOLE).exists():  # interrupted while it was written
            shutil.rmtree(path)
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    file = folder / "settings.json"
    if not found:
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return None
    try:
        begun = {"guard": "", **json.loads(file.read_text(encoding="utf-8"))}
        differing = [name for name, value in settings.items() if begun[name] != value]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{str(file)!r} is damaged: {error}.", f"Remove {str(folder)!r} and begin anew.") from error
    if differing:
        name = differing[0]
        mine, theirs = ("another model", "this one") if name == "base" else (begun[name], settings[name])
        raise WeightsError(
            f"{str(folder)!r} was begun with {name}={mine!r}, not {theirs!r}.",
            f"Repeat that, or remove {str(folder)!r} and begin anew.",
        )
    return found[-1]


def _trained(
    model: Any,
    tokenizer: Any,
    pairs: Pairs,
    folder: Path,
    settings: dict[str, Any],
    checkpoint: Path | None,
    on_progress: Callable[[str, int, int], None] | None,
) -> Training:
    """Train, and write ``adapter`` into the folder."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(folder),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=1,  # so that a mean over batches is one over pairs
        learning_rate=settings["learning_rate"],
        seed=settings["seed"],
        max_length=None,
        save_strategy="steps",
        save_steps=settings["save_every"],
        save_total_limit=2,
        use_cpu=model.device.type == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type == "cuda",
    )
    trainer: Any = None
    try:
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(pairs.train),
            eval_dataset=Dataset.from_list(pairs.held) if pairs.held else None,
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=settings["rank"],
                lora_alpha=2 * settings["rank"],
                lora_dropout=0.0,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
        )
        trainer.remove_callback(PrinterCallback)
        _check_lengths(trainer, pairs, min(settings["max_length"], position_limit(model) or 10**9))
        prompts = [_prompt(trainer.eval_dataset[one.place]) for one in pairs.asked]

        def right() -> dict[str, list[int]]:
            return _right(pairs.asked, _answers(trainer.model, tokenizer, prompts))

        with trainer.model.disable_adapter():
            before = right()
        trainer.add_callback(check := _steps(on_progress, right, before, settings["max_harm"]))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        taken, after = _last_whole(trainer.model, folder, settings, check.harmful)
        if not all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters() if p.requires_grad):
            raise _Useless(
                f"the adapter is no longer finite after {settings['steps']} steps.",
                f"Take a learning_rate below {settings['learning_rate']:g}.",
            )
        made = Training(
            toward=settings["toward"],
            base=Fingerprint.from_dict(settings["base"]),
            settings=settings,
            pairs=len(pairs.train),
            held_out=len(pairs.held),
            steps=taken,
            answers={state: (asked, was, after[state][1]) for state, (asked, was) in before.items()},
        )
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        trainer.model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        made.write(folder / "adapter")
        return made
    finally:
        _take_off(model)


def _steps(
    on_progress: Callable[[str, int, int], None] | None,
    right: Callable[[], dict[str, list[int]]],
    before: Mapping[str, list[int]],
    most: float,
) -> Any:
    """Return what the trainer calls after each step and each checkpoint; it stops training that does harm.

    Its ``harmful`` is then the harm of the checkpoint that was not kept, else None.
    """
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc,unused-ignore]
        harmful: float | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.on_step_end(args, state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_progress is not None:
                on_progress("Training", state.global_step, args.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            made = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (made / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
            found = right()
            if (lost := _harm(before, found)) > most:  # not marked as whole: who goes on comes to the same end
                self.harmful, control.should_training_stop = lost, True
                return
            (made / WHOLE).write_text(json.dumps(found), encoding="utf-8")

    return Steps()


def _check_lengths(trainer: Any, pairs: Pairs, limit: int) -> None:
    """Refuse a pair that would have to be cut."""
    both = [trainer.train_dataset, *([trainer.eval_dataset] if pairs.held else [])]
    rows = [row for data in both for row in data]
    for line, row in zip(pairs.lines, rows, strict=True):
        if (length := len(row["input_ids"])) > limit:
            raise _Useless(
                f"the pair of {line} is {length:,} tokens long, over {limit:,}.",
                "Leave it out of the file, or give a higher max_length where the model has room.",
            )


def _prompt(row: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the token ids of a tokenised row before its answer."""
    return [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100]


def _answers(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Return the greedy answer to each tokenised prompt; it draws nothing."""
    training, texts = model.training, [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    output = model.get_output_embeddings().weight
    frozen = not output.requires_grad
    model.eval()
    output.requires_grad_(True)  # a frozen one would be copied once per prompt, see adapters.py
    for start in range(0, len(order), TOGETHER):
        rows = order[start : start + TOGETHER]
        made = greedy(model, tokenizer, pad([prompts[i] for i in rows], model.device), ANSWER)
        for i, text in zip(rows, made, strict=True):
            texts[i] = text
    output.requires_grad_(not frozen)
    model.train(training)
    return texts


def _right(asked: Sequence[Asked], texts: Sequence[str]) -> dict[str, list[int]]:
    """Return, by state, how many were asked and how many of the answers are right."""
    found: dict[str, list[int]] = {}
    for one, text in zip(asked, texts, strict=True):
        counts = found.setdefault(one.state, [0, 0])
        counts[0] += 1
        counts[1] += one.is_right(text)
    return found


def _harm(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> float:
    """Return which share of the answers without a conflict was right before and is not in sum; 0 without any.

    Of the questions held out or of the guard's, whichever lost more.
    """
    shares = []
    for guard in (False, True):
        states = [
            state for state in before if state.startswith(GUARD) is guard and state.removeprefix(GUARD) != "conflict"
        ]
        lost = sum(before[state][1] - now[state][1] for state in states)
        shares.append(lost / max(1, sum(before[state][0] for state in states)))
    return max(shares)


def _last_whole(
    model: Any, folder: Path, settings: Mapping[str, Any], harmful: float | None
) -> tuple[int, dict[str, list[int]]]:
    """Return steps and right answers of the last checkpoint kept; where more did harm, the model takes its weights.

    Raises:
        WeightsError: There is none.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    found = sorted((int(path.parent.name.split("-")[1]), path) for path in folder.glob(f"checkpoint-*/{WHOLE}"))
    if not found:
        raise _Useless(
            f"the first checkpoint, of step {settings['save_every']}, answers {100 * (harmful or 0):.0f} % fewer of "
            f"the questions without a conflict right, over max_harm={settings['max_harm']:g}.",
            "Take a lower learning_rate or save_every, or a higher max_harm.",
        )
    steps, mark = found[-1]
    if harmful is not None:
        set_peft_model_state_dict(model, load_file(mark.parent / "adapter_model.safetensors"))
    return steps, dict(json.loads(mark.read_text(encoding="utf-8")))


def _take_off(model: Any) -> None:
    """Put back the layers that PEFT wrapped; the trainer may have failed before it could be asked to."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    vars(model).pop("peft_config", None)  # PEFT's mark on a model that has adapters


@contextmanager
def _as_it_was(model: Any, tokenizer: Any) -> Iterator[None]:
    """Give back, whatever happens, what a trainer changes: modes, token ids, dropout, random states, loud bars."""
    import datasets
    import numpy as np
    import torch

    owners = (model.config, model.generation_config)
    ids = [(owner, name, getattr(owner, name)) for owner in owners for name in IDS if hasattr(owner, name)]
    dropped = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    pad, training, bars = tokenizer.pad_token, model.training, datasets.are_progress_bars_disabled()
    drawn = random.getstate(), np.random.get_state()
    datasets.disable_progress_bars()
    try:
        with trainable_as_before(model), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*gradient_checkpointing. is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # GPT-2: PEFT sees to it
            yield
    finally:
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        if not bars:
            datasets.enable_progress_bars()
        tokenizer.pad_token = pad
        for owner, name, value in ids:
            setattr(owner, name, value)
        for module, p in dropped:
            module.p = p
        model.train(training)
