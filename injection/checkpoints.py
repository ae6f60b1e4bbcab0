"""Kill and resume: all that a training run needs to go on where it was, in one file.

Command: none of its own; training.py uses it
"""

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from injection import tensors
from injection.files import claim, read_json, write_bytes, write_json

if TYPE_CHECKING:
    from injection.training import Run


@dataclass
class State:
    """What a resumed run needs besides the arrays."""

    step: int = 0
    best: dict = field(default_factory=dict)  # the validation of the weights that are kept
    bad_validations: int = 0
    stopped: str = ""
    seconds: float = 0.0
    usual_loss: float = 0.0
    history: list[dict] = field(default_factory=list)


def save_checkpoint(run_: "Run") -> None:
    """Everything a resumed run needs, in one file that is replaced in one step."""
    arrays = {f"model.{k}": v for k, v in tree_flatten(run_.model.trainable_parameters())}
    arrays |= {f"optimizer.{k}": v for k, v in tree_flatten(run_.optimizer.state)}
    arrays |= {"rows.hardness": mx.array(run_.hardness), "rows.chosen": mx.array(run_.chosen)}
    state = json.dumps(vars(run_.state))
    tensors.save(run_.work / "checkpoint.safetensors", arrays, {"state": state})


def resume(run_: "Run", made_from: dict) -> None:
    """Take up an interrupted run of the same inputs; forget one of others."""
    origin, checkpoint = run_.work / "made_from.json", run_.work / "checkpoint.safetensors"
    if not (checkpoint.exists() and origin.exists() and read_json(origin) == made_from):
        shutil.rmtree(run_.work, ignore_errors=True)
        run_.claim = claim(run_.work)
        write_json(origin, made_from)
        return
    arrays, metadata = mx.load(str(checkpoint), return_metadata=True)
    run_.state = State(**json.loads(metadata["state"]))
    run_.hardness = np.array(arrays.pop("rows.hardness"))
    run_.chosen = np.array(arrays.pop("rows.chosen"))
    parts = {"model": [], "optimizer": []}
    for name, array in arrays.items():
        kind, rest = name.split(".", 1)
        parts[kind].append((rest, array))
    run_.model.update(tree_unflatten(parts["model"]))
    run_.optimizer.state = tree_unflatten(parts["optimizer"])
    _forget_later_metrics(run_)
    print(f"resumes at step {run_.state.step}", flush=True)


def _forget_later_metrics(run_: "Run") -> None:
    """Drop metrics that were written after the checkpoint: those steps run again."""
    path = run_.work / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        # The last line may be cut off by the kill.
        if line.endswith("}") and json.loads(line)["step"] <= run_.state.step:
            kept.append(line + "\n")
    write_bytes(path, "".join(kept).encode())
