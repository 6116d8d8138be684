"""A swarm of the built-in model, and APIs in it."""

import json
import urllib.request

from answers import MARKUP

QUESTION, ANSWER = "What is 2+2?", "2 + 2 = 4."
KEY, OTHER_KEY = "0123456789abcdef-of-a-test", "0123456789abcdef-of-another"
# All messages one behind the other; the model's own template leaves out all but the last question.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n' + message['content'] + eos_token }}{% endif %}{% endfor %}{{ '\\n' }}"
)


class Place:
    """A swarm whose last blocks are held twice, and APIs in it."""

    def __init__(self, swarm):
        self.swarm = swarm
        self.template = swarm.hub.folder / "chat.jinja"
        self.template.write_text(TEMPLATE)
        self.first = swarm.bootstrap()
        self.ada = swarm.serve("demo", "0:4", "--public-name", "Ada", initial=self.first)
        self.hostile = swarm.serve("demo", "4:8", "--public-name", MARKUP, initial=self.first)

    def api(self, *more):
        arguments = ["api", "demo", "--initial-peers", self.first.addr, "--http", "127.0.0.1:0", "--chat-template", str(self.template)]
        process = self.swarm.start("sepal api", [self.swarm.sepal, *arguments, *more])
        return process.wait_match(r"^api: (http://127\.0\.0\.1:\d+/)v1$")[1]

    def locked_api(self):
        """One that asks for a key; the first may ask three times a minute."""
        file = self.swarm.hub.folder / "keys"
        file.write_text(f"# of the tests\n{KEY} name=tester requests_per_minute=3\n{OTHER_KEY}\n")
        file.chmod(0o600)
        return self.api("--api-keys", str(file))


def ask_api(url, path, body=None, key=None):
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url + path, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()
