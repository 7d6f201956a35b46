"""A hub on this machine: folders served as the Hugging Face hub serves repositories."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does; `hub` sets what it serves."""

    root: Path
    asked: list[str]
    breaks: str  # the ending of a file in whose middle the connection breaks
    left: list[int]  # how many times it does, as its one element

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET" and self.breaks and self.path.endswith(self.breaks) and self.left[0]:
            self.left[0] -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command == "GET":
            self.wfile.write(body)

    def give(self, content: bytes, wanted: str) -> None:
        facts = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": COMMIT}
        if self.command != "GET" or not wanted:
            return self.answer(200, content, **facts)
        first = int(wanted.removeprefix("bytes=").rstrip("-"))
        place = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self.answer(206, content[first:], Content_Range=place, **facts)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append(f"{self.path} {wanted}".strip())
        words = self.path.partition("?")[0].strip("/").split("/")
        repository = words[2:4] if words[:2] == ["api", "models"] else words[:2]
        folder = self.root.joinpath(*repository)
        if repository[1:] == ["gated"]:
            return self.answer(403, b"", X_Error_Code="GatedRepo", X_Error_Message="ask for access")
        if not folder.is_dir():
            return self.answer(401, b"", X_Error_Code="RepoNotFound", X_Error_Message="not found")
        if words[0] == "api" and "tree" in words:
            entries = [
                {
                    "type": "file",
                    "path": str(f.relative_to(folder)),
                    "size": f.stat().st_size,
                    "oid": "0" * 40,
                }
                for f in sorted(folder.rglob("*"))
                if f.is_file()
            ]
            return self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        if words[0] == "api":
            files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
            facts = {
                "id": "/".join(repository), "sha": COMMIT, "private": False, "tags": [], "downloads": 0,
                "likes": 0, "siblings": [{"rfilename": file} for file in files],
            }  # fmt: skip
            return self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")
        file = folder.joinpath(*words[4:])
        if not file.is_file():
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        content = file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.command == "GET" and wanted:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            place = f"bytes {first}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[first:], ETag=tag, X_Repo_Commit=COMMIT, Content_Range=place)
        return self.answer(200, content, ETag=tag, X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@contextmanager
def hub(root: Path, *, breaks: str = "", times: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Serve every `root/owner/name`; yields the endpoint and the paths that were asked for, with ranges.

    A repository called "gated" answers as one whose terms were not accepted. breaks: the ending of a file
    in whose middle the connection breaks, so many times.
    """
    asked: list[str] = []
    serving = {"root": root, "asked": asked, "breaks": breaks, "left": [times]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), serving))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
