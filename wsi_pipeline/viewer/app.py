"""The server: every route of the page, with its checks. What it answers is made in `service.py`."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from wsi_pipeline.base.errors import OutputError, ResultError, UsageError, WsiError
from wsi_pipeline.base.files import read_whole
from wsi_pipeline.base.text import on_one_line
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.viewer.access import HEADERS, Access, Refusal
from wsi_pipeline.viewer.append_log import RevisionConflict
from wsi_pipeline.viewer.monitoring import Metrics
from wsi_pipeline.viewer.pictures import MOST_BYTES
from wsi_pipeline.viewer.service import Viewer

log = logging.getLogger(__name__)

_T = TypeVar("_T")

# Threads that decode and colour, and how many of them one slide may hold for its pixels, and as many for its map: of a
# slide on a mount that does not answer the others notice nothing.
THREADS = 32
SLIDE_THREADS = 4
# A picture may take so long.
PREDICTION_SECONDS = 30.0
WATCH_SECONDS = 2.0
# Of a change that a page sends.
MOST_BODY = 4 * 2**20
# A tile's address changes with the result, so that it may be kept; the list and slides must be asked for anew.
KEEP = "private, max-age=604800, immutable"
ASK_AGAIN = "no-cache"
PUBLIC = ("/healthz", "/login", "/api/login")
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
NO_BUNDLE = (
    "<!doctype html><html lang=en><title>view-slides</title><p>The page's script is missing from this installation: "
    "run <code>make page</code> in a clone, or install a built wheel. The data is served under /api.</p></html>"
)


def make_app(viewer: Viewer, access: Access, hosts: frozenset[str] | None = None) -> FastAPI:
    """The application. `hosts` are the names it may be called by (against DNS rebinding); None: any."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield
        viewer.close()

    app = FastAPI(title="wsi_pipeline", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.metrics = Metrics()
    app.state.stopping = asyncio.Event()
    _add_errors(app)
    _add_checks(app, access, hosts)
    _add_pages(app, access)
    _add_slides(app, viewer, access)
    _add_people(app, viewer)
    _add_pictures(app, viewer)
    _add_operations(app, viewer)
    return app


class _PerSlide:
    """Work on slides, on threads, of which each slide holds few."""

    def __init__(self) -> None:
        self._limits: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()

    async def run(self, slide_id: str, work: Callable[[], _T]) -> _T:
        """What `work` gives."""
        limit = self._limits.setdefault(slide_id, anyio.CapacityLimiter(SLIDE_THREADS))
        async with limit:
            return await anyio.to_thread.run_sync(work)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(WsiError)
    async def _known(_: Request, error: WsiError) -> Response:
        status = 404 if isinstance(error, ResultError) else 500 if isinstance(error, OutputError) else 422
        return _failed(status, str(error))

    @app.exception_handler(RevisionConflict)
    async def _changed(_: Request, error: RevisionConflict) -> Response:
        return _failed(409, str(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _failed(422, f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return _failed(error.status_code, str(error.detail))


def _add_checks(app: FastAPI, access: Access, hosts: frozenset[str] | None) -> None:
    @app.middleware("http")
    async def _checked(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        began, path = time.perf_counter(), request.url.path
        refused = _refusal(request, access, hosts)
        if refused and refused.status == 401 and request.method == "GET" and not path.startswith("/api/"):
            response: Response = _page(401)  # which asks for the token
        elif refused:
            response = _failed(refused.status, refused.reason)
        else:
            try:
                response = await go_on(request)
            except Exception:
                log.exception("%s %s", request.method, path)
                response = _failed(500, "something went wrong in the server; its log says what")
        if access.needs_token and not refused and access.token_in(request.url.query):
            response.headers["set-cookie"] = access.cookie()
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", ASK_AGAIN)
        route = request.scope.get("route")
        name = getattr(route, "path", "other")
        app.state.metrics.requests.labels(name, str(response.status_code)).inc()
        app.state.metrics.seconds.labels(name).observe(time.perf_counter() - began)
        return response


def _refusal(request: Request, access: Access, hosts: frozenset[str] | None) -> Refusal | None:
    headers = {name.lower(): value for name, value in request.headers.items()}
    host = headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
    if hosts is not None and host not in hosts:
        return Refusal(
            403, "this page is not served under that name; open the address that the terminal shows"
        )
    is_login = request.url.path in ("/api/login", "/login")
    if refused := access.check_write(request.method, headers, is_login):
        return refused
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MOST_BYTES + 2**16:
        return Refusal(413, f"found {int(length):,} bytes, expected at most {MOST_BYTES:,}")
    path = request.url.path
    if not access.needs_token or path in PUBLIC or path.startswith("/static/"):
        return None
    token = access.token_in(request.url.query)
    if (token is not None and access.is_token(token)) or access.has_session(headers.get("cookie", "")):
        return None
    return Refusal(401, "a token is needed: that which view-slides printed, or the one of --token-file")


def _page(status: int) -> Response:
    index = files("wsi_pipeline.viewer") / "static/index.html"
    return HTMLResponse(index.read_text(encoding="utf-8") if index.is_file() else NO_BUNDLE, status)


def _add_pages(app: FastAPI, access: Access) -> None:
    static = files("wsi_pipeline.viewer") / "static"

    def page() -> Response:
        return _page(200)

    for path in ("/", "/model", "/help", "/try", "/login"):
        app.get(path, include_in_schema=False)(page)

    @app.get("/static/{name}")
    def bundle(request: Request, name: str) -> Response:
        file = static / name
        if "/" in name or "\\" in name or name.startswith(".") or not file.is_file():
            raise HTTPException(404, "there is no such file")
        kind = TYPES.get("." + name.rpartition(".")[2], "application/octet-stream")
        data = file.read_bytes()
        # Of what did not change, the browser keeps the compiled script, too.
        return _kept(request, data, hashlib.sha256(data).hexdigest()[:20], kind)

    @app.post("/api/login")
    async def login(request: Request) -> Response:
        body = await _body(request)
        token = body.get("token")
        if not isinstance(token, str) or not access.is_token(token):
            await asyncio.sleep(0.5)  # who guesses waits
            return _failed(401, "that is not the token")
        return JSONResponse({"ok": True}, headers={"set-cookie": access.cookie()})


def _add_slides(app: FastAPI, viewer: Viewer, access: Access) -> None:
    per_slide, per_map = _PerSlide(), _PerSlide()
    preparing: set[asyncio.Task[None]] = set()

    @app.get("/slides/{slide_id}", include_in_schema=False)
    async def slide_page(slide_id: str) -> Response:
        async def prepare() -> None:
            with suppress(WsiError):  # which the page hears when it asks
                await per_slide.run(slide_id, lambda: viewer.prepare(slide_id))

        # What the page's script asks for first comes while the script does.
        address = f"/api/slides/{quote(slide_id, safe='')}"
        response = _page(200)
        response.headers["Link"] = f"<{address}>; rel=preload; as=fetch; crossorigin=anonymous"
        # No task of the response, which would hold its connection meanwhile.
        task = asyncio.create_task(prepare())
        preparing.add(task)
        task.add_done_callback(preparing.discard)
        return response

    @app.get("/api/slides")
    def slides() -> dict[str, Any]:
        return viewer.listing() | {"read_only": access.read_only, "version": VERSION}

    @app.get("/api/events")
    async def events(request: Request) -> Response:
        async def changes() -> AsyncIterator[str]:
            known, stopping = "", app.state.stopping
            while not (stopping.is_set() or await request.is_disconnected()):
                state = await anyio.to_thread.run_sync(viewer.state)
                yield 'data: {"kind": "changed"}\n\n' if state != known else ": waiting\n\n"
                known = state
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), WATCH_SECONDS)

        return StreamingResponse(changes(), media_type="text/event-stream")

    @app.get("/api/slides/{slide_id}")
    async def slide(slide_id: str) -> Any:
        info = await per_slide.run(slide_id, lambda: viewer.info(slide_id))
        return _json(info | {"read_only": access.read_only})

    @app.get("/api/slides/{slide_id}/thumbnail")
    def thumbnail(slide_id: str) -> Response:
        return Response(viewer.thumbnail(slide_id), media_type="image/jpeg")

    @app.get("/api/slides/{slide_id}/tiles/{level}/{column}_{row}.jpg")
    async def tile(request: Request, slide_id: str, level: int, column: int, row: int) -> Response:
        data, tag = await per_slide.run(slide_id, lambda: viewer.tile(slide_id, level, column, row))
        return _kept(request, data, tag, "image/jpeg")

    @app.get("/api/slides/{slide_id}/layers/{layer}/{level}/{column}_{row}.png")
    async def layer_tile(
        request: Request,
        slide_id: str,
        layer: str,
        level: int,
        column: int,
        row: int,
        colormap: str | None = None,
        low: float = 0.0,
        high: float = 1.0,
        threshold: float | None = None,
        faint: bool = False,
    ) -> Response:
        from wsi_pipeline.results.figures.palette import COLOURS

        chosen = colormap or COLOURS.name
        work = partial(viewer.layer, slide_id, layer, level, column, row, chosen, low, high, threshold, faint)
        data, tag = await per_map.run(slide_id, work)
        return _kept(request, data, tag, "image/png")

    @app.get("/api/slides/{slide_id}/at")
    def at(slide_id: str, x0: float, y0: float, shown: str | None = None) -> dict[str, Any]:
        return viewer.at(slide_id, x0, y0, shown)

    @app.get("/api/slides/{slide_id}/outlines")
    def outlines(slide_id: str, threshold: float) -> Any:
        return _json(viewer.outlines(slide_id, threshold))

    @app.get("/api/slides/{slide_id}/values")
    def values(slide_id: str) -> Response:
        data, headers = viewer.values(slide_id)
        return Response(data, media_type="application/octet-stream", headers=headers)

    @app.get("/api/slides/{slide_id}/pictures/{name}")
    def picture(slide_id: str, name: str) -> Response:
        data = viewer.picture(slide_id, name)
        if name.endswith(".pdf"):
            return _download(data, "application/pdf", name)
        return Response(data, media_type="image/png")

    @app.get("/api/slides/{slide_id}/associated/{name}.jpg")
    async def associated(slide_id: str, name: str) -> Response:
        headers = {"Cache-Control": "no-store"}
        picture = await per_slide.run(slide_id, lambda: viewer.associated(slide_id, name))
        return Response(picture, media_type="image/jpeg", headers=headers)


def _add_people(app: FastAPI, viewer: Viewer) -> None:
    @app.get("/api/slides/{slide_id}/review")
    def review(slide_id: str) -> Any:
        return _json(viewer.review(slide_id).state())

    @app.post("/api/slides/{slide_id}/review")
    async def change(request: Request, slide_id: str) -> Any:
        body = await _body(request)
        return _json(await anyio.to_thread.run_sync(lambda: viewer.review(slide_id).change(body)))

    @app.get("/api/slides/{slide_id}/grading")
    def grading(slide_id: str) -> Any:
        return _json(viewer.grading(slide_id).state())

    @app.put("/api/slides/{slide_id}/grading")
    async def grade(request: Request, slide_id: str) -> Any:
        body = await _body(request)
        return _json(await anyio.to_thread.run_sync(lambda: viewer.grading(slide_id).put(body)))

    @app.get("/api/slides/{slide_id}/grading.csv")
    def grading_csv(slide_id: str) -> Response:
        return _download(viewer.grading(slide_id).csv().encode(), "text/csv", "grading.csv")

    @app.get("/api/slides/{slide_id}/grading.json")
    def grading_json(slide_id: str) -> Response:
        found = {
            "slide": viewer.opened(slide_id).result.name,
            "grading": viewer.grading(slide_id).state(),
            "review": viewer.review(slide_id).state()["features"],
            "regions": viewer.info(slide_id)["regions"],
        }
        return _download(json.dumps(found, indent=2).encode(), "application/json", "grading.json")

    @app.get("/api/slides/{slide_id}/review.geojson")
    def review_file(slide_id: str) -> Response:
        path = viewer.opened(slide_id).result.folder / "review.geojson"
        if not path.exists():
            raise UsageError("nothing of this slide was reviewed yet")
        return _download(read_whole(path), "application/geo+json", "review.geojson")


def _add_pictures(app: FastAPI, viewer: Viewer) -> None:
    @app.get("/api/model")
    def model() -> Any:
        return _json(viewer.predictor.card())

    @app.post("/api/predict")
    async def predict(
        request: Request,
        mpp: Annotated[float | None, Query(gt=0, le=1000)] = None,
        name: Annotated[str, Query(max_length=200)] = "picture",
    ) -> Any:
        data = await _bytes(request, MOST_BYTES)

        def score() -> dict[str, Any]:
            return viewer.predictor.of_picture(data, name, mpp)

        answer = await _in_time(score)
        app.state.metrics.scored(answer, viewer.predictor.reliability)
        return _json(answer)

    @app.post("/api/slides/{slide_id}/predict")
    async def predict_at(request: Request, slide_id: str) -> Any:
        body = await _body(request)
        try:
            x0, y0 = float(body["x0"]), float(body["y0"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError("expected x0 and y0, level-0 pixels") from error
        answer = await _in_time(lambda: viewer.predict_at(slide_id, x0, y0))
        app.state.metrics.scored(answer, viewer.predictor.reliability)
        return _json(answer)


def _add_operations(app: FastAPI, viewer: Viewer) -> None:
    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok", "version": VERSION}

    @app.get("/metrics")
    def metrics() -> Response:
        text = app.state.metrics.text(viewer.listing()["slides"], viewer.tiles.used_bytes)
        return Response(text, media_type="text/plain; version=0.0.4")


async def _in_time(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives on a thread. Raises HTTPException where it takes too long: it goes on unheard."""
    try:
        async with asyncio.timeout(PREDICTION_SECONDS):
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
    except TimeoutError as error:
        raise HTTPException(
            408, f"not done within {PREDICTION_SECONDS:g} s; give a smaller picture"
        ) from error


async def _bytes(request: Request, most: int) -> bytes:
    """A request's body, of at most so many bytes, whatever its headers say."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise HTTPException(413, f"found more than {most:,} bytes, expected at most so many")
    return bytes(content)


async def _body(request: Request) -> dict[str, Any]:
    data = await _bytes(request, MOST_BODY)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise UsageError("expected a JSON object")
    return value


def _json(value: Any) -> Response:
    """As JSON; numbers that JSON does not know become null."""
    return Response(json.dumps(_plain(value), allow_nan=False), media_type="application/json")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _failed(status: int, reason: str) -> Response:
    return JSONResponse({"error": on_one_line(reason)}, status)


def _kept(request: Request, data: bytes, tag: str, kind: str) -> Response:
    headers = {"ETag": f'"{tag}"', "Cache-Control": KEEP if "v" in request.query_params else ASK_AGAIN}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)


def _download(data: bytes, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type=kind, headers=headers)
