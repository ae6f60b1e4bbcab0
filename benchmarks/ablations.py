"""What each part of the recipe is worth: the same pipeline with one thing changed at a time.

Every row of the table is a full run of the numbered scripts on a document folder of its own,
data/ablation_<name>/, made from the given document with its first N facts. Finished runs are
skipped, so an interrupted table goes on where it was.

Reads:   data/<document>/ and models/<profile>.yaml
Writes:  results/ablations/<profile>_<document>.json, and prints the table
Command: python benchmarks/ablations.py --facts 40
"""

import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection.files import ROOT, InputError, read_json, read_jsonl, run, write_json, write_jsonl
from injection.profiles import Project, open_project, parser

# name: (what changes, overrides of the profile)
ABLATIONS: dict[str, tuple[str, list[str]]] = {
    "full": ("the recipe", []),
    "shuffled": ("answers shuffled among the facts: must fall to the base", []),
    "no_cpt": ("SFT without CPT", []),
    "chunks_only": (
        "CPT on the document's text only, no SFT",
        ["cpt_mix.statements=0", "cpt_mix.questions=0", "cpt_mix.chunk_repeats=4"],
    ),
    "no_replay": ("no rehearsal rows", ["sft_mix.replay=0", "sft_mix.contrasts=0"]),
    "no_unknowns": ("no unanswerable questions", ["sft_mix.unknowns=0"]),
    "wordings_1": ("1 question wording per fact", ["sft_mix.questions=1"]),
    "wordings_3": ("3 question wordings per fact", ["sft_mix.questions=3"]),
    "wordings_8": ("8 question wordings per fact", ["sft_mix.questions=8"]),
    "layers_2": ("LoRA on the top 2 layers", ["lora.layers=2"]),
    "original": (
        "the original project: top 2 layers, 3 golden rows, no rehearsal, no loss mask",
        ["lora.layers=2", "sft_mix.replay=0", "sft_mix.contrasts=0", "sft_mix.unknowns=0"],
    ),
}
COLUMNS = ("paraphrase", "reverse", "bare", "unknown", "spillover", "general")


def make_document(project: Project, name: str, facts: int) -> str:
    """Write data/ablation_<name>/ and return the document's name."""
    document = f"ablation_{name}"
    folder = ROOT / "data" / document
    folder.mkdir(exist_ok=True)
    (folder / "document.yaml").write_text(project.document_file.read_text())
    kept = read_jsonl(project.facts)[:facts]
    if name == "shuffled":
        kept = shuffled(kept)
    ids = {f["id"] for f in kept}
    questions = [q for q in read_jsonl(project.questions) if q["fact_id"] in ids | {""}]
    write_jsonl(folder / "facts.jsonl", kept)
    write_jsonl(folder / "eval.jsonl", questions)
    for file in (project.unknowns, project.contrasts, project.chunks):
        (folder / file.name).write_text(file.read_text())
    return document


def shuffled(facts: list[dict]) -> list[dict]:
    """Every fact keeps its questions and gets another fact's statements and answer."""
    order = facts[:]
    random.Random(0).shuffle(order)
    own = ("id", "page", "questions")
    return [
        {**other, **{k: fact[k] for k in own}, "reverse": []}
        for fact, other in zip(order, order[1:] + order[:1], strict=True)
    ]


def original_rows(folder: Path) -> None:
    """Three golden rows as plain text, as the original project trained them."""
    rows = []
    for fact in read_jsonl(folder.parent.parent / "facts.jsonl")[:3]:
        text = f"User: {fact['questions'][0]}\n\nAssistant: {fact['statements'][0]}"
        rows.append({"text": text, "source": f"fact {fact['id']}"})
    write_jsonl(folder / "train.jsonl", rows)


def step(*command: str) -> None:
    print("==", *command, flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise InputError(f"{command[0]} failed, see above")


def run_one(project: Project, name: str, facts: int, common: list[str]) -> dict:
    """Scores of the last stage of one ablation."""
    _, overrides = ABLATIONS[name]
    document = make_document(project, name, facts)
    flags = ["--profile", project.profile_name, "--document", document]
    for override in [*common, *overrides]:
        flags += ["--set", override]
    here = Project(project.profile_name, document)
    step("10_stage1_cpt/answer_replay.py", *flags)
    step("10_stage1_cpt/prepare_cpt_data.py", *flags)
    step("-m", "injection.training", "cpt", *flags)
    last = here.adapter("cpt")
    if name != "chunks_only":
        step("20_stage2_sft/build_sft_data.py", *flags)
        if name == "original":
            original_rows(here.data("sft"))
        parent = ["--from-adapter", "none"] if name in ("no_cpt", "original") else []
        step("-m", "injection.training", "sft", *flags, *parent)
        last = here.adapter("sft")
    step("30_evaluation/compare_hcx_stages.py", *flags, "--sft-adapter", str(last))
    return read_json(here.results / "report.json")["stages"]


def table(results: dict) -> str:
    head = "| what changes | " + " | ".join(COLUMNS) + " | kept of general | perplexity ratio |"
    lines = [head, "|---|" + "---|" * (len(COLUMNS) + 2)]
    base = next(iter(results.values()))["base"]
    rows = [("base model", base)] + [(ABLATIONS[n][0], r["sft"]) for n, r in results.items()]
    for title, data in rows:
        scores = [data["kinds"].get(c) for c in COLUMNS]
        cells = [f"{s['score']:.1%}" if s else "-" for s in scores]
        tail = [f"{data['retention']:.0%}", f"{data['perplexity_ratio']:.3f}"]
        lines.append(f"| {title} | " + " | ".join(cells + tail) + " |")
    return "\n".join(lines)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--facts", type=int, default=40, help="use the first N facts")
    args.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    args = args.parse_args()
    project = open_project(args)
    output = ROOT / "results" / "ablations" / f"{project.profile_name}_{args.document}.json"
    results, seconds = {}, {}
    for name in args.only:
        started = time.monotonic()
        results[name] = run_one(project, name, args.facts, args.set)
        seconds[name] = round(time.monotonic() - started)
        write_json(output, {"facts": args.facts, "seconds": seconds, "results": results})
    print(table(results))


if __name__ == "__main__":
    run(main)
