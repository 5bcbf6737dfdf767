"""gs:// from end to end: uploads, conditional writes, parts and lists, held against a small server of its JSON API."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

import kamera_jax as kj
from kamera_jax.errors import LibraryDiskError, LibraryReadOnlyError, PublishedMeanwhileError
from kamera_jax.library import publishing
from tests.eight_devices import on_devices
from tests.kamera_jax.library.made import bits, chunk, key_of, patch
from tests.kamera_jax.library.served import QUICK


class Bucket(BaseHTTPRequestHandler):
    """Objects with generations, as https://cloud.google.com/storage/docs/json_api says of insert, get, list, delete."""

    protocol_version = "HTTP/1.1"
    objects: dict = {}
    lock = threading.Lock()
    refuses = False
    read_only = False
    count = 0

    def log_message(self, *_):
        pass

    def answer(self, status, payload=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def asked(self):
        url = urlsplit(self.path)
        return unquote(re.fullmatch(r".*/b/bucket/o/?(.*)", url.path)[1]), dict(parse_qsl(url.query))

    def do_GET(self):
        name, query = self.asked()
        if self.refuses:
            self.answer(403)
        elif not name:
            found = [{"name": each} for each in sorted(self.objects) if each.startswith(query.get("prefix", ""))]
            self.answer(200, json.dumps({"items": found}).encode())
        elif name not in self.objects:
            self.answer(404)
        else:
            generation, payload = self.objects[name]
            if (part := self.headers.get("Range")) is None:
                self.answer(200, payload, x_goog_generation=str(generation))
                return
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", part).groups())
            of = f"bytes {first}-{min(last, len(payload) - 1)}/{len(payload)}"
            self.answer(206, payload[first : last + 1], x_goog_generation=str(generation), Content_Range=of)

    def do_POST(self):
        _, query = self.asked()
        payload = self.rfile.read(int(self.headers["Content-Length"]))  # else it is taken for the next request
        with self.lock:
            now = self.objects.get(query["name"], (0,))[0]
            refused = self.refuses or self.read_only
            if refused or int(query.get("ifGenerationMatch", now)) != now:
                self.answer(403 if refused else 412)
                return
            Bucket.count += 1
            self.objects[query["name"]] = (Bucket.count, payload)
            self.answer(200, json.dumps({"name": query["name"], "generation": str(Bucket.count)}).encode())

    def do_DELETE(self):
        with self.lock:
            self.answer(204 if self.objects.pop(self.asked()[0], None) else 404)


def story(folder, monkeypatch):
    """See `test_a_bucket`."""
    url = "gs://bucket/pages"
    lib = kj.ChunkLibrary.open(folder / "lib", mode="a")
    lib.put_many([chunk(0), chunk(1), patch(0)])
    done = lib.publish(url)
    assert done.uploaded == len(Bucket.objects) - 1 and all(name.startswith("pages/") for name in Bucket.objects)
    reader = kj.ChunkLibrary.open(url)
    assert [bits(each) for each in reader.get_many([key_of(1), key_of(0)])] == [bits(chunk(1)), bits(chunk(0))]
    assert bits(reader.get_patch(patch(0).key)) == bits(patch(0)) and reader.verify().ok
    lib.put(chunk(2))
    more = lib.publish(url, prune=True)
    assert more.known == done.uploaded - 1 and more.removed == 1 and kj.ChunkLibrary.open(url).has(key_of(2))
    point = publishing._point

    def second(objects, payload, seen):
        monkeypatch.setattr(publishing, "_point", point)
        lib.delete(key_of(1))
        lib.publish(url)  # by somebody else, in the meantime
        return point(objects, payload, seen)

    lib.put(chunk(3))
    monkeypatch.setattr(publishing, "_point", second)
    with pytest.raises(PublishedMeanwhileError, match="another published to gs://bucket/pages/"):
        lib.publish(url)
    there = kj.ChunkLibrary.open(url)
    assert set(there.keys()) == {key_of(0), key_of(2), key_of(3)} and there.verify().ok
    Bucket.refuses = True
    with pytest.raises(LibraryDiskError, match="refuses.*GOOGLE_APPLICATION_CREDENTIALS"):
        kj.ChunkLibrary.open(url)
    with pytest.raises(LibraryDiskError, match="refuses"):
        lib.publish(url)
    Bucket.refuses = False
    lib.put(chunk(4))
    Bucket.read_only = True
    with pytest.raises(LibraryReadOnlyError, match="refuses.*to be written.*GOOGLE_APPLICATION_CREDENTIALS"):
        lib.publish(url)
    assert set(kj.ChunkLibrary.open(url).keys()) == set(there.keys())


def run(folder):
    """`story` beside the server, which stands in the place of Google's."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "a token")
        monkeypatch.setattr("kamera_jax.library.objects.RETRIES", QUICK)
        story(folder, monkeypatch)
    server.shutdown()
    server.server_close()


def test_a_bucket(tmp_path):
    """In a process of its own: TensorStore reads once in a process where Google's server is, and by which token."""
    program = f"import pathlib, {__name__} as bucket\nbucket.run(pathlib.Path({str(tmp_path)!r}))"
    on_devices(1, program)
