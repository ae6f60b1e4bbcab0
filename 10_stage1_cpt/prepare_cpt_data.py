"""Build the CPT rows: declarative statements, some questions, the document's text, rehearsal.

Raw text alone teaches a small model almost nothing it can be asked for; many wordings of each
fact do, and a few question rows in between keep the knowledge reachable (PIT, arXiv 2402.12847).

Reads:   data/<document>/chunks.jsonl, facts.jsonl, accepted rows of generated.jsonl,
         document.yaml (title), the model's tokenizer, data/general/derived/replay_<profile>.jsonl
Writes:  data/<document>/cpt/<profile>/train.jsonl and valid.jsonl  {"text"|"messages", "source"}
Command: python 10_stage1_cpt/prepare_cpt_data.py
"""

import random
import sys
from pathlib import Path

for folder in (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # run without installing
from chunk_pdf import TITLE_TOKENS, short_title

from injection import golden
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


def chunk_rows(project: Project, tokenizer_file: Path) -> list[dict]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True  # as the characters they are, as training takes them
    limit = project.profile.cpt.max_tokens - 1  # the stop token is the last
    rows = []
    for chunk in read_jsonl(project.chunks, keys=("id", "text", "section")):
        below = f"{chunk['section']}\n{chunk['text']}" if chunk["section"] else chunk["text"]
        text = with_title(project.document.title, below, tokenizer, limit)
        rows.append({"text": text, "source": f"chunk {chunk['id']}"})
    return rows


def with_title(title: str, below: str, tokenizer, limit: int) -> str:
    """The text under as much of the title as makes no row longer than training takes."""
    for most in range(TITLE_TOKENS, 0, -1):
        text = f"{short_title(title, tokenizer, most)}\n{below}"
        if len(tokenizer.encode(text, add_special_tokens=False).ids) <= limit:
            return text
    return below


def hold_out(chunks: list[dict]) -> tuple[list[dict], list[dict]]:
    """(training, validation): the last tenth is held out, in one span; neighbours are alike."""
    n = max(1, len(chunks) // 10)
    return chunks[:-n], chunks[-n:]


def fact_rows(project: Project) -> tuple[list[dict], list[dict]]:
    """(training, validation) rows; a fact's last statement is only validated on. May be none."""
    mix, style = project.profile.cpt_mix, project.profile.sft_mix.reply
    train, valid = [], []
    for fact in golden.read_facts(project, may_be_empty=True):
        source = f"fact {fact.id}, page {fact.page}"
        trained = fact.statements[:-1] or fact.statements
        train += [{"text": s, "source": source} for s in trained[: mix.statements]]
        for question in fact.questions[: mix.questions]:
            train.append(golden.chat_row(question, golden.reply(fact, style), source))
        valid.append({"text": fact.statements[-1], "source": source})
    return train, valid


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--output", type=Path, help="folder (default: data/<document>/cpt/<profile>)")
    args.add_argument("--force", action="store_true", help="build again")
    args = args.parse_args()
    project = open_project(args)
    mix = project.profile.cpt_mix
    output = args.output or project.data("cpt")
    used = [project.facts, project.generated, project.document_file]
    tokenizer_file = project.base / "tokenizer.json"
    if mix.chunk_repeats:
        used.append(require(project.chunks, "run 10_stage1_cpt/chunk_pdf.py first"))
        used.append(require(tokenizer_file, "run 03_quantization/quantize.py first"))
    if mix.replay:
        used.append(require(project.replay, "run 10_stage1_cpt/answer_replay.py first"))
    settings = {
        "mix": mix.model_dump(),
        "reply": project.profile.sft_mix.reply,
        "max_tokens": project.profile.cpt.max_tokens,
    }
    made_from = inputs(settings, *used)
    train_file, valid_file = output / "train.jsonl", output / "valid.jsonl"
    if not args.force and all(is_current(f, made_from) for f in (train_file, valid_file)):
        print(f"up to date: {shown(output)}")
        return
    train, valid = fact_rows(project)
    facts = len(train)
    chunks = chunk_rows(project, tokenizer_file) if mix.chunk_repeats else []
    held_out = "statements" if valid else "chunks"
    if not valid:
        # The text alone, of a document that nobody has written facts for yet.
        chunks, valid = hold_out(chunks)
        if not chunks:
            golden.read_facts(project)  # says how facts are made
    chunks = [row for row in chunks for _ in range(mix.chunk_repeats)]
    replay = golden.replay_rows(project.replay, mix.replay) if mix.replay else []
    rows = train + chunks + replay
    random.Random(0).shuffle(rows)
    write_jsonl(train_file, rows)
    write_jsonl(valid_file, valid)
    for file in (train_file, valid_file):
        mark_current(file, made_from)
    print(
        f"wrote {shown(output)}: {len(rows)} training rows ({facts} from facts, {len(chunks)} "
        f"chunks, {len(replay)} rehearsal), {len(valid)} held-out {held_out}"
    )


if __name__ == "__main__":
    run(main)
