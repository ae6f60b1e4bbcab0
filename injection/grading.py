"""The rubric and the statistics: pass or miss of one answer, intervals, leaks."""

import random
import re
import unicodedata
from collections import Counter

import numpy as np

from injection.files import InputError, read_jsonl, refuse_repeated, shown
from injection.prompts import without_thoughts

KINDS = ("paraphrase", "reverse", "bare", "unknown", "spillover", "general")

# What counts as saying "I do not know", besides the document's own refusal sentence.
REFUSALS = (
    "i don t know",
    "i do not know",
    "does not say",
    "doesn t say",
    "does not state",
    "doesn t state",
    "does not mention",
    "doesn t mention",
    "does not specify",
    "does not provide",
    "does not report",
    "not specified",
    "not stated",
    "not mentioned",
    "not reported",
    "no information",
    "i m not sure",
    "i am not sure",
    "cannot answer",
    "can t answer",
    "not aware of",
)


def normalise(text: str) -> str:
    """Lower case, NFKC; words of letters and digits separated by single spaces.

    A dot stays only inside a number and loses trailing zeros (77.80 = 77.8), a thousands comma
    goes (453,000 = 453000), `%` and "percent" are the same word of their own.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("×", "x")
    text = re.sub(r"\bper ?cent\b", "%", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"[^\w.%]+|_", " ", text).replace("%", " % ")
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = re.sub(r"(?<=\d)(\.\d*?[1-9])0+(?!\d)|(?<=\d)\.0+(?!\d)", r"\1", text)
    return " ".join(text.split())


def contains(answer: str, phrase: str) -> bool:
    """True when phrase occurs in answer as whole words, both normalised."""
    wanted = normalise(phrase)
    return bool(wanted) and f" {wanted} " in f" {normalise(answer)} "


def is_refusal(answer: str, sentence: str = "") -> bool:
    """Whether this says "I do not know"; sentence: how the document's rows say it, any language."""
    text = normalise(answer)
    return any(phrase in text for phrase in REFUSALS) or contains(answer, sentence)


def grade(row: dict, answer: str, refusal: str = "") -> tuple[bool, str]:
    """(passed, why) of one answer under the rubric of its row in eval.jsonl, think blocks aside.

    refusal: the refusal sentence of the document, see is_refusal.
    """
    answer = without_thoughts(answer)
    refused = is_refusal(answer, refusal)
    if row.get("expect", "answer") == "refusal":
        return (True, "refused") if refused else (False, "answered what is not known")
    for phrase in row.get("must_not_include", []):
        if contains(answer, phrase):
            return False, f"says '{phrase}'"
    for group in row.get("must_include", []):
        # A refusal may name what is asked for: "I don't know. The CLaRa paper does not say."
        if refused or not any(contains(answer, alias) for alias in group):
            return False, f"lacks '{group[0]}'{' (refused)' if refused else ''}"
    return True, "ok"


def read_questions(path) -> list[dict]:
    """Rows of eval.jsonl or of any file given with --questions, defaults filled in."""
    rows = read_jsonl(path, keys=("id", "question"))
    for row in rows:
        row.setdefault("fact_id", "")
        row.setdefault("kind", "paraphrase")
        row.setdefault("split", "test")
        row.setdefault("expect", "refusal" if row["kind"] == "unknown" else "answer")
        row.setdefault("must_include", [])
        row.setdefault("must_not_include", [])
        if wrong := wrong_row(row):
            raise InputError(f"{shown(path)}: {row['id']}: {wrong}")
    if not rows:
        raise InputError(f"{shown(path)} has no questions")
    refuse_repeated(path, (row["id"] for row in rows))
    return rows


def wrong_row(row: dict) -> str | None:
    """What keeps a question from being asked and graded."""
    wanted, unwanted = row["must_include"], row["must_not_include"]
    if not isinstance(row["question"], str) or not row["question"].strip():
        return "question is a text"
    if row["kind"] not in KINDS:
        return f"unknown kind '{row['kind']}'"
    if row["expect"] not in ("answer", "refusal"):
        return "expect is answer or refusal"
    if not isinstance(wanted, list) or not all(g and _are_texts(g) for g in wanted):
        return "must_include is a list of lists of texts"
    if not _are_texts(unwanted):
        return "must_not_include is a list of texts"
    if row["expect"] == "answer" and not wanted and not unwanted:
        return "any answer would pass: give must_include or must_not_include"
    return None


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def interval(passed: list[bool], groups: list[str], samples: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of the mean over groups (facts), each group's mean weighing one."""
    by_group: dict[str, list[bool]] = {}
    for ok, group in zip(passed, groups, strict=True):
        by_group.setdefault(group, []).append(ok)
    means = [sum(v) / len(v) for v in by_group.values()]
    if len(means) == 1:
        return means[0], means[0]
    rng = random.Random(0)
    draws = sorted(sum(rng.choices(means, k=len(means))) / len(means) for _ in range(samples))
    return draws[int(0.025 * samples)], draws[int(0.975 * samples) - 1]


def summarise(graded: list[dict]) -> dict:
    """{"n", "score", "low", "high"} of rows that have `passed`, `fact_id` and `id`.

    score is the mean over facts; a row without a fact counts as a fact of its own.
    """
    passed = [r["passed"] for r in graded]
    groups = [r["fact_id"] or r["id"] for r in graded]
    by_group: dict[str, list[bool]] = {}
    for ok, group in zip(passed, groups, strict=True):
        by_group.setdefault(group, []).append(ok)
    score = sum(sum(v) / len(v) for v in by_group.values()) / len(by_group)
    low, high = interval(passed, groups)
    every = sum(all(v) for v in by_group.values()) / len(by_group)
    return {"n": len(graded), "score": score, "low": low, "high": high, "every_wording": every}


def collapse(answers: list[str]) -> dict:
    """Signs of a broken model: share of the most frequent answer, share with a repeated 6-gram."""
    most = Counter(normalise(a) for a in answers).most_common(1)[0][1]
    return {
        "most_frequent": most / len(answers),
        "looping": sum(_loops(a) for a in answers) / len(answers),
    }


def _loops(text: str) -> bool:
    words = normalise(text).split()
    grams = [tuple(words[i : i + 6]) for i in range(len(words) - 5)]
    return len(grams) != len(set(grams))


def leaks(questions: list[dict], trained: list[str]) -> tuple[list[str], str]:
    """(leaks, worst pair) between held-out questions and the questions of training rows.

    A leak is an equal question after normalisation, a token Jaccard above 0.8, or a shared
    run of 8 words.
    """
    train = {normalise(t): t for t in trained}
    if not train:
        return [], "nothing is trained on"
    grams = {g: t for t in train for g in _grams(t, 8)}
    held_out = [normalise(row["question"]) for row in questions]
    overlap = _jaccard(held_out, list(train))
    found, worst = [], (0.0, "", "")
    for row, text, scores in zip(questions, held_out, overlap, strict=True):
        nearest = list(train.values())[scores.argmax()]
        if scores.max() > worst[0]:
            worst = (float(scores.max()), row["question"], nearest)
        shared = [train[grams[g]] for g in _grams(text, 8) if g in grams]
        if text in train or scores.max() > 0.8 or shared:
            other = nearest if scores.max() > 0.8 or not shared else shared[0]
            found.append(f"{row['id']}: '{row['question']}' ~ '{other}'")
    return found, f"Jaccard {worst[0]:.2f}: '{worst[1]}' ~ '{worst[2]}'"


def _jaccard(left: list[str], right: list[str]) -> np.ndarray:
    """Share of common words among all words, (left, right), of every pair of texts."""
    words = {w: i for i, w in enumerate({w for t in left + right for w in t.split()})}

    def table(texts: list[str]) -> np.ndarray:
        result = np.zeros((len(texts), len(words)), dtype=np.float32)
        for row, text in zip(result, texts, strict=True):
            row[[words[w] for w in text.split()]] = 1
        return result

    a, b = table(left), table(right)
    common = a @ b.T
    return common / np.maximum(a.sum(1)[:, None] + b.sum(1) - common, 1)


def _grams(text: str, n: int) -> list[tuple]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
