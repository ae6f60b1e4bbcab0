"""A gate that decides, question by question, whether the adapter speaks or the plain base model.

Reads:   the hidden states of the user's last message at the first adapted layer. Everything below
         that layer is frozen, so they are the same with and without the adapter.
Writes:  gate.safetensors in the adapter folder
Command: none of its own; finishing.py fits it, models.ChatModel uses it

A logistic regression on their mean says whether a question concerns the document. Questions that
do not are answered by the untouched base model: nothing it knew can be lost there. The idea of
routing between an edited and the original model is WISE's (arXiv 2405.14768) and MEGa's
(arXiv 2504.21239); here the router reads a frozen representation and adds no layer.
"""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from injection import prompts, tensors
from injection.batches import Upper
from injection.generation import by_length, padded, shared_prefix
from injection.profiles import Chat

FILE = "gate.safetensors"
PENALTY = 1.0
FOLDS = 5


@dataclass
class Gate:
    """Opens where (features - mean) / scale @ weight + bias > 0. Arrays: (hidden size,)."""

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    def opens(self, features: np.ndarray) -> np.ndarray:
        """One boolean per row of features (questions, hidden size)."""
        return (features - self.mean) / self.scale @ self.weight + self.bias > 0

    def save(self, folder: Path) -> None:
        found = {k: mx.array(np.float32(v)) for k, v in vars(self).items()}
        tensors.save(folder / FILE, found)


def read_gate(folder: Path) -> Gate | None:
    """The gate of an adapter folder, None when it has none."""
    if not (folder / FILE).exists():
        return None
    found = {k: np.array(v) for k, v in tensors.load(folder / FILE).items()}
    return Gate(found["mean"], found["scale"], found["weight"], float(found["bias"]))


def question_features(
    upper: Upper, asked: list[tuple[list[int], int]], batch_size: int
) -> np.ndarray:
    """Mean hidden state (questions, hidden size) of tokens[start:] of each (tokens, start).

    What all begin with, up to the first start, is read once.
    """
    prefix = min(shared_prefix([tokens for tokens, _ in asked]), *(start for _, start in asked))
    caches = upper.read_prefix(asked[0][0][:prefix])[1] if prefix else None
    result: dict[int, np.ndarray] = {}
    for group in by_length([tokens for tokens, _ in asked], batch_size):
        hidden = np.array(upper.lower(padded([asked[i][0][prefix:] for i in group]), caches))
        for row, i in zip(hidden, group, strict=True):
            tokens, start = asked[i]
            result[i] = row[start - prefix : len(tokens) - prefix].mean(0)
    return np.stack([result[i] for i in range(len(asked))])


def chat_features(
    upper: Upper, tokenizer, chat: Chat, conversations: list[list[dict]], batch_size: int
) -> np.ndarray:
    """The same of the last user turn of each conversation, (conversations, hidden size)."""
    asked = [
        (
            prompts.prompt_tokens(tokenizer, c, chat),
            len(prompts.user_header(tokenizer, chat, c[:-1])),
        )
        for c in conversations
    ]
    return question_features(upper, asked, batch_size)


def text_features(upper: Upper, texts: list[list[int]], batch_size: int = 1) -> np.ndarray:
    """The same of plain texts (token ids). The first token is left out: every other one rests its
    attention there, and its hidden state is a hundred times larger than theirs."""
    return question_features(upper, [(tokens, 1) for tokens in texts], batch_size)


def features_of(
    upper: Upper, tokenizer, chat: Chat, batch_size: int, questions: list[str], texts: list[str]
) -> np.ndarray:
    """The same of questions, each a chat of its own, and then of plain texts."""
    talks = [[{"role": "user", "content": q}] for q in questions]
    tokens = [tokenizer.encode(t, add_special_tokens=False) for t in texts]
    found = [chat_features(upper, tokenizer, chat, talks, batch_size)] if talks else []
    return np.concatenate(found + ([text_features(upper, tokens, batch_size)] if tokens else []))


def fit(features: np.ndarray, about: np.ndarray) -> Gate:
    """Logistic regression with an L2 penalty, both classes weighing the same, by Newton's method.

    features: (questions, hidden size); about: (questions,) booleans, True for the document's.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-6
    rows = np.c_[(features - mean) / scale, np.ones(len(features))].astype(np.float64)
    share = np.where(about, 0.5 / about.sum(), 0.5 / (~about).sum()) * len(about)
    penalty = np.full(rows.shape[1], PENALTY)
    penalty[-1] = 1e-6
    weight = np.zeros(rows.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(rows @ weight, -30, 30)))
        slope = rows.T @ (share * (chance - about)) + penalty * weight
        bend = (rows * (share * chance * (1 - chance))[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(bend, slope)
        weight -= step
        if np.abs(step).max() < 1e-6:
            break
    return Gate(mean, scale, weight[:-1], float(weight[-1]))


def cross_validate(features: np.ndarray, about: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Error rates on rows that the gate was not fitted on: {"false_open", "false_closed"}."""
    fold = np.random.default_rng(seed).permutation(len(about)) % FOLDS
    opened = np.zeros(len(about), dtype=bool)
    for k in range(FOLDS):
        inside = fold != k
        opened[~inside] = fit(features[inside], about[inside]).opens(features[~inside])
    return {
        "false_open": float(opened[~about].mean()),
        "false_closed": float((~opened[about]).mean()),
    }
