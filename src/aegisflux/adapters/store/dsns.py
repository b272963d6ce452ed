"""URLs of databases: the same one for another user."""

from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

SECRET = ("user", "password", "passfile")


def as_user(url: str, user: str, password: str) -> str:
    """The URL for this user."""
    return _written(urlsplit(url), f"{quote(user, safe='')}:{quote(password, safe='')}@")


def anonymous(url: str) -> str:
    """The URL without anybody's name and password."""
    return _written(urlsplit(url), "")


def _written(parts: SplitResult, who: str) -> str:
    options = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name not in SECRET])
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{who}{place}{parts.path}" + (f"?{options}" if options else "")
