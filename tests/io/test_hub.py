"""Finding a word's file: on disk, in a run's folder, or on the Hub (a small server, the real client)."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import embedding_samples as made
import hub_server
import numpy as np
import pytest
from safetensors.numpy import save

from tiutils.errors import InputError
from tiutils.io import files as plain_files
from tiutils.io import hub as hub_client
from tiutils.io.embeddings import LearnedEmbedding, read, write

CAT = made.samples()["concept library"][1]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"  # between the Hub client and its HTTP library
)


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub_server.serving() as server:
        hub_server.connect(monkeypatch, server, tmp_path / "hf-home")
        monkeypatch.chdir(tmp_path)
        server.add_repository(
            "sd-concepts-library/cat-toy",
            {"learned_embeds.bin": CAT, "token_identifier.txt": b"<toy>", "README.md": b"# cat"},
        )
        yield server


def test_a_concept_is_read_from_the_library_without_a_token(server):
    found = read("sd-concepts-library/cat-toy")
    assert found.token == "<toy>"
    np.testing.assert_array_equal(found.vectors, made.vectors(2)[:1])


def test_safetensors_comes_before_a_pickle(server):
    files = {
        "learned_embeds.safetensors": save({"<safe>": made.vectors()}),
        "learned_embeds.bin": CAT,
    }
    server.add_repository("owner/both", files)
    assert read("owner/both").token == "<safe>"


def test_what_was_fetched_once_is_there_without_the_hub(server, monkeypatch):
    read("sd-concepts-library/cat-toy")
    server.asked.clear()
    with monkeypatch.context() as patch:  # as HF_HUB_OFFLINE=1 sets it
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert read("sd-concepts-library/cat-toy").token == "<toy>"
    assert not server.asked
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")  # no network
    assert read("sd-concepts-library/cat-toy").token == "<toy>"


def test_a_cache_laid_out_on_disk_is_used(monkeypatch, tmp_path):
    """In the layout of the Hub's client: refs/main names the snapshot."""
    sha = "0123456789" * 4
    folder = tmp_path / "hub" / "models--sd-concepts-library--cat-toy"
    (folder / "snapshots" / sha).mkdir(parents=True)
    (folder / "snapshots" / sha / "learned_embeds.bin").write_bytes(CAT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(sha)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read("sd-concepts-library/cat-toy").token == "<toy>"


def test_a_newer_version_on_the_hub_is_fetched(server):
    read("sd-concepts-library/cat-toy")
    newer = save({"<newer>": made.vectors()})
    server.add_repository("sd-concepts-library/cat-toy", {"learned_embeds.safetensors": newer})
    assert read("sd-concepts-library/cat-toy").token == "<newer>"


def test_a_file_of_a_repository_can_be_named_and_names_a_nameless_word(server):
    files = {"words/my-toy.safetensors": save({"emb_params": made.vectors()})}
    files["learned_embeds.safetensors"] = files["words/my-toy.safetensors"]
    server.add_repository("owner/cup", files)
    assert read("owner/cup/words/my-toy.safetensors").token == "my-toy"
    assert read("owner/cup").token == "cup"


def test_a_huge_file_is_not_fetched(server, monkeypatch, tmp_path):
    server.add_repository("owner/model", {"learned_embeds.bin": bytes(3 * 2**20)})
    monkeypatch.setattr(plain_files, "MAX_BYTES", 2**20)
    with pytest.raises(InputError, match=r"'owner/model/learned_embeds.bin' has 3 MiB"):
        read("owner/model")
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 2**20
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("owner/nothing", "no file 'owner/nothing' here.* nor is it in the cache"),
        ("owner/readme", r"learned_embeds.bin in that repository: name a file it has"),
        ("owner/readme/x.pt", r"no x.pt in that repository: name a file"),
        ("owner/private", "not on the Hub or you may not read it"),
        ("owner/broken", "the Hub did not give 'owner/broken'"),
    ],
)
def test_what_the_hub_does_not_have_is_reported(server, source, message):
    server.add_repository("owner/readme", {"README.md": b"#"})
    server.add_repository("owner/private", {"learned_embeds.bin": CAT}, private=True)
    server.add_repository("owner/broken", {"learned_embeds.bin": CAT})
    if source == "owner/broken":
        server.failing["resolve"] = 403
    with pytest.raises(InputError, match=message) as caught:
        read(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "toy.bin",
        "runs/toy.safetensors",
        "here/learned_embeds.bin",
        "a/../../x",
        "../a",
        "/a/b",
        "a b/c",
    ],
)
def test_a_local_path_is_never_asked_of_the_hub(server, tmp_path, source):
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match=r"cannot read|is not a file"):
        read(source)
    assert not server.asked


def test_a_runs_folder_means_its_word(tmp_path):
    write(
        tmp_path / "run" / "learned_embeds.bin",
        LearnedEmbedding("<old>", made.vectors()),
        safe_serialization=False,
    )
    assert read(tmp_path / "run").token == "<old>"
    write(
        tmp_path / "run" / "learned_embeds.safetensors", LearnedEmbedding("<new>", made.vectors())
    )
    assert read(tmp_path / "run").token == "<new>"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has none of learned_embeds.safetensors"):
        read(tmp_path / "empty")


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine; yields the list of requests it received."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            seen.append((self.path, self.headers.get("authorization")))
            known = self.path == "/api/models/owner/public" or seen[-1] == (
                "/api/models/owner/private",
                "Bearer hf_mine",
            )
            self.send_response(200 if known else 401)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setenv("NO_PROXY", "*")
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_asking_the_hub(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    assert hub_client.answers("models/owner/public")
    assert not hub_client.answers("models/owner/private")
    assert not hub_client.answers("models/with space/and ?")
    assert [path for path, _ in hub] == [
        "/api/models/owner/public", "/api/models/owner/private", "/api/models/with%20space/and%20%3F",
    ]  # fmt: skip
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_mine")
    assert hub_client.answers("models/owner/private"), "its owner has logged in"


def test_a_hub_that_hangs_or_is_off(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: pytest.fail("offline, but asked"))
    assert not hub_client.answers("models/owner/name")

    def hang(request, timeout):
        assert timeout <= 10
        raise TimeoutError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", hang)
    assert not hub_client.answers("models/owner/name")
