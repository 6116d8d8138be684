"""OpenAI's own client against an API of ours; its types are the judge of what comes back.

In:  {"base_url": URL, "model": NAME, "busy_url": URL of an API that answers one request at a time and lets none wait}
Out: {"passed": [name, …]}, or {"error": …}. Whatever is wrong is an AssertionError, or an exception of the package.
"""

import json

import openai
import peer

QUESTION = {"role": "user", "content": "What is 2+2?"}
ANSWER = "2 + 2 = 4."
SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sum"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SUM}}


def strict(answer):
    """Every field has the type that the package documents: it constructs answers without looking."""
    again = type(answer).model_validate(answer.model_dump())
    assert again == answer
    return answer


class Tests:
    def __init__(self, order):
        self.client = openai.OpenAI(base_url=order["base_url"], api_key="none", max_retries=0, timeout=120)
        self.busy = openai.OpenAI(base_url=order["busy_url"], api_key="none", max_retries=0, timeout=120)
        self.model = order["model"]

    def chat(self, *messages, **options):
        options = {"temperature": 0, **options}
        return self.client.chat.completions.create(model=self.model, messages=list(messages) or [QUESTION], **options)

    def refused(self, kind, code, param, **options):
        try:
            self.chat(**options)
        except kind as error:
            assert (error.code, error.param) == (code, param), error.body
            assert error.body["message"] and error.body["type"], error.body
        else:
            raise AssertionError(f"{options} was not refused")

    def models(self):
        models = self.client.models.list().data
        assert [model.id for model in models] == [self.model], models
        assert strict(self.client.models.retrieve(self.model)).object == "model"

    def chat_at_once(self):
        answer = strict(self.chat())
        (choice,) = answer.choices
        assert choice.message.content == ANSWER and choice.finish_reason == "stop", choice
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.system_fingerprint.startswith("sepal-")

    def chat_in_pieces(self):
        with self.chat(stream=True, stream_options={"include_usage": True}) as stream:
            chunks = [strict(chunk) for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0

    def conversation(self):
        """The second question is answered in the session of the first."""
        first = self.chat(QUESTION).choices[0].message
        second = {"role": "user", "content": "What is 7 plus 5?"}
        answer = self.chat(QUESTION, first, second)
        assert answer.choices[0].message.content, answer
        cached, prompt = answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens
        assert prompt > cached >= 10, answer.usage

    def choices(self):
        texts = lambda: [choice.message.content for choice in strict(self.chat(n=3, seed=5, temperature=9, max_tokens=10)).choices]
        first = texts()
        assert first == texts() and len(set(first)) > 1, first

    def stops(self):
        for stop in ["4", ["never", "4"]]:
            answer = self.chat(stop=stop).choices[0]
            assert (answer.message.content, answer.finish_reason) == ("2 + 2 = ", "stop"), answer
        assert self.chat(max_tokens=2).choices[0].finish_reason == "length"

    def logprobs(self):
        told = strict(self.chat(logprobs=True, top_logprobs=3)).choices[0].logprobs.content
        assert bytes(byte for token in told for byte in token.bytes).decode() == ANSWER, told
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in told)

    def schema(self):
        form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SUM, "strict": True}}
        assert 0 <= json.loads(self.chat(response_format=form).choices[0].message.content)["sum"] < 100
        content = self.chat(response_format={"type": "json_object"}, max_tokens=300).choices[0].message.content
        assert content.lstrip().startswith("{"), content

    def tool_call(self):
        answer = strict(self.chat(tools=[TOOL], tool_choice="required")).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer
        (call,) = answer.message.tool_calls
        assert call.function.name == "add" and 0 <= json.loads(call.function.arguments)["sum"] < 100
        result = {"role": "tool", "tool_call_id": call.id, "content": "4"}
        assert strict(self.chat(QUESTION, answer.message, result, tools=[TOOL], tool_choice="none"))
        with self.client.chat.completions.stream(model=self.model, messages=[QUESTION], tools=[TOOL], tool_choice="required") as stream:
            final = stream.get_final_completion().choices[0]
        assert final.message.tool_calls[0].function.name == "add", final
        assert "sum" in json.loads(final.message.tool_calls[0].function.arguments)

    def completions(self):
        create = self.client.completions.create
        answer = strict(create(model=self.model, prompt=["What is 2+2?", "What is 7 plus 5?"], max_tokens=40, temperature=0, echo=True))
        assert [choice.text for choice in answer.choices] == ["What is 2+2?\n" + ANSWER, "What is 7 plus 5?\n7 + 5 = 12."], answer
        answer = strict(create(model=self.model, prompt="What is 2+2?", max_tokens=4, temperature=0, logprobs=2)).choices[0]
        assert "".join(answer.logprobs.tokens) == answer.text and len(answer.logprobs.token_logprobs) == 4, answer
        # Not strict: OpenAI itself streams a finish reason of null here, which the package does not document.
        pieces = list(create(model=self.model, prompt="What is 2+2?", max_tokens=40, temperature=0, stream=True))
        assert "".join(piece.choices[0].text for piece in pieces).strip() == ANSWER, pieces

    def errors(self):
        self.refused(openai.BadRequestError, None, "temperature", temperature=-1)
        self.refused(openai.BadRequestError, "context_length_exceeded", "messages", max_tokens=100000)
        image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}
        try:
            self.chat(image)
            raise AssertionError("an image was not refused")
        except openai.BadRequestError as error:
            assert error.param == "messages[0].content[0].type", error
        try:
            self.client.chat.completions.create(model="gpt-4", messages=[QUESTION])
            raise AssertionError("an unknown model was not refused")
        except openai.NotFoundError as error:
            assert error.code == "model_not_found", error
        try:
            self.client.embeddings.create(model=self.model, input="x")
            raise AssertionError("embeddings came")
        except openai.InternalServerError as error:
            assert error.status_code == 501, error

    def too_many(self):
        create = self.busy.chat.completions.create
        options = {"model": self.model, "messages": [QUESTION], "extra_body": {"ignore_eos": True}, "max_tokens": 400}
        with create(stream=True, **options) as stream:
            next(iter(stream))
            try:
                create(**options)
                raise AssertionError("there was room for a second request")
            except openai.RateLimitError as error:
                assert int(error.response.headers["retry-after"]) > 0, error


def work(order):
    tests = Tests(order)
    names = ["models", "chat_at_once", "chat_in_pieces", "conversation", "choices", "stops", "logprobs", "schema"]
    names += ["tool_call", "completions", "errors", "too_many"]
    for name in names:
        getattr(tests, name)()
    return {"passed": names}


peer.run_once(work)
