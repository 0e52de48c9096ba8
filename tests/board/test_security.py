"""Who may ask the board, and for what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from llmtune.arguments.board import BoardArguments
from llmtune.board.app import names_of
from llmtune.board.security import COOKIE, Guard, inside
from llmtune.board.state import Board
from llmtune.cli.main import main
from llmtune.errors import UsageError

from .conftest import KEY, Start, Started, run_async

ROUTES = [
    *("/", "/new", "/run", "/run?f=output", "/compare", "/compare?f=a&f=b", "/chat", "/chat?f=x"),
    *("/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/favicon.ico", "/nowhere", "/docs", "/openapi.json"),
    "/_nicegui/x/static/nicegui.js",
]
HEADERS = ("content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy")


@pytest.fixture(scope="module")
def board(start_board: Start, tmp_path_factory: pytest.TempPathFactory) -> Started:
    root = tmp_path_factory.mktemp("root")
    outside = tmp_path_factory.mktemp("outside") / "v0-secret"
    outside.mkdir()
    (outside / "status.json").write_text('{"state": "finished", "name": "v0-secret", "model": "marmalade"}')
    (root / "link").symlink_to(outside)
    os.environ["BOARD_TEST_OUTSIDE"] = str(outside)
    return start_board(root)


def ask(board: Started, path: str, *, key: str = "", method: str = "GET", **headers: str) -> httpx.Response:
    port = board.address.rpartition(":")[2]
    cookies = {f"{COOKIE}_{port}": key} if key else {}
    with httpx.Client(trust_env=False, cookies=cookies, timeout=30) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.request(method, board.address + path, headers=named)


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_every_route_needs_the_key_and_its_own_name(board, path):
    assert ask(board, path).status_code == 403
    assert ask(board, path, key="wrong").status_code == 403
    assert ask(board, path, key=KEY, host="evil.example:80").status_code == 403
    assert ask(board, path, key=KEY, origin="http://evil.example").status_code == 403
    assert ask(board, path, key=KEY, origin="null").status_code == 403
    assert ask(board, path, key=KEY, method="POST", sec_fetch_site="cross-site").status_code == 403
    found = ask(board, path, key=KEY, origin=board.address)
    assert found.status_code != 403
    assert all(name in found.headers for name in HEADERS)
    assert "https://" not in found.headers["content-security-policy"]


@pytest.mark.slow
def test_the_key_of_the_address_becomes_a_cookie_that_scripts_cannot_read(board):
    found = ask(board, f"/run?key={KEY}&f=output")
    assert (found.status_code, found.headers["location"]) == (303, "/run?f=output")
    cookie, port = found.headers["set-cookie"], board.address.rpartition(":")[2]
    assert all(part in cookie for part in (f"{COOKIE}_{port}={KEY}", "HttpOnly", "SameSite=Strict"))
    assert ask(board, f"//evil.example/?key={KEY}").headers["location"] == "/"


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["..", "../..", "/", "/etc", "link", "output/../..", "~", "\x00", "a" * 5000, "%2e%2e"]
)
def test_no_page_shows_what_is_outside_of_the_root(board, folder):
    found = ask(board, str(httpx.URL("/run", params={"f": folder})), key=KEY)
    assert found.status_code in (200, 404, 414)
    assert "marmalade" not in found.text
    outside = os.environ["BOARD_TEST_OUTSIDE"]
    assert "marmalade" not in ask(board, str(httpx.URL("/run", params={"f": outside})), key=KEY).text


# The guard alone


def guarded(scope: dict[str, Any], hosts: frozenset[str] = frozenset({"127.0.0.1:1"})) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []} | scope
    run_async(Guard(app, key=KEY, hosts=hosts, port=1)(whole, receive, send))
    return sent


def test_websockets_are_closed_without_key_or_from_elsewhere():
    own = [(b"host", b"127.0.0.1:1"), (b"cookie", f"{COOKIE}_1={KEY}".encode())]
    assert guarded({"type": "websocket", "headers": own[:1]})[0]["type"] == "websocket.close"
    foreign = [*own, (b"origin", b"http://evil.example")]
    assert guarded({"type": "websocket", "headers": foreign})[0]["type"] == "websocket.close"
    assert guarded({"type": "websocket", "headers": [*own, (b"origin", b"http://127.0.0.1:1")]})[0]["status"] == 200
    query = f"key={KEY}".encode()  # a key in the address of a socket would be in logs
    assert guarded({"type": "websocket", "headers": own[:1], "query_string": query})[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    "cookie", [b"", b"\xff", b"llmtune_board_1", b'llmtune_board_1="', b"x=1; llmtune_board_1=\xc3\xa4", b"=" * 999]
)
def test_broken_cookies_are_no_key(cookie):
    assert guarded({"headers": [(b"host", b"127.0.0.1:1"), (b"cookie", cookie)]})[0]["status"] == 403


def test_the_names_of_a_board():
    assert "127.0.0.1:80" in names_of("127.0.0.1", 80)
    assert "evil.example:80" not in names_of("127.0.0.1", 80)
    assert names_of("0.0.0.0", 80) == frozenset()


def test_inside_follows_links(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "in").mkdir()
    (root / "out").symlink_to(tmp_path)
    assert inside(root, "in/../in/new") == root / "in/new"
    for text in ("out", "..", "out/x", "/", str(tmp_path)):
        with pytest.raises(UsageError, match="is outside of"):
            inside(root, text)


# The start


def test_an_address_that_others_reach_needs_a_key_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMTUNE_BOARD_KEY", raising=False)
    with pytest.raises(UsageError, match="LLMTUNE_BOARD_KEY"):
        BoardArguments(host="0.0.0.0")
    monkeypatch.setenv("LLMTUNE_BOARD_KEY", "mine")
    assert BoardArguments(host="0.0.0.0").host == "0.0.0.0"
    with pytest.raises(UsageError, match="there is no such folder"):
        BoardArguments(root=str(tmp_path / "nowhere"))


def test_without_nicegui_the_command_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["board"]) == 1
    assert "pip install 'llmtune[board]'" in capsys.readouterr().err


def test_read_only_changes_nothing(tmp_path):
    board = Board(tmp_path, read_only=True)
    with pytest.raises(UsageError, match="read_only"):
        board.check_may_change()
    board.write_draft("sft", {"lora_rank": "3"})
    assert not list(tmp_path.iterdir())


def test_drafts_survive_and_broken_ones_are_empty(tmp_path):
    board = Board(tmp_path)
    board.write_draft("dpo", {"lora_rank": "3"})
    assert Board(tmp_path).read_draft() == ("dpo", {"lora_rank": "3"})
    for text in (
        "",
        "[]",
        '{"stage": "nowhere", "values": {}}',
        '{"values": 3}',
        '{"values": {"lora_rank": {"a": 1}}}',
    ):
        (tmp_path / ".board/draft.json").write_text(text)
        assert board.read_draft()[0] in ("sft",)


@pytest.mark.slow
def test_the_board_imports_no_torch():
    code = (
        "import sys, json\nfrom pathlib import Path\nimport tempfile\nfrom llmtune.board.state import Board\n"
        "from llmtune.board.app import make_app\n"
        "make_app(Board(Path(tempfile.mkdtemp())), key='k', hosts=frozenset(), port=1)\n"
        "print(json.dumps([name for name in ('torch', 'transformers', 'datasets', 'peft') if name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.splitlines()[-1]) == []


def test_no_token_is_in_a_form_or_file(tmp_path: Path):
    from llmtune.board import form

    assert not [field for field in form.form_fields("sft") if "token" in field.name and "hub" in field.name]
    assert "secret" not in form.yaml_of("sft", form.clean("sft", {"hub_token": "secret"}))
