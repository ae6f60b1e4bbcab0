"""The whole way on the real SmolLM2, with a handful of rows and steps."""

import json
import math
import subprocess
import sys
from pathlib import Path

from support import SMALL, read_jsonl, shrink

PROFILE = ("--profile", "smollm2_135m")
SUMMARY = {
    "kinds",
    "key_questions",
    "tokens_per_second",
    "peak_memory_gb",
    "adapter",
    "best_step",
    "perplexity",
    "retention",
}
DERIVED = (
    "data/paper/chunks.jsonl",
    "data/general/derived/replay_smollm2_135m.jsonl",
    "data/paper/derived/contrasts_smollm2_135m.jsonl",
    "data/paper/cpt/smollm2_135m/train.jsonl",
    "data/paper/cpt/smollm2_135m/valid.jsonl",
    "data/paper/sft/smollm2_135m/train.jsonl",
    "data/paper/sft/smollm2_135m/valid.jsonl",
    "data/paper/sft/smollm2_135m/dev.jsonl",
    "data/paper/sft/smollm2_135m/other.jsonl",
    "adapters_smollm2_135m_paper_cpt/manifest.json",
    "adapters_smollm2_135m_paper_sft/manifest.json",
)


def test_pipeline_end_to_end(project_copy):
    run, small = project_copy.ok, (*PROFILE, *SMALL)
    shrink(project_copy)
    rows = project_copy.read_jsonl("data/paper/eval.jsonl")
    rows += project_copy.read_jsonl("data/general/probes.jsonl")
    questions = [r for r in rows if r["split"] == "test"]
    assert len({q["kind"] for q in questions[:6]}) == 6
    project_copy.write_jsonl("six.jsonl", questions[:6])

    assert "wrote data/paper/chunks.jsonl" in run("10_stage1_cpt/chunk_pdf.py", *small)
    assert " answers" in run("10_stage1_cpt/answer_replay.py", *small)
    assert "wrote data/paper/cpt" in run("10_stage1_cpt/prepare_cpt_data.py", *small)
    cpt = ("-m", "injection.training", "cpt", *small, "--max-steps", "3")
    assert "of 3" in run(*cpt)
    assert "no leak into" in run("20_stage2_sft/build_sft_data.py", *small)
    out = run("-m", "injection.training", "sft", *small, "--max-steps", "3")
    assert "continues from adapters_smollm2_135m_paper_cpt" in out
    compare = ("30_evaluation/compare_hcx_stages.py", *small, "--questions", "six.jsonl")
    table = run(*compare)
    for part in ("Model Stage | CLaRa Definition | SCP Definition | Inference Speed", "Stage 2"):
        assert part in table
    assert [name for name in DERIVED if not (project_copy / name).exists()] == []
    check_report(project_copy, questions[:6])
    check_gate_data(project_copy)

    verify = ("30_evaluation/verify_paper_sft.py", *small, "--questions", "six.jsonl")
    shown = run(*verify, "--threshold", "0")
    assert "of 6 passed, threshold 0%" in shown
    answers = project_copy.read_jsonl("results/smollm2_135m_paper/six/answers.jsonl")
    gated = [a["answer"] for a in answers if a["stage"] == "gated"]
    assert [text for text in gated if f"\nA  {text}\n" not in shown] == []
    scripts = ("chunk_pdf.py", "answer_replay.py", "prepare_cpt_data.py")
    steps = [(f"10_stage1_cpt/{script}", *small) for script in scripts]
    steps += [("20_stage2_sft/build_sft_data.py", *small), cpt, compare]
    steps += [("-m", "injection.training", "sft", *small, "--max-steps", "3")]
    for step in steps:
        out = run(*step)
        assert "up to date" in out and "\nwrote" not in out
    check_mlx_lm_generate(project_copy)


def check_report(project, questions) -> None:
    folder = project / "results/smollm2_135m_paper/six"
    report = json.loads((folder / "report.json").read_text())
    header = {"profile", "document", "commit", "date", "machine", "questions", "stages"}
    assert header <= report.keys()
    assert list(report["stages"]) == ["base", "cpt", "sft", "gated"]
    for stage, data in report["stages"].items():
        assert data.keys() >= SUMMARY
        assert set(data["kinds"]) == {q["kind"] for q in questions}
        for kind in data["kinds"].values():
            assert 0 <= kind["low"] <= kind["score"] <= kind["high"] <= 1
        assert sum(kind["n"] for kind in data["kinds"].values()) == 6
        assert data["tokens_per_second"] > 0 and data["peak_memory_gb"] > 0
        assert (data["adapter"] is None) == (data["best_step"] is None) == (stage == "base")
    gate = report["stages"]["gated"]["gate"]
    assert gate.keys() == {q["kind"] for q in questions}
    assert gate["paraphrase"] == 1 and gate["general"] == 0
    answers = read_jsonl(folder / "answers.jsonl")
    assert [a["id"] for a in answers] == 4 * [q["id"] for q in questions]
    assert all(
        {"stage", "id", "kind", "question", "answer", "passed", "why"} <= a.keys() for a in answers
    )
    check_gated(report["stages"], {(a["stage"], a["id"]): a["answer"] for a in answers}, questions)
    assert "Model Stage" in (folder / "report.md").read_text()


def check_gate_data(project) -> None:
    """Rehearsal and other subjects: each a question, a text, and an eighth of a longer text."""
    data = "data/paper/sft/smollm2_135m"
    rehearsal = [r for r in project.read_jsonl(f"{data}/train.jsonl") if r.get("target") == "base"]
    number = len(rehearsal) + len(project.read_jsonl(f"{data}/other.jsonl"))
    manifest = project.root / "adapters_smollm2_135m_paper_sft/manifest.json"
    assert json.loads(manifest.read_text())["gate"]["other"] == 2 * number + math.ceil(number / 8)


def check_gated(stages, said, questions) -> None:
    """The adapter's where the gate opened, the base's elsewhere: each kind has one question."""
    for q in questions:
        speaks = "sft" if stages["gated"]["gate"][q["kind"]] else "base"
        assert said["gated", q["id"]] == said[speaks, q["id"]]
    definition = {stage: data["key_questions"][0]["answer"] for stage, data in stages.items()}
    assert definition["gated"] == definition["sft"], "of CLaRa"
    assert stages["gated"]["perplexity"] == stages["base"]["perplexity"], "of general text"


def check_mlx_lm_generate(project) -> None:
    """The adapter folder is mlx-lm's own format. On a CPU it takes a second a token, so the prompt
    goes without the template."""
    command = [
        Path(sys.executable).with_name("mlx_lm.generate"),
        *("--model", "models/SmolLM2-135M-Instruct-4bit"),
        *("--adapter-path", "adapters_smollm2_135m_paper_sft"),
        *("--prompt", "Once upon a", "--ignore-chat-template"),
        *("--max-tokens", "2"),
    ]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    assert done.returncode == 0 and "Generation: 2 tokens" in done.stdout, done.stderr
