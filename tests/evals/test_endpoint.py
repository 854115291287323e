"""An endpoint as judge: what it is asked, how often, how patiently, and what becomes of failures."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from data.jsonl import DataError
from evals.endpoint import Endpoint, EndpointError, EndpointJudge, EndpointRefusal, Price
from evals.judges import CachedJudge, JudgeRequest, announce
from tests.servers import Reply, Server, said


def _endpoint(server: Server, **changes: Any) -> Endpoint:
    pauses: list[float] = changes.pop("pauses", [])
    return Endpoint(server.url, "judge-1", **{"timeout": 5.0, "sleep": pauses.append, **changes})


def test_the_request_is_the_api_s_and_the_key_goes_in_its_header(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")
    endpoint = _endpoint(server, key_env="JUDGE_KEY", max_tokens=9)
    assert endpoint.chat("Rate this.") == "Rating: 4"
    headers, body = server.seen[0]
    assert headers["Authorization"] == "Bearer sk-secret-1234"
    assert body["messages"] == [{"role": "user", "content": "Rate this."}]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge-1", 9, 0.0)
    assert "secret" not in repr(endpoint) and "secret" not in endpoint.name


def test_without_a_key_none_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _endpoint(server).chat("x")
    assert "Authorization" not in server.seen[0][0]


def test_a_busy_or_failing_server_is_asked_again(server: Server) -> None:
    pauses: list[float] = []
    plan: list[Reply] = [
        (429, {"Retry-After": "7"}, {}), (500, {}, b"oops"), (503, {}, {}), (200, {}, said("yes")),
    ]  # fmt: skip
    server.reply = lambda n, body: plan[n - 1]
    assert _endpoint(server, pauses=pauses, pause=1.0).chat("x") == "yes"
    # the pause that the server asked for, then growing ones of our own
    assert pauses == [7.0, 2.0, 4.0]


def test_what_fails_at_every_try_is_named(server: Server) -> None:
    server.reply = lambda n, body: (500, {}, {})
    with pytest.raises(EndpointError, match=r"judge-1 at 127.0.0.1: status 500 after 3 tries"):
        _endpoint(server, retries=2).chat("x")
    assert len(server.seen) == 3


def test_a_stalled_server_times_out(server: Server) -> None:
    def stall(n: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.6)
        return 200, {}, said("late")

    server.reply = stall
    with pytest.raises(EndpointError, match=r"no reply within 0.1 s after 2 tries"):
        _endpoint(server, timeout=0.1, retries=1).chat("x")


def test_a_refusal_is_not_repeated_and_its_text_holds_no_key(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "my-own-secret")
    told = {"error": {"message": "Incorrect key my-own-secret (shown as sk-abcd****1234)"}}
    server.reply = lambda n, body: (401, {}, told)
    with pytest.raises(EndpointError) as caught:
        _endpoint(server).chat("x")
    assert len(server.seen) == 1
    assert "status 401 (Incorrect key (the key) (shown as (a key)" in str(caught.value)
    assert "my-own-secret" not in caplog.text and "sk-abcd" not in str(caught.value)


@pytest.mark.parametrize("reply", [{}, {"choices": []}, said(None), said("  "), b"<html>", [1]])
def test_a_reply_without_text_is_none(server: Server, reply: Any) -> None:
    server.reply = lambda n, body: (200, {}, reply)
    with pytest.raises(EndpointError, match="holds no text"):
        _endpoint(server).chat("x")


def test_nobody_there_is_named() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", retries=0, sleep=lambda s: None)
    with pytest.raises(EndpointError, match="ConnectError after one try"):
        endpoint.chat("x")
    with pytest.raises(DataError, match="no web address"):
        Endpoint("localhost:8000", "m")


def _request(name: str) -> JudgeRequest:
    return JudgeRequest(name, "img", "what?", f"a cat {name}", "a cat", ("cat",), f"rate {name}")


def test_a_judge_behind_it_loses_only_what_failed(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        bad = body["messages"][0]["content"] == "rate 1"
        return (400, {}, {"error": "too rude"}) if bad else (200, {}, said("Rating: 3"))

    server.reply = reply
    judge = EndpointJudge(_endpoint(server))
    cached = CachedJudge(judge, tmp_path / "verdicts.jsonl")
    requests = [_request(str(i)) for i in range(3)]
    assert cached.judge(requests) == {"0": "Rating: 3", "2": "Rating: 3"}
    assert judge.failed == {"1": "judge-1 at 127.0.0.1: status 400 (too rude)"}
    assert "no verdict on 1: judge-1 at 127.0.0.1: status 400 (too rude)" in caplog.text
    # a second run asks for the failed one alone
    before = len(server.seen)
    assert set(CachedJudge(judge, tmp_path / "verdicts.jsonl").judge(requests)) == {"0", "2"}
    assert len(server.seen) == before + 1


def test_a_refused_key_stops_at_once(server: Server, tmp_path: Path) -> None:
    server.reply = lambda n, body: (401, {}, {"error": "no key"})
    judge = CachedJudge(EndpointJudge(_endpoint(server, workers=1)), tmp_path / "verdicts.jsonl")
    with pytest.raises(
        EndpointRefusal, match=r"401 .*; check the key in the environment variable OPENAI_API"
    ):
        judge.judge([_request(str(i)) for i in range(50)])
    assert len(server.seen) < 5


def test_a_judge_that_was_cut_short_gave_no_verdict(server: Server) -> None:
    reply = said("The response is")
    reply["choices"][0]["finish_reason"] = "length"
    server.reply = lambda n, body: (200, {}, reply)
    assert _endpoint(server).chat("x") == "The response is"
    judge = EndpointJudge(_endpoint(server, whole=True))
    assert judge.judge([_request("0")]) == {} and "cut at max_tokens; allow more" in judge.failed["0"]


def test_what_decides_the_words_decides_the_cache(server: Server, tmp_path: Path) -> None:
    for changes, requests in (
        ({}, 1),
        ({"timeout": 9.0}, 1),
        ({"max_tokens": 9}, 2),
        ({"temperature": 1.0}, 3),
    ):
        cached = CachedJudge(EndpointJudge(_endpoint(server, **changes)), tmp_path / "verdicts.jsonl")
        assert cached.judge([_request("0")]) == {"0": "Rating: 4"}
        assert len(server.seen) == requests


@pytest.mark.parametrize(
    ("asked", "pause"), [("0", 1.0), ("nan", 1.0), ("-5", 1.0), ("7", 7.0), ("soon", 1.0)]
)
def test_what_a_server_asks_for_never_shortens_the_pause(server: Server, asked: str, pause: float) -> None:
    pauses: list[float] = []
    server.reply = lambda n, body: (429, {"Retry-After": asked}, {}) if n == 1 else (200, {}, said("yes"))
    assert _endpoint(server, pauses=pauses, pause=1.0).chat("x") == "yes"
    assert pauses == [pause]


def test_addresses_and_keys_that_cannot_be_right_are_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url, rule in (
        ("http://localhost:abc/v1", "the address cannot be read"),
        ("http://me:secret@localhost/v1", "holds a user's name or password"),
    ):
        with pytest.raises(DataError, match=rule) as caught:
            Endpoint(url, "m")
        assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="key_env is no name of an environment variable") as caught:
        Endpoint(server.url, "m", key_env="sk-secret-1234")
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sécret")
    with pytest.raises(DataError, match="the key in OPENAI_API_KEY is no plain text"):
        _endpoint(server)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234\n")
    _endpoint(server).chat("x")
    assert server.seen[-1][0]["Authorization"] == "Bearer sk-1234"


def test_requests_keep_the_rate(server: Server) -> None:
    pauses: list[float] = []
    endpoint = _endpoint(server, per_minute=60, pauses=pauses, clock=lambda: 100.0)
    for _ in range(3):
        endpoint.chat("x")
    # all three at one moment: the second is held back a second and the third two
    assert pauses == [1.0, 2.0]


def test_the_cost_is_told_before(server: Server) -> None:
    endpoint = _endpoint(server, max_tokens=100, price=Price(input=1.0, output=10.0))
    told = endpoint.estimate(["x" * 400] * 1000)
    # 100 tokens in and at most 100 out, a thousand times
    assert told.startswith("1000 requests to judge-1 at 127.0.0.1, about 100,000 tokens to read")
    assert told.endswith("at most about 1.10 at the given prices")
    assert "prices" not in _endpoint(server).estimate(["x"])


def test_the_cost_of_what_is_not_cached_is_told_once(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judge = CachedJudge(EndpointJudge(_endpoint(server)), tmp_path / "verdicts.jsonl", chunk=1)
    requests = [_request(str(i)) for i in range(3)]
    judge.judge(requests[:1])
    assert not caplog.records
    announce(judge, requests)
    assert [r.message for r in caplog.records] == [
        "judge: 2 requests to judge-1 at 127.0.0.1, about 3 tokens to read"
    ]
    judge.judge(requests)
    announce(judge, requests)
    assert len(caplog.records) == 1
