"""The Chat view on the real small model: ask, go on, edit, judge, and what cannot be done."""

import chat_log
import tabs
from adapters import adapters, bases
from answers import summary
from app_support import (
    APP,
    HOSTILE,
    button,
    make_adapter,
    open_view,
    question,
    texts,
)
from engine import Answer
from streamlit.testing.v1 import AppTest

from injection.files import read_jsonl

SFT = "adapters_smollm2_135m_paper_sft"


def ask(app: AppTest, text: str) -> AppTest:
    return app.chat_input[0].set_value(text).run()


def area(app: AppTest, label: str):
    return next(a for a in app.text_area if a.label == label)


def last_tab() -> tabs.Tab:
    return next(reversed(tabs.shared()[1].values()))


def test_missing_model_page_names_the_commands(app_root):
    for view in ("chat", "compare"):
        app = open_view(view)
        assert "quantize.py --profile smollm2_135m" in texts(app)
        assert len(app.chat_input) == 0


def test_broken_profile_is_listed_with_the_reason(app_root):
    (app_root / "models" / "broken.yaml").write_text("title: 3\n")
    assert "broken.yaml" in next(b.problem for b in bases() if b.name == "broken")
    assert "broken.yaml" in texts(open_view())


def test_adapters_are_listed_with_score_or_reason(app_root_with_model):
    root = app_root_with_model
    make_adapter(root / SFT)
    make_adapter(root / "adapters_other", base={"fingerprint": "another"})
    make_adapter(root / "adapters_odd", lora={})
    (root / "adapters_late.partial").mkdir()
    found = {a.path.name: a for a in adapters(root / "models/SmolLM2-135M-Instruct-4bit")}
    good = found.pop(SFT)
    assert (good.label, good.problem) == ("Stage 2 (SFT), paper", "")
    assert good.detail == "2026-11-22 17:05 · best step 40 · dev 50% · rank 2"
    app = open_view()
    picker = app.selectbox(key="adapter_smollm2_135m")
    assert picker.options[:2] == ["Base model (no adapter)", good.label]
    assert picker.value == str(good.path) and good.detail in texts(app)
    for adapter in found.values():
        assert any(adapter.label in option for option in picker.options[2:])
        picker.set_value(str(adapter.path)).run()
        assert adapter.problem and adapter.problem in texts(app)
        assert app.chat_input[0].disabled and not app.exception


def test_two_of_the_same_title_can_be_told_apart(app_root_with_model):
    """A picker of Streamlit takes options that look the same for one."""
    root = app_root_with_model
    profile = (root / "models/smollm2_135m.yaml").read_text()
    (root / "models/copied.yaml").write_text(profile)
    make_adapter(root / SFT)
    make_adapter(root / "adapters_copied_paper_sft", profile="copied")
    app = open_view()
    title = bases()[-1].project.profile.title
    assert app.selectbox(key="base").options == [f"{title} (copied)", f"{title} (smollm2_135m)"]
    assert app.selectbox(key="base").value == "smollm2_135m"
    name = "Stage 2 (SFT), paper"
    labels = {f"{name} (adapters_copied_paper_sft)", f"{name} ({SFT})"}
    assert set(app.selectbox(key="adapter_smollm2_135m").options[1:]) == labels
    stages = open_view("compare").multiselect(key="columns_smollm2_135m_paper")
    assert set(stages.options[1:]) == labels


def test_a_conversation(app_root_with_model):
    app = open_view()
    assert "./run.sh --profile smollm2_135m --document paper" in texts(app)
    app.slider(key="max_tokens_smollm2_135m").set_value(8)
    app.toggle(key="multi_turn").set_value(True).run()
    ask(app, "What is the capital of France?")
    assert not app.exception and len(app.chat_message) == 2
    first = last_tab().turns[0].answer
    shown = texts(app)
    assert first.text.strip() in shown and "tokens/s" in shown and "token limit reached" in shown
    assert "greedy" in shown and "tokens used" in app.get("progress")[0].proto.text
    ask(app, "Tell me a long story about Spain.")
    assert len(app.chat_message) == 4
    turns = last_tab().turns
    assert turns[1].answer.request.turns == (
        ("What is the capital of France?", first.text.strip()),
    )
    before = turns[1].answer
    button(app, "Regenerate").click().run()
    assert turns[1].answer is not before and len(app.chat_message) == 4
    button(app, "Continue").click().run()
    longer = turns[1].answer
    assert longer.text.startswith(before.text) and longer.stats.tokens_out == 16
    button(app, "Edit the question").click().run()
    area(app, "The last question").set_value("And of Italy?").run()
    button(app, "Ask again").click().run()
    assert [t.question for t in turns] == ["What is the capital of France?", "And of Italy?"]
    reloaded = AppTest.from_file(APP, default_timeout=300)
    reloaded.query_params["tab"] = next(reversed(tabs.shared()[1]))
    reloaded.run()
    assert first.text.strip() in texts(reloaded) and len(reloaded.chat_message) == 4
    logged = chat_log.entries()
    assert [row["question"] for row in logged][0] == "And of Italy?" and len(logged) == 5
    button(app, "Clear").click().run()
    assert len(app.chat_message) == 0 and not app.exception


def test_thumbs_and_golden_data(app_root_with_model):
    app = open_view()
    app.slider(key="max_tokens_smollm2_135m").set_value(8).run()
    ask(app, "Which river flows through Paris?")
    app.feedback[0].set_value(1).run()
    assert chat_log.entries()[0]["vote"] == "up"
    file = app_root_with_model / "data/paper/facts.jsonl"
    count = len(read_jsonl(file))
    button(app, "Add to golden data").click().run()
    area(app, "The whole answer, one sentence").set_value("The Seine flows through Paris.").run()
    app.text_input[-1].set_value("the Seine").run()
    button(app, "Save").click().run()
    assert not app.exception
    rows = read_jsonl(file)
    assert len(rows) == count + 1 and rows[-1]["answer"] == "the Seine"
    assert rows[-1]["questions"] == ["Which river flows through Paris?"]
    held_out = read_jsonl(app_root_with_model / "data/paper/eval.jsonl")[0]["question"]
    button(app, "Add to golden data").click().run()
    area(app, "Question").set_value(held_out).run()
    button(app, "Save").click().run()
    assert "too close to the held-out question" in texts(app)
    assert len(read_jsonl(file)) == count + 1
    button(app, "Cancel").click().run()
    assert not any(a.label == "Question" for a in app.text_area)
    file.write_text(file.read_text() + '{"id": "X1"}\n')
    button(app, "Add to golden data").click().run()
    belongs = next(s for s in app.selectbox if s.label == "Belongs to")
    assert belongs.options[-1] == "X1" and not app.exception, "begun by hand, no statement yet"


def test_presets_and_sliders_follow_each_other(app_root_with_model):
    app = open_view()
    app.segmented_control(key="preset").set_value("Creative").run()
    assert (app.slider(key="temperature").value, app.slider(key="top_p").value) == (1.0, 0.95)
    app.slider(key="temperature").set_value(0.4).run()
    assert app.segmented_control(key="preset").value is None


def test_settings_stay_when_another_view_was_looked_at(app_root_with_model):
    app = open_view()
    app.segmented_control(key="preset").set_value("Creative").run()
    app.text_area(key="system_smollm2_135m").set_value("Answer in Korean.").run()
    app.switch_page("views/report.py").run()
    app.switch_page("views/chat.py").run()
    assert app.slider(key="temperature").value == 1.0
    assert app.text_area(key="system_smollm2_135m").value == "Answer in Korean."


def test_stopped_failed_and_hostile_answers_are_shown(app_root_with_model):
    answers = []
    for changes in (
        {"state": "stopped", "text": HOSTILE, "dropped": 2},
        {"state": "failed", "error": "no :smile: today"},
        {"state": "done", "text": "<think>hm</think>yes"},
    ):
        answers.append(Answer(question("Why?")))
        answers[-1].update(**changes)
    turns = [tabs.Turn("Why :smile:?", a) for a in answers]
    tabs.shared()[1]["shown"] = tabs.Tab(turns)
    app = AppTest.from_file(APP, default_timeout=300)
    app.query_params["tab"] = "shown"
    app.run()
    assert not app.exception
    shown = texts(app)
    assert HOSTILE in shown
    raw = "".join(m.value for m in app.markdown)
    for active in ("![x]", " <img", "](http", " $x$", ":smile:", "http:/", "www."):
        assert active not in raw
    assert "oldest 2 turns do not fit" in shown and "stopped" in shown
    assert "no :smile: today" in shown and ":smile:" not in app.error[0].value
    assert "Thoughts" in [e.label for e in app.expander]


def test_a_long_conversation_shows_its_end_and_more_on_request():
    turns = [tabs.Turn(f"Question {n}?", Answer(question("Why?"))) for n in range(11)]
    for turn in turns:
        turn.answer.update(state="done", text="So.")
    tabs.shared()[1]["long"] = tabs.Tab(turns)
    app = AppTest.from_file(APP, default_timeout=300)
    app.query_params["tab"] = "long"
    app.run()
    assert [m.children[0].value for m in app.chat_message[::2]][0] == "Question 4?"
    assert len(app.chat_message) == 2 * 7
    button(app, "Show 4 earlier questions").click().run()
    assert not app.exception and len(app.chat_message) == 2 * 11
    assert "Show 4 earlier questions" not in [b.label for b in app.button]


def test_who_answered_is_said(tmp_path):
    answer = Answer(question("Hi", adapter=tmp_path, label="mine"))
    answer.update(state="done", by_adapter=False)
    assert "the base model answered" in summary(answer)
    answer.update(by_adapter=True)
    assert "the base model answered" not in summary(answer)
