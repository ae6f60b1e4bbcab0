"""What quantization cost: the quantized model beside its source, for 4, 8 and mixed bits.

Mean KL divergence of the next-token probabilities, share of tokens where both think the same one
most likely, perplexity, and size, on a fixed text. One layer of one model is in memory at a time
(injection/fidelity.py), so 8 billion parameters fit where the two models do not. What is not there
yet is quantized into a temporary folder.

Reads:   models/<source folder>/, models/<4-bit folder>/ when it is up to date,
         data/general/perplexity.txt
Writes:  results/<profile>_quantization/fidelity.json, fidelity.md, fidelity.png
Command: python 30_evaluation/quantization_fidelity.py --profile smollm2_135m
"""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import conversion, measure, report, runtime
from injection.files import (
    ROOT,
    inputs,
    is_current,
    mark_current,
    read_json,
    read_text,
    require,
    require_space,
    run,
    shown,
    write_bytes,
    write_json,
    write_text,
)
from injection.profiles import Project, Quantization, open_project, parser

NAMES = {"source": "source", "4": "4 bits", "mixed_4_6": "4 and 6 bits", "8": "8 bits"}
BITS = ("4", "mixed_4_6", "8")
UP_TO_DATE = "run 03_quantization/quantize.py first, or the steps before it"


def variants(project: Project, bits: list[str]) -> list[Quantization]:
    """The profile's quantization with other bits."""
    own = project.profile.quantization
    return [own.model_copy(update={"bits": int(b) if b.isdigit() else b}) for b in bits]


@contextlib.contextmanager
def quantized(project: Project, settings: Quantization) -> Iterator[Path]:
    """A folder with that quantization: the profile's own, or one that is deleted afterwards."""
    if is_current(project.base, inputs(settings.model_dump(), project.source)):
        yield project.base
        return
    temporary = project.base.with_name(f".{project.base.name}.fidelity.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    require_space(temporary, settings.largest_size(conversion.weights_size(project.source)))
    try:
        conversion.quantize(project.source, temporary, settings, project.profile)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def measured(project: Project, settings: list[Quantization], pieces: list[list[int]]) -> list[dict]:
    """The rows of the table, the source first."""
    from injection import fidelity

    source = fidelity.stream(project.source, pieces, "source")
    rows = []
    for choice in settings:
        with quantized(project, choice) as folder:
            other = fidelity.stream(folder, pieces, f"{choice.bits} bits")
            row = fidelity.compare(source, other, pieces)
            row["size"], weights = conversion.weights_size(folder), conversion.parameters(folder)
            row["bits_per_weight"] = conversion.bits_per_weight(folder)
            rows.append({"bits": str(choice.bits), **row})
    before = {"bits": "source", "size": conversion.weights_size(project.source)}
    before["perplexity"] = rows[0]["source_perplexity"]
    before["bits_per_weight"] = 8 * before["size"] / weights
    for row in (before, *rows):
        row["perplexity_ratio"] = row["perplexity"] / before["perplexity"]
    return [before, *rows]


def table(found: dict) -> str:
    lines = [
        "| Weights | bits per weight | GB | mean KL to the source | same most likely token | "
        "perplexity | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [NAMES[row["bits"]], f"{row['bits_per_weight']:.2f}", f"{row['size'] / 1e9:.3f}"]
        cells += [f"{row['kl']:.4f}", f"{row['top1']:.1%}"] if "kl" in row else ["", ""]
        cells += [f"{row['perplexity']:.2f}", f"{row['perplexity_ratio']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    origin = (
        "{title}, group size {group_size}, {tokens} tokens of {text}. `{command}`, {machine}, "
        "{date}, commit {commit}."
    )
    return "\n".join(lines) + "\n\n" + origin.format(**found) + "\n"


def plot(found: dict) -> bytes:
    """A PNG: divergence and agreement of each variant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = found["rows"][1:]
    names = [f"{NAMES[row['bits']]}\n{row['size'] / 1e9:.3f} GB" for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, form, title in (
        (axes[0], "kl", "{:.4f}", "mean KL to the source (nats)"),
        (axes[1], "top1", "{:.1%}", "same most likely token"),
    ):
        bars = axis.bar(names, [row[key] for row in rows], width=0.6, color="#2563a8")
        axis.bar_label(bars, [form.format(row[key]) for row in rows])
        axis.set(title=title, yticks=[])
        axis.margins(y=0.12)
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(found["title"])
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    plt.close(figure)
    return content.getvalue()


def build(project: Project, settings: list[Quantization], text: Path) -> dict:
    from transformers import AutoTokenizer

    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(project.source, trust_remote_code=False)
    pieces = measure.windows(tokenizer, read_text(text))
    rows = measured(project, settings, pieces)
    bits = " ".join(str(s.bits) for s in settings)
    return {
        "profile": project.profile_name,
        "title": project.profile.title,
        "group_size": project.profile.quantization.group_size,
        "text": shown(text),
        "tokens": rows[-1]["tokens"],
        "command": "python 30_evaluation/quantization_fidelity.py "
        f"--profile {project.profile_name} --bits {bits}",
        "machine": runtime.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": report.commit(),
        "seconds": round(time.monotonic() - started, 1),
        "rows": rows,
    }


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    args.add_argument("--output", type=Path, help="default: results/<profile>_quantization")
    args.add_argument("--force", action="store_true", help="measure again")
    args = args.parse_args()
    project = open_project(args)
    require(project.source / "config.json", UP_TO_DATE)
    text = project.general / "perplexity.txt"
    output = args.output or ROOT / "results" / f"{project.profile_name}_quantization"
    settings = variants(project, args.bits)
    made_from = inputs({"variants": [s.model_dump() for s in settings]}, text, project.source)
    if not args.force and is_current(output / "fidelity.json", made_from):
        print(f"up to date: {shown(output)}\n\n{table(read_json(output / 'fidelity.json'))}")
        return
    found = build(project, settings, text)
    write_bytes(output / "fidelity.png", plot(found))
    write_text(output / "fidelity.md", table(found))
    write_json(output / "fidelity.json", found)
    mark_current(output / "fidelity.json", made_from)
    print(f"\n{table(found)}\nwrote {shown(output)}/fidelity.json, fidelity.md, fidelity.png")


if __name__ == "__main__":
    run(main)
