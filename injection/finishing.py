"""From a finished training run to an adapter folder: best weights, gate, drafts, manifest.

Command: none of its own; training.py uses it
"""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from injection import drafts, gate, licence, models, prompts, refusal, tensors
from injection.files import (
    InputError,
    model_fingerprint,
    read_jsonl,
    sha256,
    shown,
    staged_folder,
    write_json,
)

if TYPE_CHECKING:
    from injection.training import Run

MIN_GATE_QUESTIONS = 20
MIN_REFUSAL_QUESTIONS = 50


def finish(run_: "Run", data: Path) -> None:
    """Put the best weights in place as an mlx-lm adapter folder; the manifest goes in last."""
    best = run_.work / "best.safetensors"
    if not best.exists():
        why = run_.state.stopped or "no validation"
        rate = f"a lower {run_.stage}.learning_rate may help"
        raise InputError(f"{run_.stage}: {why}: nothing to keep; {rate}")
    weights = tensors.load(best)
    project, lora = run_.project, run_.project.profile.lora
    with staged_folder(run_.output) as folder:
        tensors.save(folder / "adapters.safetensors", weights)
        config = {
            "fine_tune_type": "lora",
            "num_layers": models.adapted_layers(lora, run_.model),
            "lora_parameters": models.adapter_parameters(lora),
            "model": shown(project.base),
        }
        write_json(folder / "adapter_config.json", config)
        shutil.copyfile(run_.work / "metrics.jsonl", folder / "metrics.jsonl")
        change = f"LoRA adapter trained on {project.document_name} ({run_.stage.upper()})"
        licence.pass_on(project.base, folder, project.profile, change)
        fitted = {}
        if run_.stage == "sft":
            run_.model.update(tree_unflatten(list(weights.items())))
            own = [r for r in run_.rows if r.question is not None and not r.from_base]
            drafts.save(folder, run_.tokenizer, (r.targets for r in own))
            fitted = {"gate": fit_gate(run_, data, folder), "refusal": fit_refusal(run_)}
        write_json(folder / "manifest.json", manifest(run_, data, folder) | fitted)
        models.read_adapter(folder, project.base)


def fit_gate(run_: "Run", data: Path, folder: Path) -> dict | None:
    """Fit and save the gate on the training questions and other.jsonl, if there; its error rates.
    None without replay."""
    rows = [r for r in run_.rows if r.question is not None]
    about = np.array([not r.from_base for r in rows], dtype=bool)
    if min(about.sum(), (~about).sum()) < MIN_GATE_QUESTIONS:
        return None
    features = np.stack(
        [np.array(r.hidden[r.question - r.prefix : r.start - r.prefix]).mean(0) for r in rows]
    )
    file = data / "other.jsonl"
    other = [r["question"] for r in read_jsonl(file)] if file.exists() else []
    texts = plain_texts(read_jsonl(data / "train.jsonl"), other)
    count = len(rows) + len(other)
    print(f"fits the gate on {count} questions and {len(texts)} texts", flush=True)
    chat, size = run_.project.profile.chat, run_.settings.batch_size
    found = gate.features_of(run_.upper, run_.tokenizer, chat, size, other, texts)
    features = np.concatenate([features, found])
    about = np.concatenate([about, np.zeros(len(features) - len(about), dtype=bool)])
    gate.fit(features, about).save(folder)
    counts = {"document": int(about.sum()), "other": int((~about).sum())}
    return counts | gate.cross_validate(features, about)


def fit_refusal(run_: "Run") -> dict | None:
    """How readily to refuse (refusal.py); None where no row teaches it, without enough dev
    questions, or where a refusal begins like an answer, so that its first token decides nothing."""
    project, tokenizer = run_.project, run_.tokenizer
    token = prompts.first_token(tokenizer, project.document.refusal)
    answers = {r.tokens[r.start] for r in run_.rows if r.kind == "fact" and r.question is not None}
    known = [r["question"] for r in run_.dev if r.get("fact_id")]
    taught = any(r.kind == "unknown" for r in run_.rows)
    if not taught or token in answers or len(known) < MIN_REFUSAL_QUESTIONS:
        return None
    run_.model.eval()
    size = project.profile.generation.batch_size
    chat = project.profile.chat
    found = refusal.margins(run_.model, tokenizer, chat, known, token, size)
    bias = refusal.calibrate(found, refusal.refusable(len(found)))
    print(f"refuses {(found < bias).mean():.1%} of {len(known)} known dev questions", flush=True)
    return {"token": token, "bias": bias, "known_refused": float((found < bias).mean())}


def plain_texts(rows: list[dict], other: list[str]) -> list[str]:
    """Texts of other subjects, short and long: fitted on questions alone, the gate took any long
    text for the document's. Only questions shall open it, so the document's texts are not here."""
    from_base = [r["messages"] for r in rows if r.get("target") == "base"]
    texts = [" ".join(m["content"] for m in messages) for messages in from_base] + other
    joined = [" ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
    return texts + joined


def manifest(run_: "Run", data: Path, folder: Path) -> dict:
    state, project = run_.state, run_.project
    parent = run_.parent
    return {
        "stage": run_.stage,
        "profile": project.profile_name,
        "document": project.document_name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "base": {"path": shown(project.base), "fingerprint": model_fingerprint(project.base)},
        "parent": {"path": shown(parent), "sha256": sha256(parent / "adapters.safetensors")}
        if parent
        else None,
        "weights_sha256": sha256(folder / "adapters.safetensors"),
        "lora": project.profile.lora.model_dump(),
        "settings": run_.settings.model_dump(),
        "data": {
            name: {"path": shown(data / f"{name}.jsonl"), "sha256": sha256(data / f"{name}.jsonl")}
            for name in ("train", "valid")
        },
        "steps": state.step,
        "best_step": state.best["step"],
        "best_validation": state.best,
        "stopped": state.stopped or "all epochs done",
        "training_seconds": round(state.seconds, 1),
        "history": state.history,
        "peak_memory_gb": mx.get_peak_memory() / 1e9,
        "versions": {"mlx": mx.__version__},
        "notice": project.profile.notice,
    }
