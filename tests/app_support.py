"""What the tests of the app share: requests, adapters, a model that writes when it is told to."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from engine import Request
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest
from support import ROOT

from injection.files import model_fingerprint
from injection.profiles import Project

PROJECT = Project("smollm2_135m", "paper")
APP = str(ROOT / "04_inference" / "infer_ui.py")
HOSTILE = "![x](http://e.org/x.png) <img src=x> [a](http://e.org) $x$ :smile: --> www.e.org a@e.org"
# Modules that look for files below the repository's root.
ROOTED = ("adapters", "chat_log", "runs", "report_tables")


def question(text: str, **settings) -> Request:
    profile = PROJECT.profile
    settings = {"max_tokens": 8, "context": profile.generation.context, **settings}
    return Request(base=PROJECT.base, chat=profile.chat, question=text, **settings)


def make_adapter(folder: Path, seed: int = 0, **changes) -> Path:
    """An adapter on the last layer that changes every answer."""
    folder.mkdir(parents=True)
    weight = "model.layers.29.mlp.down_proj"
    config = json.loads((PROJECT.base / "config.json").read_text())
    rows, columns = config["intermediate_size"], config["hidden_size"]
    rng = np.random.default_rng(seed)
    arrays = {
        f"{weight}.lora_a": rng.normal(size=(rows, 2)).astype(np.float32),
        f"{weight}.lora_b": rng.normal(size=(2, columns)).astype(np.float32),
    }
    save_file(arrays, folder / "adapters.safetensors")
    shape = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["mlp.down_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": shape}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    manifest = {
        "stage": "sft",
        "profile": "smollm2_135m",
        "document": "paper",
        "created": "2026-11-22T17:05:00+0000",
        "base": {"fingerprint": model_fingerprint(PROJECT.base)},
        "lora": {"rank": 2},
        "best_step": 40,
        "best_validation": {"score": 0.5, "dev": {"paraphrase": 0.5}},
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


class SlowModel:
    """Writes one word whenever the test allows it."""

    adapter_speaks, opening = True, ""

    def __init__(self):
        self.allowed = threading.Semaphore(0)

    def attach(self, adapter):
        pass

    def prompt(self, messages):
        return [0] * sum(len(m["content"].split()) for m in messages)

    def decode(self, tokens):
        return "".join(f"word{n} " for n in tokens)

    def stream(self, messages, max_tokens, temperature, top_p, seed, begun):
        for n in range(len(begun), len(begun) + max_tokens):
            self.allowed.acquire()
            yield SimpleNamespace(
                token=n,
                generation_tokens=n - len(begun) + 1,
                generation_tps=1.0,
                peak_memory=0.0,
                finish_reason="length" if n == len(begun) + max_tokens - 1 else None,
            )


def open_view(name: str = "chat") -> AppTest:
    app = AppTest.from_file(APP, default_timeout=300).run()
    if name != "chat":
        app.switch_page(f"views/{name}.py").run()
    assert not app.exception
    return app


def button(app: AppTest, label: str):
    return next(b for b in app.button if b.label == label)


def texts(app: AppTest) -> str:
    """All text on the page, without what escaping adds."""
    kinds = (app.text, app.caption, app.markdown, app.code, app.error, app.warning, app.success)
    found = "\n".join(e.value for kind in kinds for e in kind)
    return found.replace("\u2060", "").replace("\\", "")
