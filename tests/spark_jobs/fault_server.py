"""An OpenAI-compatible HTTP server with scripted failures; a separate program without the project's code.

    python tests/spark_jobs/fault_server.py --seconds 0.5 [--self-signed]

Prints its port, serves on the loopback interface and ends when its standard input closes. With `--self-signed` it
uses TLS with a self-signed certificate. It has the routes `/v1/chat/completions`,
`/v1/embeddings`, `/v1/models`, `/v1/files` and `/v1/batches`. A prompt's key is its last message.

POST /script   {"prompts": {key: [behaviour, ...]}, "numbers": [behaviour, ...], "default": behaviour}
               the n-th request of a key gets the key's n-th behaviour; others the next one of `numbers`, then `default`
               {"batch_end": "failed" or "expired"} says how a batch ends, "completed" otherwise; "in_progress": not yet
               {"lose_batch": true} creates the next batch, but sends no answer
               {"late_lists": 2} lists no batch for this many times
               {"refuse_batch": true} answers the next request for a batch with 403
               {"hold_batches": true} creates no batch and sends no answer
               {"failing_looks": 2} lets this many reads of a batch fail
               {"repeat_as_errors": true} lists answered requests in the error file too
GET  /seen     what was asked and answered so far, by key
POST /forget   back to the beginning

A behaviour is `{"kind": KIND, ...}`; with `"repeat": true` it stays for all that follow. Kinds and their options:
answer (text, model, seconds, usage, finish), status (status, retry_after, usage, code, param), hang, trickle (every:
seconds between two bytes), truncated (half the JSON), cut (half the body, then closed), reset, empty, refusal,
ungrounded, wrong_model.
A request for vectors is answered or fails with a status.
"""

import argparse
import asyncio
import contextlib
import datetime
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from typing import Any

MODEL = "test-model"
HANG_SECONDS = 60.0
PAID = {"answer", "refusal", "ungrounded"}  # what a client has to pay for and will not ask for again
TEXTS = {
    "empty": "",
    "refusal": "Sorry, it is not possible to describe this for viewers.",
    "ungrounded": "A tale of Zanzibar and its 17 moons, for those who collect stamps.",
}
Behaviour = dict[str, Any]


def written_text(key: str) -> str:
    """A good text about the facts of the prompt."""
    named = re.search(r"^(?:title|recent): ([^;\n]+)", key, re.MULTILINE)
    name = named[1] if named else key
    return f"{name} is a film for viewers who enjoy the drama, and it goes well with other dramas."


class Script:
    """What to do with which request, and what was done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.forget()

    def forget(self) -> None:
        self.prompts: dict[str, list[Behaviour]] = {}
        self.numbers: list[Behaviour] = []
        self.default: Behaviour = {"kind": "answer"}
        self.requests: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.last: dict[str, Any] = {}
        self.num_now = self.most_at_once = 0
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.batch_end = "completed"
        self.lose_batch = self.refuse_batch = self.hold_batches = self.repeat_as_errors = False
        self.failing_looks = self.late_lists = 0

    def load(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            setattr(self, name, value)

    def next(self, key: str) -> Behaviour:
        self.requests[key] += 1
        self.times[key].append(time.monotonic())
        queue = self.prompts.get(key) or self.numbers
        if not queue:
            return self.default
        return queue[0] if queue[0].get("repeat") else queue.pop(0)

    def seen(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "answers": self.answers,
            "times": self.times,
            "most_at_once": self.most_at_once,
            "last": self.last,
            "num_batches": len(self.batches),
            "num_files": sum(not file_id.startswith("batch-") for file_id in self.files),
        }


class Peer:
    """One connection: reads requests, writes answers, or misbehaves."""

    def __init__(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.script, self.reader, self.writer = script, reader, writer

    async def serve(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await self.reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                await self.handle(f"{method} {path}", headers, body)
        self.writer.close()

    async def handle(self, route: str, headers: dict[str, str], body: bytes) -> None:
        script = self.script
        if route == "POST /script":
            script.load(json.loads(body))
            await self.send(200, {})
        elif route == "POST /forget":
            script.forget()
            await self.send(200, {})
        elif route == "GET /seen":
            await self.send(200, script.seen())
        elif route == "GET /v1/models":
            await self.send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "tests"}]})
        elif route == "POST /v1/embeddings":
            asked = json.loads(body)
            behaviour = script.next(str(asked["input"]))
            if behaviour["kind"] == "status":
                await self.fail(asked, headers, behaviour)
            else:
                await self.send(200, embeddings(asked))
        elif route == "POST /v1/chat/completions":
            script.num_now += 1
            script.most_at_once = max(script.most_at_once, script.num_now)
            try:
                asked = json.loads(body)
                script.last = {"body": asked, "headers": headers}
                key = str(asked["messages"][-1]["content"])
                await self.complete(asked, key, headers, script.next(key))
            finally:
                script.num_now -= 1
        else:
            await self.batch_route(route, headers, body)

    async def complete(self, asked: dict[str, Any], key: str, headers: dict[str, str], behaviour: Behaviour) -> None:
        kind = behaviour["kind"]
        await asyncio.sleep(behaviour.get("seconds", self.script.seconds))
        if kind == "hang":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_SECONDS):
                    await self.reader.read(1)  # returns when the client gives up
            raise ConnectionResetError
        if kind == "reset":
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
            raise ConnectionResetError
        if kind == "status":
            await self.fail(asked, headers, behaviour)
            return
        answer = completion(asked, key, behaviour)
        payload = json.dumps(answer).encode()
        if kind == "truncated":
            await self.send(200, payload[: len(payload) // 2])
        elif kind == "cut":
            self.writer.write(response_head(200, len(payload)) + payload[: len(payload) // 2])
            await self.writer.drain()
            raise ConnectionResetError
        elif kind == "trickle":
            self.writer.write(response_head(200, len(payload)))
            for byte in payload:
                self.writer.write(bytes([byte]))
                await self.writer.drain()
                await asyncio.sleep(behaviour["every"])
        else:
            self.script.answers[key] += kind in PAID
            await self.send(200, payload)

    async def fail(self, asked: dict[str, Any], headers: dict[str, str], behaviour: Behaviour) -> None:
        """An error whose message contains the request and the key, as some servers send."""
        extra = {"retry-after": behaviour["retry_after"]} if "retry_after" in behaviour else {}
        message = f"Status {behaviour['status']} for {asked['model']}, asked with {headers.get('authorization')}"
        named = {name: behaviour.get(name) for name in ("code", "param")}
        error: dict[str, Any] = {"error": {"message": message, **named}}
        if "usage" in behaviour:
            error["usage"] = usage(*behaviour["usage"])
        await self.send(behaviour["status"], error, extra)

    async def batch_route(self, route: str, headers: dict[str, str], body: bytes) -> None:
        """A batch ends at the second look. Prompts scripted with a status are in its error file."""
        script = self.script
        if route == "POST /v1/files":
            boundary = headers["content-type"].partition("boundary=")[2].strip('"').encode()
            parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)]
            text = next(content for head, _, content in parts if b'name="file"' in head).decode().strip()
            file_id = f"file-{len(script.files)}"
            script.files[file_id] = text
            await self.send(200, file_object(file_id, len(text)))
        elif route == "POST /v1/batches" and script.hold_batches:
            await self.reader.read(1)
            raise ConnectionResetError
        elif route == "POST /v1/batches" and script.refuse_batch:
            script.refuse_batch = False
            await self.send(403, {"error": {"message": "no batches today"}})
        elif route == "POST /v1/batches":
            batch_id = f"batch-{len(script.batches)}"
            script.batches[batch_id] = {"looks": 0, "input_file_id": json.loads(body)["input_file_id"]}
            if script.lose_batch:
                script.lose_batch = False
                raise ConnectionResetError
            await self.send(200, batch_object(batch_id, script.batches[batch_id], "validating"))
        elif route.startswith("GET /v1/batches?"):
            listed = [batch_object(batch_id, batch, "in_progress") for batch_id, batch in script.batches.items()]
            if script.late_lists:
                script.late_lists -= 1
                listed = []
            await self.send(200, {"object": "list", "data": listed[::-1], "has_more": False})
        elif route.startswith("GET /v1/batches/") and script.failing_looks:
            script.failing_looks -= 1
            await self.send(503, {"error": {"message": "busy"}})
        elif (found := re.fullmatch(r"GET /v1/batches/([\w-]+)", route)) and found[1] in script.batches:
            batch = script.batches[found[1]]
            batch["looks"] += 1
            if batch["looks"] > 1 and "status" not in batch and script.batch_end != "in_progress":
                run_batch(script, found[1], batch)
                batch["status"] = script.batch_end
            await self.send(200, batch_object(found[1], batch, batch.get("status", "in_progress")))
        elif found := re.fullmatch(r"GET /v1/files/([\w-]+)/content", route):
            await self.send(200, script.files[found[1]].encode())
        else:
            await self.send(404, {"error": {"message": f"no route {route}"}})

    async def send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.writer.write(response_head(status, len(payload), headers) + payload)
        await self.writer.drain()


def response_head(status: int, length: int, headers: dict[str, str] | None = None) -> bytes:
    lines = {"content-type": "application/json", "content-length": str(length), **(headers or {})}
    return (f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())).encode() + (
        b"\r\n"
    )


def usage(num_input: int, num_output: int) -> dict[str, int]:
    return {"prompt_tokens": num_input, "completion_tokens": num_output, "total_tokens": num_input + num_output}


def completion(asked: dict[str, Any], key: str, behaviour: Behaviour) -> dict[str, Any]:
    text = behaviour.get("text", TEXTS.get(behaviour["kind"], written_text(key)))
    if asked.get("response_format", {}).get("type") == "json_schema" and behaviour["kind"] != "empty":
        text = json.dumps({"description": text})
    message = {"role": "assistant", "content": behaviour.get("raw", text)}
    model = "another-model" if behaviour["kind"] == "wrong_model" else behaviour.get("model", asked["model"])
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": behaviour.get("finish", "stop")}],
        "usage": usage(*behaviour.get("usage", (100, 20))),
    }


def embeddings(asked: dict[str, Any]) -> dict[str, Any]:
    """Eight numbers a text, always the same ones."""
    texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    vectors = [[(byte - 127.5) / 127.5 for byte in digest[:8]] for digest in digests]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"object": "list", "model": asked["model"], "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def file_object(file_id: str, size: int) -> dict[str, Any]:
    known = {"object": "file", "created_at": 1, "filename": "requests.jsonl", "purpose": "batch", "status": "processed"}
    return {"id": file_id, "bytes": size, **known}


def batch_object(batch_id: str, batch: dict[str, Any], status: str) -> dict[str, Any]:
    known = {"object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h", "created_at": 1}
    files = {name: batch.get(name) for name in ("input_file_id", "output_file_id", "error_file_id")}
    wrong = {"code": "invalid_json_line", "message": "Line 1 cannot be read; the key was sk-very-secret."}
    errors = {"object": "list", "data": [wrong]} if status == "failed" else None
    return {"id": batch_id, "status": status, "errors": errors, **known, **files}


def run_batch(script: Script, batch_id: str, batch: dict[str, Any]) -> None:
    """Write the output and error files; one that expires has time for half of its requests, one that fails for none."""
    answered, failed = [], []
    requests = [json.loads(line) for line in script.files[batch["input_file_id"]].splitlines()]
    in_time = {"completed": len(requests), "expired": len(requests) // 2, "failed": 0}[script.batch_end]
    for place, request in enumerate(requests if script.batch_end != "failed" else []):
        result = {"custom_id": request["custom_id"], "response": None, "error": None}
        if place >= in_time:
            failed.append(json.dumps(result | {"error": {"code": "batch_expired", "message": "Too late."}}))
            continue
        key = str(request["body"]["messages"][-1]["content"])
        behaviour = script.next(key)
        good = behaviour["kind"] != "status"
        script.answers[key] += behaviour["kind"] in PAID
        body = completion(request["body"], key, behaviour) if good else {"error": {"message": "failed"}}
        response = {"status_code": 200 if good else behaviour["status"], "body": body}
        (answered if good else failed).append(json.dumps(result | {"response": response}))
        if good and script.repeat_as_errors:
            failed.append(json.dumps(result | {"error": {"code": "batch_expired", "message": "Too late."}}))
    for name, lines in (("output_file_id", answered[::-1]), ("error_file_id", failed)):  # in no order, as vendors do
        if lines:
            batch[name] = f"{batch_id}-{name}"
            script.files[batch[name]] = "\n".join(lines)


def self_signed() -> ssl.SSLContext:
    """TLS with key and certificate of 127.0.0.1, made for this process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(self_signed_certificate())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def self_signed_certificate() -> bytes:
    """Key and certificate as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    encoded_key = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    return encoded_key + certificate.public_bytes(serialization.Encoding.PEM)


async def main(seconds: float, context: ssl.SSLContext | None) -> None:
    script = Script(seconds)
    server = await asyncio.start_server(lambda *peer: Peer(script, *peer).serve(), "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # with whatever still hangs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--self-signed", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, self_signed() if arguments.self_signed else None))
