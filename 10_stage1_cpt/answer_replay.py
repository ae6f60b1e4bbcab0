"""Let the base model answer general prompts: the rehearsal rows that keep it from forgetting.

Training on its own answers, with its own probabilities as the target, asks the adapter to change
nothing on ordinary questions. Prompts are hand-written ones, the document's near misses
(data/<document>/contrasts.jsonl), and, where the profile's replay.sampled_prompts
asks for any, prompts the model makes up itself when it is given only the chat header, as in Magpie
(arXiv 2406.08464).

Reads:   data/general/replay.jsonl, data/<document>/contrasts.jsonl  {"id", "prompt"}
Writes:  data/general/derived/replay_<profile>.jsonl,
         data/<document>/derived/contrasts_<profile>.jsonl  {"id", "prompt", "answer", "open"}
Command: python 10_stage1_cpt/answer_replay.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection.files import (
    inputs,
    is_current,
    mark_current,
    read_jsonl,
    require,
    run,
    shown,
    write_jsonl,
)
from injection.profiles import Project, open_project, parser
from injection.progress import Progress


def good_prompt(text: str) -> bool:
    """A plain request of 4 to 40 words on one line."""
    return 4 <= len(text.split()) <= 40 and "\n" not in text and text[-1] in ".?!"


def invented_prompts(model, project: Project) -> list[dict]:
    """Prompts sampled from the model's own chat header; what does not look like one is left out."""
    from injection.generation import sample_batch
    from injection.prompts import user_header

    wanted, size = project.profile.replay.sampled_prompts, project.profile.generation.batch_size
    header = user_header(model.tokenizer, model.chat)
    found: dict[str, str] = {}
    bar = Progress("prompts", wanted)
    for attempt in range(4 * wanted // size + 1):
        if len(found) >= wanted:
            break
        seed = project.profile.replay.seed + attempt
        for text in sample_batch(model.model, model.tokenizer, header, size, 48, seed):
            if good_prompt(text.strip() or "-"):
                found.setdefault(text.strip().lower(), text.strip())
        bar.update(min(len(found), wanted))
    prompts = list(found.values())[:wanted]
    return [{"id": f"M{i:03d}", "prompt": p} for i, p in enumerate(prompts, 1)]


def answer(model, project: Project, prompts: list[dict], output: Path) -> None:
    settings = project.profile.generation.model_copy(
        update={"max_tokens": project.profile.replay.max_tokens}
    )
    bar = Progress("answers", len(prompts))
    answers = model.answer_all([p["prompt"] for p in prompts], settings, bar.update)
    rows = [
        {**prompt, "answer": a.text, "open": a.finish_reason == "length"}
        for prompt, a in zip(prompts, answers, strict=True)
        if a.text
    ]
    write_jsonl(output, rows)
    print(f"wrote {shown(output)}: {len(rows)} answers")


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--force", action="store_true", help="answer again")
    args = args.parse_args()
    project = open_project(args)
    require(project.base / "config.json", "run 03_quantization/quantize.py first")
    settings = {"replay": project.profile.replay.model_dump(), "chat": dict(project.profile.chat)}
    jobs = [(project.general / "replay.jsonl", project.replay, project.profile.replay)]
    if project.contrasts.exists():
        jobs.append((project.contrasts, project.contrast_answers, None))
    stale = []
    for source, output, sampling in jobs:
        made_from = inputs({**settings, "sampling": bool(sampling)}, source, project.base)
        if args.force or not is_current(output, made_from):
            stale.append((source, output, sampling, made_from))
        else:
            print(f"up to date: {shown(output)}")
    if not stale:
        return
    from injection.models import ChatModel

    model = ChatModel(project.base, project.profile.chat)
    for source, output, sampling, made_from in stale:
        prompts = read_jsonl(source, keys=("id", "prompt"))
        if sampling and sampling.sampled_prompts:
            prompts += invented_prompts(model, project)
        answer(model, project, prompts, output)
        mark_current(output, made_from)


if __name__ == "__main__":
    run(main)
