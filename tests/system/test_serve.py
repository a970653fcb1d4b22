"""`serve` as a real process: asked by the real openai client, and by whatever else may connect to a port."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest

from tests.support import corpus, serving
from tests.support.serving import exchange, request

ASKED = [{"role": "user", "content": "今天天气"}]
LONG = {"messages": ASKED, "temperature": 0, "max_tokens": 30000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("serve")
    serving.words(made / "out" / "tokenizer", template=serving.THINKING)
    serving.weights(made / "out" / "full_sft_64.pth", stage="full_sft")
    return made


@pytest.fixture(scope="module")
def server(folder):
    with serving.serving("--from_weight", "full_sft", "--rows", "2", "--queue", "2", cwd=folder) as process:
        yield process


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="any", max_retries=0) as made:
        yield made


def busy(server) -> tuple[int, int]:
    status, body = exchange(server.port, request("/health"))
    assert status == 200
    return json.loads(body)["answering"], json.loads(body)["waiting"]


def until(check, *, seconds: float = 15):
    end = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


def post(server, body, **headers):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = exchange(server.port, request("/v1/chat/completions", raw, **headers))
    return status, json.loads(answer) if answer else None


def test_an_answer_and_its_stream_are_the_same_text_with_the_same_usage(client):
    assert [model.id for model in client.models.list()] == ["full_sft_64"]
    options = {"model": "full_sft_64", "messages": ASKED, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 20
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content and streamed
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]


def test_a_seed_repeats_a_text_whoever_else_is_being_answered(client):
    def one(seed):
        options = {"model": "minimind", "messages": ASKED, "max_tokens": 40, "temperature": 1.5, "top_p": 1}
        return client.chat.completions.create(**options, seed=seed).choices[0].message.content

    alone = [one(seed) for seed in (1, 2)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, [1, 2, 1, 2]))
    assert together == alone * 2 and alone[0] != alone[1]


def test_no_part_of_a_stop_string_is_ever_streamed(client):
    options = {"model": "full_sft_64", "messages": ASKED, "temperature": 0, "max_tokens": 30}
    text = client.chat.completions.create(**options).choices[0].message.content
    stop = next(text[i : i + 6] for i in range(4, len(text)) if text.index(text[i : i + 6]) == i)
    stopped = client.chat.completions.create(**options, stop=[stop, "never said"])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    shown = ""
    for chunk in client.chat.completions.create(**options, stop=stop, stream=True):
        shown += chunk.choices[0].delta.content or ""
        assert text.startswith(shown) and len(shown) <= text.index(stop)
    assert shown == text[: text.index(stop)]


def test_plain_completion_continues_the_text_itself(client):
    found = client.completions.create(model="full_sft_64", prompt="今天", max_tokens=7, temperature=0)
    assert found.usage.completion_tokens == 7 and found.choices[0].text
    chunks = client.completions.create(model="full_sft_64", prompt="今天", max_tokens=7, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == found.choices[0].text


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"messages": []}, 400, "invalid_type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value"),
        ({"messages": [*ASKED, {"role": "system", "content": "x"}]}, 400, "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "unsupported_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_value"),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"temperature": True}, 400, "invalid_type"),
        ({"temperature": 10**400}, 400, "invalid_value"),
        ({"top_p": "1"}, 400, "invalid_type"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"max_completion_tokens": 40000}, 400, "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "a" * 80000}]}, 400, "context_length_exceeded"),
        ({"n": 2}, 400, "unsupported_value"),
        ({"stop": ["a"] * 5}, 400, "invalid_value"),
        ({"stop": ""}, 400, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, 400, "invalid_value"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_value"),
        ({"chat_template_kwargs": {"open_thinking": 1}}, 400, "invalid_type"),
        ({"model": "gpt-4"}, 404, "model_not_found"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_in_openais_form(server, change, status, code):
    found, told = post(server, {"messages": ASKED, "max_tokens": 2, **change})
    assert (found, told["error"]["code"]) == (status, code) and told["error"]["message"]


@pytest.mark.parametrize(
    "change", [{"user": "u", "metadata": {}, "something": 1}, {"n": 1, "logprobs": False, "stop": None, "seed": -5}]
)
def test_fields_that_change_nothing_are_accepted(server, change):
    assert post(server, {"messages": ASKED, "max_tokens": 2, **change})[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"temperature": -Infinity}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        b'{"messages":' * 50_000,
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(server, body):
    status, told = post(server, body)
    assert status == 400 and told["error"]["code"] == "invalid_json"


def test_a_body_of_ten_megabytes_is_a_413_that_the_client_gets_to_read(server):
    body = b'{"messages": "' + b"x" * 10_000_000 + b'"}'
    assert post(server, body)[1]["error"]["code"] == "body_too_large"
    chunked = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"
    head = request("/v1/chat/completions", b"", Content_Length="", Transfer_Encoding="chunked")
    assert exchange(server.port, head.replace(b"Content-Length: \r\n", b"") + chunked)[0] == 413
    assert exchange(server.port, request("/v1/chat/completions", b"", Content_Length="99999999999"))[0] == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "rebound.example"}, 403),
        ({"host": "localhost.rebound.example:80"}, 403),
        ({"host": ""}, 403),
        ({"host": "LOCALHOST:1234"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"Origin": "https://page.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:8998"}, 403),
    ],
)
def test_a_page_in_a_browser_gets_nothing_by_a_foreign_host_or_any_origin(server, headers, status):
    assert exchange(server.port, request("/v1/models", **headers))[0] == status


def test_paths_and_methods_that_are_not_here_are_told_in_openais_form(server):
    for path, status in (("/nothing", 404), ("/v1/models/other", 404), ("/v1/chat/completions", 405)):
        found, body = exchange(server.port, request(path))
        assert found == status and json.loads(body)["error"]["message"]


def test_a_client_that_sends_slowly_keeps_nobody_else_waiting(server):
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(request("/v1/chat/completions", b"{", Content_Length="500"))
        assert post(server, {"messages": ASKED, "max_tokens": 2})[0] == 200


def test_a_client_that_goes_away_ends_its_generation_streamed_or_not(server):
    for stream in (True, False):
        link = socket.create_connection(("127.0.0.1", server.port))
        link.sendall(request("/v1/chat/completions", json.dumps({**LONG, "stream": stream}).encode()))
        until(lambda: busy(server) == (1, 0))
        link.close()
        until(lambda: busy(server) == (0, 0))


def test_requests_beyond_the_queue_are_told_to_come_back_and_those_in_it_are_answered(server):
    links = []
    for number in range(4):  # two are answered, two wait
        links.append(socket.create_connection(("127.0.0.1", server.port)))
        links[-1].sendall(request("/v1/chat/completions", json.dumps(LONG).encode()))
        until(lambda n=number: sum(busy(server)) == n + 1)
    assert busy(server) == (2, 2)
    head = socket.create_connection(("127.0.0.1", server.port))
    head.sendall(request("/v1/chat/completions", json.dumps(LONG).encode()))
    told = head.recv(65536)
    assert told.startswith(b"HTTP/1.1 429") and b"retry-after:" in told
    head.close()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        links.pop().close()  # one that waited: its place is free again
        short = {"messages": ASKED, "max_tokens": 2}
        until(lambda: busy(server) == (2, 1))
        answered = pool.submit(post, server, short)
        until(lambda: busy(server) == (2, 2))
        for link in links:
            link.close()
        assert answered.result()[0] == 200
    until(lambda: busy(server) == (0, 0))


def test_the_key_comes_from_a_file_or_the_environment_and_is_asked_of_everybody(folder):
    (folder / "key").write_text("a-secret-key\n")
    (folder / "key").chmod(0o600)
    flags = (
        "--from_weight",
        "full_sft",
        "--api_key_file",
        "key",
        "--host",
        "0.0.0.0",
        "--allow_host",
        "box.lan",
        "--drain_s",
        "60",
    )
    with serving.serving(*flags, cwd=folder) as process:
        assert exchange(process.port, request("/v1/models"))[0] == 401
        assert exchange(process.port, request("/v1/models", Authorization="Bearer a-secret-kez"))[0] == 401
        assert exchange(process.port, request("/v1/models", Authorization="Bearer a-secret-key"))[0] == 200
        assert (
            exchange(process.port, request("/v1/models", Authorization="bearer a-secret-key", host="box.lan"))[0] == 200
        )
        assert exchange(process.port, request("/health"))[0] == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=process.url, api_key="wrong", max_retries=0).models.list()
        # what runs may be asked to stop: the answer in progress gets its time, then the process is gone
        with socket.create_connection(("127.0.0.1", process.port)) as link:
            link.sendall(
                request("/v1/chat/completions", json.dumps({**LONG, "max_tokens": 300}).encode()).replace(
                    b"Connection: close", b"Authorization: Bearer a-secret-key"
                )
            )
            until(lambda: busy(process) == (1, 0))
            process.send_signal(signal.SIGTERM)
            data = b""
            while part := link.recv(65536):
                data += part
            assert json.loads(data.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 300
        assert process.wait(10) == 0
    assert "a-secret-key" not in (folder / "serve.err").read_text()


def test_an_answer_longer_than_the_drain_is_cut_and_the_process_leaves(folder):
    with (
        serving.serving("--from_weight", "full_sft", "--drain_s", "1", cwd=folder) as process,
        socket.create_connection(("127.0.0.1", process.port)) as link,
    ):
        link.sendall(request("/v1/chat/completions", json.dumps({**LONG, "stream": True}).encode()))
        data = link.recv(65536)
        process.send_signal(signal.SIGTERM)
        while part := link.recv(65536):
            data += part
        assert process.wait(30) == 0
    events = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    assert "the server is stopping" in events[-1] and len(events) < 30000
    assert "Traceback" not in (folder / "serve.err").read_text()


def run(folder, *flags, **environ):
    return subprocess.run(
        [sys.executable, "-m", "minimind", "serve", *flags],
        cwd=folder,
        env=corpus.environ(**environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_thoughts_come_apart_from_the_answer_where_the_template_opens_them(server):
    asked = {"messages": ASKED, "temperature": 0, "max_tokens": 5}
    plain = post(server, asked)[1]["choices"][0]["message"]
    assert plain["content"] and "reasoning_content" not in plain
    thinking = post(server, {**asked, "chat_template_kwargs": {"open_thinking": True}})[1]["choices"][0]["message"]
    assert thinking["reasoning_content"] and thinking["content"] == ""


def test_what_keeps_it_from_serving_is_told_before_weights_are_read(folder):
    from minimind import serve
    from minimind.config import UsageError

    def refused(*flags):
        with pytest.raises(UsageError) as told:
            serve.serve(["--from_weight", "no-such", *flags])
        return str(told.value)

    assert "--insecure" in refused("--host", "0.0.0.0")
    assert "cannot be read" in refused("--api_key_file", str(folder / "none"))
    (folder / "short").write_text("abc")
    assert "no key" in refused("--api_key_file", str(folder / "short"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in refused("--port", str(taken.getsockname()[1]))
    assert "cannot listen" in refused("--host", "no.such.name.invalid", "--insecure")
    for flag, value in (("--port", "70000"), ("--queue", "-1"), ("--rows", "0"), ("--temperature", "nan")):
        assert "is not possible" in refused(flag, value)


def test_without_its_packages_it_says_what_to_install(folder, tmp_path):
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('gone', name='starlette')")
    path = os.pathsep.join((str(tmp_path), str(corpus.ROOT)))
    done = run(folder, "--from_weight", "full_sft", PYTHONPATH=path)
    assert done.returncode == 3 and "pip install 'minimind-launch[serve]'" in done.stderr
    assert "Traceback" not in done.stderr
