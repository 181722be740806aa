"""The student behind HTTP: POST an image or a text to /predict. Needs fastapi and uvicorn.

python server.py --port 8000
curl --data-binary @photo.jpg 'http://127.0.0.1:8000/predict?top_k=3'
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from student import Student, StudentError

MAX_BYTES = 20_000_000


def create_app(bundle: Path) -> FastAPI:
    """The application; one student answers all requests, from the threads of the event loop."""
    student = Student(bundle)
    embeds = student.manifest["task"] == "embedding"  # its labels name nothing, and its vector is the answer

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        student.warm_up()
        yield
        student.close()

    app = FastAPI(title=student.manifest["name"], lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        labels = [] if embeds else student.labels
        return {"id": student.manifest.get("id"), "variant": student.variant, "labels": labels}

    @app.post("/predict")
    async def predict(request: Request, top_k: int = 1) -> dict[str, Any]:
        data = bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > MAX_BYTES:
                raise HTTPException(413, f"the body is longer than {MAX_BYTES} bytes; send a smaller image")
        try:
            answer = await student.predict_async(bytes(data), top_k=top_k)
        except StudentError as error:
            raise HTTPException(422, str(error)) from error
        top = [{"label": label, "score": score} for label, score in answer.top]
        return {
            "label": answer.label,
            "score": answer.score,
            "top": top,
            "uncertainty": answer.uncertainty,
            **({"outputs": {student.output: answer.outputs[student.output].tolist()}} if embeds else {}),
            "latency_ms": round(answer.latency_ms, 3),
        }

    return app


def main() -> None:
    """Listen until Ctrl-C; --port 0 takes a free port and prints it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, default=Path(__file__).with_name("student.edgekd"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((chosen.host, chosen.port))
    listening.listen(1024)
    print(f"listening on http://{chosen.host}:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(create_app(chosen.bundle), log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
