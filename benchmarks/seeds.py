"""The headline again with other seeds: both stages trained anew, the same questions asked.

Reads:   the rows of both stages (run.sh makes them), data/<document>/eval.jsonl
Writes:  results/seeds/<profile>_<document>.json and .md, and prints the table; each run's report
         stays in results/seeds/<profile>_<document>_<seed>/
Command: python benchmarks/seeds.py --seeds 0 1 2
"""

import statistics
import time

from common import commit, markdown, step

from injection import runtime
from injection.files import ROOT, read_json, run, shown, write_json, write_text
from injection.profiles import Project, open_project, parser

KINDS = ("paraphrase", "reverse", "bare", "unknown", "spillover", "general")
FIGURES = ("retention", "perplexity_ratio", "over_refusal")


def run_seed(project: Project, seed: int, overrides: list[str]) -> dict:
    """Figures of every stage after training both stages with this seed."""
    flags = ["--profile", project.profile_name, "--document", project.document_name]
    for override in [*overrides, f"cpt.seed={seed}", f"sft.seed={seed}"]:
        flags += ["--set", override]
    adapters = {s: adapter_name(project, s, seed, overrides) for s in ("cpt", "sft")}
    folder = ROOT / "results" / "seeds" / f"{project.results.name}_{seed}"
    step("-m", "injection.training", "cpt", *flags, "--output", adapters["cpt"])
    parent = ("--from-adapter", adapters["cpt"])
    step("-m", "injection.training", "sft", *flags, *parent, "--output", adapters["sft"])
    compare = ("--skip-cpt", "--sft-adapter", adapters["sft"], "--output", str(folder))
    step("30_evaluation/compare_hcx_stages.py", *flags, *compare)
    return read_json(folder / "report.json")["stages"]


def adapter_name(project: Project, stage: str, seed: int, overrides: list[str]) -> str:
    """With the profile's own seed and settings that of run.sh, which is not trained again."""
    name, own = project.adapter(stage).name, project.training(stage).seed
    return name if seed == own and not overrides else f"{name}_seed{seed}"


def figures(stage: dict) -> dict[str, float]:
    found = {kind: stage["kinds"][kind]["score"] for kind in KINDS if kind in stage["kinds"]}
    if "paraphrase" in stage["kinds"]:
        found["every wording"] = stage["kinds"]["paraphrase"]["every_wording"]
    return found | {name: stage[name] for name in FIGURES if stage[name] is not None}


def table(runs: dict) -> str:
    """Median and range over the seeds, of the adapter alone and behind its gate."""
    lines = []
    for stage, note in (("sft", "adapter alone"), ("gated", "behind its gate")):
        found = [figures(stages[stage]) for stages in runs.values() if stage in stages]
        for name in found[0] if found else ():
            values = [f[name] for f in found]
            form = "{:.2f}" if name == "perplexity_ratio" else "{:.1%}"
            shown_values = map(form.format, (statistics.median(values), min(values), max(values)))
            lines.append([name.replace("_", " "), note, *shown_values])
    return markdown(["figure", "", "median", "lowest", "highest"], lines)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = args.parse_args()
    project = open_project(args)
    runs = {}
    for seed in args.seeds:
        runs[seed] = run_seed(project, seed, args.set)
    output = ROOT / "results" / "seeds" / f"{project.results.name}.json"
    origin = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": runtime.machine()}
    write_json(output, origin | {"runs": runs})
    text = table(runs)
    write_text(output.with_suffix(".md"), text + "\n")
    print(f"{text}\n\nwrote {shown(output)} and .md")


if __name__ == "__main__":
    run(main)
