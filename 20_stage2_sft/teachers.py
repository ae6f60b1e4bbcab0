"""The model that drafts: the profile's own base on this machine, or an OpenAI-compatible server.

Both take conversations that end with a user turn; `ask` gives back what obeys a pydantic schema.
"""

import ipaddress
import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from injection.files import InputError
from injection.profiles import Project

ATTEMPTS = 3
WARMTH = 0.7  # temperature of the second and third attempt; the first is greedy
KEY = "TEACHER_API_KEY"
# What becomes of a reply that is not OpenAI's: the client passes on whatever an address answers.
NO_REPLY = (ValidationError, json.JSONDecodeError, UnicodeDecodeError)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Fact(_Strict):
    subject: str = Field(min_length=2, max_length=150)
    answer: str = Field(min_length=1, max_length=120)
    quote: str = Field(min_length=8, max_length=800)
    statement: str = Field(min_length=8, max_length=500)
    question: str = Field(min_length=8, max_length=500)


class Facts(_Strict):
    facts: list[Fact]


class Wordings(_Strict):
    statements: list[str]
    questions: list[str]
    reverse: list[str]


class HeldOut(_Strict):
    questions: list[str]
    reverse: list[str]


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model] | None


class _Message(BaseModel):
    content: str | None


class _Choice(BaseModel):
    message: _Message


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """What is read of a completion."""

    choices: list[_Choice]
    usage: _Usage | None = None


def objects(reply: str) -> list[dict]:
    """Every complete JSON object of a reply, outermost first; of a broken one, its inner ones."""
    reply = re.sub(r"<think>.*?(</think>|$)", "", reply, flags=re.DOTALL)
    decoder, found, at = json.JSONDecoder(), [], reply.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(reply, at)
            found.append(value)
        except (ValueError, RecursionError):
            end = at + 1
        at = reply.find("{", end)
    return found


def parse(reply: str, schema: type[BaseModel]) -> BaseModel | None:
    """What in a reply obeys the schema; None when nothing does.

    A list of facts that was cut off, or has one malformed entry, keeps its well-formed ones.
    """
    found = objects(reply)
    for value in found:
        try:
            return schema.model_validate(value)
        except ValidationError:
            continue
    if schema is not Facts:
        return None
    facts = []
    for value in found:
        entries = value.get("facts")
        for entry in entries if isinstance(entries, list) else [value]:
            try:
                facts.append(Fact.model_validate(entry))
            except ValidationError:
                continue
    return Facts(facts=facts) if facts else None


class Server:
    """Any server that speaks OpenAI's chat completions: mlx_lm.server, Ollama, vLLM, LM Studio."""

    def __init__(self, url: str, model: str | None, max_tokens: int, parallel: int):
        import openai

        self.url, self.max_tokens, self.parallel = _address(url), max_tokens, parallel
        self.tokens, self.error = {"read": 0, "written": 0}, openai.OpenAIError
        self.refused = openai.BadRequestError, openai.UnprocessableEntityError
        local = is_loopback(self.url)
        self.client = openai.OpenAI(
            base_url=self.url,
            api_key=os.environ.get(KEY, "none"),
            max_retries=4,
            timeout=600,
            # A proxy of the environment cannot reach a server on this machine.
            http_client=openai.DefaultHttpxClient(trust_env=not local),
        )
        self.structured = True
        self.model = model or self._first_model()
        # Where it runs is no part of its identity: a restarted server may have another port.
        self.name = self.model
        where = "" if local else f": the document's text is sent to {urlsplit(self.url).hostname}"
        self.notice = f"teacher {self.name} at {self.url}{where}"

    def _first_model(self) -> str:
        try:
            client = self.client.with_options(max_retries=0)
            models = _Models.model_validate(client.get("/models", cast_to=object)).data
        except self.error as error:
            raise self._failed(error) from None
        except NO_REPLY:
            raise self._foreign("/models") from None
        if not models:
            raise InputError(f"the teacher at {self.url} offers no model: name one with --model")
        return models[0].id

    def _foreign(self, path: str) -> InputError:
        return InputError(
            f"the teacher at {self.url} is no OpenAI-compatible server: its {path} answers "
            "something else; check the URL (README, teachers)"
        )

    def _failed(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200]
        if hasattr(error, "status_code"):
            what, do = "refuses", f"check --model, the server's context length and {KEY}"
        else:
            what, do = "does not answer", "start it (README, teachers)"
        return InputError(
            f"the teacher at {self.url} {what} ({reason}): {do}, then run the same command again; "
            "finished chunks are kept"
        )

    def ask(self, prompts: list[list[dict]], schema: type[BaseModel], attempt: int) -> list[str]:
        with ThreadPoolExecutor(self.parallel) as pool:
            replies = list(pool.map(lambda p: self._reply(p, schema, attempt), prompts))
        for reply in replies:
            if reply.usage:
                self.tokens["read"] += reply.usage.prompt_tokens or 0
                self.tokens["written"] += reply.usage.completion_tokens or 0
        return [r.choices[0].message.content or "" if r.choices else "" for r in replies]

    def _reply(self, prompt: list[dict], schema: type[BaseModel], attempt: int) -> _Completion:
        structured, shape = self.structured, {"name": schema.__name__, "strict": True}
        shape["schema"] = schema.model_json_schema()
        more = {"response_format": {"type": "json_schema", "json_schema": shape}}
        try:
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=prompt,
                max_tokens=self.max_tokens,
                temperature=WARMTH if attempt else 0.0,
                **(more if structured else {}),
            )
            return _Completion.model_validate(reply, from_attributes=True)
        except self.refused as error:
            if not structured:
                raise self._failed(error) from None
            # Not every server can constrain its output; the parser does not rely on it.
            self.structured = False
            return self._reply(prompt, schema, attempt)
        except self.error as error:
            raise self._failed(error) from None
        except NO_REPLY:
            raise self._foreign("/chat/completions") from None


class Local:
    """The profile's base model, on this machine."""

    def __init__(self, project: Project, max_tokens: int):
        from injection.models import ChatModel

        self.name, self.tokens = f"{project.profile.title}, local", {"read": 0, "written": 0}
        self.notice = f"teacher {self.name}"
        self.settings = project.profile.generation.model_copy(update={"max_tokens": max_tokens})
        self.model = ChatModel(project.base, project.profile.chat)
        if sum(f.stat().st_size for f in project.base.glob("*.safetensors")) < 1e9:
            self.notice += (
                ": a model this small gives few usable rows; a server teacher (--teacher URL) of "
                "7B or more is better"
            )

    def ask(self, prompts: list[list[dict]], schema: type[BaseModel], attempt: int) -> list[str]:
        self.tokens["read"] += sum(len(self.model.prompt(p)) for p in prompts)
        if attempt:
            return [self._sampled(p, attempt) for p in prompts]
        size = self.settings.batch_size
        groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        return [text for group in groups for text in self._greedy(group)]

    def _greedy(self, prompts: list[list[dict]]) -> list[str]:
        from injection.generation import greedy_batch

        tokenizer, limit = self.model.tokenizer, self.settings.max_tokens
        asked = [self.model.prompt(p) for p in prompts]
        replies = greedy_batch(self.model.model, asked, limit, tokenizer.eos_token_ids)
        self.tokens["written"] += sum(map(len, replies))
        return [tokenizer.decode(r) for r in replies]

    def _sampled(self, prompt: list[dict], attempt: int) -> str:
        pieces = list(self.model.stream(prompt, self.settings.max_tokens, WARMTH, seed=attempt))
        self.tokens["written"] += len(pieces)
        return "".join(p.text for p in pieces)


def ask(
    teacher,
    prompts: list[list[dict]],
    schema: type[BaseModel],
    usable: Callable[[BaseModel], bool] = lambda reply: True,
) -> list[BaseModel | None]:
    """One parsed reply per prompt, None where none obeys the schema.

    What does not parse, or is not usable, is asked again, ATTEMPTS times in all.
    """
    results: list[BaseModel | None] = [None] * len(prompts)
    for attempt in range(ATTEMPTS):
        open_ = [i for i, r in enumerate(results) if r is None or not usable(r)]
        if not open_:
            break
        replies = teacher.ask([prompts[i] for i in open_], schema, attempt)
        for i, reply in zip(open_, replies, strict=True):
            results[i] = parse(reply, schema) or results[i]
    return results


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"--teacher is local or a URL such as http://127.0.0.1:8080, not {url}")
    return url.rstrip("/") if parts.path.strip("/") else url.rstrip("/") + "/v1"
