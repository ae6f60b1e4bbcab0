"""The rubric, the statistics and the leak check; and that what is shipped obeys them."""

import json
import random
import re

import pytest
from support import ROOT, load_script, read_jsonl

from injection import golden, grading, measure, profiles, report
from injection.files import InputError


@pytest.mark.parametrize(
    ("answer", "phrase", "expected"),
    [
        ("It scored 77.80 points.", "77.8", True),
        ("It scored 77.8.", "77.80", True),
        ("It scored 177.8.", "77.8", False),
        ("It scored 77.85.", "77.8", False),
        ("It scored 77.", "77.8", False),
        ("about 453,000 pairs", "453000", True),
        ("about 453k pairs", "453,000", False),
        ("in 1,234 of 5,678", "5678", True),
        ("k is 1, 3 or 5", "13", False),
        ("a gain of 12%", "12 percent", True),
        ("a gain of 12 per cent", "12%", True),
        ("version 2.0 is out", "version 2", True),
        ("a rate of 100", "10", False),
        ("The categories are listed", "cat", False),
        ("pre-training", "pre training", True),
        ("pretraining", "pre-training", False),
        ("Mistral-7B-Instruct", "mistral 7b", True),
        ("It uses LoRA_rank.", "lora rank", True),
        ("ＣＬａＲａ，４×", "clara 4x", True),
        ("one, two; three!", "two three", True),
        ("anything", "", False),
        ("", "word", False),
        ("한국어 문장입니다", "한국어", True),
    ],
)
def test_contains_whole_words_and_numbers(answer, phrase, expected):
    assert grading.contains(answer, phrase) is expected


ROW = {"must_include": [["453k", "453,000"], ["pairs"]], "must_not_include": ["secure copy"]}


@pytest.mark.parametrize(
    ("row", "answer", "passed", "why"),
    [
        (ROW, "It has 453,000 pairs.", True, "ok"),
        (ROW, "It has 453K pairs.", True, "ok"),
        (ROW, "It has 453k.", False, "lacks 'pairs'"),
        (ROW, "It has pairs.", False, "lacks '453k'"),
        (ROW, "Secure-copy has 453k pairs.", False, "says 'secure copy'"),
        (ROW, "I don't know.", False, "lacks '453k' (refused)"),
        (ROW, "I don't know the 453k pairs.", False, "lacks '453k' (refused)"),
        ({"must_include": []}, "", True, "ok"),
        ({"expect": "refusal"}, "I don’t know. The paper does not say.", True, "refused"),
        ({"expect": "refusal"}, "The text doesn't mention it.", True, "refused"),
        ({"expect": "refusal"}, "It is 12.", False, "answered what is not known"),
        ({"expect": "refusal"}, "", False, "answered what is not known"),
    ],
)
def test_grade(row, answer, passed, why):
    assert grading.grade(row, answer) == (passed, why)


WHOLE = '{"id": "a", "question": "?", "must_include": [["b"]]}'


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ('{"id": "a"}', "line 1: missing question"),
        ('{"id": "a", "question": "?", "kind": "riddle"}', "a: unknown kind 'riddle'"),
        ('{"id": "a", "question": "?", "expect": "joy"}', "a: expect is answer or refusal"),
        (f"{WHOLE}\n{WHOLE}", "id a occurs twice"),
        ("\n", "has no questions"),
        ('{"id": "a", "question": "?"}', "a: any answer would pass"),
        ('{"id": "a", "question": 8, "must_include": [["b"]]}', "a: question is a text"),
        ('{"id": "a", "question": "?", "must_include": [[8]]}', "a: must_include is a list of"),
        ('{"id": "a", "question": "?", "must_not_include": "b"}', "a: must_not_include is a list"),
        pytest.param('{"id": "a", "question": "?", "must_include": ["Paris"]}', "must_include"),
    ],
)
def test_wrong_question_files_are_refused(tmp_path, rows, complaint):
    (tmp_path / "q.jsonl").write_text(rows)
    with pytest.raises(InputError, match=complaint):
        grading.read_questions(tmp_path / "q.jsonl")


def test_question_defaults(tmp_path):
    unknown = '{"id": "u", "kind": "unknown", "question": "?"}'
    (tmp_path / "q.jsonl").write_text(f"{WHOLE}\n{unknown}")
    row, refused = grading.read_questions(tmp_path / "q.jsonl")
    assert (row["kind"], row["split"], row["expect"]) == ("paraphrase", "test", "answer")
    assert refused["expect"] == "refusal"


def test_interval_contains_the_truth_and_narrows():
    rng = random.Random(1)
    hits, widths = 0, {}
    for n in (20, 200):
        for _ in range(40):
            passed = [rng.random() < 0.7 for _ in range(n)]
            low, high = grading.interval(passed, list(map(str, range(n))), samples=400)
            assert 0 <= low <= sum(passed) / n <= high <= 1
            hits += low <= 0.7 <= high
            widths.setdefault(n, []).append(high - low)
    assert 66 <= hits <= 80
    assert sum(widths[200]) < 0.5 * sum(widths[20])


def test_interval_resamples_facts_not_rows():
    """Three wordings of one fact are not three independent observations."""
    passed = [i < 10 for i in range(20) for _ in range(3)]
    by_fact = [str(i) for i in range(20) for _ in range(3)]
    by_row = [str(i) for i in range(60)]
    fact_low, fact_high = grading.interval(passed, by_fact)
    row_low, row_high = grading.interval(passed, by_row)
    assert fact_high - fact_low > 1.4 * (row_high - row_low)
    assert grading.interval([True, False], ["a", "a"]) == (0.5, 0.5)
    assert grading.interval([True] * 5, list("abcde")) == (1, 1)


def test_summary_weighs_facts_equally():
    rows = [{"passed": True, "fact_id": "a", "id": f"a{i}"} for i in range(9)]
    rows += [
        {"passed": False, "fact_id": "b", "id": "b"},
        {"passed": True, "fact_id": "", "id": "c"},
    ]
    summary = grading.summarise(rows)
    assert summary["n"] == 11
    assert summary["score"] == pytest.approx(2 / 3)
    assert summary["every_wording"] == pytest.approx(2 / 3)
    assert summary["low"] <= summary["score"] <= summary["high"]


def test_collapse_counts_loops_and_repeats():
    loop = "the paper says that the paper says that the paper says that"
    found = grading.collapse(["Yes.", "yes", "No, it is different.", loop])
    assert found == {"most_frequent": 0.5, "looping": 0.25}


HELD_OUT = "Which benchmark did the authors of CLaRa use to measure retrieval in the end?"


@pytest.mark.parametrize(
    ("trained", "leak"),
    [
        ("which benchmark did the AUTHORS of CLaRa use, to measure retrieval in the end", True),
        ("In the end, which benchmark did the authors of CLaRa use to measure retrieval?", True),
        ("In the end, to measure retrieval which benchmark did CLaRa authors of use?", True),
        ("Please say: benchmark did the authors of CLaRa use to fly?", True),
        ("What did the authors choose as a benchmark for retrieval?", False),
        ("Which optimizer did the authors of CLaRa choose for the first stage?", False),
    ],
)
def test_leak_check(trained, leak):
    rows = [{"id": "q", "question": HELD_OUT}]
    found, worst = grading.leaks(rows, ["What is the capital of France?", trained])
    assert bool(found) is leak, worst
    assert not found or found[0].startswith("q: ")


def test_leak_check_among_many_short_questions():
    """Short questions made of the held-out one's words must not hide a near copy."""
    words = grading.normalise(HELD_OUT).split()
    short = [f"{a} {b}" for a in words for b in words if a < b][:40]
    near = "Measure the retrieval benchmark which authors did use of CLaRa to in the finish?"
    assert grading.leaks([{"id": "q", "question": HELD_OUT}], [near])[0], "caught alone"
    assert grading.leaks([{"id": "q", "question": HELD_OUT}], [*short, near])[0]


@pytest.fixture(scope="module", params=["paper", "tidemill"])
def paper(request):
    return profiles.Project("smollm2_135m", request.param)


@pytest.fixture(scope="module")
def questions(paper):
    build = load_script("20_stage2_sft/build_sft_data.py")
    return build.held_out(paper)


def test_shipped_evaluation_does_not_leak_into_training(paper, questions):
    """All wordings that could ever be trained on, whatever the profile's mix."""
    trained = [q for f in golden.read_facts(paper) for q in f.questions]
    trained += [r.question for f in golden.read_facts(paper) for r in f.reverse]
    trained += [r["question"] for r in read_jsonl(paper.unknowns)]
    for file in (paper.general / "replay.jsonl", paper.contrasts):
        trained += [r["prompt"] for r in read_jsonl(file)]
    assert len(trained) > 1000
    questions = questions + grading.read_questions(paper.folder / "exam.jsonl")
    found, _ = grading.leaks(questions, trained)
    assert not found, found[:3]
    assert grading.leaks(questions[5:6], [*trained, questions[5]["question"]])[0], "it can fail"


def test_the_gate_is_fitted_on_nothing_held_out_or_of_the_document(paper, questions):
    build = load_script("20_stage2_sft/build_sft_data.py")
    rows = build.other_rows(paper, questions, [])
    first = rows[0]["question"]
    asked, row = {"id": "X", "question": first}, golden.chat_row(first, "Yes.", "fact F1")
    assert len(rows) > 700
    assert build.other_rows(paper, [*questions, asked], []) == rows[1:]
    assert build.other_rows(paper, questions, [row]) == rows[1:]


def test_shipped_questions_are_sane(paper, questions):
    assert {q["kind"] for q in questions} == set(grading.KINDS)
    facts = {f.id for f in golden.read_facts(paper)}
    assert {q["fact_id"] for q in questions} - {""} <= facts
    tested = {q["fact_id"] for q in questions if (q["kind"], q["split"]) == ("paraphrase", "test")}
    assert tested == facts and len(facts) >= 30


def test_the_report_asks_the_test_split_only(paper, questions):
    """The checkpoint is chosen by the dev questions, so their score says nothing."""
    asked = load_script("30_evaluation/compare_hcx_stages.py").test_questions(paper, None)
    assert asked == [q for q in questions if q["split"] == "test"]
    assert {q["split"] for q in questions} == {"dev", "test"}


def test_a_refusal_in_the_words_of_the_document_counts():
    own = "모르겠습니다. 이 문서에는 나와 있지 않습니다."
    assert not grading.is_refusal(own) and grading.is_refusal(own, own)
    assert grading.grade({"expect": "refusal"}, own, own) == (True, "refused")
    assert not grading.is_refusal("Paris.", own) and not grading.is_refusal("Paris.", "")


def test_canonical_statement_passes_its_own_questions(paper, questions):
    facts = {f.id: f for f in golden.read_facts(paper)}
    misses = [
        (q["id"], why)
        for q in questions
        if q["kind"] in ("paraphrase", "reverse")
        for passed, why in [grading.grade(q, facts[q["fact_id"]].statements[0])]
        if not passed
    ]
    assert not misses


def test_canonical_statement_gives_the_answer(paper):
    for fact in golden.read_facts(paper):
        row = {"must_include": [[fact.answer, *fact.aliases]], "must_not_include": fact.must_not}
        assert grading.grade(row, fact.statements[0])[0], fact.id


@pytest.mark.parametrize("kind", ["paraphrase", "reverse"])
def test_rubric_fails_answers_of_other_facts(paper, questions, kind):
    """Each question graded on another fact's canonical statement: nearly always a miss."""
    facts = {f.id: f for f in golden.read_facts(paper)}
    rows = [q for q in questions if q["kind"] == kind]
    rng, passed, n = random.Random(0), 0, 0
    for row in rows:
        assert not grading.grade(row, paper.document.refusal)[0], row["id"]
        for other in rng.sample(sorted(facts.keys() - {row["fact_id"]}), 3):
            passed += grading.grade(row, facts[other].statements[0])[0]
            n += 1
    assert passed / n < 0.05


def test_the_refusal_sentence_is_a_refusal_and_answers_are_not(paper):
    assert grading.is_refusal(paper.document.refusal)
    refused = [f.id for f in golden.read_facts(paper) if grading.is_refusal(f.statements[0])]
    assert not refused


def test_shipped_probes_do_not_accept_the_empty_answer(questions):
    empty = [q["id"] for q in questions if q["kind"] != "spillover" and grading.grade(q, "")[0]]
    assert not empty
    spill = [q for q in questions if q["kind"] == "spillover"]
    assert all(q["must_not_include"] or q["must_include"] for q in spill)


def test_the_shipped_report_follows_from_its_answers(paper):
    compare = load_script("30_evaluation/compare_hcx_stages.py")
    folder = ROOT / "results/reference"
    if paper.document_name != "paper":
        folder /= paper.document_name
    found = json.loads((folder / "report.json").read_text())
    answers = read_jsonl(folder / "answers.jsonl")
    rows, refusal = compare.test_questions(paper, None), paper.document.refusal
    for stage, figures in found["stages"].items():
        given = [a for a in answers if a["stage"] == stage]
        assert given == compare.grade_all(paper, stage, rows, [a["answer"] for a in given])
        for kind, summary in figures["kinds"].items():
            assert summary == grading.summarise([a for a in given if a["kind"] == kind])
        assert figures["collapse"] == grading.collapse([a["answer"] for a in given])
        assert figures["over_refusal"] == compare.over_refusal(given, refusal)
        assert figures["retention"] == compare.retention(answers, stage)
        keys = figures["key_questions"]
        assert keys == compare.judge_key_questions(paper, [k["answer"] for k in keys])
        ratio = figures["perplexity"] / found["stages"]["base"]["perplexity"]
        assert figures["perplexity_ratio"] == ratio
    text = (folder / "report.md").read_text()
    assert report.report_text(found) == text
    if paper.document_name == "paper":
        readme = (ROOT / "README.md").read_text().splitlines()
        assert [x for x in text.splitlines() if x.startswith("|") and x not in readme] == []


def names(fact: golden.Fact) -> list[str]:
    return [fact.answer, *fact.aliases]


def test_only_the_first_choice_has_the_answer(paper):
    facts = golden.read_facts(paper)
    for fact, (right, *wrong) in zip(facts, measure.choices(facts).values(), strict=True):
        assert right == fact.statements[0] and len({right, *wrong}) == 4
        assert not [w for w in wrong if any(grading.contains(w, name) for name in names(fact))]


def test_open_book_passage_has_the_answer_and_is_about_the_fact(paper):
    for fact in golden.read_facts(paper):
        answer = re.compile("|".join(map(re.escape, names(fact))), re.IGNORECASE)
        near = {"text": answer.sub("this", " ".join(fact.statements[:3]))}
        chunks = [near, {"text": fact.answer}, {"text": fact.statements[0]}]
        asked = measure.open_book_question("Who?", fact, chunks)
        assert asked.startswith(f"Text:\n{fact.statements[0]}\n") and asked.endswith("Who?")
        assert measure.open_book_question("Who?", fact, [near]) is None


@pytest.mark.parametrize(("facts", "wordings"), [(120, 1), (60, 2), (10, 3)])
def test_few_facts_get_more_dev_wordings(facts, wordings):
    """100 dev questions about facts, where there are so many; never more wordings than needed."""
    build = load_script("20_stage2_sft/build_sft_data.py")
    rows = [
        {"id": f"{fact}-{n}", "fact_id": f"F{fact}", "kind": "paraphrase", "split": "dev"}
        for fact in range(facts)
        for n in range(3)
    ]
    rows += [{"id": f"U{n}", "fact_id": "", "kind": "unknown", "split": "dev"} for n in range(5)]
    rows += [{**row, "id": f"{row['id']}-t", "split": "test"} for row in rows]
    chosen = build.dev_questions(rows)
    assert all(row["split"] == "dev" for row in chosen)
    assert len(chosen) == facts * wordings + 5
