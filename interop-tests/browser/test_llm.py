"""A chat front end from PyPI against the API, unmodified: `llm` (https://llm.datasette.io), told of the API as its
documentation says to tell it of any that is compatible with OpenAI's.

Environment, set by scripts/browser.sh: LLM, the program.
"""

import os
import subprocess

import pytest
from place import ANSWER, OTHER_KEY, QUESTION, ask_api


@pytest.fixture
def llm(locked, tmp_path):
    """Runs the front end with arguments; it knows one model, which wants a key."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: swarm\n  model_name: demo\n  api_base: {locked}v1\n  api_key_name: swarm\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "NO_PROXY": "127.0.0.1"}

    def run(*arguments):
        done = subprocess.run([os.environ["LLM"], *arguments], env=env, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
        return done.returncode, done.stdout.strip(), done.stderr

    return run


def test_a_prompt_and_a_follow_up_in_the_same_conversation(locked, llm):
    assert "swarm" in llm("models")[1]
    code, _, said = llm("-m", "swarm", "--key", "0123456789abcdef-of-nobody", QUESTION)
    assert code != 0 and "Incorrect API key" in said, said
    assert llm("keys", "set", "swarm", "--value", OTHER_KEY)[0] == 0
    assert llm("-m", "swarm", QUESTION)[1] == ANSWER
    # The front end sends the whole conversation, and the servers know its beginning.
    before = cached(locked)
    code, follow_up, said = llm("-c", "-m", "swarm", "--no-stream", "What is 7 plus 5?")
    assert code == 0 and follow_up, said
    assert cached(locked) > before


def cached(url):
    lines = ask_api(url, "metrics").splitlines()
    return sum(int(line.split()[-1]) for line in lines if line.startswith('sepal_api_tokens_total{model="demo",kind="cached"}'))
