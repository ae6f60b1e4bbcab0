"""What the tests share: copies of the project to run scripts in, and a tiny model's parts."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).resolve().parents[1]
DERIVED = (
    "cpt",
    "sft",
    "derived",
    "chunks.jsonl",
    "clean_report.json",
    "__pycache__",
    ".*",
    "*.partial",
)
PROGRESS = re.compile(r"\d+/\d+ .* gone, ")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


SMALL = [
    part
    for setting in (
        "replay.max_tokens=4",
        "generation.max_tokens=8",
        "cpt_mix.statements=2",
        "cpt_mix.questions=1",
        "sft_mix.questions=2",
        "cpt.batch_size=4",
        "sft.batch_size=4",
        "cpt.validations=1",
        "sft.validations=1",
    )
    for part in ("--set", setting)
]


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server on 127.0.0.1 that lives as long as the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class ProjectCopy:
    """A copy of the repository whose scripts run for real, in subprocesses."""

    def __init__(self, root: Path):
        self.root = root
        self.log: dict[str, str] = {}

    def __truediv__(self, part: str) -> Path:
        return self.root / part

    def start(self, *args, cwd: Path | None = None, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=cwd or self.root,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args, cwd: Path | None = None, limit: float = 500, **env: str):
        """The finished process: its return code and output."""
        process = self.start(*args, cwd=cwd, **env)
        out, err = process.communicate(timeout=limit)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def ok(self, *args, **more) -> str:
        """Standard output of a command that must succeed."""
        done = self.run(*args, **more)
        assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def refused(self, *args, **more) -> str:
        """The one line of standard error of a command that must refuse its input."""
        done = self.run(*args, **more)
        assert done.returncode == 1, f"{args}\n{done.stdout}\n{done.stderr}"
        lines = [line for line in done.stderr.splitlines() if not PROGRESS.search(line)]
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        return lines[0]

    def train(self, stage: str, *more) -> tuple:
        """The command that trains a stage of the tiny profile."""
        return ("-m", "injection.training", stage, "--profile", "tiny", *more)

    def read_jsonl(self, part: str) -> list[dict]:
        return read_jsonl(self.root / part)

    def write_jsonl(self, part: str, rows: list[dict]) -> Path:
        return write_jsonl(self.root / part, rows)


# Runs a script or a piece of code, then writes the peak resident memory of its own process.
WITH_PEAK = """
import pathlib, runpy, sys
what, sys.argv = sys.argv[1:], sys.argv[1:]
try:
    exec(what[1], {}) if what[0] == "-c" else runpy.run_path(what[0], run_name="__main__")
finally:
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("peak").write_text(status.split("VmHWM:")[1].split()[0])
"""


def peak_of(project: ProjectCopy, *command) -> tuple[float, float]:
    """(bytes of memory at the peak, seconds) of a command in a process of its own; Linux only."""
    started = time.monotonic()
    project.ok("-c", WITH_PEAK, *command, limit=3600)
    return 1024 * float((project / "peak").read_text()), time.monotonic() - started


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below folder and its content."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


def load_script(path: str):
    """A numbered script, or a module beside one, as a module."""
    folder = str((ROOT / path).parent)
    if folder not in sys.path:
        sys.path.append(folder)  # as Python itself does for a script
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_tree(target: Path) -> ProjectCopy:
    """Code, profiles and shipped data; nothing that a script derives."""
    ignore = shutil.ignore_patterns(*DERIVED)
    for part in sorted(ROOT.glob("[0-9][0-9]_*")) + [ROOT / "injection", ROOT / "data"]:
        shutil.copytree(part, target / part.name, ignore=ignore)
    (target / "models").mkdir()
    for profile in ROOT.glob("models/*.yaml"):
        shutil.copy(profile, target / "models")
    return ProjectCopy(target)


def write_tiny_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train([str(ROOT / "data/general/perplexity.txt")], trainer)
    assert tokenizer.get_vocab_size() == 600
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[1],
        "eos_token": special[2],
        "unk_token": special[0],
        "pad_token": special[2],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


TINY_STAGE = {
    "epochs": 3,
    "min_steps": 0,
    "batch_size": 4,
    "validations": 3,
    "max_tokens": 200,
    "warmup": 0.0,
}


def tiny_copy(target: Path, models: Path) -> ProjectCopy:
    copy = copy_tree(target)
    profile = yaml.safe_load((ROOT / "models/smollm2_135m.yaml").read_text())
    profile["source"]["folder"], profile["quantization"]["folder"] = "tiny", "tiny-4bit"
    profile["lora"] |= {"layers": 2, "rank": 4, "dropout": 0.0}
    profile["generation"]["max_tokens"] = 8
    for stage in ("cpt", "sft"):
        profile[stage] |= TINY_STAGE
    (copy / "models/tiny.yaml").write_text(yaml.safe_dump(profile))
    for folder in ("tiny", "tiny-4bit"):
        shutil.copytree(models / folder, copy / f"models/{folder}")
    for stage in ("cpt", "sft"):
        copy.write_jsonl(f"data/paper/{stage}/tiny/train.jsonl", tiny_rows(stage))
    copy.write_jsonl("data/paper/cpt/tiny/valid.jsonl", [{"text": "The sky is blue today."}])
    copy.write_jsonl("data/paper/sft/tiny/valid.jsonl", tiny_rows("sft")[:2])
    return copy


def tiny_rows(stage: str) -> list[dict]:
    """Texts (CPT) or answers (SFT), one of threefold weight, and rehearsal rows for the KL term."""
    rows = []
    for i in range(10):
        answer = f"Answer {i} is " + "very " * (i % 4) + f"{i * 37}."
        if stage == "cpt" and i % 3:
            rows.append({"text": f"Text {i}. {answer}", "source": f"text {i}"})
        else:
            rows.append(chat_row(f"What is {i}?" + " Really?" * (i % 3), answer))
    rows[3]["weight"] = 3.0
    open_row = {**chat_row("Tell a story.", "Once there was a fox"), "open": True}
    rows += [{**chat_row("Say hello.", "Hello there."), "target": "base"}]
    return [*rows, {**open_row, "target": "base"}]


def chat_row(question: str, answer: str) -> dict:
    roles = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return {"messages": list(roles), "source": question}


def shrink(project) -> None:
    """A two-page document with three facts and few questions of every kind."""
    pdf = project / "data/paper/digest.pdf"
    writer = PdfWriter()
    for page in PdfReader(pdf).pages[:2]:
        writer.add_page(page)
    writer.write(pdf)
    facts = project.read_jsonl("data/paper/facts.jsonl")[:3]
    project.write_jsonl("data/paper/facts.jsonl", facts)
    known = {"", *(f["id"] for f in facts)}
    for name in ("data/paper/eval.jsonl", "data/general/probes.jsonl"):
        seen, kept = set(), []
        for row in project.read_jsonl(name):
            key = (row["kind"], row["split"])
            if row["fact_id"] in known and key not in seen:
                seen.add(key)
                kept.append(row)
        project.write_jsonl(name, kept)
    # Enough other questions for a gate.
    few = {"general/replay": 20, "general/other_subjects": 9, "paper/contrasts": 3}
    for name, n in (few | {"paper/unknowns": 3}).items():
        project.write_jsonl(f"data/{name}.jsonl", project.read_jsonl(f"data/{name}.jsonl")[:n])
    text = project / "data/general/perplexity.txt"
    text.write_text(text.read_text()[:1500])
