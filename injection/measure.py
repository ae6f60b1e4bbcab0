"""Measurements of a model that are not graded answers: perplexity, multiple choice, open book."""

import math
import random
import re

import mlx.core as mx
import mlx.nn as nn

from injection import prompts
from injection.generation import head
from injection.golden import Fact
from injection.grading import contains, normalise
from injection.profiles import Chat

WINDOW = 512
# Of a multiple-choice question: the right sentence and three wrong ones.
OPTIONS = 4


def windows(tokenizer, text: str) -> list[list[int]]:
    """Consecutive pieces of WINDOW tokens, each with the one that follows it."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [ids[start : start + WINDOW + 1] for start in range(0, len(ids) - 1, WINDOW)]


def window_losses(model: nn.Module, tokenizer, text: str) -> list[tuple[float, int]]:
    """(summed negative log-likelihood, predicted tokens) of each window of text."""
    losses = []
    for ids in windows(tokenizer, text):
        piece = mx.array([ids])
        logits = model(piece[:, :-1]).astype(mx.float32)
        picked = mx.take_along_axis(logits, piece[:, 1:, None], axis=-1)[..., 0]
        total = (mx.logsumexp(logits, axis=-1) - picked).sum().item()
        losses.append((total, len(ids) - 1))
    return losses


def perplexity(losses: list[tuple[float, int]]) -> float:
    """exp(mean negative log-likelihood) of window_losses."""
    return math.exp(sum(t for t, _ in losses) / sum(n for _, n in losses))


def choices(facts: list[Fact], seed: int = 0) -> dict[str, list[str]]:
    """Per fact, its canonical sentence and three with another fact's answer of the same kind.

    Same kind: both answers have digits or neither has; nearest in length first. A document with
    few facts gives fewer, or, where the sentence words the answer differently, equal ones.
    """
    rng = random.Random(seed)
    result = {}
    for fact in facts:
        right = {normalise(a) for a in (fact.answer, *fact.aliases)}
        others = [
            f.answer
            for f in facts
            if _numeric(f) == _numeric(fact) and normalise(f.answer) not in right
        ]
        rng.shuffle(others)
        others.sort(key=lambda a: abs(len(a) - len(fact.answer)))
        wrong = list(dict.fromkeys(others))[: OPTIONS - 1]
        result[fact.id] = [fact.statements[0]] + [_swap(fact, answer) for answer in wrong]
    return result


def _numeric(fact: Fact) -> bool:
    return any(c.isdigit() for c in fact.answer)


def _swap(fact: Fact, answer: str) -> str:
    pattern = re.compile(re.escape(fact.answer), re.IGNORECASE)
    return pattern.sub(lambda _: answer, fact.statements[0])


def multiple_choice(
    model: nn.Module, tokenizer, chat: Chat, items: list[tuple[str, list[str]]], progress
) -> list[bool]:
    """Whether the first option of each (question, options) has the best log-likelihood per byte."""
    verdicts = []
    for done, (question, options) in enumerate(items, 1):
        examples = []
        for option in options:
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": option},
            ]
            examples.append(prompts.example_tokens(tokenizer, messages, chat))
        scores = _log_likelihoods(model, examples)
        per_byte = [s / len(o.encode()) for s, o in zip(scores, options, strict=True)]
        verdicts.append(per_byte[0] == max(per_byte))
        progress(done)
    return verdicts


def _log_likelihoods(model: nn.Module, examples: list[tuple[list[int], int]]) -> list[float]:
    """Summed log-probability of tokens[start:] of each (tokens, start)."""
    width = max(len(ids) for ids, _ in examples)
    inputs = mx.array([ids + [0] * (width - len(ids)) for ids, _ in examples])
    hidden = model.model(inputs)
    places = [(i, j) for i, (ids, start) in enumerate(examples) for j in range(start, len(ids))]
    row, column = (mx.array(x) for x in zip(*places, strict=True))
    logits = head(model, hidden[row, column - 1]).astype(mx.float32)
    targets = inputs[row, column]
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    scores = (picked - mx.logsumexp(logits, axis=-1)).tolist()
    return [
        sum(s for s, (i, _) in zip(scores, places, strict=True) if i == n)
        for n in range(len(examples))
    ]


def open_book_question(question: str, fact: Fact, chunks: list[dict]) -> str | None:
    """The question with the chunk that states the fact, or None if no chunk states it."""
    stating = [
        c for c in chunks if any(contains(c["text"], a) for a in (fact.answer, *fact.aliases))
    ]
    if not stating:
        return None
    words = set(normalise(" ".join(fact.statements[:3])).split())
    gold = max(stating, key=lambda c: len(words & set(normalise(c["text"]).split())))
    return f"Text:\n{gold['text']}\n\nAnswer from the text. {question}"
