"""Collects what a trace needs of each step, as tensors on the device; one transfer to the host at the end.

Knows the signals and decisions of the loop; turns them into `TokenTrace` records when asked. Knows no tokenizer: the
caller passes the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..answer import TokenTrace
from ..fusion.signals import Signals
from ..policies import Decision, Evidence

__all__ = ["Recorder", "Scored", "evidence", "measure", "record"]

_COLUMNS = ("h_par", "h_ctx", "tau", "switched", "rank_par", "rank_ctx", "logp_par", "logp_ctx", "best_par")
_EVIDENCE = ("logp_ctx", "logp_par", "h_ctx", "h_par", "rank_par", "best_par")


Scored = tuple[float, list[tuple[int, float]]]  # see `Recorder.scored`


class Recorder:
    """The trace of one run of the loop.

    Args:
        favourites: Likeliest tokens that `look` keeps of each step, for `scored`.

    Attributes:
        lengths: Tokens generated per row, the end token included; set when the loop ends.
    """

    def __init__(self, favourites: int = 0) -> None:
        self.favourites = favourites
        self._best: list[tuple[Tensor, Tensor]] = []
        self.lengths: list[int] = []
        self._ids: list[Tensor] = []
        self._final: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._read: list[list[list[float]]] = []  # of `_rows`, what is on the host: [steps][B][9]

    def add(self, tokens: Tensor, scores: Tensor, signals: Signals | None, decision: Decision | None) -> None:
        """Record one step: chosen ids [B], processed scores [B, V], and the signals and decision behind them."""
        self.take(tokens, *measure(tokens, scores, signals, decision))

    def take(self, tokens: Tensor, final: Tensor, rows: Tensor | None) -> None:
        """Record one step: chosen ids [B], and what `measure` made of it."""
        self._ids.append(tokens)
        self._final.append(final)
        if rows is not None:
            self._rows.append(rows)

    def look(self, scores: Tensor) -> None:
        """Keep the favourites of one step, from the scores that its tokens were drawn from, [B, V]."""
        if self.favourites:
            best, ids = scores.topk(min(self.favourites, scores.shape[-1]), dim=-1)
            self._best.append((best - scores.logsumexp(-1, keepdim=True), ids))

    def scored(self, step: int, row: int = 0) -> Scored:
        """Return of one token its log-probability in the end, and the favourites that it could have been, best first.

        Those that could not be drawn, of probability 0, are left out. In nats.
        """
        best, ids = self._best[step] if self._best else (None, None)
        pairs = [] if best is None or ids is None else zip(ids[row].tolist(), best[row].tolist(), strict=True)
        return self._final[step][row].item(), [(token, logp) for token, logp in pairs if logp > -torch.inf]

    def token_ids(self, row: int) -> list[int]:
        """Return the ids generated in a row, the end token included."""
        if not self._ids:
            return []
        ids: list[int] = torch.stack(self._ids, dim=1)[row].tolist()
        return ids[: self.lengths[row]] if self.lengths else ids

    @property
    def steps(self) -> int:
        """How many steps were recorded, those after a row's end included."""
        return len(self._ids)

    def part(self, row: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what was recorded of a row: ids [T], log-probabilities in the end [T], columns of `measure` [T, 9]."""
        length = self.lengths[row]
        rows = torch.stack(self._rows[:length])[:, row] if self._rows else None
        return torch.stack(self._ids[:length])[:, row], torch.stack(self._final[:length])[:, row], rows

    def fill(self, rows: Sequence[Sequence[tuple[Tensor, Tensor, Tensor | None]]]) -> None:
        """Hold rows that consist of such parts instead of what was recorded."""
        self.lengths = [sum(len(ids) for ids, _, _ in parts) for parts in rows]
        columns: list[list[Tensor]] = [[], [], []]
        for place, column in enumerate(columns):
            each = [[part[place] for part in parts if part[place] is not None] for parts in rows]
            if any(each):
                joined = torch.nn.utils.rnn.pad_sequence([torch.cat(one) for one in each if one])  # type: ignore[arg-type]
                whole = joined.new_zeros(joined.shape[0], len(rows), *joined.shape[2:])
                whole[:, [row for row, one in enumerate(each) if one]] = joined
                column += whole.unbind()
        self._ids, self._final, self._rows = columns
        self._read = []

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which go by their place in `rows` from here on."""
        self._ids, self._final, self._rows = ([t[rows] for t in ts] for ts in (self._ids, self._final, self._rows))
        self._read, self.lengths = [], [self.lengths[row] for row in rows]

    def evidence(self, row: int, length: int | None = None) -> Evidence:
        """Return what both streams made of a row's tokens, or of the first `length`; empty for a single stream."""
        if new := self._rows[len(self._read) :]:
            self._read += torch.stack(new).tolist()
        if length is None and self.lengths:
            length = self.lengths[row]
        return evidence([step[row] for step in self._read[:length]])

    def rows(self, row: int) -> list[list[float]]:
        """Return what was recorded of a row per token: its log-probability in the end, and the columns of `measure`."""
        if not self._rows:
            return []
        values = torch.cat([torch.stack(self._final, dim=1)[row][:, None], torch.stack(self._rows, dim=1)[row]], dim=1)
        told: list[list[float]] = values[: len(self.token_ids(row))].tolist()
        return told

    def traces(self, row: int, texts: Sequence[str]) -> tuple[TokenTrace, ...]:
        """Return the records of a row; `texts[i]` is what token i added to the answer."""
        ids = self.token_ids(row)
        final = torch.stack(self._final, dim=1)[row].tolist() if self._final else []
        values = torch.stack(self._rows, dim=1)[row].tolist() if self._rows else None
        return tuple(
            record(token, text, final[i], None if values is None else values[i])
            for i, (token, text) in enumerate(zip(ids, texts, strict=True))
        )


def measure(
    tokens: Tensor, scores: Tensor, signals: Signals | None, decision: Decision | None
) -> tuple[Tensor, Tensor | None]:
    """Return what a trace holds of one step, on the device.

    Args:
        tokens: Chosen ids, [B] int64.
        scores: Processed scores they were drawn from, [B, V].
        signals: Of the raw distributions; None if there was one stream.
        decision: Of the policy.

    Returns:
        Log-probability in the final distribution, [B], and the columns `record` reads, [B, 9] or None.
    """
    chosen = tokens[:, None]
    final = (scores.gather(-1, chosen) - scores.logsumexp(-1, keepdim=True))[:, 0]
    if signals is None or decision is None:
        return final, None
    tau = decision.tau.gather(-1, chosen)[:, 0] if decision.tau.ndim == 2 else decision.tau
    logp_par, logp_ctx = signals.logp_par.gather(-1, chosen), signals.logp_ctx.gather(-1, chosen)
    columns = [
        signals.h_par,
        signals.h_ctx,
        tau,
        decision.switched.float(),
        (signals.logp_par > logp_par).sum(-1).float(),
        (signals.logp_ctx > logp_ctx).sum(-1).float(),
        logp_par[:, 0],
        logp_ctx[:, 0],
        signals.logp_par.amax(-1),
    ]
    return final, torch.stack(columns, dim=-1)


def evidence(values: Sequence[Sequence[float]]) -> Evidence:
    """Return what both streams made of an answer, from what `measure` collected at its tokens, moved to the host."""
    columns = dict(zip(_COLUMNS, zip(*values, strict=True), strict=True)) if values else {}
    logp_ctx, logp_par, h_ctx, h_par, ranks, best = (columns.get(name, ()) for name in _EVIDENCE)
    return Evidence(logp_ctx, logp_par, h_ctx, h_par, ranks, best)


def record(token: int, text: str, final: float, values: Sequence[float] | None) -> TokenTrace:
    """Return one token's record from what `measure` collected, moved to the host."""
    if values is None:
        return TokenTrace(id=token, text=text, logp_final=final)
    known: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
    del known["best_par"]
    known["gain"] = known["h_par"] - known["h_ctx"]
    known["switched"] = bool(known["switched"])
    known["rank_par"], known["rank_ctx"] = int(known["rank_par"]), int(known["rank_ctx"])
    return TokenTrace(id=token, text=text, logp_final=final, **known)
