"""Token ids to text: of a whole answer, with its thought apart and up to a stop text; and what each id added.

Knows tokenizers and the tags models think between; nothing else.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Said",
    "StopTexts",
    "Thoughts",
    "opens_thought",
    "overlap",
    "pieces",
    "said",
    "split_thought",
    "stop_at",
    "tags_of",
    "unfinished",
    "with_tags",
]

# How models open and close a thought: Qwen, DeepSeek and most others; Magistral; Seed-OSS; Kimi.
THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
# How byte-level tokenizers write bytes in the names of tokens: what is printable as itself, the rest from U+0100 on.
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(256 + place): byte for place, byte in enumerate(_OTHERS)}
_WINDOW = 6  # tokens re-decoded before the new one, so that spaces and multi-token characters come out right


class Said(NamedTuple):
    """What a model said.

    Attributes:
        text: The answer, without outer white space.
        thinking: What it thought before, likewise; None where it did not think.
        stopped: A stop text ended it.
    """

    text: str
    thinking: str | None
    stopped: bool


def said(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    *,
    stop: Sequence[str] = (),
    ends: Collection[int] = (),
    thinking: bool = False,
) -> Said:
    """Return the text of a whole answer, without special tokens and without what a stop text ended.

    Where the last tokens hold only the beginning of a character, it ends before that.

    Args:
        tokenizer: Of the model.
        ids: The answer, the end token included.
        stop: The texts that end an answer; the first that stands in it is cut off with what follows.
        ends: End tokens; one that the tokenizer takes for an ordinary token would leave its text at the end.
        thinking: The prompt ended in an open thought.
    """
    if ids and ids[-1] in ends:
        ids = ids[:-1]
    whole = _to_last_character(tokenizer, ids, tags_of(tokenizer))
    place = stop_at(whole, stop)
    text, thought = split_thought(whole[:place], opened=thinking)
    return Said(text, thought, place is not None)


def tags_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tags of a thought that are special tokens, by id: decoding would drop them."""
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {special[tag]: tag for tags in THOUGHTS for tag in tags if tag in special}


def with_tags(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tags: dict[int, str]) -> str:
    """Decode without special tokens, but for those of `tags`."""
    text, start = "", 0
    for place, token in enumerate(ids):
        if token in tags:
            text += str(tokenizer.decode(ids[start:place], skip_special_tokens=True)) + tags[token]
            start = place + 1
    return text + str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def _to_last_character(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tags: dict[int, str]) -> str:
    """As `with_tags`, up to the last whole character."""
    silent = {*tokenizer.all_special_ids} - {*tags}
    while ids and ids[-1] in silent:  # an end token, for example
        ids = ids[:-1]
    part, tokens = unfinished(tokenizer, ids)
    # Tokens are left out, not text cut afterwards: some decoders spoil what is before, too.
    text = with_tags(tokenizer, ids[: len(ids) - tokens], tags)
    return text if tokens or not part else text.removesuffix("\ufffd")


def unfinished(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[bytes, int]:
    r"""Return the bytes at the end of an answer that only begin a character, and how many tokens they are.

    0 tokens where one holds more than these bytes. U+FFFD that a model has written is a whole character. None are told
    of a tokenizer that does not name tokens by their bytes.

    Example:
        >>> from ckcontrol.models.tiny import tiny_model
        >>> tokenizer = tiny_model()[1]
        >>> unfinished(tokenizer, tokenizer("né")["input_ids"][:-1])
        (b'\xc3', 1)
    """
    held: list[bytes] = []
    for token in reversed(ids[-4:]):
        if "\ufffd" not in tokenizer.decode([token], skip_special_tokens=False):
            break
        name = str(tokenizer.convert_ids_to_tokens(token))
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
        if not byte and not all(letter in _BYTES for letter in name):
            break
        held.insert(0, bytes([int(byte[1], 16)]) if byte else bytes(_BYTES[letter] for letter in name))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(held))
    part = decoder.getstate()[0]
    sizes = [len(b"".join(held[len(held) - tokens :])) for tokens in range(len(held) + 1)]
    return part, sizes.index(len(part)) if len(part) in sizes else 0


def stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop text begins; None if none stands in the text."""
    return min((place for place in map(text.find, stop) if place >= 0), default=None)


def opens_thought(text: str) -> bool:
    """Whether text, the end of a prompt, leaves a thought open."""
    return any(text.rfind(opening) > text.rfind(closing) for opening, closing in THOUGHTS)


def split_thought(text: str, *, opened: bool = False) -> tuple[str, str | None]:
    """Return answer and thought, without outer white space; the thought is None where there is none.

    A thought stands at the beginning. It may lack its opening tag, which the prompt then held, or its closing one: then
    all is thought. Several in a row are joined by a blank line.

    Args:
        text: What was generated, up to the first stop text.
        opened: The prompt ended in an open thought.

    Example:
        >>> split_thought("<think>Hm.</think> Paris")
        ('Paris', 'Hm.')
    """
    thoughts: list[str] = []
    rest = text.strip()
    while True:
        opening = next(((tag, closing) for tag, closing in THOUGHTS if rest.startswith(tag)), None)
        if opening is not None:
            rest, closings = rest[len(opening[0]) :], [opening[1]]
        elif not thoughts and (opened or _closes_first(rest)):
            closings = [closing for _, closing in THOUGHTS]
        else:
            return rest, "\n\n".join(filter(None, thoughts)) if thoughts else None
        _, closing = min(((rest.find(tag), tag) for tag in closings if tag in rest), default=(0, ""))
        inside, _, rest = rest.partition(closing) if closing else (rest, "", "")
        thoughts.append(inside.strip())
        rest = rest.strip()


class Thoughts:
    """Parts answer from thought while a text arrives: what `split_thought` does, piece by piece.

    What may still become a tag is held back, and an answer without a thought is passed on as it is. One thing cannot be
    known before the end: a closing tag without an opening one stays text, unless `opened` says that the prompt held it.

    Args:
        opened: The prompt ended in an open thought.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self._rest = ""  # not told yet
        self._opened = opened
        self._closings: list[str] = []  # of the thought that is open
        self._found = self._told = self._inside = self._answering = False

    def feed(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """Take the next piece; return what it adds to the answer and to the thought."""
        self._rest += text
        thought = ""
        while not self._answering:
            if self._closings:
                thought += self._think(last)
                if self._closings:
                    return "", thought
            head = self._rest.lstrip()
            opening = next(((tag, closing) for tag, closing in THOUGHTS if head.startswith(tag)), None)
            if opening is None and not last and any(tag.startswith(head) for tag, _ in THOUGHTS):
                return "", thought
            if opening is not None:
                self._rest, self._closings = head[len(opening[0]) :], [opening[1]]
            elif self._opened:
                self._closings = [closing for _, closing in THOUGHTS]
            else:
                self._answering = True
                self._rest = head if self._found else self._rest
            self._opened, self._found = False, self._found or bool(self._closings)
        kept = len(self._rest.rstrip() if self._found else self._rest)
        answer, self._rest = self._rest[:kept], self._rest[kept:]
        return answer, thought

    def _think(self, last: bool) -> str:
        """Return what is left of the open thought, but for its outer white space and what may become its end."""
        end, tag = min(((self._rest.find(t), t) for t in self._closings if t in self._rest), default=(None, ""))
        text = self._rest[:end]
        if not tag and not last:
            text = text[: len(text) - max(overlap(text, closing) for closing in self._closings)]
        text = text.rstrip()
        self._rest = self._rest[len(text) if end is None else end + len(tag) :]
        new = text if self._inside else text.lstrip()
        parted = "\n\n" if new and self._told and not self._inside else ""
        self._told, self._inside = self._told or bool(new), not tag and (self._inside or bool(new))
        self._closings = [] if tag else self._closings
        return parted + new


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def _closes_first(text: str) -> bool:
    """Whether the first tag of a thought in a text is a closing one."""
    places = [(text.find(tag), kind) for tags in THOUGHTS for kind, tag in enumerate(tags) if tag in text]
    return bool(places) and min(places)[1] == 1


class TextSoFar:
    """The text of an answer as its tokens arrive, as far as nothing that follows can change it or end it sooner.

    Half a character and the beginning of a stop text are held back until it is known what comes of them. Thoughts are
    part of the text, their tags too.

    Args:
        tokenizer: Of the model.
        stop: Texts that end the answer; none of them is told.
        ends: End tokens, which are no text.
        strip: Leave out white space around the answer.

    Attributes:
        ids: All tokens so far, without end tokens.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), ends: Collection[int] = (), *, strip: bool = False
    ) -> None:
        self.ids: list[int] = []
        self._tokenizer, self._tags = tokenizer, tags_of(tokenizer)
        self._stop, self._ends, self._strip = tuple(stop), ends, strip
        self._told = 0

    def feed(self, ids: Sequence[int] = (), *, last: bool = False) -> str:
        """Take the next tokens; return what the text has gained, all that is left with the `last` ones."""
        self.ids += [token for token in ids if token not in self._ends]
        text = (_to_last_character if last else with_tags)(self._tokenizer, self.ids, self._tags)
        text = text[: stop_at(text, self._stop)]
        if not last:
            held = max((overlap(text, one) for one in self._stop), default=0)
            text = text[: len(text) - held].rstrip("\ufffd")
        text = text.strip() if self._strip else text
        gained = text[self._told :]
        self._told = max(self._told, len(text))
        return gained


class StopTexts:
    """A stopping criterion: a row ends when a stop text stands in what it generated.

    Looks at the decoded tail of each row, so it does not matter how a stop text falls into tokens. Costs one look at
    the ids per step; without stop texts there is no such criterion.

    Args:
        tokenizer: Of the model.
        stop: The texts, none of them empty.
        prompt_length: Columns of the ids that are prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer, self._stop, self._start = tokenizer, tuple(stop), prompt_length
        self._tags = tags_of(tokenizer)
        self._reach = max(len(text.encode()) for text in stop) + _WINDOW  # a token adds a byte at least

    def __call__(self, input_ids: Tensor, scores: Any = None, **_: Any) -> Tensor:
        """Return which rows have ended, [B] bool, from prompts and answers, [B, L]."""
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._reach) :].tolist()
        ended = [stop_at(with_tags(self._tokenizer, tail, self._tags), self._stop) is not None for tail in tails]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, since: int = 0, last: bool = True) -> list[str]:
    """Return the text each id added; special tokens by their name.

    A character spread over several tokens is attributed to the last of them, the earlier ones get "", and so do all
    that hold one of which the rest is missing.

    Args:
        tokenizer: Of the model.
        ids: The answer so far.
        since: How many ids were told by earlier calls; what they added is left out.
        last: No id follows. If one may, ids at the end that hold a part of a character are left out, as what they added
            is not known yet: calls with `since` then tell together what one call with all ids tells.
    """
    special = set(tokenizer.all_special_ids)
    texts = []
    start, done = max(0, since - _WINDOW), since
    start = max([start, *(i + 1 for i in range(start, since) if ids[i] in special)])
    for i, token in enumerate(ids[since:], since):
        if token in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(token)))
            start = done = i + 1
            continue
        before = tokenizer.decode(ids[start:done], skip_special_tokens=False)
        now = tokenizer.decode(ids[start : i + 1], skip_special_tokens=False)
        if now.endswith("�") and not (last and i + 1 == len(ids)) and i + 1 - done < 8:
            texts.append("")
            continue
        if i + 1 == len(ids):
            part, tokens = unfinished(tokenizer, ids)
            now = tokenizer.decode(ids[start : i + 1 - tokens], skip_special_tokens=False)
            now = now if tokens or not part else now.removesuffix("\ufffd")
        texts.append(now[len(before) :])
        done = i + 1
        start = max(start, done - _WINDOW)
    return texts if last else texts[: done - since]
