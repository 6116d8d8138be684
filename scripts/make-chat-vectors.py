#!/usr/bin/env python3
"""Writes protocol/vectors/sepal/chat.json: what transformers renders from the templates beside it.

    pip install transformers jinja2
    scripts/make-chat-vectors.py
"""

import datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "protocol/vectors/sepal"
NOW = datetime.datetime(2025, 3, 9, 8, 7, 6)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "The town, e.g. São Paulo <BR>"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "limit": {"type": "number", "default": 0.5},
            },
            "required": ["town"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def tool_call(arguments, **more):
    return {"role": "assistant", "tool_calls": [{"type": "function", "id": "abcd12345", "function": {"name": "get_weather", "arguments": arguments}}], **more}


TOOL_TALK = [user("Weather in Rome?"), tool_call({"town": "Rome", "days": [1, 2]}), {"role": "tool", "tool_call_id": "abcd12345", "content": "18.5"}]
PROMPT = {"add_generation_prompt": True}
CHATS = {
    "one": ([user("Hi")], {}),
    "one-prompted": ([user("  Hi there\n")], PROMPT),
    "system": ([system("Be brief. "), user("Hi"), assistant(" Hello "), user("Bye?")], PROMPT),
    "long": ([user("1"), assistant("2"), user("3"), assistant("4"), user("5 'é' \"🙂\" <b>&\\n")], PROMPT),
    "closed": ([user("a"), assistant("b\n\n")], {}),
    "thought": ([user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c"), assistant("<think>x</think>d")], {}),
    "reasoning": ([user("a"), assistant("b", reasoning="because"), user("c"), assistant("d", reasoning_content="so")], {}),
    "no-thinking": ([user("a")], {**PROMPT, "enable_thinking": False}),
    "nulls": ([user("a"), assistant("b", tool_calls=None, name=None), user("c")], PROMPT),
    "tools": ([system("Help."), user("Weather in Rome?")], {**PROMPT, "tools": [WEATHER, CLOCK]}),
    "tools-no-system": ([user("Weather in Rome?")], {**PROMPT, "tools": [WEATHER]}),
    "tools-in-system": ([user("Weather?")], {**PROMPT, "tools": [WEATHER], "tools_in_user_message": False}),
    "tool-answer": (TOOL_TALK, {**PROMPT, "tools": [WEATHER]}),
    "tool-text": ([*TOOL_TALK, assistant("18.5 degrees."), user("Thanks")], {**PROMPT, "tools": [WEATHER]}),
    "tool-null-content": ([user("Weather?"), tool_call('{"town": "Rome"}', content=None), {"role": "tool", "tool_call_id": "abcd12345", "content": "18"}], PROMPT),
    "two-tool-answers": ([*TOOL_TALK, {"role": "tool", "tool_call_id": "abcd12345", "content": "19"}], {**PROMPT, "tools": [WEATHER]}),
    "wrong-order": ([assistant("I begin"), user("no")], {}),
    "two-users": ([user("a"), user("b")], PROMPT),
    "odd-roles": ([user("a"), {"role": "skip", "content": "s"}, {"role": "critic", "content": "c"}, {"role": "stop", "content": "t"}, user("z")], {}),
    "refused": ([{"role": "refused", "content": "why"}], {}),
    "parts": ([system([{"type": "text", "text": "Sys"}]), user([{"type": "text", "text": " Look "}, {"type": "image"}])], PROMPT),
    "continued": ([user("a"), assistant("The answer is")], {"continue_final_message": True}),
    "continued-space": ([user("a"), assistant("The answer is  ")], {"continue_final_message": True}),
    "continued-user": ([user("a"), assistant("b"), user("I said b")], {"continue_final_message": True}),
    "variables": ([user("a")], {**PROMPT, "date_string": "1 Jan 2030", "reasoning_effort": "high", "model_identity": "You are Sepal.", "builtin_tools": ["search", "code_interpreter"]}),
}


class Now(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, messages, options):
    messages = [{name: value for name, value in message.items() if value is not None} for message in messages]
    options = {**TOKENS, **options}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(conversations=[messages], chat_template=template, **options)
        return {"text": rendered[0]}
    except jinja2.exceptions.TemplateError as error:
        is_own = type(error) is jinja2.exceptions.TemplateError
        return {"raised": str(error)} if is_own else {"fails": True}
    except (TypeError, ValueError):
        return {"fails": True}


def main():
    chat_template_utils.datetime = Now
    cases = []
    for path in sorted((FOLDER / "chat").glob("*.jinja")):
        for name, (messages, options) in CHATS.items():
            cases.append({"template": path.name, "chat": name, **render(path.read_text(), messages, options)})
    chats = {name: {"messages": messages, **options} for name, (messages, options) in CHATS.items()}
    made_with = f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
    document = {"made_with": made_with, "now": NOW.isoformat(), "special_tokens": TOKENS, "chats": chats, "cases": cases}
    (FOLDER / "chat.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    print(len(cases), "cases,", sum("text" in case for case in cases), "texts")


if __name__ == "__main__":
    main()
