"""How often a document's gate opens for another document: with and without other.jsonl.

The gate reads frozen hidden states, so it is fitted here without training an adapter, on a sample
of the rows that training would fit it on. Questions and chunks of the other document are foreign to
it; dev questions of its own show what it must open for. No test question is used.

Reads:   data/<document>/sft/<profile>/{train,dev,other}.jsonl, data/<other>/facts.jsonl and
         chunks.jsonl
Writes:  results/gate_elsewhere_<profile>_<document>.json, and prints the table
Command: python benchmarks/gate_elsewhere.py --document tidemill --other paper
"""

import random
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from common import HERE, commit, markdown

from injection import batches, finishing, gate, models, runtime
from injection.files import read_jsonl, require, run, shown, write_json
from injection.profiles import Project, open_project, parser

# What the gate sees of questions and of texts, (number, hidden size).
See = Callable[[list[str], list[str]], np.ndarray]


def reader(project: Project) -> See:
    model, tokenizer = models.load_base(project.base)
    layers = models.adapted_layers(project.profile.lora, model)
    upper = batches.Upper(model, layers)
    return partial(gate.features_of, upper, tokenizer, project.profile.chat, 16)


def fitted_gates(project: Project, see: See, sample: int) -> dict[str, gate.Gate]:
    """The gate without and with the questions and texts of other subjects."""
    rows = [r for r in read_jsonl(project.data("sft") / "train.jsonl") if "messages" in r]
    random.Random(0).shuffle(rows)
    base = [r for r in rows if r.get("target") == "base"]
    own = [r for r in rows if r.get("target") != "base"][:sample]
    opened = see([r["messages"][0]["content"] for r in own], [])
    shut = see([r["messages"][0]["content"] for r in base], [])
    other = [r["question"] for r in read_jsonl(project.data("sft") / "other.jsonl")]
    found = {}
    for name, more in {"rehearsal only": [], "and other subjects": other}.items():
        features = np.concatenate([opened, shut, see(more, finishing.plain_texts(base, more))])
        found[name] = gate.fit(features, np.arange(len(features)) < len(opened))
    return found


def asked_of_it(project: Project, other: Project, see: See) -> dict[str, np.ndarray]:
    """Features by name: own dev questions by kind, the other document's questions and chunks."""
    dev = read_jsonl(project.data("sft") / "dev.jsonl")
    found = {
        f"own {kind}": see([r["question"] for r in dev if r["kind"] == kind], [])
        for kind in sorted({r["kind"] for r in dev})
    }
    foreign = [q for f in read_jsonl(other.facts) for q in f["questions"][:6:2]]
    found["foreign questions"] = see(foreign, [])
    found["foreign chunks"] = see([], [c["text"] for c in read_jsonl(other.chunks)])
    return found


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--other", default="tidemill", help="the foreign document")
    args.add_argument("--rows", type=int, default=3000, help="document rows to fit on")
    args = args.parse_args()
    project = open_project(args)
    other = Project(project.profile_name, args.other)
    require(project.data("sft") / "other.jsonl", "run 20_stage2_sft/build_sft_data.py first")
    require(other.chunks, f"run 10_stage1_cpt/chunk_pdf.py --document {args.other} first")
    see = reader(project)
    gates = fitted_gates(project, see, args.rows)
    found = asked_of_it(project, other, see)
    shares = {
        name: {kind: float(fitted.opens(rows).mean()) for kind, rows in found.items()}
        for name, fitted in gates.items()
    }
    origin = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": runtime.machine()}
    counts = {kind: len(rows) for kind, rows in found.items()}
    output = HERE / "results" / f"gate_elsewhere_{project.results.name}.json"
    write_json(output, {**origin, "rows": args.rows, "questions": counts, "opens": shares})
    lines = [[name, *(f"{v:.1%}" for v in row.values())] for name, row in shares.items()]
    print(markdown(["gate fitted on", *(f"{k} ({n})" for k, n in counts.items())], lines))
    print(f"wrote {shown(output)}")


if __name__ == "__main__":
    run(main)
