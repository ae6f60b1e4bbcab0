"""Drafts: answers come sooner and stay the same."""

import pytest

from injection import drafts, generation, models, profiles
from injection.files import InputError, read_jsonl

SFT = "adapters_tiny_paper_sft"
QUESTIONS = ["What is 3?", "Which answer has 7?", "Who wrote it?", "Name a colour.", "Why 12?"]
LIMIT = 20


@pytest.fixture
def chat_model(trained_once, monkeypatch):
    monkeypatch.setattr(profiles, "ROOT", trained_once.root)
    project = profiles.Project("tiny", "paper")
    model = models.ChatModel(project.base, project.profile.chat)
    model.attach(trained_once / SFT)
    model.drafts = None
    return model


@pytest.fixture
def passes(monkeypatch):
    """The number of tokens of every pass that decodes."""
    found = []

    def head(model, hidden):
        found.append(hidden.shape[1])
        return plain(model, hidden)

    plain = generation.head
    monkeypatch.setattr(generation, "head", head)
    monkeypatch.setattr(drafts, "head", head)
    return found


def streamed(model, question: str, limit: int = LIMIT, **options) -> list:
    return list(model.stream([{"role": "user", "content": question}], limit, **options))


def plain_answers(model) -> list[list[int]]:
    answers = [[r.token for r in streamed(model, q)] for q in QUESTIONS]
    assert len({tuple(a) for a in answers}) > 2 and min(map(len, answers)) > 5
    return answers


def spoiled(answer: list[int], place: int) -> list[int]:
    return [*answer[:place], (answer[place] + 1) % 500 + 20, *answer[place + 1 :]]


def test_the_answer_that_agrees_longest_is_guessed():
    known = drafts.Drafts([[5, 6, 7, 1], [5, 6, 8, 9, 1], [4, 5, 6, 3, 1]])
    assert known.guess([5, 6], {9}) == [8, 9, 1]
    assert known.guess([5, 6], {7}) == [7, 1]
    assert known.guess([4, 5, 6], {7}) == [3, 1], "longer than the others, whatever is asked"
    assert known.guess([4], set()) == [5, 6, 3, 1], "an answer begins so"
    assert known.guess([2, 5, 6], {9}) == [8, 9, 1], "begun otherwise, then as known"
    for said in ([], [9], [2, 2], [8, 9, 1]):
        assert known.guess(said, {5, 6, 7, 8, 9}) == []


def test_rare_words_in_common_count_more_than_frequent_ones():
    known = drafts.Drafts([[5, 50, 1], [5, 30, 31, 1], [6, 30, 31, 1], [7, 30, 31, 1]])
    assert known.guess([5], {30, 31, 50}) == [50, 1]
    assert known.guess([5], {30, 31}) == [30, 31, 1]


@pytest.mark.parametrize("wrong_from", [None, 2, 5])
def test_stream_with_drafts_says_the_same_in_fewer_passes(chat_model, passes, wrong_from):
    answers = plain_answers(chat_model)
    texts = ["".join(r.text for r in streamed(chat_model, q)) for q in QUESTIONS]
    for question, answer, text in zip(QUESTIONS, answers, texts, strict=True):
        known = answer if wrong_from is None else spoiled(answer, wrong_from)
        chat_model.drafts = drafts.Drafts([known])
        passes.clear()
        replies = streamed(chat_model, question)
        assert [r.token for r in replies] == answer
        assert "".join(r.text for r in replies) == text
        assert [r.generation_tokens for r in replies] == list(range(1, len(answer) + 1))
        ended = answer[-1] in chat_model.tokenizer.eos_token_ids
        assert replies[-1].finish_reason == ("stop" if ended else "length")
        assert not any(r.finish_reason for r in replies[:-1])
        drafted = sum(r.from_draft for r in replies)
        assert drafted >= (len(answer) - 1 if wrong_from is None else wrong_from - 1)
        assert passes[0] == 1 and len(passes) <= len(answer) - drafted + 1
        if wrong_from is None:
            assert len(passes) == 2


def test_a_continued_answer_is_drafted_too(chat_model, passes):
    answer = plain_answers(chat_model)[0]
    chat_model.drafts = drafts.Drafts([answer])
    passes.clear()
    rest = streamed(chat_model, QUESTIONS[0], LIMIT - 4, begun=answer[:4])
    assert [r.token for r in rest] == answer[4:] and len(passes) == 2


def test_a_long_prompt_without_a_gate_is_read_in_pieces(chat_model, monkeypatch):
    assert chat_model.gate is None
    answer = [r.token for r in streamed(chat_model, QUESTIONS[1])]
    monkeypatch.setattr(drafts, "PREFILL", 3)
    chat_model.drafts = drafts.Drafts([answer])
    assert [r.token for r in streamed(chat_model, QUESTIONS[1])] == answer


def test_neither_sampling_nor_the_base_model_is_drafted(chat_model, passes):
    answers = plain_answers(chat_model)
    chat_model.drafts = drafts.Drafts(answers)
    warm = streamed(chat_model, QUESTIONS[0], temperature=1.0)
    assert not any(r.from_draft for r in warm)
    chat_model.attach(None)
    assert chat_model.drafts is None
    assert not any(r.from_draft for r in streamed(chat_model, QUESTIONS[0]))


def test_batch_with_drafts_says_the_same_in_fewer_passes(chat_model, passes):
    prompts = [chat_model.prompt([{"role": "user", "content": q}]) for q in QUESTIONS]
    model, stop = chat_model.model, {599}
    plain = generation.greedy_batch(model, prompts, LIMIT, stop)
    for known in (
        plain,
        [a if i % 2 else spoiled(a, 4) for i, a in enumerate(plain)],
        [spoiled(a, 3 + i) for i, a in enumerate(plain)],
    ):
        said_before = [[a[n] for n in range(LIMIT)] for a in known]
        for length in (1, 5, 30):
            passes.clear()
            found = generation.greedy_batch(
                model,
                prompts,
                LIMIT,
                stop,
                guess=lambda i, said: said_before[i][len(said) :][:length],  # noqa: B023
            )
            assert found == plain
            assert len(passes) < LIMIT
    stops = {plain[0][7], plain[1][2]}
    wanted = generation.greedy_batch(model, prompts, LIMIT, stops)
    assert len({len(a) for a in wanted}) > 1, "rows end at different places"
    found = generation.greedy_batch(
        model, prompts, LIMIT, stops, guess=lambda i, said: plain[i][len(said) :][:6]
    )
    assert found == wanted


def test_drafts_that_are_never_kept_take_columns_and_nothing_else(chat_model):
    prompts = [chat_model.prompt([{"role": "user", "content": q}]) for q in QUESTIONS]
    plain = generation.greedy_batch(chat_model.model, prompts, LIMIT, {599})
    wrong = [[(t + 1) % 500 + 20 for t in a] for a in plain]
    found = generation.greedy_batch(
        chat_model.model, prompts, LIMIT, {599}, guess=lambda i, said: wrong[i][len(said) :]
    )
    assert found == plain


def test_answer_all_uses_the_drafts_of_the_adapter(chat_model, passes):
    project = profiles.Project("tiny", "paper")
    settings = project.profile.generation.model_copy(update={"max_tokens": LIMIT})
    plain = [a.text for a in chat_model.answer_all(QUESTIONS, settings)]
    before = len(passes)
    chat_model.drafts = drafts.Drafts(plain_answers(chat_model))
    passes.clear()
    assert [a.text for a in chat_model.answer_all(QUESTIONS, settings)] == plain
    assert len(passes) < before


def test_training_keeps_the_answers_of_its_rows(trained_once):
    folder = trained_once / SFT
    rows = read_jsonl(trained_once / "data/paper/sft/tiny/train.jsonl")
    own = {
        r["messages"][-1]["content"]
        for r in rows
        if "messages" in r and r.get("target") != "base" and not r.get("open")
    }
    kept = read_jsonl(folder / drafts.FILE, keys=("answer", "tokens"))
    assert {r["answer"] for r in kept} == own and len(kept) == len(own)
    assert len(drafts.read_drafts(folder).answers) == len(own)
    assert drafts.read_drafts(trained_once / "adapters_tiny_paper_cpt") is None


def test_a_damaged_file_of_drafts_is_one_clear_line(trained_once, tmp_path):
    (tmp_path / drafts.FILE).write_text('{"answer": "It is 7."}\n')
    with pytest.raises(InputError, match="answers.jsonl line 1"):
        drafts.read_drafts(tmp_path)
