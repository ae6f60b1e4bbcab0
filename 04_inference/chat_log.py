"""The log of what was asked and answered: one JSON object a line, only ever appended to.

Writes:  logs/chats.jsonl  {"id", "time", "view", "model", "adapter", "label", "system", "question",
         "answer", "state", "error", "by_adapter", "temperature", "top_p", "seed", "max_tokens",
         "tokens_in", "tokens_out", "tokens_per_second", "first_token", "peak_gb", "finish"} for
         every answer that the worker began (not one cancelled in the queue), and {"id", "time",
         "vote"} for every thumb and every vote of a comparison
Command: none of its own; the worker and the views use it
"""

import csv
import io
import json
import logging
import os
import time
from pathlib import Path

from engine import Answer

from injection.files import ROOT

VOTES = {0: "down", 1: "up"}


def file() -> Path:
    return ROOT / "logs" / "chats.jsonl"


def append(row: dict) -> None:
    """Add one line in one write, so that lines of two threads never mix."""
    line = json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), **row}, ensure_ascii=False)
    path = file()
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{line}\n".encode())
        finally:
            os.close(handle)
    except OSError as error:
        # An answer must not be lost because there is no room for its log.
        logging.getLogger(__name__).warning("chat log: %s", error)


def record(answer: Answer) -> None:
    """One line about a finished answer."""
    request, stats = answer.request, answer.stats
    append(
        {
            "id": answer.id,
            "view": request.view,
            "model": request.base.name,
            "adapter": request.adapter.name if request.adapter else None,
            "label": request.label,
            "system": request.system,
            "question": request.question,
            "answer": answer.text,
            "state": answer.state,
            "error": answer.error,
            "by_adapter": answer.by_adapter,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
            **(vars(stats) if stats else {}),
        }
    )


def record_vote(answer_id: str, vote: str) -> None:
    append({"id": answer_id, "vote": vote})


def entries() -> list[dict]:
    """Answers with their last vote, newest first; damaged lines are left out."""
    found: dict[str, dict] = {}
    if not file().exists():
        return []
    for line in file().read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "question" in row and "id" in row:
            found[row["id"]] = row
        elif isinstance(row, dict) and row.get("id") in found and "vote" in row:
            found[row["id"]]["vote"] = row["vote"]
    return list(reversed(found.values()))


def csv_text(rows: list[dict]) -> str:
    """The rows as CSV. A cell that a spreadsheet would take for a formula begins with a quote."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    output = io.StringIO()
    writer = csv.DictWriter(output, names)
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in rows)
    return output.getvalue()


def harmless(cell):
    dangerous = isinstance(cell, str) and cell.lstrip(" ")[:1] in ("=", "+", "-", "@", "\t", "\r")
    return "'" + cell if dangerous else cell
