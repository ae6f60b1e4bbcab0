"""What every step will take on this machine, before it runs: disk, peak memory, time.

Says which step would not fit and what to change. Memory and disk follow from the shape of the model
and from the training rows, once they are built; before that rows are guessed from the facts. Times
come from a few seconds of measuring this machine and are rough.

Reads:   models/*/config.json and data/<document>/<stage>/<profile>/train.jsonl where they exist
Prints:  a table; exit code 1 when a step does not fit
Command: python 03_quantization/plan.py --profile omni_8b
         python 03_quantization/plan.py --profile omni_8b --apple 16   (a Mac with 16 GB)
"""

import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import estimate, golden, runtime
from injection.estimate import Batch, Geometry, Machine, Rows
from injection.files import read_jsonl, run
from injection.profiles import Project, Training, open_project, parser
from injection.progress import clock

# Only for rows that are not built yet: characters of a token, tokens of a template around a row.
CHARACTERS, TEMPLATE = 3.6, 24
# Of any step: slices of tensors, a file being copied.
SMALL = 0.2e9
# mlx-lm writes shards of this size, each of which is in memory as a whole.
SHARD = 5 * 2**30
# Bytes of weights that no cache holds: a single small layer would be read from there every time.
WEIGHTS = 2e8
# Assumed of the connection.
MEGABITS = 100


@dataclass(frozen=True)
class Step:
    """Bytes on disk and at the peak in memory; `change` says what would make it fit."""

    name: str
    disk: float
    memory: float
    seconds: float | None
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    change: str = ""


# The machine


def this_machine() -> Machine:
    """Measured in about a second: products per second, bytes per second."""
    import mlx.core as mx

    gpu = not runtime.on_cpu()
    kind = mx.float16 if gpu else mx.float32
    a, b = mx.random.normal((512, 2048)).astype(kind), mx.random.normal((2048, 2048)).astype(kind)
    flops = 2 * 512 * 2048 * 2048 / typical_time(lambda: a @ b)
    x = mx.random.normal((2**24,))
    bandwidth = 2 * x.nbytes / typical_time(lambda: x + 1)
    return Machine(runtime.machine(), runtime.memory(), gpu, flops, bandwidth)


def training_rates(
    project: Project, g: Geometry, settings: Training, batch: Batch
) -> estimate.Rates:
    """Measured with the training's own code on layers of the true shape, random weights."""
    import mlx.core as mx

    from injection import losses, models
    from injection.batches import Upper

    layers = max(1, min(8, round(WEIGHTS / (4 * g.layer_parameters))))
    model = some_layers(project, g, layers)
    kind = mx.float32 if runtime.on_cpu() else mx.bfloat16
    upper = Upper(model, layers, settings.gradient_checkpointing)
    states = mx.random.normal((batch.rows, batch.width, g.hidden)).astype(kind)
    positions = batch.rows * batch.width
    prefix = mx.random.normal((1, batch.prefix, g.hidden)).astype(kind) if batch.prefix else None
    frozen = typical_time(lambda: upper.forward(states, prefix)) / positions / layers
    models.add_lora(model, project.profile.lora.model_copy(update={"layers": layers}))

    def total(adapter, states):
        model.update(adapter)
        return upper.forward(states, prefix).astype(mx.float32).sum()

    step = mx.value_and_grad(total, argnums=(0, 1))
    adapted = typical_time(lambda: step(model.trainable_parameters(), states)) / positions / layers

    some = states.reshape(positions, g.hidden)[: losses.block_size(g.vocabulary)]
    targets = mx.zeros(len(some), mx.int32)
    hard = mx.value_and_grad(lambda x: losses.frozen_head_loss(model, x, targets).sum())
    soft = mx.value_and_grad(lambda x: losses.frozen_head_loss(model, x, targets, some).sum())
    predicted = [typical_time(lambda f=f: f(some)) / len(some) for f in (hard, soft)]
    return estimate.Rates(frozen, adapted, *predicted)


def some_layers(project: Project, g: Geometry, layers: int):
    """A model of the true width with a few layers, held in memory as load_base() holds one."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.models import llama

    from injection import kernels

    shape = {"hidden_size": g.hidden, "intermediate_size": g.inner, "vocab_size": g.vocabulary}
    heads = {"num_attention_heads": g.heads, "num_key_value_heads": g.kv_heads}
    more = {"head_dim": g.head_dim, "rms_norm_eps": 1e-5, "num_hidden_layers": layers}
    model = llama.Model(llama.ModelArgs(model_type="llama", **shape, **heads, **more))
    if runtime.on_cpu():
        kernels.use_fast_layers(model)
    else:
        model.set_dtype(mx.bfloat16)
    if not runtime.on_cpu() or not runtime.fits(4 * g.parameters):
        settings = project.profile.quantization
        bits = settings.bits if isinstance(settings.bits, int) else 4
        nn.quantize(model, settings.group_size, bits)
    mx.eval(model.parameters())
    model.freeze()
    return model


def typical_time(work, repeats: int = 5) -> float:
    """Median seconds of work(), which returns mlx arrays; the first run is not counted."""
    import mlx.core as mx

    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        mx.eval(work())
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


# The rows


def rows_of(project: Project, stage: str) -> tuple[list, bool]:
    """(rows of the stage, whether they are the ones that will be trained on)."""
    from injection import batches

    file = project.data(stage) / "train.jsonl"
    if not (file.exists() and (project.base / "tokenizer.json").exists()):
        return guessed_rows(project, stage), False
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(project.base, trust_remote_code=False)
    limit = project.training(stage).max_tokens
    return batches.tokenize(read_jsonl(file), tokenizer, project.profile.chat, limit), True


def guessed_rows(project: Project, stage: str) -> list:
    """Rows as the build steps will make them, their lengths guessed from the characters."""
    from injection import batches

    profile, chats, texts = project.profile, [], []
    mix = profile.cpt_mix if stage == "cpt" else profile.sft_mix
    for fact in golden.read_facts(project):
        questions = golden.upto(fact.questions, mix.questions)
        if stage == "sft":
            questions = [*questions, *(r.question for r in golden.upto(fact.reverse, mix.reverse))]
        reply = len(golden.reply(fact, profile.sft_mix.reply)) / CHARACTERS
        chats += [(len(question) / CHARACTERS, reply, False) for question in questions]
        texts += [len(t) / CHARACTERS for t in golden.upto(fact.statements[:-1], mix.statements)]
    if stage == "cpt":
        # How many chunks there will be is not known, only how long they are.
        texts += [profile.chunk_tokens + TEMPLATE] * profile.cpt.batch_size
    elif project.unknowns.exists():
        unknowns = golden.upto(read_jsonl(project.unknowns), mix.unknowns)
        refusal = len(project.document.refusal) / CHARACTERS
        chats += [(len(row["question"]) / CHARACTERS, refusal, False) for row in unknowns]
    prompts = golden.upto(read_jsonl(project.general / "replay.jsonl"), mix.replay)
    if stage == "sft" and project.contrasts.exists():
        prompts += golden.upto(read_jsonl(project.contrasts), mix.contrasts)
    chats += [(len(row["prompt"]) / CHARACTERS, profile.replay.max_tokens, True) for row in prompts]
    rows = [batches.Row([0] * int(length), 1, 0, False) for length in texts]
    for question, answer, soft in chats:
        start = 2 * TEMPLATE + int(question)
        rows.append(batches.Row([0] * (start + int(answer)), start, TEMPLATE, soft, TEMPLATE))
    return rows


def grouped(rows: list, batch_size: int) -> Rows:
    from injection.batches import epoch_batches

    found = []
    for indices in epoch_batches(rows, batch_size, 0, 0):
        group = [rows[i] for i in indices]
        targets = {
            soft: sum(len(r.targets) for r in group if r.from_base == soft) for soft in (0, 1)
        }
        width = max(len(r.inputs) for r in group)
        found.append(Batch(len(group), width, group[0].prefix, targets[0], targets[1]))
    inputs = sum(len(r.inputs) for r in rows)
    base = [r for r in rows if r.from_base]
    taught, teacher = sum(len(r.inputs) for r in base), sum(len(r.targets) for r in base)
    return Rows(inputs, taught, teacher, found)


def usual(batches: list[Batch]) -> Batch:
    """The batch at half of all positions, when they are sorted by size."""
    ordered = sorted(batches, key=lambda b: b.rows * b.width)
    half = sum(b.rows * b.width for b in batches) / 2
    for batch in ordered:
        half -= batch.rows * batch.width
        if half <= 0:
            break
    return batch


# The steps


def steps(project: Project, g: Geometry, machine: Machine, context: int) -> list[Step]:
    text = 2 * g.parameters
    source = project.profile.source
    extracted = source.text_prefix is not None
    downloaded = estimate.DOWNLOADS.get(source.name, 2 * text if extracted else text)
    result = [Step("download", downloaded, SMALL, downloaded * 8 / (MEGABITS * 1e6))]
    if extracted:
        result.append(Step("extract", text, SMALL, estimate.seconds(machine, 0, 3 * text)))
    result.append(quantize_step(project, g, machine))
    result += [training_step(project, g, machine, stage) for stage in ("cpt", "sft")]
    result.append(chat_step(project, g, machine, context))
    return result


def quantize_step(project: Project, g: Geometry, machine: Machine) -> Step:
    """Conversion, then the comparison of both models on data/general/perplexity.txt."""
    size = g.parameters * estimate.bits(project, g) / 8
    words = len((project.general / "perplexity.txt").read_text().split())
    tokens = 1.4 * words
    largest = g.head_parameters * (2 + machine.value)
    heads = 2 * g.head_parameters * machine.value + g.layer_parameters * machine.value
    memory = max(min(size, SHARD) + largest, heads + tokens * g.hidden * machine.value)
    flops = 2 * 2 * tokens * (g.parameters + g.head_parameters)
    return Step("quantize", size, memory, estimate.seconds(machine, flops, 4 * 4 * g.parameters))


def training_step(project: Project, g: Geometry, machine: Machine, stage: str) -> Step:
    rows, known = rows_of(project, stage)
    settings = project.training(stage)
    shape = grouped(rows, settings.batch_size)
    parts = estimate.training_memory(project, g, machine, settings, shape)
    usual_batch = usual(shape.batches)
    rates = training_rates(project, g, settings, usual_batch) if machine.flops else None
    seconds = estimate.training_seconds(project, g, rates, settings, shape)
    disk = 4 * estimate.adapter_parameters(g, project.profile.lora)
    count = f"{len(rows)} rows" + ("" if known else ", guessed")
    batches = len(shape.batches)
    note = f"{count}, {settings.passes(batches) * batches:.0f} steps"
    change = ""
    if not machine.fits(sum(parts.values())):
        change = smaller_training(project, g, machine, stage, rows)
    # While it runs, the best weights and a checkpoint with both moments lie beside it.
    return Step(stage.upper(), 5 * disk, sum(parts.values()), seconds, note, parts, change)


def smaller_training(project: Project, g, machine: Machine, stage: str, rows: list) -> str:
    """The first settings that fit, as --set options: cheapest change first."""
    profile, settings = project.profile, project.training(stage)
    changes: dict[str, object] = {}
    layers = g.layers if profile.lora.layers == -1 else profile.lora.layers
    tries = [(f"{stage}.gradient_checkpointing", True)]
    tries += [(f"{stage}.batch_size", n) for n in halves(settings.batch_size)]
    tries += [("lora.layers", n) for n in halves(layers)]
    for key, value in tries:
        changes[key] = value
        asked = [f"{k}={str(v).lower()}" for k, v in changes.items()]
        other = Project(project.profile_name, project.document_name, project.overrides + asked)
        now = other.training(stage)
        parts = estimate.training_memory(other, g, machine, now, grouped(rows, now.batch_size))
        if machine.fits(sum(parts.values())):
            options = " ".join(f"--set {a}" for a in asked)
            return f"{options}: {gigabytes(sum(parts.values()))}"
    return "nothing in its settings is enough: take a smaller model or shorter rows"


def halves(number: int) -> list[int]:
    found = []
    while number > 1:
        number //= 2
        found.append(number)
    return found


def chat_step(project: Project, g: Geometry, machine: Machine, context: int) -> Step:
    parts = estimate.chat_memory(project, g, machine, context)
    size, change = sum(parts.values()), ""
    if not machine.fits(size):
        for shorter in halves(context):
            other = sum(estimate.chat_memory(project, g, machine, shorter).values())
            if machine.fits(other):
                change = f"--set generation.context={shorter}: {gigabytes(other)}"
                break
        else:
            change = "the model alone is too large: fewer bits, or a smaller model"
    speed = machine.bandwidth and machine.bandwidth / parts["weights"]
    note = f"{context} tokens" + (f", {speed:.1f} tokens/s" if speed else "")
    return Step("chat", 0, size, None, note, parts, change)


# The table


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def table(found: list[Step], machine: Machine) -> str:
    lines = ["| step | disk | peak memory | time | |", "|---|---|---|---|---|"]
    for step in found:
        took = "" if step.seconds is None else f"about {clock(step.seconds)}"
        fits = "" if machine.fits(step.memory) else "DOES NOT FIT"
        note = "; ".join(part for part in (fits, step.note) if part)
        cells = [step.name, gigabytes(step.disk), gigabytes(step.memory), took, note]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def details(found: list[Step]) -> str:
    """What the memory of the larger steps is made of, and what to change where it is too much."""
    lines = []
    for step in found:
        if step.parts:
            parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in step.parts.items())
            lines.append(f"{step.name}: {parts}")
        if step.change:
            lines.append(f"{step.name} would fit with {step.change}")
    return "\n".join(lines)


def finished(project: Project) -> set[str]:
    """Names of the steps whose result is on this machine."""
    outputs = {
        "extract": project.source,
        "quantize": project.base,
        "CPT": project.adapter("cpt"),
        "SFT": project.adapter("sft"),
    }
    done = {name for name, folder in outputs.items() if folder.exists()}
    return done | ({"download"} if project.download.exists() or "extract" in done else set())


def main() -> int:
    args = parser(__doc__)
    args.add_argument("--apple", type=float, metavar="GB", help="plan for a Mac with that memory")
    args.add_argument("--memory", type=float, metavar="GB", help="as if this machine had that")
    args.add_argument("--context", type=int, help="tokens of a chat (default: the profile's)")
    args = args.parse_args()
    project = open_project(args)
    g = estimate.geometry(project)
    if args.apple:
        machine = Machine(f"Apple Silicon, {args.apple:g} GB", args.apple * 2**30, True)
    else:
        machine = this_machine()
    if args.memory:
        machine = replace(machine, memory=args.memory * 2**30)
    context = args.context or project.profile.generation.context
    found = steps(project, g, machine, context)
    free = shutil.disk_usage(project.base.parent).free
    print(f"{machine.name}: {gigabytes(runtime.SHARE * machine.memory)} of memory for a model")
    print(f"{g.parameters / 1e9:.2f} billion weights\n")
    print(f"{table(found, machine)}\n\n{details(found)}")
    done = set() if args.apple else finished(project) & {step.name for step in found}
    needed = sum(step.disk for step in found if step.name not in done)
    said = f", {', '.join(sorted(done))} done" if done else ""
    print(f"disk: {gigabytes(needed)} still to come{said}, {gigabytes(free)} free here")
    return int(needed > free or any(not machine.fits(step.memory) for step in found))


if __name__ == "__main__":
    run(main)
