"""What a status, or the lack of one, means by itself."""

from typing import NamedTuple


class Hint(NamedTuple):
    """A probable cause and what to do about it."""

    cause: str
    step: str


NO_ANSWER = [
    (
        r"refused|no connection|broke",
        Hint("Nothing listens at this host and port.", "Check that the service runs, and its port."),
    ),
    (
        r"resol|not known|no address|getaddrinfo",
        Hint("The host's name leads nowhere.", "Check its spelling, VPN and DNS."),
    ),
    (
        r"certificate|ssl|tls",
        Hint("The TLS handshake failed.", "Check `https` or `http`, the port, and the certificate's date and name."),
    ),
    (
        r"timed? ?out|did not answer",
        Hint(
            "The server is too slow, or a firewall drops the packets.",
            "Try a cheap path such as /health, then look at the server's own log.",
        ),
    ),
    (
        r"too often|circuit",
        Hint(
            "Earlier calls failed, so this one was not even sent.",
            "Wait as long as the error says; meanwhile find out why they failed.",
        ),
    ),
    (
        r"not an allowed host|not a public",
        Hint(
            "This server is not allowed to call that host.", "Add it to the setting of allowed hosts, if it should be."
        ),
    ),
]

BY_STATUS = {
    406: Hint("The server has nothing of the type that `Accept` asks for.", "Send `Accept: */*`, and see what comes."),
    408: Hint("The server waited for the request to end.", "Send it faster, or smaller; look for a proxy in between."),
    409: Hint("The resource is in a state that does not allow this, or exists already.", "Read it first; then decide."),
    411: Hint("The server wants a Content-Length.", "Send the body as a whole, not in chunks."),
    412: Hint(
        "A precondition such as If-Match does not hold: somebody else changed the resource.",
        "Read it again, and use its new ETag.",
    ),
    413: Hint(
        "The body is too large.", "Send less at once; look for a limit of the proxy in front (nginx: 1 MB by default)."
    ),
    414: Hint("The URL is too long.", "Send the parameters in a body."),
    415: Hint(
        "The server does not take this Content-Type.",
        "Send `Content-Type: application/json`, or what the documentation says.",
    ),
    431: Hint("The headers are too large, often because of cookies.", "Send fewer."),
    500: Hint(
        "The server failed while it worked on the call: a defect there, perhaps brought out by this input.",
        "Look into the server's log for the time of the call; then try the smallest input that still fails.",
    ),
    501: Hint("The server cannot do this at all.", "Check the method and the path."),
    502: Hint(
        "A proxy got no valid answer from the service behind it: it is down, restarting or crashing.",
        "Look whether the service behind the proxy runs.",
    ),
    503: Hint(
        "The service is overloaded, starting or in maintenance.", "Wait, then try again; look at its health check."
    ),
    504: Hint(
        "A proxy waited too long for the service behind it.",
        "Look for what is slow there: the database, another API, a lock.",
    ),
}
