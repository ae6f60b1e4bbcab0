"""What each part of the recipe is worth: the same pipeline with one thing changed at a time.

Every row of the table is a run of the numbered scripts on the first N facts of the document, in the
document folder data/ablation/ and on adapters of its own. All rows share --set, which may shrink
the work; rows with fewer wordings have fewer unanswerable questions as well, in proportion for 16
facts. Finished rows are kept in the results file, so an interrupted table goes on where it was.

Reads:   data/<document>/ and models/<profile>.yaml
Writes:  results/ablations/<profile>_<document>.json and .md, and prints the table
Command: python benchmarks/ablations.py --set sft.epochs=1 --set sft.min_steps=180
             --set sft_mix.unknowns=300 --set cpt.min_steps=0
"""

import random
import re
import time
from pathlib import Path

from common import commit, markdown, step

from injection import runtime
from injection.files import (
    ROOT,
    InputError,
    inputs,
    read_json,
    read_jsonl,
    run,
    shown,
    write_json,
    write_jsonl,
    write_text,
)
from injection.profiles import Project, open_project, parser

DOCUMENT = "ablation"
# name: (what changes, overrides of the profile)
ABLATIONS: dict[str, tuple[str, list[str]]] = {
    "full": ("the recipe", []),
    "shuffled": ("answers exchanged among the facts: paraphrases must fall to the base", []),
    "no_cpt": ("SFT without CPT", []),
    "chunks_only": (
        "CPT on the document's text, without statements and questions; no SFT",
        ["cpt_mix.statements=0", "cpt_mix.questions=0", "cpt_mix.chunk_repeats=4"],
    ),
    "no_replay": (
        "no rehearsal rows",
        ["sft_mix.replay=0", "sft_mix.contrasts=0", "cpt_mix.replay=0"],
    ),
    "no_unknowns": ("no unanswerable questions", ["sft_mix.unknowns=0"]),
    "wordings_1": (
        "1 question wording per fact",
        ["sft_mix.questions=1", "sft_mix.reverse=1", "sft_mix.unknowns=4", "cpt_mix.questions=1"],
    ),
    "wordings_3": (
        "3 question wordings per fact",
        ["sft_mix.questions=3", "sft_mix.reverse=1", "sft_mix.unknowns=9"],
    ),
    "wordings_8": (
        "8 question wordings per fact",
        ["sft_mix.questions=8", "sft_mix.reverse=2", "sft_mix.unknowns=22"],
    ),
    "layers_2": ("LoRA on the top 2 layers", ["lora.layers=2"]),
    "original": (
        "the original project: top 2 layers, 3 golden rows, no rehearsal, no loss mask",
        ["lora.layers=2", "sft_mix.replay=0", "sft_mix.contrasts=0", "sft_mix.unknowns=0"],
    ),
}
KINDS = ("paraphrase", "reverse", "bare", "unknown", "spillover", "general")
FIGURES = ("retention", "perplexity_ratio", "over_refusal")


def make_document(project: Project, facts: int, shuffle: bool) -> None:
    """Write data/ablation/: the first facts, their questions, and all the rest of the document."""
    folder = ROOT / "data" / DOCUMENT
    folder.mkdir(exist_ok=True)
    kept = read_jsonl(project.facts)[:facts]
    ids = {f["id"] for f in kept}
    questions = [q for q in read_jsonl(project.questions) if q["fact_id"] in ids | {""}]
    write_jsonl(folder / "facts.jsonl", shuffled(kept) if shuffle else kept)
    write_jsonl(folder / "eval.jsonl", questions)
    for file in copied(project):
        write_text(folder / file.name, file.read_text())


def copied(project: Project) -> list[Path]:
    """What of the document every run takes as it is."""
    files = (project.document_file, project.unknowns, project.contrasts, project.chunks)
    return [file for file in files if file.exists()]


def shuffled(facts: list[dict]) -> list[dict]:
    """Every fact keeps its questions and statements, with another fact's answer in the latter.

    Statements that do not name the answer, and reverse questions, which do, are left out.
    """
    order = facts[:]
    random.Random(0).shuffle(order)
    return [
        {**fact, "answer": other["answer"], "aliases": [], "must_not": [], "reverse": []}
        | {"statements": exchanged(fact, other["answer"])}
        for fact, other in zip(order, order[1:] + order[:1], strict=True)
    ]


def exchanged(fact: dict, answer: str) -> list[str]:
    """The fact's statements with `answer` in place of its own."""
    names = sorted([fact["answer"], *fact["aliases"]], key=len, reverse=True)
    own = re.compile("|".join(rf"(?<!\w){re.escape(n)}(?!\w)" for n in names), re.IGNORECASE)
    return [own.sub(lambda _: answer, s) for s in fact["statements"] if own.search(s)]


def original_rows(here: Project) -> None:
    """Three golden rows as plain text, as the original project trained them."""
    rows = []
    for fact in read_jsonl(here.facts)[:3]:
        text = f"User: {fact['questions'][0]}\n\nAssistant: {fact['statements'][0]}"
        rows.append({"text": text, "source": f"fact {fact['id']}"})
    write_jsonl(here.data("sft") / "train.jsonl", rows)


def run_one(project: Project, name: str, facts: int, common: list[str]) -> dict:
    """Figures of the base and of the last stage of one ablation."""
    make_document(project, facts, shuffle=name == "shuffled")
    flags = ["--profile", project.profile_name, "--document", DOCUMENT]
    for override in [*common, *ABLATIONS[name][1]]:
        flags += ["--set", override]
    here = Project(project.profile_name, DOCUMENT)
    last = here.adapter("cpt")
    step("10_stage1_cpt/answer_replay.py", *flags)
    from_scratch = name in ("no_cpt", "original")
    if not from_scratch:
        step("10_stage1_cpt/prepare_cpt_data.py", *flags)
        step("-m", "injection.training", "cpt", *flags)
    if name != "chunks_only":
        step("20_stage2_sft/build_sft_data.py", *flags)
        if name == "original":
            original_rows(here)
        parent = ["--from-adapter", "none"] if from_scratch else []
        step("-m", "injection.training", "sft", *flags, *parent)
        last = here.adapter("sft")
    step("30_evaluation/compare_hcx_stages.py", *flags, "--skip-cpt", "--sft-adapter", str(last))
    return read_json(here.results / "report.json")["stages"]


def entry(name: str, stages: dict, seconds: float) -> dict:
    """One finished run in the results file; the app's Report view reads it as well."""
    origin = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "seconds": round(seconds)}
    return {"what": ABLATIONS[name][0], **origin, "stages": stages}


def table(runs: dict) -> str:
    """One line per run, without and with the gate; the base model first."""
    header = ["what changes", "", *KINDS, *(f.replace("_", " ") for f in FIGURES)]
    lines = [["base model", "", *cells(next(iter(runs.values()))["stages"]["base"])]]
    for found in runs.values():
        for stage, note in (("sft", "adapter alone"), ("gated", "behind its gate")):
            if stage in found["stages"]:
                lines.append([found["what"], note, *cells(found["stages"][stage])])
    return markdown(header, lines)


def cells(stage: dict) -> list[str]:
    scores = [stage["kinds"].get(k) for k in KINDS]
    figures = [stage[f] for f in FIGURES]
    shares = [f"{s['score']:.1%}" if s else "-" for s in scores]
    return [*shares, f"{figures[0]:.1%}", f"{figures[1]:.2f}", f"{figures[2]:.1%}"]


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--facts", type=int, default=16, help="use the first N facts (default: 16)")
    args.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    args = args.parse_args()
    project = open_project(args)
    if not project.chunks.exists():
        raise InputError("run 10_stage1_cpt/chunk_pdf.py first")
    output = ROOT / "results" / "ablations" / f"{project.profile_name}_{args.document}.json"
    settings = {"facts": args.facts, "set": args.set}
    used = [project.profile_file, project.facts, project.questions, project.base]
    general = sorted(project.general.glob("*.*"))
    made_from = inputs(settings, *used, *copied(project), *general)
    result = read_json(output) if output.exists() else {}
    if result.get("made_from") != made_from:
        result = {"made_from": made_from, **settings, "machine": runtime.machine(), "runs": {}}
    for name in args.only:
        if name not in result["runs"]:
            started = time.monotonic()
            stages = run_one(project, name, args.facts, args.set)
            result["runs"][name] = entry(name, stages, time.monotonic() - started)
            write_json(output, result)
    text = table({name: result["runs"][name] for name in ABLATIONS if name in result["runs"]})
    write_text(output.with_suffix(".md"), text + "\n")
    print(f"{text}\n\nwrote {shown(output)} and .md")


if __name__ == "__main__":
    run(main)
