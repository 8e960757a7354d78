"""The local server gives its files to the browser here, and computes for its own pages alone."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import random_sae
from site_parts import data_of

from hubsae.dashboard.live import MAX_LETTERS, Live
from hubsae.dashboard.page_data import Side
from hubsae.dashboard.server import LocalServer
from hubsae.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def sae(demo_model, demo_texts):
    found = random_sae(128, 300, {"name": "topk", "k": 6}, base_models=(demo_model.identity.to_dict(),))
    found.bind(demo_model)
    found.feature_statistics(demo_texts[:40])
    return found


@pytest.fixture(scope="module")
def site(sae):
    return sae.make_dashboard()


@pytest.fixture
def echo(site):
    """A server whose only action repeats the question; run by a thread here, since it computes nothing."""
    with running(LocalServer(site, 0, {"about": lambda q: {"analyze": [True]}, "echo": lambda q: q})) as server:
        yield server


@contextmanager
def running(server):
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield server
    server.close()
    thread.join(20)
    assert not thread.is_alive()


def request(server, method, path, body=None, headers=None, host=None):
    """(status, headers, body) of one request with just these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": host or f"127.0.0.1:{server.port}", **(headers or {})}.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def asked(server: Any, name: str = "echo", question: Any = None, **changes: Any) -> Any:
    own = {
        "Origin": f"http://127.0.0.1:{server.port}",
        "X-Hubsae-Token": server.token,
        "Content-Type": "application/json",
    }
    body = changes.pop("body", json.dumps(question or {"a": 1}).encode())
    path = changes.pop("path", f"/api/{name}")
    host = changes.pop("host", None)
    headers = {**own, **{key.replace("_", "-"): value for key, value in changes.items()}}
    status, _, content = request(server, "POST", path, body, headers, host)
    return status, json.loads(content)


def test_files_are_those_of_the_site_under_a_strict_policy(echo, site):
    for path in ("index.html", "site.css", "site.js", "data/about.js", "data/0/features-4.js"):
        status, headers, content = request(echo, "GET", f"/{path}")
        assert status == 200
        assert content == site.files[path]()
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert request(echo, "GET", "/")[2] == site.files["index.html"]()
    assert request(echo, "HEAD", "/")[2] == b""
    assert data_of(request(echo, "GET", "/data/live.js")[2]) == {"analyze": [True]}


def test_the_policy_of_the_pages_is_that_of_the_server(site):
    from hubsae.dashboard.server import POLICY

    page = site.files["index.html"]().decode()
    for directive in POLICY.split("; "):
        assert directive in page or directive == "frame-ancestors 'none'"  # which a page cannot say itself


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/data/../../x",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/data/0/features-5.js",
        "/data/",
        "/api/echo",
        "/index.html/",
        "/\\index.html",
        "http://127.0.0.1/index.html",
    ],
)
def test_nothing_but_the_files_of_the_site_is_given(echo, path):
    status, _, content = request(echo, "GET", path)
    assert status == 404
    assert json.loads(content) == {"error": "there is no such file"}


def test_it_listens_on_loopback_alone(echo):
    assert echo._http.socket.getsockname()[0] == "127.0.0.1"
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError), socket.create_connection((own, echo.port), timeout=2):
            pass


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "", "127.0.0.1.evil.example"]
)
def test_other_names_pointed_here_get_nothing(echo, host):
    for method in ("GET", "HEAD"):
        assert request(echo, method, "/", host=host or " ")[0] == 403
    assert asked(echo, host=host or " ")[0] == 403


def test_localhost_is_its_name_too(echo):
    name = f"localhost:{echo.port}"
    assert request(echo, "GET", "/", host=name)[0] == 200
    assert asked(echo, host=name, Origin=f"http://{name}")[0] == 200


def test_other_sites_may_lead_here_but_include_nothing(echo):
    for site in ("cross-site", "same-site"):
        script = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}
        assert request(echo, "GET", "/data/about.js", headers=script)[0] == 403
        framed = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        assert request(echo, "GET", "/", headers=framed)[0] == 403
        opened = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert request(echo, "GET", "/", headers=opened)[0] == 200
    assert request(echo, "GET", "/", headers={"Sec-Fetch-Site": "none"})[0] == 200


def test_a_question_needs_the_key_and_the_pages_of_this_server(echo):
    assert asked(echo, question={"text": "«é»"}) == (200, {"text": "«é»"})
    headers: dict[str, Any]
    for headers in (
        {"X_Hubsae_Token": None},
        {"X_Hubsae_Token": ""},
        {"X_Hubsae_Token": echo.token[:-1]},
        {"X_Hubsae_Token": "\xe9" * 43},
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.example"},
        {"Origin": f"https://127.0.0.1:{echo.port}"},
        {"Origin": f"http://127.0.0.1:{echo.port + 1}"},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        status, answer = asked(echo, **headers)
        assert status == 403, headers
        assert "error" in answer
    assert request(echo, "GET", "/data/about.js")[0] == 200  # and it goes on


def test_a_ticket_gives_the_key_once(echo):
    address = echo.ticket()
    assert echo.token not in address
    path = address.split(str(echo.port))[1]
    assert request(echo, "GET", path + "x")[0] == 404
    assert request(echo, "HEAD", path)[0] == 404
    assert request(echo, "GET", path, host="evil.example")[0] == 403
    status, headers, _ = request(echo, "GET", path)
    assert (status, headers["Location"]) == (303, f"/#token={echo.token}")
    assert request(echo, "GET", path)[0] == 404


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: HERE\r\nContent-Length: 5\r\n\r\nGET /",
        b"POST /api/echo HTTP/1.1\r\nHost: HERE\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/echo HTTP/1.1\r\nHost: HERE\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: HERE\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"OPTIONS / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"<script> /\r\n\r\n",
    ],
)
def test_strange_requests_get_one_refusal_and_the_connection_ends(echo, raw):
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as connection:
        connection.sendall(raw.replace(b"HERE", f"127.0.0.1:{echo.port}".encode()))
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.count(b"HTTP/1.1 ") + answer.count(b'{"error"') in (1, 2)
    assert b" 200 " not in answer.split(b"\r\n")[0]
    if answer.startswith(b"HTTP"):
        assert b"Content-Security-Policy" in answer


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"body": b"not json"}, 400),
        ({"body": b"[1]"}, 400),
        ({"body": b"[" * 60_000}, 400),
        ({"body": b"\xff\xfe"}, 400),
        ({"body": b'"' + b"x" * 70_000 + b'"'}, 413),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
        ({"name": "nothing"}, 404),
        ({"path": "/echo"}, 404),
        ({"path": "/api/../echo"}, 404),
    ],
)
def test_questions_that_are_none_are_refused(echo, changes, status):
    assert asked(echo, **changes)[0] == status
    assert asked(echo)[0] == 200


def test_keys_are_new_each_time_and_only_told_where_something_is_computed(echo, site):
    other = LocalServer(site, 0)
    assert other.token != echo.token
    assert other.address == f"http://127.0.0.1:{other.port}/"
    assert echo.address.endswith(f"#token={echo.token}")
    assert data_of(request(other, "GET", "/data/live.js")[2]) == {}
    assert asked(other, X_Hubsae_Token=other.token)[0] == 404
    other.close()


def test_a_port_that_is_taken_is_said(echo, site):
    with pytest.raises(ConfigError, match=f"port {echo.port} cannot be used"):
        LocalServer(site, echo.port)
    with pytest.raises(ConfigError, match="expected 0"):
        LocalServer(site, 70_000)


def test_failures_are_told_and_the_next_question_is_answered(site):
    def fail(question):
        raise {"ours": DataError("feature 9: none"), "other": ZeroDivisionError("oops")}[question["kind"]]

    with running(LocalServer(site, 0, {"about": lambda q: {}, "fail": fail})) as server:
        assert asked(server, "fail", {"kind": "ours"}) == (400, {"error": "feature 9: none"})
        assert asked(server, "fail", {"kind": "other"}) == (500, {"error": "hubsae failed: ZeroDivisionError: oops"})
        assert asked(server, "fail", {"kind": "ours"})[0] == 400


def test_too_many_questions_at_once_are_told_to_come_back(site):
    go = threading.Event()

    def slow(question):
        assert go.wait(20)
        return question

    with running(LocalServer(site, 0, {"about": lambda q: {}, "slow": slow})) as server:
        found = []
        threads = [threading.Thread(target=lambda: found.append(asked(server, "slow"))) for _ in range(10)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while len(found) < 5 and time.monotonic() < until:
            time.sleep(0.01)
        assert [status for status, _ in found] == [400] * 5  # one is computed, four wait
        assert "busy" in found[0][1]["error"]
        assert request(server, "GET", "/data/about.js")[0] == 200  # files are given meanwhile
        go.set()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in found) == [200] * 5 + [400] * 5


@pytest.fixture(scope="module")
def live(sae):
    return Live([Side.of(sae, sae.features)], [sae.models])


def test_a_typed_text_is_analysed_as_the_library_does_it(live, sae, demo_model):
    from hubsae.dashboard.page_data import text_data

    found = live.analyze({"side": 0, "text": "Paris is the capital of France."})
    assert found == text_data(sae.analyze_text("Paris is the capital of France."), sae.features)
    assert live.about({})["analyze"] == [True]


def test_the_bench_steers_as_the_library_does(live, sae, demo_model):
    alive = np_argmax(sae.features.n_active)
    changes = [
        {"feature": alive, "mode": "add", "strength": 12},
        {"feature": alive + 1, "mode": "ablate", "strength": 0},
    ]
    question = {"side": 0, "prompt": "The capital of France is", "max_tokens": 5, "changes": changes}
    found = live.steer(question)
    change = sae.intervene(add={alive: 12.0}, ablate=[alive + 1])
    for name, interventions in (("before", None), ("after", change)):
        assert (
            found[name]["text"].strip()
            == demo_model.generate("The capital of France is", interventions=interventions, max_tokens=5).strip()
        )
        with demo_model.trace("The capital of France is", interventions) as trace:
            likely = demo_model.get_token_predictions(trace.logits, 8)
        assert [token for token, _ in found[name]["next"]] == [p.token for p in likely]
        assert found[name]["next"][0][1] == pytest.approx(likely[0].probability, rel=0.0051)
    assert found["before"]["text"].startswith(" ")
    assert found["after"] != found["before"]


def np_argmax(values):
    return int(values[:-1].argmax())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"side": 1}, "no model at hand"),
        ({"side": -1}, "no model at hand"),
        ({"side": "0"}, "side="),
        ({"prompt": ""}, "expected 1 to"),
        ({"prompt": "x" * (MAX_LETTERS + 1)}, "expected 1 to"),
        ({"prompt": 5}, "prompt="),
        ({"prompt": "\ud800"}, "half a character"),
        ({"changes": [{"mode": "add", "feature": 1, "strength": 10**400}]}, "strength="),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 10**6}, "max_tokens=1000000"),
        ({"max_tokens": 2.5}, "max_tokens="),
        ({"changes": []}, "1 to 20 features"),
        ({"changes": [{}] * 21}, "1 to 20 features"),
        ({"changes": "all"}, "1 to 20 features"),
        ({"changes": [{"mode": "explode"}]}, "a change is one of"),
        ({"changes": [{"mode": "add", "feature": 300, "strength": 1}]}, "features 0 to 299"),
        ({"changes": [{"mode": "add", "feature": 1, "strength": "x"}]}, "strength="),
        ({"changes": [{"mode": "add", "feature": 1, "strength": float("nan")}]}, "strength="),
        ({"changes": [{"mode": "add", "feature": 1, "strength": 1}] * 2}, "changed twice"),
    ],
)
def test_bad_questions_are_explained(live, change, why):
    good = {
        "side": 0,
        "prompt": "The capital",
        "max_tokens": 3,
        "changes": [{"mode": "add", "feature": 1, "strength": 1}],
    }
    with pytest.raises((ConfigError, DataError), match=why):
        live.steer({**good, **change})
