"""Starts from the Hugging Face Hub, of which a server on this machine speaks what is needed."""

import hashlib
import http.server
import json
import threading

import pytest
import torch

from tests.utils.training.small_training import CONFIG, arguments, refusal, write_conf
from utils import train
from utils.errors import UserError
from utils.training.hub import download
from utils.training.model_files import build_system, pack, save

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    asked: list[str] = []

    def answer(self):
        self.asked.append(f"{self.command} {self.path}")
        body = self.files.get(self.path)
        if body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one model, `someone/model`, and a cache of its own."""
    torch.manual_seed(1)
    save(pack(CONFIG["system"], build_system(CONFIG["system"]).state_dict()), tmp_path / "hub.pth")
    body = (tmp_path / "hub.pth").read_bytes()
    monkeypatch.setattr(Hub, "files", {"/someone/model/resolve/main/model.pth": body})
    monkeypatch.setattr(Hub, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()


def config(start):
    return CONFIG | {"steps": {"joint": {"epochs": 1, "start_from": start, "optim": {"lr": 1e-9}}}}


@pytest.mark.slow
def test_a_step_starts_from_a_model_of_the_hub(hub, tone_manifests, tmp_path, capsys):
    conf = write_conf(tmp_path, config("hf://someone/model"))
    train.main(arguments(conf, tone_manifests, tmp_path / "exp"))
    assert "47 tensors are taken" in capsys.readouterr().out
    note = json.loads((tmp_path / "exp/joint/start.json").read_text())
    assert note["from"] == "hf://someone/model"
    assert sum(line.startswith("GET") for line in Hub.asked) == 1


@pytest.mark.slow
def test_without_a_network_the_cache_serves(hub, tmp_path):
    first = download("hf://someone/model", "x")
    hub.shutdown()
    hub.server_close()
    assert download("hf://someone/model", "x") == first
    with pytest.raises(UserError, match="x: hf://someone/other is not in the cache"):
        download("hf://someone/other", "x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://someone/other", "has no model.pth that may be read"),
        ("hf://someone/model:best.pth", "has no best.pth that may be read"),
        ("hf://model", "is not hf://user/name"),
    ],
)
@pytest.mark.fast_every(3)
def test_what_is_not_there_is_told_before_anything_is_made(
    hub, tone_manifests, tmp_path, capsys, name, said
):
    conf = write_conf(tmp_path, config(name))
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp"))
    assert f"steps.joint.start_from: {name} {said}" in message and message.count("\n") == 1
    assert not (tmp_path / "exp").exists()


@pytest.mark.slow
def test_a_model_of_the_hub_runs_no_code(hub, tone_manifests, tmp_path, capsys):
    asks = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    save(pack(asks, {"weight": torch.zeros(2)}), tmp_path / "bad.pth")
    Hub.files["/someone/bad/resolve/main/model.pth"] = (tmp_path / "bad.pth").read_bytes()
    conf = write_conf(tmp_path, config("hf://someone/bad"))
    message = refusal(capsys, *arguments(conf, tone_manifests, tmp_path / "exp"))
    assert "is refused: it asks for subprocess.Popen" in message
