"""Scaling: how the cost of training grows with rows, row length and adapted layers, and the cost of
chunking with pages.

Each quantity is taken 1x, 4x and 16x while the others stay. Every point is a fresh process; the
sizes take turns, the medians of the repeats are fitted with cost = c * size^exponent (least
squares of the logarithms). Training is one epoch including the hidden-state cache fill, without
loading the model; chunking is reading, cleaning and splitting, without loading the tokenizer. A
constant part of the cost makes an exponent smaller than 1.

Reads:   models/<4-bit folder>, data/<document>/sft/<profile>/train.jsonl, chunks.jsonl and the PDF
Writes:  benchmarks/results/scaling.json and .png; prints one Markdown table
Command: python benchmarks/scaling.py
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import common

FACTORS = (1, 4, 16)
LENGTH_ROWS = 8


def chunk(job: dict) -> dict:
    """Seconds from a PDF of job["copies"] times the document's pages to its chunks."""
    from pypdf import PdfWriter
    from tokenizers import Tokenizer

    script = common.load_script("10_stage1_cpt/chunk_pdf.py")
    tokenizer = Tokenizer.from_file(job["tokenizer"])
    with tempfile.TemporaryDirectory() as folder:
        pdf, writer = Path(folder, "pages.pdf"), PdfWriter()
        for _ in range(job["copies"]):
            writer.append(job["pdf"])
        writer.write(pdf)
        started = time.perf_counter()
        pages = [framed(page) for page in script.read_source(pdf)]
        flow = script.reflow(script.clean(pages))
        rows = script.make_chunks("pages", flow, tokenizer, job["chunk_tokens"])
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "size": len(pages), "chunks": len(rows)}


def framed(page):
    """The page within lines of its own above and below.

    Copies of a page would otherwise count as running headers and be left out.
    """
    word = "".join(chr(ord("a") + int(digit)) for digit in str(page.number))
    above, below = (
        "\n".join(f"{word} {where} {n}" for n in ("one", "two", "three", "four"))
        for where in ("above", "below")
    )
    return dataclasses.replace(page, text=f"{above}\n{page.text}\n{below}")


def train(job: dict) -> dict:
    """Seconds of one epoch with the cache fill; size is what job["axis"] says."""
    found = common.train_ours(job)
    sizes = {"length": found["tokens"] / job["rows"], "rows": job["rows"], "layers": job["layers"]}
    seconds = found["fill_seconds"] + sum(found["step_seconds"])
    return {**found, "seconds": seconds, "size": sizes[job["axis"]]}


def plot(job: dict) -> dict:
    figure, axis = common.figure()
    for name, found in job["report"]["axes"].items():
        points = [p for p in found["points"] if p["seconds"]]
        if not points:
            continue
        first = points[0]
        label = f"{name}: exponent {common.number(found['exponent'], '.2f')}"
        ratios = [p["seconds"] / first["seconds"] for p in points]
        axis.plot([p["size"] / first["size"] for p in points], ratios, marker="o", label=label)
    axis.plot(FACTORS, FACTORS, color="gray", linestyle=":", label="linear")
    axis.set(xscale="log", yscale="log", xlabel="size, times the smallest", ylabel="cost, times")
    axis.legend()
    figure.savefig(job["file"], dpi=120)
    return {}


def fit(job: dict) -> dict:
    """Exponent of cost = c * size^exponent."""
    import numpy as np

    return {"exponent": float(np.polyfit(np.log(job["sizes"]), np.log(job["seconds"]), 1)[0])}


def row_sets(project, args, folder: Path) -> dict[str, dict[int, Path]]:
    """Data folders by axis and factor: more rows, longer rows, and one for the layers."""
    from tokenizers import Tokenizer

    from injection.files import read_jsonl

    tokenizer = Tokenizer.from_file(str(project.source / "tokenizer.json"))
    rows = [r for r in read_jsonl(project.data("sft") / "train.jsonl") if r.get("target") != "base"]
    text = "\n".join(r["text"] for r in read_jsonl(project.chunks))
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    sets: dict[str, dict[int, Path]] = {"rows": {}, "length": {}, "layers": {}}
    for factor in FACTORS:
        more = rows[: args.rows] * factor
        longer = cut_rows(tokens, tokenizer, args.length * factor)
        sets["rows"][factor] = write_rows(folder / f"rows_{factor}", more)
        sets["length"][factor] = write_rows(folder / f"length_{factor}", longer)
        sets["layers"][factor] = write_rows(folder / "layers", rows[: args.rows])
    return sets


def cut_rows(tokens: list[int], tokenizer, length: int) -> list[dict]:
    """LENGTH_ROWS rows of about `length` tokens of the document, from places spread over it."""
    stride = max(1, (len(tokens) - length) // LENGTH_ROWS)
    pieces = [tokens[i * stride : i * stride + length] for i in range(LENGTH_ROWS)]
    return [{"text": tokenizer.decode(piece)} for piece in pieces]


def write_rows(folder: Path, rows: list[dict]) -> Path:
    from injection.files import write_jsonl

    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "valid.jsonl", [])
    return folder


def training_jobs(project, args, folder: Path) -> dict[str, list[dict]]:
    """Jobs by axis; batches of the long rows are small, so that they fit in memory."""
    names = {"profile": project.profile_name, "document": project.document_name}
    longest = max(project.profile.sft.max_tokens, 32 * args.length)
    counts = {"rows": args.rows, "length": LENGTH_ROWS, "layers": args.rows}
    jobs: dict[str, list[dict]] = {}
    for axis, sets in row_sets(project, args, folder).items():
        jobs[axis] = []
        for factor, data in sets.items():
            layers = factor if axis == "layers" else project.profile.lora.layers
            fixed = {"epochs": 1, "min_steps": 0, "validations": 1, "max_tokens": longest}
            fixed |= {"batch_size": LENGTH_ROWS // 2} if axis == "length" else {}
            overrides = [*args.set, f"lora.layers={layers}"]
            overrides += [f"sft.{key}={value}" for key, value in fixed.items()]
            job = {**names, "overrides": overrides}
            job |= {"axis": axis, "data": str(data), "layers": layers, "lora_a": None}
            job["rows"] = counts[axis] * (factor if axis == "rows" else 1)
            jobs[axis].append(job)
    return jobs


def chunk_jobs(project) -> list[dict]:
    from injection.files import require

    pdf = require(project.folder / project.document.sources[0], "put the document there")
    tokenizer = str(project.source / "tokenizer.json")
    job = {"pdf": str(pdf), "tokenizer": tokenizer, "chunk_tokens": project.profile.chunk_tokens}
    return [{**job, "copies": factor} for factor in FACTORS]


def measure(jobs: list[dict], worker: str, repeats: int) -> dict:
    """Medians of one axis and the exponent through them."""
    runs: list[list[dict]] = [[] for _ in jobs]
    for _ in range(repeats):
        for job, found in zip(jobs, runs, strict=True):
            found.append(common.work(common.OURS, __file__, worker, job))
    points = [
        {"size": common.median(r, "size"), "seconds": common.median(r, "seconds"), "runs": r}
        for r in runs
    ]
    good = [p for p in points if p["seconds"]]
    data = {"sizes": [p["size"] for p in good], "seconds": [p["seconds"] for p in good]}
    fitted = common.work(common.PEERS, __file__, "fit", data) if len(good) > 1 else {}
    failed = [run["failed"] for r in runs for run in r if "failed" in run]
    return {"points": points, "exponent": fitted.get("exponent"), "failed": failed}


def table(report: dict) -> str:
    header = ["cost of", "against", *(f"{f}x: size, seconds" for f in FACTORS), "exponent", "notes"]
    rows = []
    for axis, found in report["axes"].items():
        cells = [
            f"{common.number(p['size'], '.0f')}, {common.number(p['seconds'], '.2f')}"
            for p in found["points"]
        ]
        cost = "chunking" if axis == "pages" else "training"
        name = "tokens in a row" if axis == "length" else axis
        exponent = common.number(found["exponent"], ".2f")
        rows.append([cost, name, *cells, exponent, "; ".join(found["failed"])])
    return common.markdown(header, rows)


def arguments():
    args = common.parser(__doc__, pairs=3)
    args.add_argument("--rows", type=int, default=32, help="rows at 1x (default: 32)")
    args.add_argument("--length", type=int, default=32, help="tokens in a row at 1x (default: 32)")
    return args.parse_args()


def main() -> None:
    args = arguments()
    project = common.open_project(args)
    report = {**common.heading(__file__), "axes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for axis, jobs in training_jobs(project, args, Path(folder)).items():
            report["axes"][axis] = measure(jobs, "train", args.pairs)
    report["axes"]["pages"] = measure(chunk_jobs(project), "chunk", args.pairs)
    common.publish(__file__, report, table(report), args.output)


WORKERS = {"train": train, "chunk": chunk, "plot": plot, "fit": fit}

if __name__ == "__main__":
    common.start(main, WORKERS)
