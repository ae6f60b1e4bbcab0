"""Ask the key questions of the document and show, one by one, what the model answers and why it
passes or misses.

Reads:   models/<4-bit folder>, the SFT adapter, the key questions of document.yaml and the bare
         questions of eval.jsonl, or any file given with --questions
Prints:  question, answer, pass or miss with the reason; exit code 1 below the threshold
Command: python 30_evaluation/verify_paper_sft.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import grading
from injection.files import InputError, require, run, shown
from injection.profiles import Project, open_project, parser


def key_questions(project: Project) -> list[dict]:
    rows = [
        {
            "id": key.column,
            "question": key.question,
            "must_include": key.must_include,
            "must_not_include": key.must_not_include,
        }
        for key in project.document.key_questions
    ]
    asked = {row["question"] for row in rows}
    if project.questions.exists():
        rows += [
            r
            for r in grading.read_questions(project.questions)
            if r["kind"] == "bare" and r["split"] == "test" and r["question"] not in asked
        ]
    return rows


def main() -> int:
    args = parser(__doc__)
    args.add_argument("--questions", type=Path, help="JSONL in the format of eval.jsonl")
    args.add_argument("--adapter", type=Path, help="default: the SFT adapter")
    args.add_argument("--threshold", type=float, help="share to pass (default: document.yaml)")
    args = args.parse_args()
    project = open_project(args)
    rows = grading.read_questions(args.questions) if args.questions else key_questions(project)
    adapter = args.adapter or project.adapter("sft")
    require(project.base / "config.json", "run 03_quantization/quantize.py first")
    again = f"--profile {project.profile_name} --document {project.document_name}"
    require(adapter, f"run python -m injection.training sft {again} first")
    threshold = project.document.verify_threshold if args.threshold is None else args.threshold
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold is a share between 0 and 1, not {threshold}")

    from injection.models import ChatModel

    model = ChatModel(project.base, project.profile.chat)
    model.attach(adapter)
    print(f"adapter {shown(adapter)}\n")
    answers = model.answer_all([r["question"] for r in rows], project.profile.generation)
    passed = 0
    for row, answer in zip(rows, answers, strict=True):
        ok, why = grading.grade(row, answer.text, project.document.refusal)
        passed += ok
        print(f"Q  {row['question']}\nA  {answer.text}\n   {'pass' if ok else 'MISS'}: {why}\n")
    print(f"{passed} of {len(rows)} passed, threshold {threshold:.0%}")
    return 0 if passed >= threshold * len(rows) else 1


if __name__ == "__main__":
    run(main)
