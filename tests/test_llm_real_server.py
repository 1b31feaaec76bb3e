"""`itpo serve-user` with SmolLM2 on loopback, for real. Minutes on a CPU, so only where ITPO_REAL_SERVER is set.

It shows that a real server is started, spoken to and accounted for. A model of 135 million parameters
seldom writes the JSON that is asked of it, so how many calls succeed is printed, not prescribed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from pydantic import BaseModel

from itpo_lib.errors import DialogueFailed
from itpo_lib.llm import LLMJudge, LLMUser, OpenAIModel
from itpo_lib.llm.judge import MathVerdict
from itpo_lib.models import smollm2_folder

pytestmark = pytest.mark.skipif(not os.environ.get("ITPO_REAL_SERVER"), reason="set ITPO_REAL_SERVER=1 to run it")
COPIES = 6


class Word(BaseModel):
    """Something so easy that even a small model gets it right now and then."""

    word: str


@pytest.fixture(scope="module")
def url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("itpo"), "serve-user", "--model", "smollm2", "--port", str(port)]
    server = subprocess.Popen([str(part) for part in command])
    try:
        for _ in range(240):
            assert server.poll() is None, "the server ended by itself"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def test_a_real_server_is_spoken_to(url, monkeypatch):
    monkeypatch.setattr("itpo_lib.llm.user.MAX_TOKENS", 96)
    model = OpenAIModel(url, str(smollm2_folder()), concurrency=1, timeout=240, deadline=600, retries=1)
    futures = [
        model.ask([{"role": "user", "content": f'Reply with exactly this JSON: {{"word": "{word}"}}'}], Word,
                  temperature=0.0, max_tokens=24)
        for word in ("apple", "river", "stone", "music", "cloud", "bread")[:COPIES]
    ]  # fmt: skip
    user = LLMUser(model, "math_tutoring", "Tom has 12 pears and eats 5. How many are left?", "Help me with pears.", 0)
    judge = LLMJudge(model, max_tokens=96)
    told = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "It is 5."}]
    finish = [future.result for future in futures]
    finish += [user.start_reply("How many pears does Tom have?")]
    finish += [judge.start("math_tutoring", MathVerdict, told, problem="2 + 3?", solution="5")]
    for result in finish:
        try:
            print(repr(result()))
        except DialogueFailed as failure:
            print(failure)
    counters = model.counters
    print(counters)
    assert counters.calls == len(finish) == counters.ok + counters.failed
    assert counters.ok + counters.failures.total() == counters.calls + counters.retries
    assert set(counters.failures) <= {"invalid"} and counters.ok >= 1
