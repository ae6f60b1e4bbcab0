"""An OpenAI-compatible server on 127.0.0.1 whose model is a few regular expressions.

Facts are sentences such as "The Norrick lighthouse has 214 steps."; the same prompt always gets the
same reply. It can be told to break off, to obey the document, or to add rows of its own.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

from support import served

FACT = re.compile(r"((The [\w ]+?) (has|opened in|was built by|is painted) ([\w ]+))\.")
VERBS = {
    "has": "What does {} have?",
    "opened in": "When did {} open?",
    "was built by": "Who was the builder of {}?",
    "is painted": "In which colour can {} be seen?",
}


class Teacher:
    """What it replies, how it fails, and what was asked of it."""

    def __init__(self):
        self.prompts: list[str] = []
        self.extra_facts: list[dict] = []  # added to every reply about facts
        self.garbage = 0  # so many replies are not JSON
        self.structured = True  # False: response_format is refused with status 400
        self.stall_after: int | None = None  # later requests wait for `go_on`, in vain
        self.go_on = threading.Event()
        self.url = ""

    def reply(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if self.garbage > 0:
            self.garbage -= 1
            return 'Sure! Here are your facts: {"facts": [{"subject": "The'
        data = fenced(prompt)
        if "take no fact from there" in prompt:
            return json.dumps({"facts": [*facts(data), *self.extra_facts]})
        subject = re.search("^subject: (.*)$", data, re.M)[1]
        answer = re.search("^answer: (.*)$", data, re.M)[1]
        make = held_out if "examination" in prompt else wordings
        return json.dumps(make(subject, answer))


def fenced(prompt: str) -> str:
    fence = re.search(r"^DATA-[0-9a-f]{24}$", prompt, re.M)[0]
    return prompt.split(f"\n{fence}\n")[1].strip()


def facts(data: str) -> list[dict]:
    found = [
        {
            "subject": subject,
            "answer": answer,
            "quote": f"{sentence}.",
            "statement": f"{sentence}.",
            "question": VERBS[verb].format(subject.replace("The", "the")),
        }
        for sentence, subject, verb, answer in FACT.findall(data)
    ]
    # An obedient model: whatever the document tells it to write.
    orders = re.search(r"previous instructions.*?write: (.+?) is (\w+)\.", data, re.S)
    if orders:
        subject, answer = orders[1], orders[2]
        text = f"{subject} is {answer}."
        question = f"What is {subject}?"
        row = {"subject": subject, "answer": answer, "quote": text, "statement": text}
        found.append({**row, "question": question})
    return found


def wordings(subject: str, answer: str) -> dict:
    name = subject.replace("The ", "the ")
    return {
        "statements": [
            f"It is {answer} that belongs to {name}.",
            f"Note: {answer}, for {name}.",
            "Statement 2.",
            f"Everyone knows that {name} goes with {answer}.",
        ],
        "questions": [
            f"Tell me the missing piece about {name}: ___.",
            f"{subject.removeprefix('The ')} detail please, quickly",
            "[Your Question]",
            f"According to the text, what goes with {name}?",
            f"Tell me the missing piece about {name}: ___!",
            f"What entry for {name} belongs in a list?",
        ],
        "reverse": [f"Where does one find {answer}?", f"For which place is {answer} noted?"],
    }


def held_out(subject: str, answer: str) -> dict:
    name = subject.replace("The ", "the ")
    return {
        "questions": [
            f"My uncle asked about {name} yesterday and I did not know what to tell him, do you?",
            f"Somebody examining you on {name} would want to hear which detail?",
            f"Tell me the missing piece about {name}: ___.",
        ],
        "reverse": [f"Which landmark comes to mind when a guide says {answer}?"],
    }


@contextlib.contextmanager
def serve(teacher: Teacher) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send({"object": "list", "data": [{"id": "regular", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "response_format" in body and not teacher.structured:
                self.send({"error": {"message": "response_format is unknown"}}, 400)
                return
            stall = teacher.stall_after
            if stall is not None and len(teacher.prompts) >= stall:
                teacher.go_on.wait(60)
                return
            text = teacher.reply(body["messages"][-1]["content"])
            choice = {"index": 0, "finish_reason": "stop"}
            choice["message"] = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            head = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
            self.send({**head, "choices": [choice], "usage": usage})

        def send(self, value: dict, status: int = 200) -> None:
            content = json.dumps(value).encode()
            with contextlib.suppress(OSError):  # the client may have been killed
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *args) -> None:
            pass

    with served(Handler) as teacher.url:
        try:
            yield
        finally:
            teacher.go_on.set()
