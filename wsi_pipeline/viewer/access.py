"""Who may ask: the token, the origin of writes, and what every answer says to the browser."""

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

COOKIE = "wsi_pipeline_viewer"
WRITE_HEADER, WRITE_VALUE = "x-requested-with", "wsi-pipeline"
# Of a cookie: a working day.
COOKIE_SECONDS = 12 * 3600

# The page runs its own bundle alone, with its own style sheet (build.mjs says what that took); tiles and pictures come
# from here, and blobs are its own drawings.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    reason: str


@dataclass(frozen=True)
class Access:
    """The rules of one server. The token itself is not kept, only its hash."""

    token_hash: bytes | None = None
    read_only: bool = False
    # What cookies hold: made anew at each start, so that an old cookie is worth nothing.
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def needs_token(self) -> bool:
        """Whether nothing is answered without one."""
        return self.token_hash is not None

    def is_token(self, token: str) -> bool:
        """Whether that is the token, compared in constant time."""
        return self.token_hash is not None and hmac.compare_digest(hashed(token), self.token_hash)

    def has_session(self, cookies: str) -> bool:
        """Whether a Cookie header holds this server's session."""
        if not self.needs_token:
            return True
        try:
            morsel = SimpleCookie(cookies).get(COOKIE)
        except Exception:  # whatever a cookie may hold
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self.session.encode())

    def cookie(self) -> str:
        """The Set-Cookie header of who gave the token."""
        return (
            f"{COOKIE}={self.session}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECONDS}"
            if self.needs_token
            else ""
        )

    def token_in(self, query: str) -> str | None:
        """The token of a query string."""
        return parse_qs(query).get("token", [None])[0]

    def check_write(self, method: str, headers: dict[str, str], is_login: bool = False) -> Refusal | None:
        """Why a request that changes something is refused; None where it is not."""
        if method in ("GET", "HEAD"):
            return None
        site = headers.get("sec-fetch-site")
        if site is not None and site not in ("same-origin", "none"):
            return Refusal(403, "this came from another site; open the page itself")
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            return Refusal(403, "this came from another site; open the page itself")
        if headers.get(WRITE_HEADER) != WRITE_VALUE:
            return Refusal(403, f"a change needs the header X-Requested-With: {WRITE_VALUE}")
        if self.read_only and not is_login:
            return Refusal(403, "this page is read-only (--read-only)")
        return None


def hashed(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
